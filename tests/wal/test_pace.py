"""The pace of the persister as a pure state machine: every case without a disk, an arena or a clock."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from shmkv.wal.pace import SLICE_MS, LogState, Pace, Settings, SnapshotPace, SnapshotSettings, Step

RING_BYTES = 1 << 20
START = 1 << 40
INTERVAL_MS = 1000
NO_SPACE = OSError(errno.ENOSPC, "full")
BROKEN = OSError(errno.EIO, "broken")


@dataclass
class Bench:
    """A pace with the words that it is asked with."""

    durability: str = "interval"
    now: int = 10_000
    tail: int = START
    head: int = START
    written: int = START
    durable: int = START
    wanted: int = 0

    def __post_init__(self) -> None:
        self.pace = Pace(Settings(self.durability, INTERVAL_MS, 5000, RING_BYTES), self.now, START)
        self.pace.opened()
        self.pace.beat(self.now)

    def next(self) -> Step:
        return self.pace.next(self.now, self.tail, self.head, self.written, self.durable, self.wanted)

    def run(self, until_ms: int) -> list[Step]:
        """Steps other than waiting, with every step succeeding, until that time."""
        steps = []
        while self.now < until_ms:
            step = self.next()
            if step in (Step.WAIT, Step.REST):
                self.now += self.pace.wait_ms
                continue
            steps.append(step)
            assert len(steps) < 10_000, "a busy loop"
            self.succeed(step)
        return steps

    def succeed(self, step: Step) -> None:
        if step in (Step.WRITE, Step.COMMIT):
            self.written = self.tail
            if step is Step.COMMIT:
                self.durable = self.tail
                self.pace.synced()
            self.head = self.written if self.durability == "none" else self.durable
            self.pace.wrote(self.now)
        elif step is Step.MARK:
            self.pace.marked(self.now, self.durable, self.tail, self.tail + 48)
            self.tail += 48
        elif step is Step.BEAT:
            self.pace.beat(self.now)
        elif step is Step.OPEN:
            self.pace.opened()


@pytest.mark.parametrize("durability", ["always", "interval", "none"])
def test_an_idle_store_only_beats_and_sleeps_long(durability: str) -> None:
    bench = Bench(durability)
    waits = 0
    end = bench.now + 60_000
    while bench.now < end:
        step = bench.next()
        assert step in (Step.WAIT, Step.BEAT)
        if step is Step.BEAT:
            bench.pace.beat(bench.now)
        else:
            waits += 1
            bench.now += bench.pace.wait_ms
    assert waits <= 60_000 / 50 * 1.1


@pytest.mark.parametrize(
    ("durability", "wanted", "step"),
    [
        ("always", False, Step.COMMIT),
        ("always", True, Step.COMMIT),
        ("interval", False, Step.WAIT),
        ("interval", True, Step.COMMIT),
        ("none", False, Step.WAIT),
        ("none", True, Step.COMMIT),
    ],
)
def test_what_a_new_record_leads_to(durability: str, wanted: bool, step: Step) -> None:
    bench = Bench(durability)
    bench.tail += 100
    bench.wanted = bench.tail if wanted else 0
    assert bench.next() is step


@pytest.mark.parametrize(("durability", "step"), [("interval", Step.COMMIT), ("none", Step.WRITE)])
def test_after_the_interval_or_with_a_quarter_of_the_ring_it_is_due(durability: str, step: Step) -> None:
    bench = Bench(durability)
    bench.tail += RING_BYTES // 4
    assert bench.next() is step
    bench = Bench(durability)
    bench.tail += 8
    bench.pace.beat(bench.now + INTERVAL_MS)
    bench.now += INTERVAL_MS
    assert bench.next() is step


def test_a_write_that_comes_at_any_time_is_synced_within_the_interval() -> None:
    for idle_ms in range(0, 3000, 170):
        bench = Bench()
        bench.run(bench.now + idle_ms)
        bench.tail += 100
        written_at, end = bench.now, bench.tail
        while bench.durable < end:
            bench.run(bench.now + 1)
        assert bench.now - written_at <= INTERVAL_MS + SLICE_MS


@pytest.mark.parametrize("durability", ["always", "interval"])
def test_the_last_mark_covers_the_last_record_and_is_synced(durability: str) -> None:
    for gap_ms in (0, 400, 1500):
        bench = Bench(durability)
        for _ in range(5):
            bench.tail += 100
            bench.run(bench.now + gap_ms)
        data_end = bench.tail
        steps = bench.run(bench.now + 3500)
        assert bench.pace._covered >= data_end - 48
        assert bench.durable == bench.tail
        assert steps.count(Step.MARK) <= 2
        assert Step.MARK not in bench.run(bench.now + 10_000)


def test_a_sync_that_fails_leads_to_one_new_file() -> None:
    bench = Bench("always")
    bench.tail += 100
    assert bench.next() is Step.COMMIT
    bench.pace.failed(bench.now, BROKEN)
    assert bench.next() is Step.OPEN
    assert bench.pace.state is LogState.OK
    bench.pace.opened()
    assert bench.next() is Step.COMMIT
    bench.succeed(Step.COMMIT)
    bench.tail += 100
    bench.pace.failed(bench.now, BROKEN)
    assert bench.pace.state is LogState.OK, "a sync in between succeeded"


def test_no_space_at_a_sync_is_a_full_disk_until_the_records_are_written() -> None:
    bench = Bench("always")
    bench.tail += 100
    for _ in range(3):
        bench.pace.failed(bench.now, NO_SPACE)
        assert bench.pace.state is LogState.DISK_FULL
        assert bench.next() is not Step.OPEN
        bench.now += 1000
        while bench.next() is Step.BEAT:
            bench.pace.beat(bench.now)
            bench.pace.room(True)
            assert bench.pace.state is LogState.DISK_FULL
        assert bench.next() is Step.OPEN
        bench.pace.opened()
        assert bench.pace.state is LogState.DISK_FULL, "a file was made ahead the last time, too"
        assert bench.next() is Step.COMMIT
    bench.succeed(Step.COMMIT)
    assert bench.pace.state is LogState.OK


@pytest.mark.parametrize("second", [Step.OPEN, Step.COMMIT])
def test_a_second_error_is_the_end(second: Step) -> None:
    bench = Bench("always")
    bench.tail += 100
    bench.pace.failed(bench.now, BROKEN)
    if second is Step.COMMIT:
        bench.pace.opened()
    bench.pace.failed(bench.now, BROKEN)
    assert bench.pace.state is LogState.FAILED
    assert set(bench.run(bench.now + 5000)) == {Step.BEAT}
    bench.pace.opened()
    assert bench.pace.state is LogState.FAILED
    bench.pace.stop(bench.tail)
    assert bench.next() is Step.FINISH


def test_what_the_ring_does_not_hold_cannot_be_cured() -> None:
    bench = Bench("none")
    bench.pace.failed(bench.now, BROKEN, curable=False)
    assert bench.pace.state is LogState.FAILED


def test_a_full_disk_is_asked_again_every_second() -> None:
    bench = Bench("always")
    bench.pace.need_file(bench.now)
    bench.tail += 100
    opens = []
    while len(opens) < 5:
        step = bench.next()
        if step is Step.REST:
            bench.now += bench.pace.wait_ms
        elif step is Step.BEAT:
            bench.pace.beat(bench.now)
        else:
            assert step is Step.OPEN
            opens.append(bench.now)
            bench.pace.failed(bench.now, NO_SPACE)
            assert bench.pace.state is LogState.DISK_FULL
    assert opens == [opens[0] + number * 1000 for number in range(5)]
    bench.pace.opened()
    assert bench.pace.state is LogState.OK
    assert bench.pace.error == ""


def test_missing_room_ahead_refuses_writes_but_goes_on_with_what_there_is() -> None:
    bench = Bench("always")
    bench.pace.room(enough=False, error="no space left")
    assert (bench.pace.state, bench.pace.error) == (LogState.DISK_FULL, "no space left")
    bench.tail += 100
    assert bench.next() is Step.COMMIT
    bench.pace.room(enough=True)
    assert bench.pace.state is LogState.OK


def test_spares_that_are_still_being_made_are_no_reason_to_refuse() -> None:
    bench = Bench()
    bench.pace.room(enough=False)
    assert bench.pace.state is LogState.OK


@pytest.mark.parametrize("durability", ["always", "interval", "none"])
def test_a_stop_syncs_up_to_its_target_and_not_what_came_later(durability: str) -> None:
    bench = Bench(durability)
    bench.tail += 100
    bench.pace.stop(bench.tail)
    assert bench.next() is Step.COMMIT
    bench.succeed(Step.COMMIT)
    bench.tail += 100
    assert bench.next() is Step.FINISH


def test_a_stop_with_a_full_disk_tries_once() -> None:
    bench = Bench()
    bench.pace.need_file(bench.now)
    bench.pace.failed(bench.now, NO_SPACE)
    bench.tail += 100
    bench.pace.stop(bench.tail)
    assert bench.next() is Step.OPEN
    bench.pace.failed(bench.now, NO_SPACE)
    assert bench.next() is Step.FINISH


def test_heartbeats_are_not_starved_by_writes() -> None:
    bench = Bench("always")
    beats = 0
    for _ in range(5000):
        bench.tail += 100
        step = bench.next()
        beats += step is Step.BEAT
        bench.succeed(step)
        bench.now += 1
    assert beats in (4, 5)


# ---- snapshots ---------------------------------------------------------------------------------------------------

MINUTE_MS = 60_000
HOUR = SnapshotSettings(interval_ms=60 * MINUTE_MS, log_bytes=0)
BY_LOG = SnapshotSettings(interval_ms=0, log_bytes=1000)


def fresh(settings: SnapshotSettings, **options: Any) -> SnapshotPace:
    return SnapshotPace(settings, 0, **{"begin_lsn": START, **options})


def first_due(pace: SnapshotPace, tail: int, data_end: int, *, start_ms: int = 0, until_ms: int = 10**8) -> int | None:
    """When it is due, asked every second."""
    return next((now for now in range(start_ms, until_ms, 1000) if pace.due(now, tail, data_end)), None)


def test_a_store_that_nobody_writes_to_takes_no_snapshot() -> None:
    pace = fresh(SnapshotSettings(1000, 1))
    assert first_due(pace, START, START) is None
    assert first_due(pace, START + 480, START) is None, "marks are no reason"
    assert not pace.changed(START)


def test_one_is_due_when_the_interval_has_passed_since_the_first_change() -> None:
    pace = fresh(HOUR)
    assert first_due(pace, START, START, until_ms=5 * MINUTE_MS) is None
    assert first_due(pace, START + 100, START + 100, start_ms=5 * MINUTE_MS) == 65 * MINUTE_MS


def test_while_writes_go_on_they_are_an_interval_apart() -> None:
    pace, taken, tail = fresh(HOUR), [], START
    for now in range(0, 5 * 60 * MINUTE_MS, 1000):
        tail += 100
        if pace.due(now, tail, tail):
            taken.append(now)
            pace.began()
            assert not pace.due(now + 1, tail, tail)
            pace.published(tail, 50)
            pace.ended()
    gaps = [later - earlier for earlier, later in pairwise(taken)]
    assert len(taken) == 4
    assert all(60 * MINUTE_MS <= gap <= 60 * MINUTE_MS + 2000 for gap in gaps)


def test_one_is_due_when_the_log_has_grown_by_the_limit_or_the_last_one_if_that_is_larger() -> None:
    pace = fresh(BY_LOG)
    assert not pace.due(0, START + 999, START + 999)
    assert pace.due(0, START + 1000, START + 1000)
    pace.began()
    pace.published(START + 1000, 5000)
    pace.ended()
    assert not pace.due(1, START + 5999, START + 5999)
    assert pace.due(1, START + 6000, START + 6000)


def test_what_a_start_found_behind_the_newest_snapshot_counts() -> None:
    assert fresh(BY_LOG, behind_bytes=1000, changed=True).due(0, START, START)
    assert not fresh(BY_LOG, behind_bytes=1000, changed=False).due(0, START, START)
    assert fresh(BY_LOG, behind_bytes=600, changed=True).due(0, START + 400, START + 400)
    pace = fresh(HOUR, changed=True, age_ms=50 * MINUTE_MS)
    assert pace.changed(START)
    assert first_due(pace, START, START) == 10 * MINUTE_MS
    assert fresh(HOUR, changed=True, age_ms=10**9).due(0, START, START)
    assert first_due(fresh(HOUR, changed=True, age_ms=-5), START, START) == 60 * MINUTE_MS


def test_without_limits_there_is_none() -> None:
    assert first_due(fresh(SnapshotSettings(0, 0), changed=True), START + 10**9, START + 10**9) is None


def test_one_that_failed_is_tried_again_later_each_time() -> None:
    pace, tries = fresh(BY_LOG), []
    for now in range(0, 3 * 60 * MINUTE_MS, 1000):
        if pace.due(now, START + 2000, START + 2000):
            tries.append(now // 1000)
            pace.began()
            pace.failed(now)
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps[:8] == [10, 20, 40, 80, 160, 320, 640, 900]
    assert set(gaps[8:]) == {900}
    pace.published(START + 2000, 10)
    assert pace.due(10**8, START + 4000, START + 4000), "whoever takes one ends the back-off"
