"""Failing disks: each call of each kind fails once and for ever, at the Nth time, N rising until nothing is hit.

Whatever fails: what was published as durable is recovered after a power cut, in order; nothing else is promised.
  - an error of write or sync, once: a new file, nothing lost, state OK
  - again before a sync succeeded: FAILED, reads go on, writes are refused
  - no space: DISK_FULL, writes are refused, and OK again when there is space
"""

from __future__ import annotations

import errno

import pytest
from memory_disk import Fault, MemoryDisk, none_kept
from rig import Rig
from small_log import SmallStore

from shmkv.errors import CorruptData, DiskFull, DurabilityUnknown, LogStalled, ReadOnly
from shmkv.wal.channel import STOP
from shmkv.wal.writer import LogShape

ALL = ("create", "open", "preallocate", "write", "sync", "sync_dir", "rename", "unlink")
ROUNDS = 8
SHAPE = LogShape(file_bytes=16 << 10, spare_count=1)


class Life:
    """Sets with a persister below; remembers what was acknowledged."""

    def __init__(self, fault: Fault, durability: str = "always") -> None:
        self.rig = Rig(MemoryDisk(), durability=durability, shape=SHAPE)
        self.rig.turns()
        self.written: list[tuple[str, int]] = []
        self.refused = 0
        self.rig.disk.before = fault

    def run(self, rounds: int = ROUNDS) -> None:
        for _ in range(rounds):
            for _ in range(5):
                key = f"key{len(self.written)}"
                try:
                    self.rig.store.set(key, bytes(500))
                except (DiskFull, ReadOnly, LogStalled):
                    self.refused += 1
                else:
                    self.written.append((key, self.rig.tail))
            self.rig.turns(8)
            self.rig.later(1001)

    @property
    def acknowledged(self) -> list[str]:
        return [key for key, end in self.written if end <= self.rig.durable_lsn]

    def check(self) -> None:
        keys = [key for key, _ in self.written]
        assert self.rig.recovered() == keys[: len(self.rig.recovered())]
        assert len(self.rig.recovered()) >= len(self.acknowledged)
        assert self.rig.arena.audit(deep=True) == []


@pytest.mark.parametrize("durability", ["always", "interval"])
@pytest.mark.parametrize("operation", ALL)
def test_an_error_once_loses_nothing_and_passes(operation: str, durability: str) -> None:
    nth = 0
    while True:
        fault = Fault(nth, operations=(operation,), code=errno.EIO)
        life = Life(fault, durability)
        life.run()
        life.check()
        if fault.hits:
            assert life.rig.states() in ([], ["DISK_FULL", "OK"], ["OK"])
            assert len(life.acknowledged) == len(life.written) == ROUNDS * 5 - life.refused
        life.rig.close()
        if not fault.hits:
            break
        nth += 1
    # Removing happens only where something else failed.
    assert nth > 0 or operation == "unlink"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("operation", ["write", "sync"])
def test_an_error_of_the_commit_that_ends_a_wait_loses_nothing(operation: str, code: int) -> None:
    life = Life(Fault(0, operations=(operation,), code=code))

    def write() -> None:
        life.rig.arena.during_wait = lambda: None
        with pytest.raises(DurabilityUnknown):
            life.rig.store.set("during the wait", b"", durability="always")

    life.rig.arena.during_wait = write
    name = life.rig.writer.name
    life.rig.turns(1)
    assert life.rig.durable_lsn < life.rig.tail
    assert life.rig.recovered() == [] or operation == "sync"
    life.rig.later(1001)
    assert life.rig.durable_lsn == life.rig.tail
    assert life.rig.writer.name not in ("", name), "the file was used again"
    assert life.rig.arena.info()["log_state"] == "OK"
    assert life.rig.recovered() == ["during the wait"]
    life.rig.close()


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_an_error_for_ever_makes_the_store_read_only(operation: str) -> None:
    for nth in range(12):
        life = Life(Fault(nth, operations=(operation,), code=errno.EIO, for_ever=True))
        life.run()
        life.check()
        assert life.rig.states()[-1] == "FAILED"
        assert life.rig.arena.info()["log_state"] == "FAILED"
        with pytest.raises(ReadOnly):
            life.rig.store.set("more", 1)
        for key, _ in life.written:
            assert life.rig.store.get(key) == bytes(500), "reads go on"
        life.rig.disk.before = lambda _operation, _path: None
        life.run(2)
        assert life.rig.states()[-1] == "FAILED", "nothing leaves that state but a restart"
        life.rig.close()


def test_a_stop_of_a_failed_log_does_not_say_clean() -> None:
    life = Life(Fault(0, operations=("sync",), code=errno.EIO, for_ever=True))
    life.run(2)
    life.rig.orders.give(STOP)
    life.rig.turns()
    assert life.rig.persister.exit_code == 1
    assert life.rig.events[-1]["event"] == "failed"
    life.rig.close()


def test_a_restart_after_a_failed_log_goes_on_with_what_the_ring_kept() -> None:
    life = Life(Fault(0, operations=("sync",), code=errno.EIO, for_ever=True))
    life.run(2)
    assert life.written
    assert not life.acknowledged
    life.rig.disk.before = lambda _operation, _path: None
    life.rig.restart_warm()
    life.rig.arena.set_state(log_state="OK")
    life.run(1)
    assert life.rig.recovered() == [key for key, _ in life.written]
    assert len(life.acknowledged) == len(life.written)
    life.rig.close()


def test_a_restart_does_not_sync_a_file_that_gave_nothing() -> None:
    fault = Fault(0, operations=("sync",), code=errno.EIO, for_ever=True, path=".log")
    life = Life(fault)
    life.run(2)
    assert life.rig.states()[-1] == "FAILED"
    failed = life.rig.directory.numbers()[-1]
    life.rig.disk.before = Fault(0, operations=("sync",), code=errno.EIO, for_ever=True, path=f"{failed:010d}.log")
    life.rig.restart_warm()
    life.rig.arena.set_state(log_state="OK")
    life.run(1)
    assert life.rig.recovered() == [key for key, _ in life.written]
    assert len(life.acknowledged) == len(life.written)
    life.rig.close()


def test_no_sync_is_repeated_on_a_file_that_failed_once() -> None:
    life = Life(Fault(0, operations=("sync",), code=errno.EIO, path="0000000001.log"))
    life.run()
    life.check()
    assert not [operation for operation in life.rig.disk.operations if operation == "sync 0000000001.log"]
    assert len(life.acknowledged) == len(life.written) == ROUNDS * 5
    life.rig.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("operation", ["create", "preallocate"])
def test_a_full_disk_refuses_writes_until_there_is_space(operation: str, code: int) -> None:
    for nth in range(3):
        life = Life(Fault(nth, operations=(operation,), code=code, for_ever=True, path="spare."))
        life.run(20)
        life.check()
        assert life.rig.states() == ["DISK_FULL"]
        assert life.refused > 0
        with pytest.raises(DiskFull):
            life.rig.store.set("more", 1)
        assert len(life.acknowledged) == len(life.written), "what was accepted found room"
        life.rig.disk.before = lambda _operation, _path: None
        refused = life.refused
        life.rig.later(1001)
        life.rig.later(1001)
        assert life.rig.states() == ["DISK_FULL", "OK"]
        life.run(3)
        life.check()
        assert life.refused == refused
        life.rig.close()


def test_writes_are_refused_while_there_is_still_room_for_a_whole_ring() -> None:
    life = Life(Fault(0, operations=("preallocate",), code=errno.ENOSPC, for_ever=True))
    while not life.rig.states():
        life.run(1)
    pending = life.rig.tail - life.rig.durable_lsn
    assert pending == 0, "nothing that was accepted waits for the disk"
    life.check()
    life.rig.close()


def test_a_full_disk_is_noticed_with_the_next_write_and_not_at_the_next_heartbeat() -> None:
    life = Life(Fault(0, operations=("preallocate",), code=errno.ENOSPC, for_ever=True))
    rig = life.rig
    while not rig.states():
        rig.store.set("key", bytes(500))
        rig.turns(6)
    assert rig.durable_lsn == rig.tail
    assert rig.writer.room_bytes > SHAPE.file_bytes // 2, "the file that the last spare became has just been begun"
    rig.close()


def test_no_space_at_a_sync_is_an_error_of_that_file() -> None:
    """Where blocks are allocated late, a sync may lose what it could not place: it is not repeated."""
    life = Life(Fault(2, operations=("sync",), code=errno.ENOSPC, path=".log"))
    life.run()
    life.check()
    assert len(life.acknowledged) == len(life.written) == ROUNDS * 5
    life.rig.close()


def test_level_none_fails_when_a_sync_loses_what_the_ring_gave_up() -> None:
    life = Life(Fault(0, operations=("sync",), code=errno.EIO, path="0000000001.log"), durability="none")
    life.run(12)
    life.check()
    assert life.rig.states() == ["FAILED"]
    life.rig.close()


@pytest.mark.parametrize("operation", [*ALL, "read", "map"])
def test_an_error_during_a_cold_start_leaves_the_same_start(operation: str) -> None:
    disk = MemoryDisk()
    store = SmallStore(disk)
    keys = [f"key{number}" for number in range(12)]
    for key in keys:
        store.append(key, bytes(100))
        store.sync()
    store.append("torn")
    store.write()
    image = disk.after_power_cut(none_kept)
    nth = 0
    while True:
        again = image.copy()
        fault = Fault(nth, operations=(operation,), code=errno.EIO)
        again.before = fault
        try:
            assert SmallStore(again).recovered == keys
        except OSError as error:
            assert not isinstance(error, CorruptData)
        again.before = lambda _operation, _path: None
        assert SmallStore(again.after_power_cut(none_kept)).recovered == keys
        if not fault.hits:
            break
        nth += 1


@pytest.mark.parametrize("operation", [*ALL, "read", "map"])
def test_an_error_during_a_warm_start_leaves_the_same_start(operation: str) -> None:
    nth = 0
    while True:
        rig = Rig(MemoryDisk(), shape=SHAPE)
        for number in range(40):
            rig.store.set(f"key{number}", bytes(500))
            if number < 30:
                rig.turns()
        fault = Fault(nth, operations=(operation,), code=errno.EIO)
        rig.disk.before = fault
        try:
            rig.restart_warm()
        except OSError:
            rig.restart_warm()
        rig.disk.before = lambda _operation, _path: None
        rig.turns()
        assert rig.recovered() == [f"key{number}" for number in range(40)]
        rig.close()
        if not fault.hits:
            break
        nth += 1
