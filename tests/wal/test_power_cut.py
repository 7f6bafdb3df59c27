"""Power cuts at every operation of the log: whatever legal part of the unsynced state survives, recovery must give

  - a prefix of what was written, in order, that holds at least everything acknowledged before the cut,
  - or, nowhere here, a refusal: a power cut alone is never damage,
  - and after it, new records and a second recovery: nothing that was cut comes back, nothing that was served goes.

Method: one history with rotation, a warm restart, an abandoned file, a kill and a cold start runs on a MemoryDisk that
stops before operation k, for every k; then several survivors of each stop are recovered.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from memory_disk import MemoryDisk, all_kept, none_kept, some_kept
from small_log import SmallStore

from shmkv.errors import CorruptData

RANDOM_SURVIVORS = 12
LEAST_STATES = 500


class PowerFailure(Exception):
    """The machine stops here."""


class History:
    """What was written in order, and how much of it was acknowledged."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.acknowledged = 0

    def add(self, store: SmallStore, count: int, size_bytes: int = 40) -> None:
        for _ in range(count):
            key = f"key{len(self.written)}"
            # It is in the ring, so it may be found on the disk from now on.
            self.written.append(key)
            store.append(key, bytes(size_bytes))

    def acknowledge(self) -> None:
        self.acknowledged = len(self.written)


def run_history(disk: MemoryDisk, history: History) -> None:
    """A life with everything that touches the disk; raises PowerFailure wherever the disk's hook does."""
    store = SmallStore(disk)
    store.make_spares()
    history.add(store, 3)
    store.sync()
    history.acknowledge()
    history.add(store, 2)
    store.write()
    history.add(store, 12, 90)  # fills the file and half of the next one
    store.sync()
    history.acknowledge()
    history.add(store, 2)
    store.write()
    store.restart_warm()
    history.add(store, 2)
    store.sync()
    history.acknowledge()
    store.make_spares()
    history.add(store, 2)
    store.write()
    store.writer.abandon_file()
    store.writer.open_file()
    store.sync()
    history.acknowledge()
    history.add(store, 3)
    store.write()
    # All processes die; the page cache survives, so what was written is found, and served.
    store = SmallStore(disk)
    assert store.recovered == history.written
    history.acknowledge()
    history.add(store, 3)
    store.sync()
    history.acknowledge()
    store.writer.publish_watermark(clean=True)
    history.add(store, 1)
    store.write()


def stop_before(operation: int) -> tuple[MemoryDisk, History, bool]:
    """The disk as it is before its Nth operation; False = the history has fewer."""
    disk, history = MemoryDisk(), History()
    left = operation

    def count_down(_operation: str, _path: str) -> None:
        nonlocal left
        if left == 0:
            raise PowerFailure
        left -= 1

    disk.before = count_down
    try:
        run_history(disk, history)
    except PowerFailure:
        return disk, history, True
    return disk, history, False


def check_survivor(survivor: MemoryDisk, history: History) -> None:
    store = SmallStore(survivor)
    count = len(store.recovered)
    assert store.recovered == history.written[:count], "not a prefix"
    assert count >= history.acknowledged, "acknowledged records are lost"
    served = list(store.recovered)
    # What recovery served survives the next cut, whatever that loses.
    for keep in (none_kept, some_kept(count)):
        assert SmallStore(survivor.after_power_cut(keep)).recovered == served
    store.append("new0")
    store.append("new1", bytes(200))
    store.sync()
    store.append("unsynced")
    store.write()
    again = SmallStore(survivor.after_power_cut(none_kept))
    assert again.recovered == [*served, "new0", "new1"], "a cut record came back, or a served one went"


def survivors(operation: int) -> list[Callable[[], float]]:
    return [all_kept, none_kept, *(some_kept((operation, number)) for number in range(RANDOM_SURVIVORS))]


def test_every_power_cut_leaves_an_acknowledged_prefix() -> None:
    seen: set[int] = set()
    operation = 0
    while True:
        disk, history, stopped = stop_before(operation)
        disk.before = lambda _operation, _path: None
        for keep in survivors(operation):
            survivor = disk.after_power_cut(keep)
            mark = survivor.fingerprint()
            if mark in seen:
                continue
            seen.add(mark)
            try:
                check_survivor(survivor, history)
            except (AssertionError, CorruptData) as problem:
                raise AssertionError(f"cut before operation {operation}, after {disk.operations[-3:]}") from problem
        if not stopped:
            break
        operation += 1
    assert len(seen) >= LEAST_STATES, f"only {len(seen)} distinct states"


def test_a_cut_during_the_recovery_of_a_cut_loses_nothing_more() -> None:
    disk, history, _ = stop_before(10_000)
    torn = disk.after_power_cut(some_kept("torn"))
    expected = SmallStore(torn.copy()).recovered
    assert len(expected) >= history.acknowledged
    operation = 0
    while True:
        left = operation
        again = torn.copy()

        def count_down(_operation: str, _path: str) -> None:
            nonlocal left
            if left == 0:
                raise PowerFailure
            left -= 1

        again.before = count_down
        try:
            SmallStore(again)
        except PowerFailure:
            again.before = lambda _operation, _path: None
            for number in range(4):
                survivor = again.after_power_cut(some_kept((operation, number)))
                assert SmallStore(survivor).recovered == expected
        else:
            break
        operation += 1


@pytest.mark.slow
def test_many_more_power_cuts() -> None:
    disk, history, _ = stop_before(10_000)
    last = len(disk.operations)
    for operation in range(0, last, 2):
        disk, history, _ = stop_before(operation)
        disk.before = lambda _operation, _path: None
        for number in range(100):
            check_survivor(disk.after_power_cut(some_kept(("slow", operation, number))), history)
