"""`shmkv-admin restore FILE`: make a store what a backup holds, whether it runs, is stopped, or does not exist yet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from shmkv import config, paths
from shmkv.admin.session import Session, with_json

if TYPE_CHECKING:
    from shmkv.backup import Progress, RestoreInfo


@click.command("restore")
@click.argument("file", metavar="FILE|URL")
@click.option("--to-lsn", type=click.IntRange(min=0), metavar="N", help="go on along the log, up to this LSN")
@click.option("--to-time", metavar="TIME", help="go on along the log, up to this time: ISO 8601 or Unix seconds")
@click.option("--log-dir", "log_dirs", multiple=True, metavar="DIR", help="where that log is; may be given repeatedly")
@click.option("--force", is_flag=True, help="replace the data that the store holds")
@click.option("--config", "config_file", metavar="FILE", help="settings of a store that does not run")
@click.option("--data-dir", metavar="DIR", help="the same: its data directory")
@click.option("--memory", metavar="SIZE", help="the same: its memory, so that it is known to fit")
@click.option("--key-file", metavar="FILE", help="the same: its encryption key")
@with_json
@click.pass_obj
def command(
    session: Session, /, file: str, to_lsn: int | None, to_time: str | None, log_dirs: tuple[str, ...], force: bool,
    config_file: str | None, **options: Any,
) -> None:  # fmt: skip
    """Replace everything in the store by what FILE holds, a backup or a snapshot; all of it or nothing.

    A store that runs, or holds data, is replaced only with --force. One that runs begins anew with the restored data,
    and programs that use it go on by themselves. Without --log-dir the log is looked for in the store's own data
    directory and archive_dir.
    """
    from shmkv.admin.progress import progress
    from shmkv.backup import wall_ms_of

    if session.given_name is None:
        raise click.UsageError("which store? name it with -s NAME; it need not exist yet")
    if to_lsn is not None and to_time is not None:
        raise click.UsageError("--to-lsn and --to-time exclude each other")
    try:
        to_wall_ms = None if to_time is None else wall_ms_of(to_time)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--to-time") from None
    folders = tuple(os.path.abspath(folder) for folder in log_dirs)
    control = session.control()
    with progress("restore", shown=not session.json) as advance:
        if control is not None:
            refuse_unforced(session, control, force, [name for name, value in options.items() if value is not None])
            info = over_running(session.name, file, to_lsn, to_wall_ms, folders, advance.set)
            directory = None
        else:
            info, directory = into_stopped(
                session.name, file, to_lsn, to_wall_ms, folders, advance.set, force=force, config_file=config_file,
                options={name: value for name, value in options.items() if value is not None},
            )  # fmt: skip
    show(session, info, directory)


def refuse_unforced(session: Session, control: str, force: bool, options: Sequence[str]) -> None:
    """A running store is replaced only by force, and keeps its settings."""
    if options:
        raise click.UsageError(f"store {session.name!r} runs with its own settings: leave {', '.join(options)} out")
    if not force:
        with session.arena() as arena:
            items = arena.stats()["items"]
        raise click.ClickException(
            f"store {session.name!r} runs and holds {items:,} keys; --force replaces all of them (the programs that "
            f"use it go on with the restored data)"
        )


def over_running(
    name: str, file: str, to_lsn: int | None, to_wall_ms: int | None, folders: tuple[str, ...], advance: Progress
) -> RestoreInfo:
    """Through the supervisor, which begins anew with the restored data."""
    from shmkv.backup import restore_store

    to_time = None if to_wall_ms is None else to_wall_ms / 1000
    return restore_store(name, file, to_lsn=to_lsn, to_time=to_time, log_dirs=folders, progress=advance)


def into_stopped(
    name: str, file: str, to_lsn: int | None, to_wall_ms: int | None, folders: tuple[str, ...], advance: Progress,
    *, force: bool, config_file: str | None, options: dict[str, Any],
) -> tuple[RestoreInfo, str]:  # fmt: skip
    """Into the data directory that the next start will take; also its path."""
    from shmkv.backup import RESTORE_DIR, fetched, restore_info
    from shmkv.supervisor.arena import Refused
    from shmkv.supervisor.opening import plan_of
    from shmkv.supervisor.places import HeldPlaces, Places
    from shmkv.wal.cipher import Keyring, KeySettings
    from shmkv.wal.files import Files
    from shmkv.wal.offline import Directory, restore_stopped
    from shmkv.wal.restore_log import Goal

    settings = config.load(name, options=options, file=config_file)
    if settings.memory_only:
        raise click.ClickException(f"the settings of {name!r} say memory_only: there is no directory to restore into")
    path = os.path.abspath(settings.data_dir or paths.data_dir(name))
    keys = KeySettings(settings.key_file, settings.key_environment, settings.key_command, settings.key_credential)
    held = HeldPlaces(Places(path, None))
    try:
        held.take()
        tail_lsn = tail_of_arena(name, force)
        directory = Directory(
            path, plan_of(settings), Keyring.load(keys), settings.snapshot_compression, settings.archive_dir
        )
        with fetched(file, os.path.join(path, RESTORE_DIR), advance) as local:
            told = restore_stopped(
                Files(), directory, local, Goal(to_lsn, to_wall_ms), folders, force=force, arena_tail_lsn=tail_lsn,
                progress=advance,
            )  # fmt: skip
    except Refused as refusal:
        raise click.ClickException(refusal.reason) from None
    finally:
        held.give_back()
    return restore_info(file, told), path


def tail_of_arena(name: str, force: bool) -> int:
    """Where the log of an arena ends that outlived its supervisor, 0 if there is none; it is data, too."""
    from shmkv import errors
    from shmkv.admin.session import open_object
    from shmkv.segment import _core

    if paths.object_inode(name) is None:
        return 0
    if not force:
        raise click.ClickException(
            f"the shared memory of {name!r} is still there, though no supervisor runs: it may hold what is not in its "
            f"log yet. Start the store and stop it cleanly, or give its data up with --force"
        )
    fd = open_object(name, read_only=True)
    try:
        return int(_core.read_header(fd)["tail"])
    except errors.CorruptData:
        return 0
    finally:
        os.close(fd)


def show(session: Session, info: RestoreInfo, directory: str | None) -> None:
    """What the store holds now, and what to do next."""
    if session.json:
        session.show_json({"name": session.name, "data_dir": directory, **asdict(info)})
        return
    for warning in info.warnings:
        click.echo(f"warning: {warning}", err=True)
    moment = info.time.isoformat(timespec="milliseconds")
    then = "it serves that now" if directory is None else f"in {directory}; start it: shmkv-supervisor {session.name}"
    print(
        f"restored {session.name} from {info.path}: {info.entries:,} entries, all up to LSN {info.lsn} (not before "
        f"{moment}) in {info.seconds:.2f} s; {then}"
    )
