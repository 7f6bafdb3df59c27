"""`shmkv-admin stats`: how full a store is, how busy, how far its log is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from shmkv.admin.session import Session, with_json
from shmkv.config import format_size

if TYPE_CHECKING:
    from shmkv.stats import Service


@click.command("stats")
@with_json
@click.pass_obj
def command(session: Session) -> None:
    """Show memory, log, snapshots and counters of a store. Without a supervisor, those of the shared memory only."""
    from shmkv.stats import service_status

    with session.arena() as arena:
        info, stats = arena.info(), arena.stats()
    service = service_status(session.name) if info["has_log"] else None
    record = {**{key: value for key, value in info.items() if not isinstance(value, bytes)}, **stats}
    if service is not None:
        known = {field: getattr(service, field) for field in service.__slots__}
        record["service"] = {**known, "recovery": dict(service.recovery), "jobs": [dict(job) for job in service.jobs]}
    shown = describe(info, stats)
    session.show_record(f"store {session.name}", record, {**shown, **describe_service(service)} if service else shown)


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


def describe_service(service: Service) -> dict[str, str]:
    """What the supervisor knows of snapshots, of the last start, and of what runs."""
    age_s = service.snapshot_age_s
    shown = {
        "snapshot": "none yet" if age_s is None else
        f"{format_size(service.snapshot_bytes)}, {age_s:,.0f} s old, up to LSN {service.snapshot_lsn}",
    }  # fmt: skip
    if service.log_error:
        shown["log error"] = service.log_error
    recovery = service.recovery
    if "seconds" in recovery:
        kind = "warm" if recovery.get("warm") else "cold"
        shown["last start"] = f"{kind}, {recovery.get('records', 0):,} records in {recovery['seconds']:.2f} s"
    running = [job for job in service.jobs if job.get("state") == "running"]
    if running:
        shown["running"] = ", ".join(job_text(job) for job in running)
    return shown


def job_text(job: Mapping[str, Any]) -> str:
    """Kind of a job, and how far it is."""
    done, of = int(job.get("done_bytes") or 0), int(job.get("of_bytes") or 0)
    return f"{job['kind']}, {done / of:.0%}" if of else str(job["kind"])
