"""`shmkv-admin shutdown`: end a store cleanly."""

from __future__ import annotations

import click

from shmkv import errors
from shmkv.admin.session import Session, with_json

STOP_TIMEOUT_S = 120.0


@click.command("shutdown")
@with_json
@click.pass_obj
def command(session: Session) -> None:
    """Stop a store as SIGTERM does, and wait until it has ended: everything is in the log then."""
    from shmkv.supervisor.control import ask

    path = session.control()
    if path is None:
        with session.arena() as arena:
            pid = arena.info()["supervisor_pid"]
        raise errors.StoreUnavailable(
            f"the supervisor of {session.name!r} does not answer (it was process {pid}); start it again, or "
            f"remove what is left: shmkv-admin destroy"
        )
    answer = ask(path, {"do": "shutdown"}, STOP_TIMEOUT_S, until_end=True)
    if session.json:
        session.show_json({"name": session.name, "pid": answer["pid"], "ended": True})
    else:
        print(f"store {session.name} has ended")
