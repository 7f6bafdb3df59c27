"""The loop on a real arena: when it writes and syncs, rotation, marks, warm restarts, ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from memory_disk import MemoryDisk
from rig import RING_BYTES, Rig

from shmkv.errors import DurabilityUnknown
from shmkv.wal import writer
from shmkv.wal.channel import RETIRE, STOP
from shmkv.wal.loop import COLLECT_BYTES
from shmkv.wal.manifest import read_manifest
from shmkv.wal.pace import MARK_RECORD_BYTES
from shmkv.wal.writer import LogShape


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**options: object) -> Rig:
        rigs.append(Rig(MemoryDisk(), **options))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for rig in rigs:
        assert rig.arena.audit(deep=True) == []
        rig.close()


def fill(rig: Rig, count: int, size_bytes: int = 100, start: int = 0) -> list[str]:
    keys = [f"key{number}" for number in range(start, start + count)]
    for key in keys:
        rig.store.set(key, bytes(size_bytes))
    return keys


def syncs(rig: Rig) -> int:
    return sum(operation.startswith("sync 0") for operation in rig.disk.operations)


def test_always_syncs_at_once_and_one_sync_serves_all(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.turns()
    before = syncs(rig)
    keys = fill(rig, 50)
    rig.turns()
    assert rig.durable_lsn == rig.tail
    assert syncs(rig) == before + 1
    assert rig.recovered() == keys


def write_during_the_wait(rig: Rig, key: str, size_bytes: int) -> None:
    """The next wait of the loop meets a write whose writer waits for the disk; one turn."""

    def write() -> None:
        rig.arena.during_wait = lambda: None
        with pytest.raises(DurabilityUnknown):
            rig.store.set(key, bytes(size_bytes), durability="always")

    rig.arena.during_wait = write
    rig.turns(1)


@pytest.mark.parametrize("durability", ["always", "interval"])
def test_a_write_that_ends_a_wait_is_durable_in_the_same_turn(make_rig: Callable[..., Rig], durability: str) -> None:
    rig = make_rig(durability=durability)
    rig.turns()
    for number in range(4):
        before = syncs(rig)
        write_during_the_wait(rig, f"key{number}", 100)
        assert rig.durable_lsn == rig.tail
        assert rig.arena.ring()["written_lsn"] == rig.tail
        assert syncs(rig) == before + 1
    assert rig.recovered() == [f"key{number}" for number in range(4)]


@pytest.mark.parametrize("size_bytes", [COLLECT_BYTES, 200_000])
def test_a_write_that_ends_a_wait_may_be_large(make_rig: Callable[..., Rig], size_bytes: int) -> None:
    rig = make_rig()
    rig.turns()
    write_during_the_wait(rig, "key", size_bytes)
    assert rig.durable_lsn < rig.tail
    rig.turns()
    assert rig.durable_lsn == rig.tail
    assert rig.recovered() == ["key"]


def test_writes_that_end_waits_rotate_files_too(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.turns()
    for number in range(40):
        write_during_the_wait(rig, f"key{number}", 9000)
        rig.turns()
    assert len(rig.directory.log_files()) > 4
    assert rig.recovered() == [f"key{number}" for number in range(40)]


def test_interval_syncs_when_the_interval_has_passed(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="interval")
    rig.turns()
    keys = fill(rig, 10)
    rig.later(900)
    assert rig.durable_lsn < rig.tail
    rig.later(101)
    assert rig.durable_lsn >= rig.store.last_lsn
    assert rig.recovered() == keys


def test_interval_syncs_before_when_somebody_asks(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="interval")
    fill(rig, 3)
    with pytest.raises(TimeoutError):
        rig.store.sync(timeout=0.01)
    rig.turns()
    rig.store.sync(timeout=0.01)


def test_a_quarter_of_the_ring_is_synced_without_waiting(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="interval", shape=LogShape(1 << 20, 1))
    rig.turns()
    keys = fill(rig, 70, 4000)
    assert rig.tail - rig.durable_lsn > RING_BYTES // 4
    rig.turns()
    assert rig.durable_lsn == rig.tail
    assert rig.recovered() == keys


def test_none_gives_ring_space_back_without_a_sync(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="none", shape=LogShape(2 << 20, 1))
    rig.turns()
    before = syncs(rig)
    for _ in range(10):
        fill(rig, 70, 4000)
        rig.turns()
    assert rig.tail - rig.arena.ring()["head"] < RING_BYTES
    assert syncs(rig) <= before + 4, "only files that end are synced"
    rig.orders.give(STOP)
    rig.turns()
    assert rig.persister.exit_code == 0
    assert len(rig.recovered()) == 700


def test_none_still_syncs_for_those_who_ask(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="none")
    keys = fill(rig, 3)
    with pytest.raises(TimeoutError):
        rig.store.sync(timeout=0.01)
    rig.turns()
    rig.store.sync(timeout=0.01)
    assert rig.recovered() == keys


def test_files_are_rotated_at_ends_of_records_and_nothing_is_lost(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    keys: list[str] = []
    for start in range(0, 1000, 100):
        keys += fill(rig, 100, 300, start)
        rig.turns()
    assert len(rig.directory.log_files()) > 4
    assert rig.recovered() == keys
    firsts = [file.header.first_lsn for file in rig.directory.log_files() if file.header is not None]
    assert firsts == sorted(set(firsts))


@pytest.mark.parametrize("sizes", [(100, 200_000, 100), (250_000, 250_000), (200_000, 1, 200_000, 1)])
def test_a_record_larger_than_a_file_gets_a_file_of_its_size(
    make_rig: Callable[..., Rig], sizes: tuple[int, ...]
) -> None:
    rig = make_rig()
    for number, size in enumerate(sizes):
        rig.store.set(f"key{number}", bytes(size))
        rig.turns()
    assert rig.durable_lsn == rig.tail
    assert rig.recovered() == [f"key{number}" for number in range(len(sizes))]


def test_a_file_that_is_filled_to_the_last_byte_is_whole() -> None:
    """Records of 128 bytes: the file ends exactly with one, one byte before, one byte behind."""
    for spare_bytes in (0, 8, 120):
        rig = Rig(MemoryDisk(), shape=LogShape(4096 + 128 * 10 + spare_bytes, 1))
        keys = []
        for number in range(35):
            keys.append(f"key{number:05}")
            rig.store.set(keys[-1], bytes(128 - 32 - 12 - 12))
            rig.turns()
        assert rig.recovered() == keys
        rig.close()


def test_spares_are_made_ahead_and_used(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.turns()
    assert rig.spares.enough
    made = [operation for operation in rig.disk.operations if operation.startswith("preallocate spare.0")]
    assert len(made) == 1
    fill(rig, 300, 300)
    rig.turns()
    assert rig.spares.enough
    assert all(file.size_bytes == 64 << 10 for file in rig.directory.log_files()), "a file was not made from a spare"


def test_a_mark_follows_when_writes_stop_and_then_no_more(make_rig: Callable[..., Rig]) -> None:
    for durability in ("always", "interval", "none"):
        rig = make_rig(durability=durability)
        rig.later(2000)
        idle_tail = rig.tail
        rig.later(5000)
        assert rig.tail == idle_tail, "no writes, no marks"
        fill(rig, 1)
        data_end = rig.tail
        for _ in range(40):
            rig.later(100)
        marked = rig.tail
        assert marked == data_end + MARK_RECORD_BYTES
        for _ in range(40):
            rig.later(500)
        assert rig.tail == marked, "a mark is no reason for the next one"
        if durability != "none":
            assert rig.durable_lsn == rig.tail


def test_marks_come_about_every_second_while_writes_go_on(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    used = 0
    for _ in range(100):
        before = rig.tail
        rig.store.set("key", bytes(100))
        used += rig.tail - before
        rig.later(100)
    marks = (rig.tail - used - rig.arena.info()["first_lsn"]) // MARK_RECORD_BYTES
    assert 8 <= marks <= 11


def test_the_lag_clock_does_not_run_while_nothing_is_late(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="interval")
    for _ in range(30):
        rig.later(1000)
    ring = rig.arena.ring()
    assert rig.arena.now_ms - ring["durable_time_ms"] <= 1000


def test_a_warm_restart_repeats_what_was_not_durable(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="interval")
    keys = fill(rig, 5)
    rig.later(1001)
    keys += fill(rig, 5, start=5)
    # Written, but not synced, when the persister dies.
    ring = rig.arena.ring()
    rig.writer.write(rig.arena.ring_pieces(rig.writer.written_lsn, ring["tail"]), ring["tail"])
    rig.arena.publish_written(ring["tail"])
    rig.restart_warm()
    keys += fill(rig, 5, start=10)
    rig.later(1001)
    assert rig.recovered() == keys
    assert len(rig.directory.log_files()) == 2


def test_what_one_file_was_given_may_need_several_after_a_restart(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(durability="interval")
    keys = fill(rig, 80, 500)
    rig.writer.write(rig.arena.ring_pieces(rig.writer.written_lsn, rig.tail), rig.tail)
    rig.arena.publish_written(rig.tail)
    for name in rig.disk.names("/data/log"):
        if name.startswith("spare."):
            rig.disk.unlink(f"/data/log/{name}")
    monkeypatch.setattr(writer, "FIRST_FILE_BYTES", 8192)
    data_end = rig.tail
    rig.restart_warm()
    rig.later(1001)
    assert rig.durable_lsn >= data_end
    assert rig.recovered() == keys


def test_a_warm_restart_at_level_none_leaves_no_hole_before_its_file(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="none")
    keys = fill(rig, 5)
    rig.later(1001)
    assert rig.arena.ring()["head"] > rig.durable_lsn, "the ring gave up what is not synced"
    rig.restart_warm()
    assert rig.recovered() == keys


def test_many_warm_restarts_lose_and_double_nothing(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    keys: list[str] = []
    for start in range(0, 60, 3):
        keys += fill(rig, 3, 2000, start)
        if start % 2:
            rig.turns()
        rig.restart_warm()
    rig.turns()
    assert rig.recovered() == keys


@pytest.mark.parametrize("durability", ["always", "interval", "none"])
def test_a_stop_writes_and_syncs_what_there_is_and_keeps_the_name(
    make_rig: Callable[..., Rig], durability: str
) -> None:
    rig = make_rig(durability=durability)
    keys = fill(rig, 20)
    rig.orders.give(STOP)
    rig.turns()
    assert (rig.persister.exit_code, rig.unlinked) == (0, 0)
    assert rig.recovered() == keys
    manifest = read_manifest(rig.disk, "/data").manifest
    assert manifest is not None
    assert (manifest.watermark, manifest.clean) == (rig.tail, False)


def test_a_retirement_drains_says_clean_and_removes_the_name() -> None:
    rig = Rig(MemoryDisk(), durability="interval")
    keys = fill(rig, 20)
    rig.orders.give(RETIRE)
    rig.finish()
    assert (rig.persister.exit_code, rig.unlinked) == (0, 1)
    assert rig.arena.info()["retired"]
    manifest = read_manifest(rig.disk, "/data").manifest
    assert manifest is not None
    assert manifest.clean
    assert sorted(rig.after_power_cut()) == sorted(keys)
    rig.close()


def test_heartbeats_come_at_most_once_a_second(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.turns()
    rig.events.clear()
    for _ in range(100):
        rig.later(50)
    beats = [event for event in rig.events if event["event"] == "progress"]
    assert 4 <= len(beats) <= 6
    assert beats[-1]["lag_bytes"] == 0
