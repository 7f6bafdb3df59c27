"""`shmkv-admin backup FILE`: the whole store in one verified file, while it runs."""

from __future__ import annotations

from dataclasses import asdict

import click

from shmkv.admin.session import Session, with_json
from shmkv.config import format_size


@click.command("backup")
@click.argument("file", metavar="FILE|URL")
@click.option("--compression", type=click.Choice(["none", "zstd"]), help="default: as the store's snapshots")
@with_json
@click.pass_obj
def command(session: Session, file: str, compression: str | None) -> None:
    """Write all data, as of one moment, into FILE (or to s3://..., sftp://... with shmkv[remote]).

    Writers go on meanwhile. FILE appears when it is whole and was read back; a backup of that name is replaced then,
    any other file is not. It is encrypted if the store is. Check one at any time: shmkv-admin verify FILE.
    """
    from shmkv.admin.progress import progress
    from shmkv.backup import back_up_store

    with progress("backup", shown=not session.json) as advance:
        info = back_up_store(session.name, file, compression=compression, progress=advance.set)
    if session.json:
        session.show_json(asdict(info))
    else:
        print(
            f"{info.path}: {info.entries:,} entries of {info.name}, {format_size(info.size_bytes)} in "
            f"{info.seconds:.2f} s; the state at LSN {info.end_lsn}, {info.time.isoformat(timespec='milliseconds')}"
        )
