"""Stands for an arena in tests of what is on disk: a dict of entries that records are applied to, images are loaded
into, and which is walked for a snapshot, as _core.Arena does it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

from shmkv.segment import _core
from shmkv.wal import record
from shmkv.wal.manifest import Manifest

HASH_KEY = bytes(range(100, 116))
STRIPES = 4

_IMAGE = struct.Struct("<QI")
_LENGTHS = struct.Struct("<IH")
_RECORD = struct.Struct("<IIQQIBBH")
_IMAGE_HEADER_BYTES = 24
COMPARE_EVERY = 8


def stripe_of(key: bytes) -> int:
    """Of four."""
    return zlib.crc32(key) % STRIPES


class SmallArena:
    """entries: key -> (version, image); keys: of the records that were applied, in their order."""

    def __init__(self) -> None:
        self.entries: dict[bytes, tuple[int, bytes]] = {}
        self.keys: list[str] = []
        self.manifest: Manifest | None = None
        self.made = 0
        self._calls = 0

    def make(self, manifest: Manifest, hash_key: bytes | None) -> SmallArena:
        """The make_arena of a cold start."""
        assert hash_key in (None, HASH_KEY)
        self.entries.clear()
        self.keys.clear()
        self.manifest = manifest
        self.made += 1
        return self

    def state(self) -> dict[bytes, bytes]:
        """Key -> value."""
        return {key: value_in(image) for key, (_, image) in self.entries.items()}

    # ---- what a cold start uses -----------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        return {"stripes": STRIPES}

    def apply(self, data: Any, *, store_id: bytes, incarnation: int, first_lsn: int) -> dict[str, Any]:
        found = _core.verify(data, store_id=store_id, incarnation=incarnation, first_lsn=first_lsn)
        self._calls += 1
        if self._calls % COMPARE_EVERY == 1:
            *_, stop = record.read_records(data, store_id=store_id, incarnation=incarnation, first_lsn=first_lsn)
            assert stop.offset == found["consumed_bytes"], "the two readers disagree"
            assert (None if stop.reason == "end" else stop.reason) == found["stopped"], "the two readers disagree"
        at = 0
        while at < found["consumed_bytes"]:
            length, _, lsn, _, _, kind, _, _ = _RECORD.unpack_from(data, at)
            if kind in (record.PUT, record.DELETE):
                self._apply_one(kind, bytes(data[at + 24 : at + length]), lsn)
            elif kind != record.MARK:
                item = record.read_record(data, at, seed=record.record_seed(store_id, incarnation), lsn=lsn)
                assert isinstance(item, record.Record)
                for entry in item.entries:
                    self.keys.append(entry.key.decode())
                    self.change(entry, lsn)
            at += length
        return found

    def _apply_one(self, kind: int, crc_and_body: bytes, lsn: int) -> None:
        # The 4 bytes in between are kind, flags and count.
        image = lsn.to_bytes(8, "little") + crc_and_body[:4] + crc_and_body[8:]
        _, key, length = parse_image(image, 0)
        self.keys.append(key.decode())
        if key in self.entries and self.entries[key][0] >= lsn:
            return
        if kind == record.PUT:
            self.entries[key] = (lsn, image[:length].ljust(length, b"\0"))
        else:
            self.entries.pop(key, None)

    def change(self, entry: record.Entry, lsn: int) -> None:
        """One key of a record, where it is newer."""
        if entry.key in self.entries and self.entries[entry.key][0] >= lsn:
            return
        if entry.kind == record.PUT:
            self.entries[entry.key] = (lsn, image_of(entry, lsn))
        else:
            self.entries.pop(entry.key, None)

    def load(self, data: Any, /, *, first_stripe: int = 0, end_stripe: int | None = None) -> dict[str, Any]:
        found = _core.check_entries(data)
        at = 0
        while at < found["consumed_bytes"]:
            version, key, length = parse_image(data, at)
            if not first_stripe <= stripe_of(key) < (STRIPES if end_stripe is None else end_stripe):
                return {**found, "consumed_bytes": at, "stopped": "stripe"}
            if key not in self.entries or self.entries[key][0] < version:
                self.entries[key] = (version, bytes(data[at : at + length]))
            at += length
        return found


class WalkedArena:
    """The living side: what a snapshot walks. between(stripe) is called before each stripe, and may write."""

    def __init__(
        self, entries: dict[bytes, tuple[int, bytes]], *, manifest: Manifest, tail: Callable[[], int], retired: bool
    ) -> None:
        self._entries = entries
        self._manifest = manifest
        self._tail = tail
        self._retired = retired
        self.between: Callable[[int], None] = lambda _stripe: None

    def info(self) -> dict[str, Any]:
        return {
            "store_id": self._manifest.store_id,
            "incarnation": self._manifest.incarnation,
            "retired": self._retired,
            "condemned": False,
            "name": "small",
            "hash_key": HASH_KEY,
            "stripes": STRIPES,
            "size_bytes": 1 << 20,
            "ring_bytes": 4096,
            "expected_items": 100,
        }

    def ring(self) -> dict[str, int]:
        return {"tail": self._tail()}

    def stats(self) -> dict[str, int]:
        return {"used_bytes": sum(len(image) for _, image in self._entries.values())}

    def fill(self, cursor: int, buffer: memoryview) -> tuple[int, int, int, int, int]:
        self.between(cursor)
        images = [image for key, (_, image) in self._entries.items() if stripe_of(key) == cursor]
        data = b"".join(images)
        buffer[: len(data)] = data
        return cursor + 1 if cursor + 1 < STRIPES else _core.CURSOR_END, len(data), len(images), cursor, 0


def image_of(entry: record.Entry, version: int) -> bytes:
    """The entry as Arena.fill gives it: version, the record's body checksum, its body."""
    body = record.pack_entry(entry)
    image = _IMAGE.pack(version, _core.crc32c(body)) + body
    return image.ljust(record.padded(len(image)), b"\0")


def parse_image(data: Any, at: int) -> tuple[int, bytes, int]:
    """Version, key and length in bytes of the image at that offset."""
    version, _ = _IMAGE.unpack_from(data, at)
    value_bytes, key_bytes = _LENGTHS.unpack_from(data, at + _IMAGE.size)
    start = at + _IMAGE_HEADER_BYTES
    length = _IMAGE_HEADER_BYTES + record.padded(key_bytes) + record.padded(value_bytes)
    return version, bytes(data[start : start + key_bytes]), length


def value_in(image: bytes) -> bytes:
    value_bytes, key_bytes = _LENGTHS.unpack_from(image, _IMAGE.size)
    start = _IMAGE_HEADER_BYTES + record.padded(key_bytes)
    return image[start : start + value_bytes]
