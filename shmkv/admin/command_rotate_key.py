"""`shmkv-admin rotate-key`: everything on disk goes over to the key that is now the first one."""

from __future__ import annotations

from typing import Any

import click

from shmkv.admin.progress import progress
from shmkv.admin.session import Session, with_json


@click.command("rotate-key")
@click.option("--new", is_flag=True, help="make a new key first, in front of those in the key file")
@with_json
@click.pass_obj
def command(session: Session, new: bool) -> None:
    """Read the store's keys again, and rewrite what is on disk with the first of them.

    The store must run, and goes on meanwhile: a log file is begun and up to three snapshots are taken. Old keys stay
    in their source until this command says that none is in use; backups and an archive of the log need theirs longer.
    """
    result = _rotate(session.name, new)
    old = result["old_key_ids_in_use"]
    shown = {
        "new files use key": result["key_id"],
        "old keys in use": ", ".join(old) or "none: they can go, when no backup and no archived log needs them",
        "snapshots taken": str(result["snapshots"]),
    }
    if result["warning"]:
        shown["warning"] = result["warning"]
    session.show_record(f"keys of {session.name}", result, shown)
    if old:
        raise click.ClickException(f"files with old keys are left ({', '.join(old)}); run it again in a while")


def _rotate(name: str, new: bool) -> dict[str, Any]:
    from shmkv.backup import control_of
    from shmkv.supervisor.control import error_of, follow

    with progress("rotating the key") as bar:
        for event in follow(control_of(name), {"kind": "rotate_key", "new": new}):
            if event.get("state") == "failed":
                raise error_of(str(event.get("error_kind")), f"the key was not rotated: {event.get('error')}")
            if event.get("state") == "done":
                return dict(event["result"])
            bar.set(int(event.get("done_bytes") or 0), int(event.get("of_bytes") or 0))
    raise AssertionError("follow ends with the last event or an exception")
