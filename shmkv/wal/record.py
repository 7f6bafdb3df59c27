"""The record format in Python: a second, independent reading of what the C core writes, and a writer for tests.

Why here: the C core is the fast path and its own judge; a reader that shares no code with it tells a wrong format
from a wrong reading, reports damage in words, and serves the inspection of a log. Formats: docs/formats.md.

Invariants:
  I1  A record is valid iff its length is possible, its LSN is its position, its header CRC (seeded by store id and
      incarnation) and its body CRCs match, and its kind is known. Nothing else is looked at to decide that.
  I2  Reading never trusts a length: each is compared with what is there before it is used.
  I3  Nothing here decides whether bad bytes are a torn tail or damage: see recovery.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shmkv.segment import _core
from shmkv.wal.files import Buffer

HEADER_BYTES = 32
ITEM_BYTES = 16
ALIGNMENT = 8

PUT, DELETE, PATCH, EXPIRY, CLEAR, NAMESPACE, BATCH, MARK, PART = range(1, 10)
KIND_NAMES = {
    PUT: "put", DELETE: "delete", PATCH: "patch", EXPIRY: "expiry", CLEAR: "clear",
    NAMESPACE: "namespace", BATCH: "batch", MARK: "mark", PART: "part",
}  # fmt: skip
READABLE_KINDS = frozenset((PUT, DELETE, CLEAR, BATCH, MARK))

ENTRY_PINNED, ENTRY_EXPIRES = 1, 2
CAUSE_NAMES = ("user", "expired", "evicted")

_LSN_OFFSET = 8
# The upper five bytes of an LSN are the same for 16 MiB of log.
_LSN_LOW_BYTES = 3
_LSN_BLOCK_MASK = (1 << 8 * _LSN_LOW_BYTES) - 1

_HEADER = struct.Struct("<IIQQIBBH")
_AFTER_CRC = struct.Struct("<QQIBBH")
_LENGTH = struct.Struct("<I")
_ITEM = struct.Struct("<IIII")
_ENTRY = struct.Struct("<IHHBBH")
_EXPIRY = struct.Struct("<Q")
_MARK = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """The 32 bytes in front of each record: layout.h's RecordHeader, without its own CRC."""

    length_bytes: int
    lsn: int
    durable_before: int
    body_crc: int
    kind: int
    flags: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a put or delete; type is a value type, or the cause of a delete; expires_ms 0 = never."""

    kind: int
    key: bytes
    value: bytes = b""
    type: int = 5
    namespace: int = 0
    expires_ms: int = 0
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """Wall clock and durable LSN when it was appended."""

    wall_ms: int
    durable_lsn: int


@dataclass(frozen=True, slots=True)
class Record:
    """A valid record; a batch has several entries, a clear none (header.count is its namespace)."""

    header: RecordHeader
    entries: tuple[Entry, ...] = ()
    mark: Mark | None = None

    @property
    def end_lsn(self) -> int:
        return self.header.lsn + self.header.length_bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """Where and why reading ended: reason "end" = the data ended with a whole record."""

    lsn: int
    offset: int
    reason: str


def padded(size_bytes: int) -> int:
    """Rounded up to a multiple of 8."""
    return (size_bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1)


def record_seed(store_id: bytes, incarnation: int) -> int:
    """Where the CRC of every record header of one incarnation starts."""
    return _core.crc32c(struct.pack("<16sQ", store_id, incarnation))


# ---- reading -----------------------------------------------------------------------------------------------------


def unpack_header(data: Buffer, offset: int, seed: int) -> RecordHeader | None:
    """The record header at offset, None if its CRC is wrong or fewer than 32 bytes are left."""
    if offset < 0 or offset + HEADER_BYTES > len(data):
        return None
    length, crc, lsn, durable, body_crc, kind, flags, count = _HEADER.unpack_from(data, offset)
    if header_crc(length, lsn, durable, body_crc, kind, flags, count, seed) != crc:
        return None
    return RecordHeader(length, lsn, durable, body_crc, kind, flags, count)


def header_crc(
    length: int, lsn: int, durable_before: int, body_crc: int, kind: int, flags: int, count: int, seed: int
) -> int:
    """CRC of a record header: its fields in order, without the CRC itself."""
    crc = _core.crc32c(_LENGTH.pack(length), seed)
    return _core.crc32c(_AFTER_CRC.pack(lsn, durable_before, body_crc, kind, flags, count), crc)


def read_records(data: Buffer, *, store_id: bytes, incarnation: int, first_lsn: int) -> Iterator[Record | Stop]:
    """The records of data, whose first byte has LSN first_lsn; the last item is always a Stop.

    Reasons: "end"; "short" (more bytes are needed), "length", "lsn", "header crc", "kind", "body crc" name the check
    that the next bytes failed, in the order in which they are made.
    """
    seed = record_seed(store_id, incarnation)
    offset = 0
    while True:
        lsn = first_lsn + offset
        if offset == len(data):
            yield Stop(lsn, offset, "end")
            return
        record = read_record(data, offset, seed=seed, lsn=lsn)
        if isinstance(record, str):
            yield Stop(lsn, offset, record)
            return
        yield record
        offset += record.header.length_bytes


def read_record(data: Buffer, offset: int, *, seed: int, lsn: int) -> Record | str:
    """The record at offset if it is valid with that LSN, else the reason why it is none."""
    if len(data) - offset < HEADER_BYTES:
        return "short"
    length, crc, found_lsn, durable, body_crc, kind, flags, count = _HEADER.unpack_from(data, offset)
    if length < HEADER_BYTES or length % ALIGNMENT:
        return "length"
    if found_lsn != lsn:
        return "lsn"
    if header_crc(length, lsn, durable, body_crc, kind, flags, count, seed) != crc:
        return "header crc"
    if length > len(data) - offset:
        return "short"
    if kind not in READABLE_KINDS:
        return "kind"
    header = RecordHeader(length, lsn, durable, body_crc, kind, flags, count)
    body = bytes(data[offset + HEADER_BYTES : offset + length])
    return _read_body(header, body)


def _read_body(header: RecordHeader, body: bytes) -> Record | str:
    if header.kind == CLEAR:
        return Record(header) if not body and header.body_crc == 0 else "body crc"
    if header.kind == MARK:
        if len(body) != _MARK.size or _core.crc32c(body) != header.body_crc:
            return "body crc"
        return Record(header, mark=Mark(*_MARK.unpack(body)))
    if header.kind == BATCH:
        entries = _read_batch(header, body)
        return "body crc" if entries is None else Record(header, entries)
    entry = _read_entry(header.kind, body, header.body_crc)
    if entry is None or padded(_entry_bytes(body)) != len(body):
        return "body crc"
    return Record(header, (entry,))


def _read_batch(header: RecordHeader, body: bytes) -> tuple[Entry, ...] | None:
    table_bytes = header.count * ITEM_BYTES
    if table_bytes > len(body) or _core.crc32c(body[:table_bytes]) != header.body_crc:
        return None
    entries: list[Entry] = []
    at = table_bytes
    for length, crc, kind, _spare in _ITEM.iter_unpack(body[:table_bytes]):
        piece = body[at : at + padded(length)]
        entry = _read_entry(kind, piece, crc) if kind in (PUT, DELETE) and _entry_bytes(piece) == length else None
        if entry is None:
            return None
        entries.append(entry)
        at += padded(length)
    return tuple(entries) if at == len(body) else None


def _entry_bytes(body: bytes) -> int:
    """Size of an entry's body without the final padding, 0 if even its fixed part is not there."""
    if len(body) < _ENTRY.size:
        return 0
    value_length, key_length, _namespace, _type, flags, _spare = _ENTRY.unpack_from(body)
    return int(_ENTRY.size + (_EXPIRY.size if flags & ENTRY_EXPIRES else 0) + padded(key_length) + value_length)


def _read_entry(kind: int, body: bytes, crc: int) -> Entry | None:
    size_bytes = _entry_bytes(body)
    if not size_bytes or size_bytes > len(body) or _core.crc32c(body[:size_bytes]) != crc or any(body[size_bytes:]):
        return None
    value_length, key_length, namespace, type_, flags, _spare = _ENTRY.unpack_from(body)
    at = _ENTRY.size
    expires_ms = 0
    if flags & ENTRY_EXPIRES:
        (expires_ms,) = _EXPIRY.unpack_from(body, at)
        at += _EXPIRY.size
    key = body[at : at + key_length]
    at += padded(key_length)
    return Entry(kind, key, body[at : at + value_length], type_, namespace, expires_ms, bool(flags & ENTRY_PINNED))


def durable_behind(data: Buffer, *, first_lsn: int, store_id: bytes, incarnation: int) -> int:
    """Highest durable_before of any valid record in data, which starts at a bad one with LSN first_lsn.

    Records that a power cut left behind a lost one say at most that what was before the lost one is durable; a
    record that says more proves damage.
    """
    seed = record_seed(store_id, incarnation)
    raw = bytes(data)
    highest: int = 0
    at = ALIGNMENT
    while at + HEADER_BYTES <= len(raw):
        lsn = first_lsn + at
        pattern = lsn.to_bytes(8, "little")[_LSN_LOW_BYTES:]
        block_end = min(len(raw), (lsn | _LSN_BLOCK_MASK) + 1 - first_lsn + _LSN_OFFSET + 8)
        hit = raw.find(pattern, at + _LSN_OFFSET + _LSN_LOW_BYTES, block_end)
        if hit < 0:
            at = max(at + ALIGNMENT, (lsn | _LSN_BLOCK_MASK) + 1 - first_lsn)
            continue
        at = hit - _LSN_OFFSET - _LSN_LOW_BYTES
        header = unpack_header(raw, at, seed) if at % ALIGNMENT == 0 else None
        if header is None or header.lsn != first_lsn + at:
            at = (at + ALIGNMENT) & ~(ALIGNMENT - 1)
            continue
        found = _core.verify(memoryview(raw)[at:], store_id=store_id, incarnation=incarnation, first_lsn=first_lsn + at)
        highest = max(highest, header.durable_before, int(found["durable_before"]))
        at += max(ALIGNMENT, found["consumed_bytes"])
    return highest


# ---- writing (tests and golden files) ----------------------------------------------------------------------------


def pack_entry(entry: Entry) -> bytes:
    """The body of a put or delete, without final padding."""
    flags = (ENTRY_PINNED if entry.pinned else 0) | (ENTRY_EXPIRES if entry.expires_ms else 0)
    fixed = _ENTRY.pack(len(entry.value), len(entry.key), entry.namespace, entry.type, flags, 0)
    expiry = _EXPIRY.pack(entry.expires_ms) if entry.expires_ms else b""
    return fixed + expiry + entry.key.ljust(padded(len(entry.key)), b"\0") + entry.value


def pack_record(
    kind: int, body: bytes, *, body_crc: int, lsn: int, durable_before: int, seed: int, count: int = 0
) -> bytes:
    """A whole record around a body, padded to 8."""
    length = HEADER_BYTES + padded(len(body))
    crc = header_crc(length, lsn, durable_before, body_crc, kind, 0, count, seed)
    header = _HEADER.pack(length, crc, lsn, durable_before, body_crc, kind, 0, count)
    return header + body.ljust(length - HEADER_BYTES, b"\0")


def pack_entries(entries: Sequence[Entry], *, lsn: int, durable_before: int, seed: int) -> bytes:
    """One record with these entries: a put or delete if it is one, else a batch."""
    bodies = [pack_entry(entry) for entry in entries]
    if len(entries) == 1:
        return pack_record(
            entries[0].kind,
            bodies[0],
            body_crc=_core.crc32c(bodies[0]),
            lsn=lsn,
            durable_before=durable_before,
            seed=seed,
        )
    table = b"".join(
        _ITEM.pack(len(body), _core.crc32c(body), entry.kind, 0) for entry, body in zip(entries, bodies, strict=True)
    )
    body = table + b"".join(piece.ljust(padded(len(piece)), b"\0") for piece in bodies)
    return pack_record(
        BATCH,
        body,
        body_crc=_core.crc32c(table),
        lsn=lsn,
        durable_before=durable_before,
        seed=seed,
        count=len(entries),
    )


def pack_clear(namespace: int, *, lsn: int, durable_before: int, seed: int) -> bytes:
    """A record that empties a namespace."""
    return pack_record(CLEAR, b"", body_crc=0, lsn=lsn, durable_before=durable_before, seed=seed, count=namespace)


def pack_mark(mark: Mark, *, lsn: int, durable_before: int, seed: int) -> bytes:
    """A mark record."""
    body = _MARK.pack(mark.wall_ms, mark.durable_lsn)
    return pack_record(MARK, body, body_crc=_core.crc32c(body), lsn=lsn, durable_before=durable_before, seed=seed)
