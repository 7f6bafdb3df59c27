"""`shmkv-admin clients`: which processes use a store, and what they did."""

from __future__ import annotations

from typing import Any

import click

from shmkv.admin.session import Session, with_json

COMMAND_LIMIT = 100
COUNTERS = ("gets", "sets", "deletes", "lock_waits", "log_waits")


@click.command("clients")
@with_json
@click.pass_obj
def command(session: Session) -> None:
    """List the processes that hold a slot in the store, with the counters of their living threads."""
    with session.arena() as arena:
        records = by_process(arena.slots())
    columns = ("pid", "threads", "command", *COUNTERS, "")
    rows = [
        [
            record["pid"],
            record["threads"],
            record["command"],
            *(record[counter] for counter in COUNTERS),
            "" if record["alive"] else "dead",
        ]
        for record in records
    ]
    session.show_rows(f"clients of {session.name}", columns, rows, records)


def by_process(slots: list[dict[str, int]]) -> list[dict[str, Any]]:
    """One record for each process, the busiest first."""
    found: dict[int, dict[str, Any]] = {}
    for slot in slots:
        pid = slot["pid"]
        if pid not in found:
            found[pid] = {
                "pid": pid,
                "threads": 0,
                "command": command_of(pid),
                "alive": False,
                **dict.fromkeys(COUNTERS, 0),
            }
        record = found[pid]
        record["threads"] += 1
        record["alive"] = record["alive"] or bool(slot["alive"])
        for counter in COUNTERS:
            record[counter] += slot.get(counter, 0)
    return sorted(found.values(), key=lambda record: -(record["gets"] + record["sets"] + record["deletes"]))


def command_of(pid: int) -> str:
    """Command line of a process, as far as one may know it; the JSON that children of shmkv get is left out."""
    import psutil

    try:
        words = psutil.Process(pid).cmdline() or [psutil.Process(pid).name()]
    except psutil.Error:
        return "?"
    text = " ".join(word for word in words if not word.startswith("{"))
    return text if len(text) <= COMMAND_LIMIT else text[: COMMAND_LIMIT - 3] + "..."
