"""`shmkv-admin doctor`: what is wrong with a store, and what to do about it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from shmkv import paths
from shmkv.admin.session import Session, with_json
from shmkv.config import format_size
from shmkv.stats import service_status

FULL_SHARE = 0.9
FREE_SHM_BYTES = 64 << 20
HANG_S = 0.5


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
        *check_space(name, info, stats),
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
        yield check_persister(info["persister_pid"], supervised)
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


def check_persister(writer: int, supervised: bool) -> Finding:
    """The process that writes the log: whether it runs, and whether anything holds it."""
    back = "its supervisor restarts it; if it does not come back, look at the messages"
    if writer == 0:
        return Finding("persister", "it has not written yet", "" if supervised else back)
    if hangs(writer):
        return Finding(
            "persister", f"process {writer} waits for the disk, for {HANG_S:g} s at least",
            "look at the disk of the data directory: it hangs, or is very busy; the store goes on when it answers",
        )  # fmt: skip
    state = process_state(writer)
    if state in ("T", "t"):
        return Finding("persister", f"process {writer} was stopped by a signal or a debugger", f"kill -CONT {writer}")
    gone = state in ("", "Z")
    return Finding("persister", f"process {writer}" + (" is gone" if gone else ""), back if gone else "")


def check_space(name: str, info: dict[str, Any], stats: dict[str, int]) -> Iterator[Finding]:
    """Memory, log and disk."""
    used = 1 - stats["pages_free"] / max(1, stats["page_limit"])
    yield Finding(
        "memory",
        f"{used:.1%} of {format_size(info['size_bytes'])}",
        "raise memory, or delete keys" if used > FULL_SHARE else "",
    )
    if info["has_log"]:
        late = stats["lag_ms"] > info["lag_limit_ms"] or info["log_state"] != "OK"
        service = service_status(name) if late else None
        reason = f" ({service.log_error})" if service is not None and service.log_error else ""
        behind = f"{format_size(stats['lag_bytes'])} and {stats['lag_ms'] / 1000:.1f} s behind"
        yield Finding(
            "log", f"{info['log_state']}{reason}, {behind}", remedy_of(info["log_state"]) if late else ""
        )  # fmt: skip


def remedy_of(log_state: str) -> str:
    """What to do about a log that is late or in trouble."""
    return {
        "DISK_FULL": "make room on the disk of the data directory, or see why it takes no files; it goes on by itself",
        "FAILED": "see what is wrong with the disk of the data directory, then restart the supervisor: the memory "
        "holds all data until then",
    }.get(log_state, "look at the disk of the data directory, and at the supervisor's messages")


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
    return process_state(pid) == "T"


def hangs(pid: int) -> bool:
    """Whether its main thread sleeps where no signal reaches it, and has not moved for HANG_S; blocks that long."""
    switches = context_switches(pid)
    until_s = time.monotonic() + HANG_S
    while process_state(pid) == "D" and context_switches(pid) == switches:
        if time.monotonic() >= until_s:
            return True
        time.sleep(HANG_S / 50)
    return False


def context_switches(pid: int) -> tuple[str, ...]:
    """What the kernel counts of it; the same twice = it did not run in between."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return tuple(line for line in file if "ctxt_switches" in line)
    except OSError:
        return ()


def process_state(pid: int) -> str:
    """Its letter as in proc(5): D waits for a disk, T stopped; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""


def removal_is_off() -> bool:
    """Whether logind was told to leave shared memory alone."""
    try:
        with open("/etc/systemd/logind.conf") as file:
            return any(line.strip().replace(" ", "").lower() == "removeipc=no" for line in file)
    except OSError:
        return False
