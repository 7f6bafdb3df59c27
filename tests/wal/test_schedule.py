"""Snapshots and the loop: when they are begun, that the loop goes on meanwhile, what an end does."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from memory_disk import Fault, MemoryDisk
from rig import Rig

from shmkv.wal.channel import RETIRE, STOP
from shmkv.wal.manifest import SnapshotFacts
from shmkv.wal.pace import SnapshotSettings

HOUR = SnapshotSettings(interval_ms=3_600_000, log_bytes=0)
BY_LOG = SnapshotSettings(interval_ms=0, log_bytes=20_000)


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:
        rigs.append(Rig(MemoryDisk(), **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.jobs.close()
        assert rig.jobs.wait(10)
        rig.close()


def fill(rig: Rig, count: int, size_bytes: int = 100, start: int = 0) -> None:
    for number in range(start, start + count):
        rig.store.set(f"key{number}", bytes(size_bytes))


def named(rig: Rig) -> list[int]:
    return [facts.generation for facts in rig.generations.named]


def newest(rig: Rig) -> SnapshotFacts:
    facts = rig.generations.newest()
    assert facts is not None
    return facts


def seconds(rig: Rig, count: int) -> None:
    """Let that many seconds pass, with jobs done at once."""
    for _ in range(count):
        rig.later(1000)
        rig.run_jobs()


@pytest.mark.parametrize("durability", ["always", "interval", "none"])
def test_one_is_taken_when_the_interval_has_passed_and_none_without_changes(
    make_rig: Callable[..., Rig], durability: str
) -> None:
    rig = make_rig(durability=durability, snapshots=SnapshotSettings(5000, 0))
    seconds(rig, 20)
    assert named(rig) == []
    fill(rig, 10)
    seconds(rig, 4)
    assert named(rig) == []
    seconds(rig, 4)
    assert named(rig) == [1]
    seconds(rig, 30)
    assert named(rig) == [1], "marks are no changes"
    fill(rig, 10, start=5)
    seconds(rig, 8)
    assert named(rig) == [1, 2]
    assert rig.job_events() == [("periodic-1", "done"), ("periodic-2", "done")]
    assert len(rig.after_power_cut()) == 15


def test_one_is_taken_when_the_log_has_grown(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(snapshots=BY_LOG)
    taken = []
    for start in range(0, 1000, 10):
        fill(rig, 10, start=start % 50)
        seconds(rig, 1)
        taken.append(tuple(named(rig))[-1:])
    assert 5 <= newest(rig).generation <= 8, "about 160 KB of log, one for each 20 KB"
    assert len(named(rig)) == 2


def test_one_on_demand_puts_the_next_one_off(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(snapshots=SnapshotSettings(10_000, 0))
    fill(rig, 10)
    seconds(rig, 6)
    rig.orders.requests.append({"do": "job", "job": "mine", "kind": "snapshot"})
    seconds(rig, 1)
    assert named(rig) == [1]
    fill(rig, 10)
    seconds(rig, 8)
    assert named(rig) == [1]
    seconds(rig, 5)
    assert named(rig) == [1, 2]


def test_the_loop_writes_and_syncs_while_one_is_taken(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="interval")
    fill(rig, 50)
    inside, seen = [], []

    def look(operation: str, path: str) -> None:
        if operation == "create" and "snapshot" in path:
            inside.append(path)

    rig.disk.before = look
    rig.orders.requests.append({"do": "job", "job": "1", "kind": "snapshot"})
    number = 0
    while not rig.job_events():
        rig.store.set(f"busy{number}", b"x")
        rig.later(300)
        seen.append(rig.durable_lsn)
        number += 1
        assert number < 10_000
    assert inside
    assert len(set(seen)) > 1
    assert rig.job_events() == [("1", "done")]
    assert newest(rig).end_lsn <= rig.durable_lsn


def test_it_is_published_only_when_the_log_is_on_disk_past_its_end(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="interval", interval_ms=10**6)
    rig.turns()
    fill(rig, 50)
    at_rename: list[tuple[int, int]] = []

    def look(operation: str, path: str) -> None:
        if operation == "rename" and path.endswith(".snapshot"):
            at_rename.append((rig.durable_lsn, rig.tail))

    rig.disk.before = look
    before = rig.durable_lsn
    rig.orders.requests.append({"do": "job", "job": "1", "kind": "snapshot"})
    rig.turns()
    rig.run_jobs()
    assert at_rename[0][0] >= newest(rig).end_lsn > before, "nobody else wanted a sync"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename"])
def test_one_that_fails_leaves_the_store_going_on_and_is_tried_again_later(
    make_rig: Callable[..., Rig], operation: str, code: int
) -> None:
    rig = make_rig(snapshots=SnapshotSettings(3000, 0))
    fill(rig, 10)
    rig.disk.before = Fault(0, operations=(operation,), code=code, for_ever=True, path="/data/snapshot/")
    seconds(rig, 9)
    assert rig.job_events() == [("periodic-1", "failed")]
    assert rig.states() == [], "the log is as well as before"
    assert [name for name in rig.disk.names("/data/snapshot") if name.endswith(".tmp")] == []
    fill(rig, 10, start=10)
    rig.turns()
    assert rig.durable_lsn == rig.tail
    rig.disk.before = lambda _operation, _path: None
    seconds(rig, 10)
    assert rig.job_events()[1:] == [("periodic-2", "done")]
    assert len(rig.after_power_cut()) == 20


def test_none_is_begun_while_the_disk_has_no_room(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    fill(rig, 50)
    monkeypatch.setattr(rig.disk, "free_bytes", lambda _path: rig.shape.file_bytes)
    rig.orders.requests.append({"do": "job", "job": "1", "kind": "snapshot"})
    rig.turns()
    rig.run_jobs()
    rig.turns()
    (failed,) = [event for event in rig.events if event["event"] == "job" and event["state"] == "failed"]
    assert failed["error_kind"] == "DiskFull"
    assert not any("snapshot.tmp" in operation for operation in rig.disk.operations)


def test_a_log_that_has_failed_ends_the_wait_of_a_snapshot(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(durability="interval", interval_ms=10**6)
    rig.turns()
    fill(rig, 10)
    rig.disk.before = Fault(0, operations=("sync",), code=errno.EIO, for_ever=True, path=".log")
    rig.orders.requests.append({"do": "job", "job": "1", "kind": "snapshot"})
    rig.turns()
    rig.run_jobs()
    rig.turns()
    assert rig.job_events() == [("1", "failed")]
    assert rig.states() == ["FAILED"]
    assert named(rig) == []


def test_a_warm_restart_goes_on_counting(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(snapshots=SnapshotSettings(5000, 0))
    fill(rig, 10)
    seconds(rig, 8)
    assert named(rig) == [1]
    rig.restart_warm()
    seconds(rig, 2)
    fill(rig, 10)
    seconds(rig, 8)
    assert named(rig) == [1, 2]


# ---- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["always", "interval", "none"])
def test_a_retirement_takes_a_last_one_that_is_alone(make_rig: Callable[..., Rig], durability: str) -> None:
    rig = make_rig(durability=durability)
    fill(rig, 30)
    rig.orders.give(RETIRE)
    rig.finish()
    assert (rig.persister.exit_code, rig.unlinked) == (0, 1)
    assert (newest(rig).alone, newest(rig).end_lsn, newest(rig).entries) == (True, rig.tail, 30)
    assert rig.job_events() == [("final", "done")]
    assert len(rig.after_power_cut()) == 30


def test_heartbeats_go_on_while_the_last_one_is_written(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    fill(rig, 30)
    rig.turns()
    beats = []

    def slow(operation: str, path: str) -> None:
        if "snapshot" in path and operation == "write" and not beats:
            before = sum(event["event"] == "progress" for event in rig.events)
            while sum(event["event"] == "progress" for event in rig.events) < before + 2:
                time.sleep(0.001)
            beats.append(operation)

    rig.disk.before = slow
    rig.orders.give(RETIRE)
    while rig.persister.exit_code is None:
        rig.later(1000)
    assert beats


def test_a_last_one_that_fails_is_told_and_does_not_keep_the_store_from_ending(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    fill(rig, 30)
    rig.turns()
    rig.disk.before = Fault(0, operations=("write",), code=errno.ENOSPC, for_ever=True, path="/data/snapshot/")
    rig.orders.give(RETIRE)
    rig.finish()
    rig.turns()
    assert (rig.persister.exit_code, rig.unlinked) == (0, 1)
    assert rig.job_events() == [("final", "failed")]
    assert len(rig.after_power_cut()) == 30, "the log has it all"


def test_nothing_but_marks_since_the_newest_makes_no_last_one(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    fill(rig, 30)
    rig.orders.requests.append({"do": "job", "job": "1", "kind": "snapshot"})
    seconds(rig, 5)
    assert rig.tail > newest(rig).start_lsn, "a mark has followed"
    rig.orders.give(RETIRE)
    rig.finish()
    assert named(rig) == [1]
    assert rig.job_events() == [("1", "done")]
    assert len(rig.after_power_cut()) == 30


def test_a_condemned_arena_is_no_source_of_a_snapshot(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    fill(rig, 30)
    rig.arena.set_state(condemned=True)
    rig.orders.give(RETIRE)
    rig.finish()
    assert (rig.persister.exit_code, named(rig)) == (0, [])
    assert len(rig.after_power_cut()) == 30


def test_a_switch_replaces_the_last_one(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    fill(rig, 30)
    rig.orders.give(RETIRE, switch=7)
    rig.finish()
    assert (rig.persister.exit_code, rig.switched, rig.unlinked, named(rig)) == (0, [7], 1, [])


def test_a_stop_takes_none_and_fails_what_waits(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    fill(rig, 30)
    rig.orders.requests.append({"do": "job", "job": "1", "kind": "snapshot"})
    rig.orders.give(STOP)
    rig.finish()
    rig.turns()
    assert (rig.persister.exit_code, rig.unlinked) == (0, 0)
    assert rig.job_events()[0][0] == "1"


def test_a_stop_without_room_for_the_log_does_not_wait_for_the_snapshot_that_waits_for_it(
    make_rig: Callable[..., Rig],
) -> None:
    rig = make_rig(durability="interval", interval_ms=10**6)
    rig.turns()
    fill(rig, 10)
    rig.disk.before = Fault(0, operations=("write", "create"), code=errno.ENOSPC, for_ever=True, path="/data/log/")
    rig.orders.requests.append({"do": "job", "job": "1", "kind": "snapshot"})
    rig.turns(3)
    rig.orders.give(RETIRE)
    rig.finish()
    assert (rig.persister.exit_code, rig.unlinked) == (1, 0)
    assert named(rig) == []
