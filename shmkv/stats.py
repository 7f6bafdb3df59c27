"""What the store tells about itself and its entries: immutable records.

Why here: `import shmkv` must stay fast, and only those who ask for such a record pay for its module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

LOG_STATES: Final = ("OK", "DISK_FULL", "FAILED")


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
    numbers: Mapping[str, int]
    """All numbers that the core gives, by name."""

    @classmethod
    def of(cls, name: str, numbers: Mapping[str, int]) -> Stats:
        """Made of what the core counts."""
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
            numbers=MappingProxyType(dict(numbers)),
            **{key: numbers[key] for key in same},
        )
