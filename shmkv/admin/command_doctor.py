"""`shmkv-admin doctor`: what is wrong with a store, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from shmkv import paths
from shmkv.admin.session import Session, with_json
from shmkv.config import format_size

FULL_SHARE = 0.9
FREE_SHM_BYTES = 64 << 20


class Finding(NamedTuple):
    """One check: `remedy` is empty when all is well."""

    check: str
    seen: str
    remedy: str = ""


@click.command("doctor")
@click.option("--audit", is_flag=True, help="walk through every entry, locking one stripe after another")
@with_json
@click.pass_obj
def command(session: Session, audit: bool) -> None:
    """Check a store and its surroundings. Exit code 1 when something needs attention."""
    name = session.name
    with session.arena(read_only=not audit) as arena:
        info, stats, slots = arena.info(), arena.stats(), arena.slots()
        faults = arena.audit() if audit else None
    findings = [
        *check_arena(info, faults),
        *check_processes(name, info, slots),
        *check_space(info, stats),
        *check_machine(name),
    ]
    records = [{**finding._asdict(), "ok": not finding.remedy} for finding in findings]
    rows = [["ok" if not finding.remedy else "!!", *finding] for finding in findings]
    session.show_rows(f"doctor: {name}", ("", "check", "seen", "what to do"), rows, records)
    bad = sum(1 for finding in findings if finding.remedy)
    if bad:
        raise click.ClickException(f"{bad} of {len(findings)} checks need attention")


def check_arena(info: dict[str, Any], faults: list[dict[str, Any]] | None) -> Iterator[Finding]:
    """The shared memory itself."""
    ready = info["state"] == "READY" and not info["retired"]
    yield Finding(
        "state", info["state"], "" if ready else "start its supervisor, which finishes this arena and makes a new one"
    )
    yield Finding(
        "condemned", "yes" if info["condemned"] else "no",
        "restart its supervisor: it completes the log and rebuilds the memory from it" if info["condemned"] else "",
    )  # fmt: skip
    if faults is not None:
        seen = f"{len(faults)} faults" + (f", the first: {faults[0]}" if faults else "")
        yield Finding("audit", seen, "restart its supervisor; keep this output for a report" if faults else "")


def check_processes(name: str, info: dict[str, Any], slots: list[dict[str, int]]) -> Iterator[Finding]:
    """Who should run and does not, who is dead and not yet reaped."""
    supervised = is_running(info["supervisor_pid"])
    yield Finding(
        "supervisor", f"process {info['supervisor_pid']}" if supervised else "none",
        "" if supervised else f"start it: shmkv-supervisor {name}",
    )  # fmt: skip
    if info["has_log"]:
        writer = info["persister_pid"]
        fine = is_running(writer) or (supervised and writer == 0)
        seen = (
            "it has not written yet"
            if writer == 0
            else f"process {writer}"
            if is_running(writer)
            else f"process {writer} is gone"
        )
        yield Finding(
            "persister",
            seen,
            "" if fine else "its supervisor restarts it; if it does not come back, look at the messages",
        )
    dead = sorted({slot["pid"] for slot in slots if not slot["alive"]})
    yield Finding(
        "dead clients", f"{len(dead)}" + (f": {dead[:5]}" if dead else ""),
        "the keeper reaps them within a second; if they stay, look whether it runs: shmkv-admin doctor" if dead else "",
    )  # fmt: skip
    stopped = [pid for pid in sorted({slot["pid"] for slot in slots if slot["alive"]}) if is_stopped(pid)]
    yield Finding(
        "stopped clients", f"{len(stopped)}" + (f": {stopped[:5]}" if stopped else ""),
        f"they may hold locks that others wait for; kill -CONT {stopped[0]}" if stopped else "",
    )  # fmt: skip


def check_space(info: dict[str, Any], stats: dict[str, int]) -> Iterator[Finding]:
    """Memory, log and disk."""
    used = 1 - stats["pages_free"] / max(1, stats["page_limit"])
    yield Finding(
        "memory",
        f"{used:.1%} of {format_size(info['size_bytes'])}",
        "raise memory, or delete keys" if used > FULL_SHARE else "",
    )
    if info["has_log"]:
        late = stats["lag_ms"] > info["lag_limit_ms"] or info["log_state"] != "OK"
        yield Finding(
            "log", f"{info['log_state']}, {format_size(stats['lag_bytes'])} and {stats['lag_ms'] / 1000:.1f} s behind",
            "look at the disk of the data directory, and at the supervisor's messages" if late else "",
        )  # fmt: skip


def check_machine(name: str) -> Iterator[Finding]:
    """The surroundings: shared memory file system, and who might delete from it."""
    status = os.statvfs(paths.SHM_DIR)
    free = status.f_bavail * status.f_frsize
    yield Finding(
        paths.SHM_DIR, f"{format_size(free)} free", "make room before the next start" if free < FREE_SHM_BYTES else ""
    )
    owner = os.stat(paths.object_path(name)).st_uid
    # logind removes the shared memory of a user who logs out, except that of system users.
    risky = owner >= 1000 and os.path.exists("/run/systemd/seats") and not removal_is_off()
    yield Finding(
        "RemoveIPC", f"user {owner}",
        "logind deletes this store when its user logs out: run it as a system user, or set RemoveIPC=no in logind.conf"
        if risky else "",
    )  # fmt: skip


def is_running(pid: int) -> bool:
    """Whether there is a process of that number."""
    return pid > 0 and os.path.exists(f"/proc/{pid}")


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] == b"T"
    except OSError:
        return False


def removal_is_off() -> bool:
    """Whether logind was told to leave shared memory alone."""
    try:
        with open("/etc/systemd/logind.conf") as file:
            return any(line.strip().replace(" ", "").lower() == "removeipc=no" for line in file)
    except OSError:
        return False
