"""Frames: how the log lies in an encrypted file. Each holds a piece of the plain log, sealed with the file's key.

Behind the header block an encrypted log file holds frames, one behind the other, then zeros. Records do not know of
them: LSNs go on counting bytes of the plain log, and a record may go on in the next frame. LSN, sizes and the
watermark stay in clear, so that what the disk lost can be told from what was damaged without a key.

Why no (key, nonce) pair ever comes twice. The nonce of a frame is its first LSN; the key is the file's own, derived
from 32 random bytes that are made when the file is made and are kept by nobody but its one `FrameSealer`:
  - within a file LSNs only grow, because a sealer refuses a frame that does not begin behind every frame that it ever
    sealed, those that failed to reach the disk included;
  - a file whose write or sync failed is given up, the same LSNs go into a new file, under another key;
  - a persister that starts, after whatever end, opens a new file and never writes into an old one;
  - LSNs are not used twice across lives either, so salts must only differ where a file repeats LSNs of another one.
The salt of a file that was begun and never named is gone with it: a spare that is used again gets a new header.

Invariants:
  I1  A FrameSealer never gives one nonce twice, whatever its caller does after an error.
  I2  durable_before of a frame = what was synced when it was sealed, at least what its records say of themselves.
  I3  The checksums of a frame cover all that was written: they tell rot and a torn write from bytes that were changed
      on purpose, and need no key. Nothing is given out whose tag does not match.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shmkv.segment import _core
from shmkv.wal.cipher import TAG_BYTES, BadTag, FileCipher
from shmkv.wal.files import Buffer
from shmkv.wal.log import HEADER_BLOCK_BYTES, FileHeader

HEADER_BYTES = 32
# Sealed in one piece: small enough for the processor's cache, large enough that its costs do not show.
FRAME_RAW_BYTES = 1 << 20
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
ALIGNMENT = 8

_HEADER = struct.Struct("<IIQQII")
_CHECKED = struct.Struct("<IQQII")
_ASSOCIATED = struct.Struct("<IQQI")
_FILE = struct.Struct("<16sQQQ")
# The upper half of an LSN is the same for 4 GiB of log; the search for frames looks for it.
_SEARCH_BITS = 32
_SEARCH_BYTES = 4
_LSN_OFFSET = 8


class NonceReuse(RuntimeError):
    """A frame was to be sealed that does not lie behind all others of its file; nothing was sealed."""


class FrameHeader(NamedTuple):
    """The 32 bytes in front of a sealed piece, without their own CRC; raw_bytes of plain log begin at first_lsn."""

    length_bytes: int
    first_lsn: int
    durable_before: int
    sealed_crc: int
    raw_bytes: int

    @property
    def end_lsn(self) -> int:
        return self.first_lsn + self.raw_bytes


def frame_seed(header: FileHeader) -> int:
    """Where the CRC of every frame header of this file starts: as of the records of its incarnation."""
    return _core.crc32c(struct.pack("<16sQ", header.store_id, header.incarnation))


def frame_bytes(raw_bytes: int) -> int:
    """Size on disk of a frame with that much of the log."""
    return -(-(raw_bytes + OVERHEAD_BYTES) // ALIGNMENT) * ALIGNMENT


def sealed_bytes(raw_bytes: int) -> int:
    """How many bytes of a file are certainly enough for that much of the log: raw_room of them is at least that."""
    return raw_bytes + (raw_bytes // FRAME_RAW_BYTES + 4) * (OVERHEAD_BYTES + 2 * ALIGNMENT)


def raw_room(room_bytes: int) -> int:
    """How much of the log certainly fits into so many bytes of a file, in one write of at most two pieces."""
    room = room_bytes - (room_bytes // FRAME_RAW_BYTES + 2) * (OVERHEAD_BYTES + ALIGNMENT)
    return max(0, room // ALIGNMENT * ALIGNMENT)


def file_identity(file: FileHeader) -> bytes:
    """Which file it is: the tag of each of its frames protects that, the frame's header, and the sealed bytes."""
    return _FILE.pack(file.store_id, file.incarnation, file.first_lsn, file.number)


def _header_crc(length: int, first_lsn: int, durable_before: int, sealed_crc: int, raw_bytes: int, seed: int) -> int:
    return _core.crc32c(_CHECKED.pack(length, first_lsn, durable_before, sealed_crc, raw_bytes), seed)


# ---- writing -----------------------------------------------------------------------------------------------------


class FrameSealer:
    """The one that seals the frames of one file, for as long as it is written."""

    def __init__(self, cipher: FileCipher, file: FileHeader) -> None:
        self._cipher = cipher
        self._identity = file_identity(file)
        self._seed = frame_seed(file)
        self._next_lsn = file.first_lsn
        self._buffer = memoryview(bytearray())

    def seal(self, pieces: Sequence[Buffer], first_lsn: int, durable_before: int) -> Iterator[memoryview]:
        """The frames for these pieces of the log, the first of which begins at first_lsn.

        Each is to be written before the next one is taken: they lie in the same memory. Raises NonceReuse. What was
        taken from the iterator counts as used, whether it is written or not.
        """
        for piece in pieces:
            view = memoryview(piece)
            for at in range(0, len(view), FRAME_RAW_BYTES):
                part = view[at : at + FRAME_RAW_BYTES]
                yield self._frame(part, first_lsn, durable_before)
                first_lsn += len(part)

    def _frame(self, part: memoryview, first_lsn: int, durable_before: int) -> memoryview:
        if first_lsn < self._next_lsn or not part:
            raise NonceReuse(
                f"LSN {first_lsn} was to be sealed again in {self._cipher.path}, which is sealed up to "
                f"{self._next_lsn}; give the file up and go on in a new one"
            )
        raw_bytes = len(part)
        self._next_lsn = first_lsn + raw_bytes
        length = frame_bytes(raw_bytes)
        if len(self._buffer) < length:
            self._buffer = memoryview(bytearray(length))
        sealed_end = HEADER_BYTES + raw_bytes + TAG_BYTES
        sealed = self._buffer[HEADER_BYTES:sealed_end]
        associated = self._identity + _ASSOCIATED.pack(length, first_lsn, durable_before, raw_bytes)
        self._cipher.seal_into(first_lsn, part, associated, sealed)
        sealed_crc = _core.crc32c(sealed)
        crc = _header_crc(length, first_lsn, durable_before, sealed_crc, raw_bytes, self._seed)
        _HEADER.pack_into(self._buffer, 0, length, crc, first_lsn, durable_before, sealed_crc, raw_bytes)
        self._buffer[sealed_end:length] = bytes(length - sealed_end)
        return self._buffer[:length]


# ---- reading -----------------------------------------------------------------------------------------------------


def read_frame_header(data: Buffer, offset: int, seed: int) -> FrameHeader | None:
    """The frame header at offset, None if its CRC is wrong, its lengths don't fit or fewer than 32 bytes are left."""
    if offset + HEADER_BYTES > len(data):
        return None
    length, crc, first_lsn, durable_before, sealed_crc, raw_bytes = _HEADER.unpack_from(data, offset)
    if not raw_bytes or length != frame_bytes(raw_bytes):
        return None
    if _header_crc(length, first_lsn, durable_before, sealed_crc, raw_bytes, seed) != crc:
        return None
    return FrameHeader(length, first_lsn, durable_before, sealed_crc, raw_bytes)


def check_frame(data: Buffer, offset: int, seed: int, lsn: int, end: int) -> FrameHeader | str:
    """The header of the frame at offset, whole in data[:end] and due at that LSN, else the first check that failed."""
    if end - offset < HEADER_BYTES:
        return "frame short"
    length, crc, first_lsn, durable_before, sealed_crc, raw_bytes = _HEADER.unpack_from(data, offset)
    # As in read_frame_header; written out, because small frames are read by the hundred thousand.
    if not raw_bytes or length != (raw_bytes + OVERHEAD_BYTES + ALIGNMENT - 1) & -ALIGNMENT:
        return "frame length"
    if first_lsn != lsn:
        return "frame lsn"
    if _core.crc32c(_CHECKED.pack(length, first_lsn, durable_before, sealed_crc, raw_bytes), seed) != crc:
        return "frame header crc"
    if length > end - offset:
        return "frame short"
    content = offset + HEADER_BYTES
    sealed_end = content + raw_bytes + TAG_BYTES
    if _core.crc32c(data[content:sealed_end]) != sealed_crc:
        return "frame crc"
    if sealed_end != offset + length and any(data[sealed_end : offset + length]):
        return "frame crc"
    return FrameHeader(length, first_lsn, durable_before, sealed_crc, raw_bytes)


class FrameReader:
    """The frames of one file in order, as far as they are good; `data` is the whole file.

    offset, lsn: of the next frame. stopped: "" until there are no more, then why: "end" (the file ends with a whole
    frame), a failed check of check_frame, or "frame tag". durable_before: the highest one that was met. cipher None:
    frames are checked and skipped, nothing is given out.
    """

    def __init__(self, data: memoryview, file: FileHeader, cipher: FileCipher | None) -> None:
        self._data = data
        self._size = len(data)
        self._identity = file_identity(file)
        self._cipher = cipher
        self._seed = frame_seed(file)
        self.offset = HEADER_BLOCK_BYTES
        self.lsn = file.first_lsn
        self.durable_before = 0
        self.stopped = ""

    def skip_to(self, lsn: int) -> None:
        """Pass over the frames that end at or before lsn; their content is not looked at."""
        while not self.stopped and self.lsn < lsn:
            header = read_frame_header(self._data, self.offset, self._seed)
            if header is None or header.first_lsn != self.lsn or header.end_lsn > lsn:
                return
            self._pass(header)

    def next(self) -> bytes | None:
        """The plain log in the next frame, None if there is no other good one: see stopped."""
        if self.stopped:
            return None
        offset = self.offset
        if offset >= self._size:
            self.stopped = "end"
            return None
        header = check_frame(self._data, offset, self._seed, self.lsn, self._size)
        if isinstance(header, str):
            self.stopped = header
            return None
        raw = b""
        if self._cipher is not None:
            length, first_lsn, durable_before, _, raw_bytes = header
            sealed = self._data[offset + HEADER_BYTES : offset + HEADER_BYTES + raw_bytes + TAG_BYTES]
            associated = self._identity + _ASSOCIATED.pack(length, first_lsn, durable_before, raw_bytes)
            try:
                raw = self._cipher.open(first_lsn, sealed, associated)
            except BadTag:
                self.stopped = "frame tag"
                return None
        self._pass(header)
        return raw

    def _pass(self, header: FrameHeader) -> None:
        self.offset += header.length_bytes
        self.lsn += header.raw_bytes
        if header.durable_before > self.durable_before:
            self.durable_before = header.durable_before

    def durable_behind(self) -> int:
        """Highest durable_before of any frame header that is valid behind where the reading stopped."""
        return durable_behind(self._data, self.offset, self.lsn, self._seed)


def durable_behind(data: memoryview, offset: int, lsn: int, seed: int) -> int:
    """Highest durable_before of any valid frame header in data[offset:]; a frame there has an LSN of at least lsn."""
    raw = data[offset:].tobytes()
    highest = 0
    for upper in range(lsn >> _SEARCH_BITS, (lsn + len(raw) >> _SEARCH_BITS) + 1):
        pattern = upper.to_bytes(8, "little")[:_SEARCH_BYTES]
        at = raw.find(pattern, _LSN_OFFSET + 8 - _SEARCH_BYTES)
        while at >= 0:
            start = at - _LSN_OFFSET - 8 + _SEARCH_BYTES
            header = read_frame_header(raw, start, seed) if start % ALIGNMENT == 0 else None
            if header is not None and header.first_lsn >= lsn:
                highest = max(highest, header.durable_before)
                # Its content is cipher text: what looks like a header in there is none.
                at = start + HEADER_BYTES
            at = raw.find(pattern, at + 1)
    return highest
