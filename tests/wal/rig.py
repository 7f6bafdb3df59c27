"""The real loop on a real arena in this process, with a MemoryDisk below, a clock by hand and no waiting."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from memory_disk import MemoryDisk, none_kept
from small_log import SmallStore, place_on

from shmkv.segment import _core
from shmkv.wal.channel import Events, Orders
from shmkv.wal.cipher import Keyring
from shmkv.wal.jobs import Context, Jobs, JobSettings, SyncWish
from shmkv.wal.loop import Persister
from shmkv.wal.manifest import Manifest, read_manifest
from shmkv.wal.pace import Pace, Settings, SnapshotSettings
from shmkv.wal.schedule import Schedule, pace_after
from shmkv.wal.spares import SpareMaker
from shmkv.wal.start import Started, start_cold, start_warm
from shmkv.wal.writer import LogShape

ARENA_BYTES = 8 << 20
RING_BYTES = 1 << 20
LAG_MS = 5000
WALL_MS = 1_700_000_000_000
NO_SNAPSHOTS = SnapshotSettings(interval_ms=0, log_bytes=0)


class HandArena:
    """An Arena whose clock is set by hand and whose waits return at once."""

    def __init__(self, arena: _core.Arena) -> None:
        self._arena = arena
        self.now_ms = arena.ring()["now_ms"]
        self.durable: list[int] = []
        self.during_wait: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arena, name)

    def ring(self) -> dict[str, int]:
        return {**self._arena.ring(), "now_ms": self.now_ms}

    def ring_wait(self, after_lsn: int, timeout_s: float) -> int:
        assert timeout_s > 0
        assert after_lsn <= self._arena.ring()["tail"]
        return self._arena.ring()["tail"]

    def ring_collect(self, after_lsn: int, timeout_s: float, limit_bytes: int) -> tuple[int, int, bytes | None]:
        assert timeout_s > 0
        self.during_wait()
        tail, _, records = self._arena.ring_collect(after_lsn, 0, limit_bytes)
        return tail, self.now_ms, records

    def publish_durable(self, lsn: int, collected_ms: int) -> None:
        self.durable.append(lsn)
        self._arena.publish_durable(lsn, collected_ms)


class HandOrders(Orders):
    """Orders whose waits return at once."""

    def wait(self, timeout_s: float) -> None:
        assert timeout_s > 0


class Rig:
    """A store that serves: `store` writes, `turns` lets the persister work."""

    def __init__(
        self,
        disk: MemoryDisk,
        *,
        durability: str = "always",
        shape: LogShape | None = None,
        interval_ms: int = 1000,
        keys: Keyring | None = None,
        snapshots: SnapshotSettings = NO_SNAPSHOTS,
        archive_dir: str = "",
    ) -> None:
        self.disk = disk
        self.archive_dir = archive_dir
        self.snapshots = snapshots
        self.switched: list[int] = []
        self.keys = keys
        self.durability = durability
        self.interval_ms = interval_ms
        self.shape = shape or LogShape(file_bytes=64 << 10, spare_count=1)
        self.fd = os.memfd_create("shmkv-test", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, ARENA_BYTES)
        try:
            started = start_cold(
                place_on(disk, self.shape, archive_dir, keys),
                ring_bytes=RING_BYTES,
                accept_loss=False,
                make_arena=self._make_arena,
                progress=lambda *_: None,
            )
        except BaseException:
            os.close(self.fd)
            raise
        self.arena.set_state(state="READY", durability=durability, lag_limit_ms=LAG_MS, log_state="OK")
        self.store = _core.Store(self.fd, "test", durability="none", log_timeout_s=0.05)
        self.events: list[dict[str, Any]] = []
        self._pipes: list[int] = []
        try:
            self._start(started)
        except BaseException:
            self.close()
            raise

    def _make_arena(self, manifest: Manifest, hash_key: bytes | None) -> Any:
        _core.format_arena(
            self.fd,
            size_bytes=ARENA_BYTES,
            ring_bytes=RING_BYTES,
            name="test",
            store_id=manifest.store_id,
            incarnation=manifest.incarnation,
            first_lsn=manifest.first_lsn,
            has_log=True,
            hash_key=hash_key,
        )
        self.arena = HandArena(_core.Arena(self.fd))
        return self.arena

    def _start(self, started: Started, *, warm: bool = False) -> None:
        read_fd, write_fd = os.pipe()
        self._pipes += [read_fd, write_fd]
        self._events_fd = read_fd
        os.set_blocking(read_fd, False)
        self.orders = HandOrders()
        self.unlinked = 0
        settings = Settings(self.durability, self.interval_ms, LAG_MS, RING_BYTES)
        self.pace = Pace(settings, self.arena.now_ms, started.writer.synced_lsn)
        self.writer = started.writer
        self.directory = started.directory
        self.spares = SpareMaker(started.directory, self.shape, lambda work: work())
        events = Events(write_fd)
        self.wish = SyncWish(lambda: self.arena.ring()["durable_lsn"])
        context = Context(
            arena=self.arena,  # type: ignore[arg-type]
            files=self.disk,
            data_dir="/data",
            keys=self.keys or Keyring.none(),
            slots=started.slots,
            directory=started.directory,
            generations=started.generations,
            settings=JobSettings("test", {"size_bytes": ARENA_BYTES}, self.shape.file_bytes),
            wall_ms=lambda: WALL_MS,
            wait_durable=self.wish.wait,
        )
        self.generations = started.generations
        self.jobs = Jobs(context, events, spawn=lambda work: threading.Thread(target=work).start())
        self.persister = Persister(
            self.arena,  # type: ignore[arg-type]
            started.writer,
            self.pace,
            self.spares,
            events=events,
            orders=self.orders,
            wall_ms=lambda: WALL_MS,
            unlink=self._unlink,
            switch=self.switched.append,
            keeps_ring=self.durability != "none",
            schedule=Schedule(pace_after(started, context, self.snapshots, warm=warm), self.jobs, started.generations),
            wish=self.wish,
        )
        self.persister.open_first()

    def restart_warm(self) -> None:
        """The persister was killed; a new one adopts the arena."""
        ring = self.arena.ring()
        manifest = read_manifest(self.disk, "/data").manifest
        assert manifest is not None
        started = start_warm(
            place_on(self.disk, self.shape, self.archive_dir, self.keys),
            ring_bytes=RING_BYTES,
            start_lsn=max(ring["head"], ring["durable_lsn"]),
            manifest=manifest,
            verify=_core.verify,
        )
        self._start(started, warm=True)

    def _unlink(self) -> None:
        self.unlinked += 1

    # ---- use ------------------------------------------------------------------------------------------------

    def turns(self, count: int = 20) -> None:
        """Let the persister make that many steps, or fewer if it ends."""
        for _ in range(count):
            if self.persister.exit_code is not None:
                break
            self.persister.turn()
        self._collect()

    def run_jobs(self) -> None:
        """Let the persister work until no job runs."""
        deadline_s = time.monotonic() + 10
        while not self.jobs.idle:
            assert time.monotonic() < deadline_s
            self.turns()

    def finish(self) -> None:
        """Let the persister work until it ends."""
        deadline_s = time.monotonic() + 10
        while self.persister.exit_code is None:
            assert time.monotonic() < deadline_s
            self.turns()

    def after_power_cut(self) -> dict[Any, Any]:
        """What a start on what was synced gives: all keys and values, from a snapshot or not."""
        other = Rig(self.disk.after_power_cut(none_kept), shape=self.shape, keys=self.keys)
        cursor, found = 0, {}
        while cursor != _core.CURSOR_END:
            cursor, pairs = other.store._scan(cursor, True)
            found.update(pairs)
        other.close()
        return found

    def job_events(self) -> list[tuple[str, str]]:
        """(job, state) of what was told of jobs, without what runs."""
        return [
            (event["job"], event["state"])
            for event in self.events
            if event["event"] == "job" and event["state"] != "running"
        ]

    def later(self, milliseconds: int) -> None:
        """Let time pass, then let it work."""
        self.arena.now_ms += milliseconds
        self.turns()

    def _collect(self) -> None:
        try:
            data = os.read(self._events_fd, 1 << 16)
        except BlockingIOError:
            return
        self.events += [json.loads(line) for line in data.splitlines()]

    def states(self) -> list[str]:
        """The log states that were reported, in order."""
        return [event["state"] for event in self.events if event["event"] == "log_state"]

    @property
    def durable_lsn(self) -> int:
        return int(self.arena.ring()["durable_lsn"])

    @property
    def tail(self) -> int:
        return int(self.arena.ring()["tail"])

    def recovered(self) -> list[str]:
        """Keys in the order of the log after a power cut that loses all that was not synced."""
        return SmallStore(self.disk.after_power_cut(none_kept), shape=self.shape, keys=self.keys).recovered

    def close(self) -> None:
        self.store.close()
        self.arena.close()
        for fd in (self.fd, *self._pipes):
            os.close(fd)
