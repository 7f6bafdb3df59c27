"""Small stores on a MemoryDisk: the real starts, the real writer and snapshots, with a dict instead of an arena."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from memory_disk import MemoryDisk
from small_arena import SmallArena, WalkedArena

from shmkv.segment import _core
from shmkv.wal import record, snapshot, start
from shmkv.wal.cipher import Keyring
from shmkv.wal.generations import Generations
from shmkv.wal.manifest import SnapshotFacts, read_manifest
from shmkv.wal.writer import LogShape

RING_BYTES = 4096
SMALL = LogShape(file_bytes=4096 + 1024, spare_count=1)
STORE_ID = bytes(range(16))
WALL_MS = 1_700_000_000_000


def place_on(
    disk: MemoryDisk, shape: LogShape = SMALL, archive_dir: str = "", keys: Keyring | None = None
) -> start.Place:
    keys = keys or Keyring.none()
    return start.Place(
        disk, "/data", 1 << 20, lambda: WALL_MS, lambda: STORE_ID, shape, keys, archive_dir, load_threads=1
    )


class SmallStore:
    """One life of a store, cold started from what is on the disk."""

    def __init__(
        self,
        disk: MemoryDisk,
        *,
        accept_loss: bool = False,
        shape: LogShape = SMALL,
        archive_dir: str = "",
        keys: Keyring | None = None,
    ) -> None:
        self.arena = SmallArena()
        self.disk = disk
        self.keys = keys or disk.keys or Keyring.none()
        self.archive_dir = archive_dir
        started = start.start_cold(
            place_on(disk, shape, archive_dir, self.keys),
            ring_bytes=RING_BYTES,
            accept_loss=accept_loss,
            make_arena=self.arena.make,
            progress=lambda *_: None,
        )
        self.recovered = list(self.arena.keys)  # keys of the log's records, in order
        self.ring: list[tuple[int, bytes]] = []  # records that are not durable yet
        self._adopt(started)
        self.tail = self.writer.written_lsn

    def _adopt(self, started: start.Started) -> None:
        self.started = started
        self.writer = started.writer
        self.generations: Generations = started.generations
        assert started.slots.manifest is not None
        self.manifest = started.slots.manifest

    @property
    def state(self) -> dict[bytes, bytes]:
        """Key -> value, as a client would see it now."""
        return self.arena.state()

    # ---- the log --------------------------------------------------------------------------------------------

    def append(self, key: str, value: bytes = b"v") -> int:
        """A record into the "ring"; returns its end LSN."""
        return self._append(record.Entry(record.PUT, key.encode(), value))

    def delete(self, key: str) -> int:
        return self._append(record.Entry(record.DELETE, key.encode(), type=0))

    def _append(self, entry: record.Entry) -> int:
        seed = record.record_seed(self.manifest.store_id, self.manifest.incarnation)
        data = record.pack_entries([entry], lsn=self.tail, durable_before=self.writer.synced_lsn, seed=seed)
        self.ring.append((self.tail, data))
        self.arena.change(entry, self.tail)
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
        manifest = read_manifest(self.disk, "/data").manifest
        assert manifest is not None
        started = start.start_warm(
            place_on(self.disk, self.started.writer.shape, self.archive_dir, self.keys),
            ring_bytes=RING_BYTES,
            start_lsn=self.writer.synced_lsn,
            manifest=manifest,
            verify=_core.verify,
        )
        self._adopt(started)
        self.writer.open_file()

    def make_spares(self) -> None:
        while len(self.started.directory.spare_sizes) < self.writer.shape.spare_count:
            self.started.directory.make_spare(self.writer.shape.file_bytes)

    # ---- snapshots ------------------------------------------------------------------------------------------

    def snapshot(
        self, between: Callable[[int], None] = lambda _stripe: None, *, retired: bool = False
    ) -> SnapshotFacts:
        """The job "snapshot" of the persister; between(stripe) is called while it walks."""
        arena = self._walked(retired=retired)
        arena.between = between
        context: Any = SimpleNamespace(
            arena=arena,
            files=self.disk,
            generations=self.generations,
            keys=self.keys,
            settings=SimpleNamespace(compression="none", file_bytes=1 << 20),
            wall_ms=lambda: WALL_MS,
            wait_durable=self._wait_durable,
            progress=lambda *_: None,
            cancelled=lambda: False,
            spawn=None,
        )
        return snapshot.take_snapshot(context)

    def _walked(self, *, retired: bool = False) -> WalkedArena:
        return WalkedArena(self.arena.entries, manifest=self.manifest, tail=lambda: self.tail, retired=retired)

    def _wait_durable(self, lsn: int, _timeout_s: float) -> None:
        if self.writer.synced_lsn < lsn:
            assert self.sync() >= lsn

    def retire(self, *, with_snapshot: bool = True) -> None:
        """A clean stop: everything to the disk, a snapshot of the arena at rest, the manifest says clean."""
        self.sync()
        if with_snapshot:
            self.snapshot(retired=True)
        self.writer.publish_watermark(clean=True)

    def restore(self, entries: dict[bytes, tuple[int, bytes]], lsn: int) -> None:
        """What a restore does at its end, in a store that stops with it: these entries and nothing else."""
        generation = self.generations.next_generation()
        facts = snapshot.write_snapshot(
            WalkedArena(entries, manifest=self.manifest, tail=lambda: lsn, retired=True),  # type: ignore[arg-type]
            self.disk,
            self.generations.unfinished_path(generation),
            generation=generation,
            keys=self.keys,
            compression="none",
            wall_ms=lambda: WALL_MS,
            identity=snapshot.Identity(self.manifest.store_id, self.manifest.incarnation, lsn),
        )
        self.sync()
        self.writer.publish_watermark(clean=True)
        self.generations.switch(facts, highest_lsn=self.tail)


def log_path(number: int) -> str:
    return f"/data/log/{number:010d}.log"


def snapshot_file(generation: int) -> str:
    return f"/data/snapshot/{generation:010d}.snapshot"
