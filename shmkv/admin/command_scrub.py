"""`shmkv-admin scrub`: read what a start would need, before it is needed, while the store runs."""

from __future__ import annotations

from typing import Any

import click

from shmkv.admin.progress import progress
from shmkv.admin.session import Session, with_json
from shmkv.config import format_size


@click.command("scrub")
@with_json
@click.pass_obj
def command(session: Session) -> None:
    """Read snapshots and log back from the disk and check them; what is damaged is replaced by new snapshots.

    The shared memory still holds everything, so rot that is found now costs nothing. Exit code 1 if there was some.
    """
    result = _scrub(session.name, shown=not session.json)
    problems = result["problems"]
    if session.json:
        session.show_json(result)
    else:
        print(f"{session.name}: {format_size(result['checked_bytes'])} checked, {_count(problems)}")
        for problem in problems:
            print(f"  {problem}")
    if problems:
        raise click.ClickException(
            f"{_count(problems)}; {result['snapshots']} new snapshots take the place of what is damaged: "
            "look at the disk, and keep a backup elsewhere"
        )


def _count(problems: list[str]) -> str:
    return f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"


def _scrub(name: str, *, shown: bool) -> dict[str, Any]:
    from shmkv.backup import control_of, run_job

    with progress("checking", shown=shown) as bar:
        return run_job(control_of(name), {"kind": "scrub"}, None, bar.set, failed="the check did not end")
