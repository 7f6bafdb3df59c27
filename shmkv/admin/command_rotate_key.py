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
    from shmkv.backup import control_of, run_job

    request = {"kind": "rotate_key", "new": new}
    with progress("rotating the key") as bar:
        return run_job(control_of(name), request, None, bar.set, failed="the key was not rotated")
