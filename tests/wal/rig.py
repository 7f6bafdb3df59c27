"""The real loop on a real arena in this process, with a MemoryDisk below, a clock by hand and no waiting."""

from __future__ import annotations

import json
import os
from typing import Any

from memory_disk import MemoryDisk, none_kept
from small_log import Collector, SmallStore, place_on

from shmkv.segment import _core
from shmkv.wal.channel import Events, Orders
from shmkv.wal.loop import Persister
from shmkv.wal.manifest import Manifest, read_manifest
from shmkv.wal.pace import Pace, Settings
from shmkv.wal.replay import Apply
from shmkv.wal.spares import SpareMaker
from shmkv.wal.start import Started, start_cold, start_warm
from shmkv.wal.writer import LogShape

ARENA_BYTES = 8 << 20
RING_BYTES = 1 << 20
LAG_MS = 5000


class HandArena:
    """An Arena whose clock is set by hand and whose waits return at once."""

    def __init__(self, arena: _core.Arena) -> None:
        self._arena = arena
        self.now_ms = arena.ring()["now_ms"]
        self.durable: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arena, name)

    def ring(self) -> dict[str, int]:
        return {**self._arena.ring(), "now_ms": self.now_ms}

    def ring_wait(self, after_lsn: int, timeout_s: float) -> int:
        assert timeout_s > 0
        assert after_lsn <= self._arena.ring()["tail"]
        return self._arena.ring()["tail"]

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
        self, disk: MemoryDisk, *, durability: str = "always", shape: LogShape | None = None, interval_ms: int = 1000
    ) -> None:
        self.disk = disk
        self.durability = durability
        self.interval_ms = interval_ms
        self.shape = shape or LogShape(file_bytes=64 << 10, spare_count=1)
        self.fd = os.memfd_create("shmkv-test", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, ARENA_BYTES)
        self._collector = Collector()
        started = start_cold(
            place_on(disk, self.shape),
            ring_bytes=RING_BYTES,
            accept_loss=False,
            make_arena=self._make_arena,
            progress=lambda *_: None,
        )
        self.arena.set_state(state="READY", durability=durability, lag_limit_ms=LAG_MS, log_state="OK")
        self.store = _core.Store(self.fd, "test", durability="none", log_timeout_s=0.05)
        self.events: list[dict[str, Any]] = []
        self._start(started)

    def _make_arena(self, manifest: Manifest) -> Apply:
        _core.format_arena(
            self.fd,
            size_bytes=ARENA_BYTES,
            ring_bytes=RING_BYTES,
            name="test",
            store_id=manifest.store_id,
            incarnation=manifest.incarnation,
            first_lsn=manifest.first_lsn,
            has_log=True,
        )
        self.arena = HandArena(_core.Arena(self.fd))
        return self.arena.apply  # type: ignore[no-any-return]

    def _start(self, started: Started) -> None:
        read_fd, write_fd = os.pipe()
        self._events_fd = read_fd
        os.set_blocking(read_fd, False)
        self.orders = HandOrders()
        self.unlinked = 0
        settings = Settings(self.durability, self.interval_ms, LAG_MS, RING_BYTES)
        self.pace = Pace(settings, self.arena.now_ms, started.writer.synced_lsn)
        self.writer = started.writer
        self.directory = started.directory
        self.spares = SpareMaker(started.directory, self.shape, lambda work: work())
        self.persister = Persister(
            self.arena,  # type: ignore[arg-type]
            started.writer,
            self.pace,
            self.spares,
            events=Events(write_fd),
            orders=self.orders,
            wall_ms=lambda: 1_700_000_000_000,
            unlink=self._unlink,
            keeps_ring=self.durability != "none",
        )
        self.persister.open_first()

    def restart_warm(self) -> None:
        """The persister was killed; a new one adopts the arena."""
        ring = self.arena.ring()
        manifest = read_manifest(self.disk, "/data").manifest
        assert manifest is not None
        started = start_warm(
            place_on(self.disk, self.shape),
            ring_bytes=RING_BYTES,
            start_lsn=max(ring["head"], ring["durable_lsn"]),
            manifest=manifest,
            verify=_core.verify,
        )
        self._start(started)

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
        return SmallStore(self.disk.after_power_cut(none_kept), shape=self.shape).recovered

    def close(self) -> None:
        self.store.close()
        self.arena.close()
        os.close(self.fd)
