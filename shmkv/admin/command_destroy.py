"""`shmkv-admin destroy`: remove a store's shared memory, and its data if asked."""

from __future__ import annotations

import os
import shutil

import click

from shmkv import config, errors, paths
from shmkv.admin.command_shutdown import STOP_TIMEOUT_S
from shmkv.admin.data import TRACES, is_data_dir
from shmkv.admin.session import Session, with_json


@click.command("destroy")
@click.option("--data", is_flag=True, help="remove the data directory, too: nothing is left")
@click.option("--data-dir", metavar="DIR", help="where it is, if not where the settings say")
@click.option("--yes", is_flag=True, help="do not ask")
@with_json
@click.pass_obj
def command(session: Session, data: bool, data_dir: str | None, yes: bool) -> None:
    """End a store and remove its shared memory; a memory-only store is gone then."""
    from shmkv.supervisor.control import ask
    from shmkv.supervisor.embedded import remove_arena

    name = session.name
    control = session.control()
    directory = find_data(name, data_dir, control) if data else None
    if paths.object_inode(name) is None and directory is None:
        raise errors.StoreNotFound(
            f"store {name!r} has no shared memory; those that have: {', '.join(paths.store_names()) or 'none'}"
        )
    what = f"the shared memory of {name!r}" + (f" and all data in {directory}" if directory else "")
    session.confirm(f"Remove {what}?", yes=yes)
    if control is not None:
        ask(control, {"do": "shutdown"}, STOP_TIMEOUT_S, until_end=True)
    remove_arena(name)
    if directory is not None:
        remove_data(directory)
    if session.json:
        session.show_json({"name": name, "removed": True, "data_dir": directory})
    else:
        print(f"removed {what}")


def remove_data(directory: str) -> None:
    """Remove the directory under its lock, so that no supervisor can start in it meanwhile."""
    import filelock

    try:
        with filelock.FileLock(os.path.join(directory, "lock"), timeout=0):
            shutil.rmtree(directory)
    except filelock.Timeout as busy:
        raise click.ClickException(
            f"{directory} is in use: another supervisor holds its lock; stop that store first. Nothing was removed"
        ) from busy


def find_data(name: str, given: str | None, control: str | None) -> str:
    """The data directory, checked to be one; CorruptData is not raised for a wrong guess, a plain error is."""
    from shmkv.supervisor.control import ask

    directory = given
    if directory is None and control is not None:
        directory = ask(control, {"do": "status"})["data_dir"]
        if directory is None:
            raise click.ClickException(f"store {name!r} is memory only: it has no data; leave --data out")
    if directory is None:
        directory = config.load(name).data_dir or paths.data_dir(name)
    directory = os.path.abspath(directory)
    # Anything else is not ours to delete.
    if not is_data_dir(directory):
        raise click.ClickException(
            f"{directory} does not look like a data directory (no {' or '.join(TRACES)}); name it with --data-dir"
        )
    return directory
