"""`shmkv-admin list`: the stores of this machine."""

from __future__ import annotations

import os
from typing import Any

import click

from shmkv import errors, paths
from shmkv.admin.session import Session, with_json
from shmkv.config import format_size


@click.command("list")
@with_json
@click.pass_obj
def command(session: Session) -> None:
    """List all stores that are in shared memory, running or not."""
    records = [describe(session, name) for name in paths.store_names()]
    columns = ("name", "state", "supervisor", "items", "size", "user")
    rows = [
        [
            each["name"],
            each["state"],
            each["supervisor_pid"] or "-",
            each["items"],
            format_size(each["size_bytes"]),
            each["user"],
        ]
        for each in records
    ]
    session.show_rows("stores", columns, rows, records)


def describe(session: Session, name: str) -> dict[str, Any]:
    """State of one store, also of one that can't be opened."""
    record: dict[str, Any] = {
        "name": name,
        "state": "?",
        "supervisor_pid": 0,
        "items": "?",
        "size_bytes": 0,
        "user": "?",
    }
    try:
        status = os.stat(paths.object_path(name))
        record.update(size_bytes=status.st_size, user=user_name(status.st_uid))
        with session.arena(name) as arena:
            info, stats = arena.info(), arena.stats()
    except (errors.ShmkvError, OSError) as error:
        return {**record, "state": "gone" if isinstance(error, FileNotFoundError) else f"not readable: {error}"}
    supervisor = info["supervisor_pid"] if os.path.exists(f"/proc/{info['supervisor_pid']}") else 0
    return {**record, "state": info["state"], "supervisor_pid": supervisor, "items": stats["items"]}


def user_name(user: int) -> str:
    """Name of a user, or its number."""
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
