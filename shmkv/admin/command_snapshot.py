"""`shmkv-admin snapshot`: write a snapshot of a running store into its data directory."""

from __future__ import annotations

from dataclasses import asdict

import click

from shmkv.admin.session import Session, with_json
from shmkv.config import format_size


@click.command("snapshot")
@with_json
@click.pass_obj
def command(session: Session) -> None:
    """Write a snapshot now, which makes the next start short, and wait until it counts. Writers go on meanwhile."""
    from shmkv.admin.progress import progress
    from shmkv.backup import snapshot_store

    with progress("snapshot", shown=not session.json) as advance:
        info = snapshot_store(session.name, progress=advance.set)
    if session.json:
        session.show_json(asdict(info))
    else:
        print(
            f"snapshot {info.generation} of {session.name}: {info.entries:,} entries, "
            f"{format_size(info.size_bytes)} in {info.seconds:.2f} s, up to LSN {info.end_lsn}"
        )
