"""The last part of a log file in clear: where the last whole records begin, found from behind.

Why here: a living arena holds what the log says, so a warm start asks only whether the log's end reaches its ring's
head. What that costs must not depend on the size of a file.

Invariants:
  I1  What is found is a valid record at its own LSN; a false hit is possible only in bytes that were made for it, and
      then reading from it does not reach the end: the caller reads the whole file before it says damage.
"""

from __future__ import annotations

from shmkv.wal.files import Files
from shmkv.wal.recovery import Segment
from shmkv.wal.replay import Apply

TAIL_BYTES = 1 << 20
_ALIGNMENT = 8
_LSN_OFFSET = 8
# The upper five bytes of an LSN are the same for 16 MiB of log.
_LSN_LOW_BYTES = 3


def tail_start(files: Files, segment: Segment, store_id: bytes, verify: Apply) -> int:
    """LSN of a valid record about TAIL_BYTES before the segment's end, further if one is larger; else its start."""
    assert segment.end_lsn is not None
    size_bytes = TAIL_BYTES
    if segment.end_lsn - segment.start_lsn <= size_bytes:
        return segment.start_lsn
    data = files.map(segment.file.path)[segment.offset :][: segment.end_lsn - segment.start_lsn]
    while size_bytes < len(data):
        first_lsn = segment.start_lsn + len(data) - size_bytes
        found = _first_record(data[-size_bytes:], first_lsn, store_id, segment.incarnation, verify)
        if found is not None:
            return found
        size_bytes *= 2
    return segment.start_lsn


def _first_record(data: memoryview, first_lsn: int, store_id: bytes, incarnation: int, verify: Apply) -> int | None:
    """LSN of the first valid record in data, whose first byte has LSN first_lsn (a multiple of 8)."""
    raw = bytes(data)
    for upper in range(first_lsn >> 8 * _LSN_LOW_BYTES, (first_lsn + len(raw) >> 8 * _LSN_LOW_BYTES) + 1):
        pattern = upper.to_bytes(8 - _LSN_LOW_BYTES, "little")
        hit = raw.find(pattern)
        while hit >= 0:
            at = hit - _LSN_OFFSET - _LSN_LOW_BYTES
            lsn = first_lsn + at
            place = lsn.to_bytes(8, "little") if at >= 0 and at % _ALIGNMENT == 0 else b""
            if place and raw[at + _LSN_OFFSET : at + _LSN_OFFSET + len(place)] == place:
                found = verify(data[at:], store_id=store_id, incarnation=incarnation, first_lsn=lsn)
                if found["records"]:
                    return lsn
            hit = raw.find(pattern, hit + 1)
    return None
