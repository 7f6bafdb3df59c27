"""The end of an arena that is not adopted: what its ring still holds goes to the log.

Why here: an arena that was retired or condemned, or that another version, C library or pid namespace made, may hold
records that no file has. Header, control words and ring keep their form in every layout version (layout.h I4), so the
ring of any of them can be read.

Invariants:
  I1  Nothing is written behind the end of the valid records of the ring.
  I2  The arena is not removed here: a kill anywhere leaves it for the next try.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Any, Protocol

from shmkv.segment import _core
from shmkv.wal.manifest import Manifest
from shmkv.wal.start import Place, start_warm

# Offsets in the control block.
RETIRED_OFFSET = 4
SETTLE_S = 0.1


class Ring(Protocol):
    """The part of _core.Arena that a drain needs."""

    def ring(self) -> dict[str, int]: ...
    def ring_pieces(self, start_lsn: int, end_lsn: int) -> tuple[memoryview, ...]: ...


class FrozenRing:
    """The ring of an arena that this program cannot attach to, through the mapping of its descriptor."""

    def __init__(self, fd: int, header: dict[str, Any]) -> None:
        self._fd = fd
        self._header = header
        self._memory = mmap.mmap(fd, 0)

    def retire(self) -> None:
        """Say RETIRED to writers that are still attached, and wait until the tail stays where it is.

        Without their locks this is not as strict as Arena.retire: a writer that was stopped in the middle of its
        append, for longer than SETTLE_S, is not seen.
        """
        struct.pack_into("<I", self._memory, self._header["control_offset"] + RETIRED_OFFSET, 1)
        tail = -1
        while tail != self.ring()["tail"]:
            tail = self.ring()["tail"]
            time.sleep(SETTLE_S)

    def ring(self) -> dict[str, int]:
        return _core.read_header(self._fd)

    def ring_pieces(self, start_lsn: int, end_lsn: int) -> tuple[memoryview, ...]:
        offset, size_bytes = self._header["ring_offset"], self._header["ring_bytes"]
        ring = memoryview(self._memory).toreadonly()[offset : offset + size_bytes]
        at, length = start_lsn % size_bytes, end_lsn - start_lsn
        first = min(length, size_bytes - at)
        pieces = (ring[at : at + first], ring[: length - first])
        return pieces if first < length else pieces[:1]


def drain(place: Place, arena: Ring, manifest: Manifest) -> int:
    """Write and sync what the ring holds and the log does not; the end LSN. The manifest says clean then.

    Raises CorruptData if the log does not reach the ring's head, OSError. Blocks for a few syncs.
    """
    ring = arena.ring()
    start_lsn = max(ring["head"], ring["durable_lsn"])
    started = start_warm(
        place, ring_bytes=ring["ring_bytes"], start_lsn=start_lsn, manifest=manifest, verify=_core.verify
    )
    writer = started.writer
    if ring["tail"] > start_lsn:
        writer.open_file(ring["tail"] - start_lsn)
        end_lsn = start_lsn + writer.boundary(arena.ring_pieces(start_lsn, ring["tail"]))
        writer.write(arena.ring_pieces(start_lsn, end_lsn), end_lsn)
        writer.sync()
    writer.publish_watermark(clean=True)
    return writer.synced_lsn
