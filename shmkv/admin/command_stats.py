"""`shmkv-admin stats`: how full a store is, how busy, how far its log is."""

from __future__ import annotations

import os
from typing import Any

import click

from shmkv.admin.session import Session, with_json
from shmkv.config import format_size


@click.command("stats")
@with_json
@click.pass_obj
def command(session: Session) -> None:
    """Show memory, log and counters of a store. Works without a supervisor, too."""
    with session.arena() as arena:
        info, stats = arena.info(), arena.stats()
    record = {**{key: value for key, value in info.items() if not isinstance(value, bytes)}, **stats}
    session.show_record(f"store {session.name}", record, describe(info, stats))


def describe(info: dict[str, Any], stats: dict[str, int]) -> dict[str, str]:
    """The numbers that people ask for, with units."""
    reads, hits = stats.get("gets", 0), stats.get("hits", 0)
    pages = max(1, stats.get("page_limit", 1))
    used_share = 1 - stats.get("pages_free", 0) / pages
    supervisor = info["supervisor_pid"]
    alive = supervisor and os.path.exists(f"/proc/{supervisor}")
    shown = {
        "state": info["state"] + (", condemned" if info["condemned"] else ""),
        "supervisor": f"process {supervisor}" if alive else "none: reads go on, writes do until the lag limit",
        "items": f"{stats['items']:,}",
        "memory": f"{format_size(info['size_bytes'])}, {used_share:.1%} of its pages in use",
        "in entries": format_size(stats.get("used_bytes", 0)),
        "reads": f"{reads:,}" + (f", {hits / reads:.1%} found" if reads else ""),
        "writes": f"{stats.get('sets', 0):,} set, {stats.get('deletes', 0):,} deleted",
        "waits": f"{stats.get('lock_waits', 0):,} for a lock, {stats.get('log_waits', 0):,} for the log",
        "repairs": f"{stats.get('repairs', 0):,}",
        "threads": f"{stats.get('slots_used', 0):,} hold a slot",
    }
    if not info["has_log"]:
        return {**shown, "log": "none: memory only"}
    return {
        **shown,
        "log": f"{info['log_state']}, durability {info['durability']}",
        "not yet on disk": f"{format_size(stats['lag_bytes'])}, {stats['lag_ms'] / 1000:.2f} s old",
        "incarnation": f"{info['incarnation']}, adopted {info['epoch']} times",
    }
