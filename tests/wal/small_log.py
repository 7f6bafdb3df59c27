"""Small stores on a MemoryDisk: the real starts and the real writer, with records made in Python instead of a ring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memory_disk import MemoryDisk

from shmkv.segment import _core
from shmkv.wal import record, start
from shmkv.wal.manifest import Manifest, read_manifest
from shmkv.wal.writer import LogShape

RING_BYTES = 4096
SMALL = LogShape(file_bytes=4096 + 1024, spare_count=1)
STORE_ID = bytes(range(16))
WALL_MS = 1_700_000_000_000


def place_on(disk: MemoryDisk, shape: LogShape = SMALL) -> start.Place:
    return start.Place(disk, "/data", 1 << 20, lambda: WALL_MS, lambda: STORE_ID, shape)


class Collector:
    """Stands for an arena during recovery: remembers the keys of the records that it was given, in order."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.manifest: Manifest | None = None

    def make_arena(self, manifest: Manifest) -> Callable[..., dict[str, Any]]:
        self.manifest = manifest
        return self.apply

    def apply(self, data: Any, *, store_id: bytes, incarnation: int, first_lsn: int) -> dict[str, Any]:
        found = _core.verify(data, store_id=store_id, incarnation=incarnation, first_lsn=first_lsn)
        items = list(record.read_records(data, store_id=store_id, incarnation=incarnation, first_lsn=first_lsn))
        stop = items.pop()
        assert isinstance(stop, record.Stop)
        assert stop.offset == found["consumed_bytes"], "the two readers disagree"
        assert (None if stop.reason == "end" else stop.reason) == found["stopped"], "the two readers disagree"
        for item in items:
            assert isinstance(item, record.Record)
            self.keys += [entry.key.decode() for entry in item.entries]
        return found


class SmallStore:
    """One life of a store, cold started from what is on the disk."""

    def __init__(self, disk: MemoryDisk, *, accept_loss: bool = False, shape: LogShape = SMALL) -> None:
        collector = Collector()
        self.disk = disk
        self.started = start.start_cold(
            place_on(disk, shape),
            ring_bytes=RING_BYTES,
            accept_loss=accept_loss,
            make_arena=collector.make_arena,
            progress=lambda *_: None,
        )
        self.recovered = collector.keys
        self._adopt(self.started)

    def _adopt(self, started: start.Started) -> None:
        self.started = started
        self.writer = started.writer
        assert started.slots.manifest is not None
        self.manifest = started.slots.manifest
        self.tail = self.writer.written_lsn
        self.ring: list[tuple[int, bytes]] = []  # records that are not durable yet

    def append(self, key: str, value: bytes = b"v") -> int:
        """A record into the "ring"; returns its end LSN."""
        seed = record.record_seed(self.manifest.store_id, self.manifest.incarnation)
        entry = record.Entry(record.PUT, key.encode(), value)
        data = record.pack_entries([entry], lsn=self.tail, durable_before=self.writer.synced_lsn, seed=seed)
        self.ring.append((self.tail, data))
        self.tail += len(data)
        return self.tail

    def write(self) -> None:
        """Everything of the ring into the log, rotating where the file ends; what was written is not synced."""
        for lsn, data in self.ring:
            if lsn < self.writer.written_lsn:
                continue
            if self.writer.room_bytes < len(data):
                self.writer.finish_file()
                self.writer.open_file(len(data))
            self.writer.write([data], lsn + len(data))

    def sync(self) -> int:
        """Write and sync; returns the durable LSN."""
        self.write()
        self.writer.sync()
        self.ring = [(lsn, data) for lsn, data in self.ring if lsn >= self.writer.synced_lsn]
        return self.writer.synced_lsn

    def restart_warm(self) -> None:
        """A new persister on the living arena, whose ring's head is the durable LSN."""
        ring, tail = self.ring, self.tail
        manifest = read_manifest(self.disk, "/data").manifest
        assert manifest is not None
        started = start.start_warm(
            place_on(self.disk, self.started.writer.shape),
            ring_bytes=RING_BYTES,
            start_lsn=self.writer.synced_lsn,
            manifest=manifest,
            verify=_core.verify,
        )
        self._adopt(started)
        self.writer.open_file()
        self.ring, self.tail = ring, tail

    def make_spares(self) -> None:
        while len(self.started.directory.spare_sizes) < self.writer.shape.spare_count:
            self.started.directory.make_spare(self.writer.shape.file_bytes)


def log_path(number: int) -> str:
    return f"/data/log/{number:010d}.log"
