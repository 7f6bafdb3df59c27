"""The pace of the persister as a pure state machine: every case without a disk, an arena or a clock."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from shmkv.wal.pace import SLICE_MS, LogState, Pace, Settings, Step

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


def test_no_space_at_a_sync_counts_as_an_error_of_the_file() -> None:
    bench = Bench("always")
    bench.tail += 100
    bench.pace.failed(bench.now, NO_SPACE)
    assert bench.pace.state is LogState.OK
    assert bench.next() is Step.OPEN
    bench.pace.opened()
    bench.pace.failed(bench.now, NO_SPACE)
    assert bench.pace.state is LogState.FAILED


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
