"""Values that carry their own check: who wrote what, which time, and a checksum over all of it.

Why here: whoever reads one, in whatever process, can tell a whole value from a torn one, and a current from a lost one.

Invariants:
  I1  A value is a function of (key number, sequence), so its bytes need not be remembered.
  I2  `parse` accepts exactly what `make` and `chunk` produce.
"""

from __future__ import annotations

import struct
import zlib

HEADER = struct.Struct("<4sIQII")  # magic, key number, sequence, body bytes, CRC-32 of all that
MAGIC = b"chao"
LARGE_EVERY = 499
LARGE_BYTES = (70_000, 500_000)
SMALL_BYTES = (0, 1000)
PATTERN = bytes((i * 131 + (i >> 8) * 17) & 255 for i in range(1 << 20))
CHUNK = struct.Struct("<IQII")  # key number, sequence of the first, number in the value, CRC-32


def size_of(key: int, sequence: int) -> int:
    """Bytes of the body: mostly small, at times large enough to be drafted outside the locks."""
    mixed = (key * 2654435761 + sequence * 40503) & 0x7FFFFFFF
    low, high = LARGE_BYTES if sequence % LARGE_EVERY == 0 else SMALL_BYTES
    return low + mixed % (high - low)


def make(key: int, sequence: int) -> bytes:
    """The value of a key at a sequence."""
    size = size_of(key, sequence)
    start = (key * 7919 + sequence * 104729) % (len(PATTERN) - size)
    body = PATTERN[start : start + size]
    head = HEADER.pack(MAGIC, key, sequence, size, 0)
    return head[:-4] + zlib.crc32(body, zlib.crc32(head[:-4])).to_bytes(4, "little") + body


def parse(key: int, value: object) -> int | None:
    """Sequence of a value of this key; None if it is torn or foreign."""
    if type(value) is not bytes or len(value) < HEADER.size:
        return None
    _, _, sequence, _, _ = HEADER.unpack_from(value)
    return sequence if value == make(key, sequence) else None


def chunk(key: int, sequence: int, number: int) -> bytes:
    """The piece that an append adds as the value's `number`-th."""
    head = CHUNK.pack(key, sequence, number, 0)[:-4]
    return head + zlib.crc32(head).to_bytes(4, "little")


def parse_chunks(key: int, value: object) -> tuple[int, int] | None:
    """(sequence, number of pieces) of a value made by appends; None if it is torn or foreign."""
    if type(value) is not bytes or not value or len(value) % CHUNK.size:
        return None
    count = len(value) // CHUNK.size
    sequence = CHUNK.unpack_from(value)[1]
    whole = b"".join(chunk(key, sequence, number) for number in range(count))
    return (sequence, count) if value == whole else None
