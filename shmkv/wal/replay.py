"""Reading one part of the log into an arena, or only checking it: chunk by chunk, as far as the records are valid.

Why here: cold start, warm start, inspection and restore must agree on how bytes of a log file become records, and on
where they end.

Invariants:
  I1  Nothing behind the first record that is not valid is applied.
  I2  Memory stays flat: the file is mapped, and the C core is given CHUNK_BYTES at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from shmkv.wal.files import Files
from shmkv.wal.recovery import Ending, Segment

CHUNK_BYTES = 8 << 20
ZERO_BYTES = 1 << 20


class Apply(Protocol):
    """_core.verify and Arena.apply: check records, and apply them."""

    def __call__(self, data: Any, *, store_id: bytes, incarnation: int, first_lsn: int) -> dict[str, Any]: ...


@dataclass(slots=True)
class Replay:
    """How far a replay is; end = (incarnation, LSN), cut_in = file number where loss was accepted."""

    records: int = 0
    bytes_done: int = 0
    bytes_all: int = 0
    durable_before: int = 0
    end: tuple[int, int] | None = None
    cut_in: int | None = None
    cut_lsn: int | None = None


def size_of(segment: Segment) -> int:
    """How many bytes of records a segment holds at most."""
    end_lsn = segment.file.limit_lsn if segment.end_lsn is None else segment.end_lsn
    return max(0, end_lsn - segment.start_lsn)


def replay_segment(
    files: Files,
    segment: Segment,
    store_id: bytes,
    apply: Apply,
    state: Replay,
    progress: Callable[[int, int, int], None] = lambda *_: None,
) -> Ending:
    """Check (and, with an arena's apply, apply) the records of one segment, chunk by chunk; where it ends."""
    data = files.map(segment.file.path)[segment.offset :][: size_of(segment)]
    at, window = 0, CHUNK_BYTES
    stopped = ""
    before = state.bytes_done
    while at < len(data) and not stopped:
        chunk = data[at : at + window]
        found = apply(chunk, store_id=store_id, incarnation=segment.incarnation, first_lsn=segment.start_lsn + at)
        state.records += found["records"]
        state.durable_before = max(state.durable_before, found["durable_before"])
        consumed = found["consumed_bytes"]
        if found["stopped"] == "short" and at + len(chunk) < len(data):
            # The chunk ended inside a record.
            window = CHUNK_BYTES if consumed else 2 * window
        elif found["stopped"] is not None:
            stopped = found["stopped"]
        at += consumed
        state.bytes_done = before + at
        progress(state.records, state.bytes_done, state.bytes_all)
    state.bytes_done = before + len(data)
    tail_is_zero = _is_zero(data[at:])
    durable = 0
    if segment.end_lsn is None and not tail_is_zero:
        # A start that finds nothing torn does not need it; a warm one never does.
        from shmkv.wal.record import durable_behind

        durable = durable_behind(
            data[at:], first_lsn=segment.start_lsn + at, store_id=store_id, incarnation=segment.incarnation
        )
    return Ending(segment.start_lsn + at, stopped, durable, tail_is_zero)


def _is_zero(data: memoryview) -> bool:
    zeros = bytes(min(len(data), ZERO_BYTES))
    return all(data[at : at + ZERO_BYTES] == zeros[: len(data) - at] for at in range(0, len(data), ZERO_BYTES))
