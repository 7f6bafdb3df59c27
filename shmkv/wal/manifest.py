"""The manifest: what the data directory is, in two slots of which one is always whole.

Why here: everything that must be decided at a start without reading the log stands in it: whose log this is, which
LSNs were ever used, where an incarnation ends, what was certainly on disk. Format: docs/formats.md.

Invariants:
  I1  A slot is written in place and synced while the other, synced one holds the manifest before it: a kill or a
      power cut at any moment leaves at least one of the two whole.
  I2  The valid slot with the higher counter is the manifest.
  I3  A start publishes twice, the incarnation and then its first file: so both slots know the incarnation before it
      serves, and the later rot of one of them loses only how far the newest one said that the log was on disk.
  I4  The slot that a start has read is written again and synced before the other one is touched: it may be in the
      page cache only, if its writer was killed before its fsync, or if that failed.
  I5  The loop and the job thread change it through `update`: read, replace and publish under one lock.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable

import msgpack

from shmkv.dataclass import dataclass, fields
from shmkv.segment import _core
from shmkv.wal.files import Files

MAGIC = b"SHMKVMAN"
FORMAT_VERSION = 1
BODY_LIMIT_BYTES = 1 << 20
SLOT_NAMES = ("manifest.0", "manifest.1")
STORE_ID_BYTES = 16

_PREFIX = struct.Struct("<8sIIQ")  # magic, format version, body length, counter
_CRC = struct.Struct("<I")
_SLOT_HEADER_BYTES = 32


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """What the manifest says of one snapshot: with the log from start_lsn to end_lsn at least, it is a whole state.

    start_lsn, end_lsn: where the log ended when the walk began and when it was over; incarnation: of that log. entries,
    size_bytes: of the file; wall_ms: when it was made. alone: whole without any log, and no record of its incarnation
    follows it (taken from a retired arena, or restored); start_lsn = end_lsn then.
    """

    generation: int
    start_lsn: int
    end_lsn: int
    incarnation: int
    entries: int
    size_bytes: int
    wall_ms: int
    alone: bool = False


FACTS = tuple(field.name for field in fields(SnapshotFacts))


@dataclass(frozen=True, slots=True)
class Manifest:
    """LSNs and file numbers; seals = (incarnation, end LSN) of every incarnation that ended and still has log files.

    watermark: all records below it were once synced. highest_lsn: no LSN above it was ever named. newest_file: the
    highest file number that certainly has its directory entry, 0 = none. disowned: ranges (first, last) of file numbers
    that count no more, there or not. clean: the last arena was retired. snapshots: those that count, oldest first.
    """

    store_id: bytes
    incarnation: int
    first_lsn: int
    highest_lsn: int
    watermark: int = 0
    oldest_file: int = 1
    newest_file: int = 0
    seals: tuple[tuple[int, int], ...] = ()
    disowned: tuple[tuple[int, int], ...] = ()
    clean: bool = False
    snapshots: tuple[SnapshotFacts, ...] = ()


class BadSlot(ValueError):
    """A slot that is no valid manifest; the text says why."""


def pack_slot(manifest: Manifest, counter: int) -> bytes:
    """One slot as it is written."""
    body: bytes = msgpack.packb(
        {
            "store_id": manifest.store_id,
            "incarnation": manifest.incarnation,
            "first_lsn": manifest.first_lsn,
            "highest_lsn": manifest.highest_lsn,
            "watermark": manifest.watermark,
            "oldest_file": manifest.oldest_file,
            "newest_file": manifest.newest_file,
            "seals": [list(seal) for seal in manifest.seals],
            "disowned": [list(numbers) for numbers in manifest.disowned],
            "clean": manifest.clean,
            "snapshots": [{name: getattr(facts, name) for name in FACTS} for facts in manifest.snapshots],
        }
    )
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(body), counter)
    crc = _core.crc32c(body, _core.crc32c(prefix))
    return (prefix + _CRC.pack(crc)).ljust(_SLOT_HEADER_BYTES, b"\0") + body


def unpack_slot(data: bytes) -> tuple[int, Manifest]:
    """Counter and manifest of a slot; bytes behind the body are ignored. Raises BadSlot."""
    if len(data) < _SLOT_HEADER_BYTES:
        raise BadSlot(f"{len(data)} bytes, fewer than the {_SLOT_HEADER_BYTES} of its header")
    magic, version, length, counter = _PREFIX.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _PREFIX.size)
    if magic != MAGIC:
        raise BadSlot(f"starts with {magic!r} instead of {MAGIC!r}")
    body = data[_SLOT_HEADER_BYTES : _SLOT_HEADER_BYTES + length]
    if length > BODY_LIMIT_BYTES or len(body) != length:
        raise BadSlot(f"says {length} bytes follow its header; {len(body)} do")
    if _core.crc32c(body, _core.crc32c(data[: _PREFIX.size])) != crc:
        raise BadSlot("checksum does not match")
    if version != FORMAT_VERSION:
        raise BadSlot(f"format version {version}; this program reads {FORMAT_VERSION}")
    return counter, _from_body(body)


def _from_body(body: bytes) -> Manifest:
    try:
        found = msgpack.unpackb(body)
        manifest = Manifest(
            store_id=found["store_id"],
            incarnation=found["incarnation"],
            first_lsn=found["first_lsn"],
            highest_lsn=found["highest_lsn"],
            watermark=found["watermark"],
            oldest_file=found["oldest_file"],
            newest_file=found["newest_file"],
            seals=tuple((incarnation, end_lsn) for incarnation, end_lsn in found["seals"]),
            disowned=tuple((first, last) for first, last in found["disowned"]),
            clean=found["clean"],
            snapshots=tuple(SnapshotFacts(**facts) for facts in found["snapshots"]),
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise BadSlot(f"its body is not a manifest: {problem!r}") from problem
    if not isinstance(manifest.store_id, bytes) or len(manifest.store_id) != STORE_ID_BYTES:
        raise BadSlot("its store id is not 16 bytes")
    return manifest


@dataclass(frozen=True, slots=True)
class ManifestRead:
    """What was found: the manifest (None: no valid slot), problems of slots that exist but are not valid."""

    manifest: Manifest | None
    problems: tuple[str, ...] = ()
    counter: int = 0
    newest_slot: int = 1


def read_manifest(files: Files, data_dir: str) -> ManifestRead:
    """The newest valid slot of the data directory. Raises OSError if a slot cannot be read."""
    best = ManifestRead(None)
    problems: list[str] = []
    present = set(files.names(data_dir))
    for slot, name in enumerate(SLOT_NAMES):
        if name not in present:
            continue
        path = os.path.join(data_dir, name)
        try:
            counter, manifest = unpack_slot(files.read_some(path, _SLOT_HEADER_BYTES + BODY_LIMIT_BYTES))
        except BadSlot as problem:
            problems.append(f"{path}: {problem}")
            continue
        if best.manifest is None or counter > best.counter:
            best = ManifestRead(manifest, (), counter, slot)
    return ManifestRead(best.manifest, tuple(problems), best.counter, best.newest_slot)


class ManifestSlots:
    """Writes manifests, one slot after the other; `read` is what was found at the start. All methods: thread-safe."""

    def __init__(self, files: Files, data_dir: str, read: ManifestRead) -> None:
        self._files = files
        self._data_dir = data_dir
        self._counter = read.counter
        self._newest_slot = read.newest_slot
        self._lock = threading.Lock()
        # A slot that is there may still have no durable name: its maker may have been killed before that.
        self._named_slots: set[int] = set()
        # None is read from it, or it was written here: nothing of it is only in the page cache.
        self._settled = read.manifest is None
        self.manifest = read.manifest

    def publish(self, manifest: Manifest) -> None:
        """Make this the manifest; on return it is on disk.

        Raises OSError; then, as after a kill, it is this manifest or the one before.
        """
        with self._lock:
            self._publish(manifest)

    def update(self, change: Callable[[Manifest], Manifest]) -> Manifest:
        """Publish change(the manifest), which no other thread can replace meanwhile; returns it.

        Blocks for two syncs or fewer, and while another thread publishes. Raises OSError as `publish` does.
        """
        with self._lock:
            assert self.manifest is not None, "there is nothing to change yet"
            manifest = change(self.manifest)
            self._publish(manifest)
            return manifest

    def settle(self) -> None:
        """Make what was read at the start durable. Raises OSError."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        if self._settled:
            return
        path = self._path(self._newest_slot)
        # Written again, byte for byte: if a sync of it failed once, only new writes reach the disk.
        data = self._files.read_some(path, _SLOT_HEADER_BYTES + BODY_LIMIT_BYTES)
        fd = self._files.open(path)
        try:
            self._files.write_all(fd, [data], 0)
            self._files.fsync(fd)
        finally:
            self._files.close(fd)
        self._files.fsync_dir(self._data_dir)
        self._named_slots.add(self._newest_slot)
        self._settled = True

    def _publish(self, manifest: Manifest) -> None:
        self._settle()
        slot = 1 - self._newest_slot
        self._write_slot(slot, pack_slot(manifest, self._counter + 1))
        self._counter += 1
        self._newest_slot = slot
        self._settled = True
        self.manifest = manifest

    def _write_slot(self, slot: int, data: bytes) -> None:
        known = slot in self._named_slots or SLOT_NAMES[slot] in self._files.names(self._data_dir)
        fd = self._files.open(self._path(slot)) if known else self._files.create(self._path(slot))
        try:
            self._files.write_all(fd, [data], 0)
            self._files.fsync(fd)
        finally:
            self._files.close(fd)
        if slot not in self._named_slots:
            self._files.fsync_dir(self._data_dir)
            self._named_slots.add(slot)

    def _path(self, slot: int) -> str:
        return os.path.join(self._data_dir, SLOT_NAMES[slot])
