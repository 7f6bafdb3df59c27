"""What the store tells about itself and its entries: immutable records.

Why here: `import shmkv` must stay fast, and only those who ask for such a record pay for its module.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

LOG_STATES: Final = ("OK", "DISK_FULL", "FAILED")
SERVICE_TIMEOUT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as it was at one moment; `version` can be given to `set`, `delete` and `wait`."""

    key: str | bytes
    value: Any
    version: int
    ttl: float | None
    """Seconds until it expires; None = never."""
    size: int
    """Bytes of the value as it is stored, without key and header."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the supervisor says about the store's files."""

    snapshot_lsn: int | None
    """End of the newest snapshot: a start reads the log from about there; None = there is none."""
    snapshot_age_s: float | None
    """By the wall clock; None = there is none."""
    snapshot_bytes: int
    """Size of its file; 0 = there is none."""
    log_error: str
    """Why the log is not OK; empty if it is."""
    recovery: Mapping[str, Any]
    """The last start: running, records, bytes, of_bytes, seconds, warm, warnings, as far as known."""
    jobs: tuple[Mapping[str, Any], ...]
    """Snapshots, backups, restores that run or ended lately: kind, state, done_bytes, of_bytes, error."""

    @classmethod
    def of(cls, status: Mapping[str, Any], wall_s: float) -> Service:
        """Made of the answer of the control socket."""
        newest = status["snapshots"][-1] if status["snapshots"] else None
        return cls(
            snapshot_lsn=newest["end_lsn"] if newest else None,
            snapshot_age_s=max(0.0, wall_s - newest["wall_ms"] / 1000) if newest else None,
            snapshot_bytes=newest["size_bytes"] if newest else 0,
            log_error=status["log_error"],
            recovery=MappingProxyType(status["recovery"]),
            jobs=tuple(MappingProxyType(job) for job in status["jobs"]),
        )


def service_status(name: str) -> Service | None:
    """Ask the supervisor of a store; None if it does not answer within half a second."""
    from shmkv.errors import StoreUnavailable
    from shmkv.supervisor.control import ask, find_control

    control = find_control(name)
    if control is None:
        return None
    try:
        return Service.of(ask(control, {"do": "status"}, SERVICE_TIMEOUT_S), time.time())
    except StoreUnavailable:
        # It ends just now, or is busy: the numbers of the arena must not wait for it.
        return None


@dataclass(frozen=True, slots=True)
class Stats:
    """Numbers of a store at about one moment; sizes in bytes, counters since the arena was made."""

    name: str
    items: int
    """Keys; those that expired count until they are collected."""
    memory_bytes: int
    """The whole shared object."""
    free_bytes: int
    """What new keys and growing values may still take, but for 2 %."""
    used_bytes: int
    """Of all entries, with their headers."""
    ring_bytes: int
    durable: bool
    """Whether there is a log at all."""
    log_state: str
    """OK, DISK_FULL (writes are refused until there is space) or FAILED (read-only)."""
    durable_lsn: int
    lag_bytes: int
    """Written, and not yet safe on disk."""
    lag_s: float
    threads: int
    """That hold a slot, in all processes."""
    gets: int
    hits: int
    sets: int
    deletes: int
    repairs: int
    """Writes of dead processes that were finished or undone."""
    service: Service | None
    """Snapshots, recovery and trouble of the log; None without a log, or when the supervisor does not answer."""
    numbers: Mapping[str, int]
    """All numbers that the core gives, by name."""

    @classmethod
    def of(cls, name: str, numbers: Mapping[str, int], service: Service | None = None) -> Stats:
        """Made of what the core counts, and of what the supervisor says."""
        same = (
            "items",
            "used_bytes",
            "ring_bytes",
            "durable_lsn",
            "lag_bytes",
            "gets",
            "hits",
            "sets",
            "deletes",
            "repairs",
        )
        return cls(
            name=name,
            memory_bytes=numbers["mapped_bytes"],
            free_bytes=numbers["pages_free"] * numbers["page_bytes"],
            durable=bool(numbers["has_log"]),
            log_state=LOG_STATES[numbers["log_state"]],
            lag_s=numbers["lag_ms"] / 1000,
            threads=numbers["slots_used"],
            service=service,
            numbers=MappingProxyType(dict(numbers)),
            **{key: numbers[key] for key in same},
        )
