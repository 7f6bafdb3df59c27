"""Power cuts and kills at every operation on the disk: whatever legal part of the unsynced state is left, a start gives

  - a state of the history that holds at least everything acknowledged before the cut,
  - or, nowhere here, a refusal: a power cut alone is never damage,
  - and after it, new records and a second recovery: nothing that was cut comes back, nothing that was served goes,
  - the same state from the spare generation when the newest snapshot is damaged afterwards.

Method: power_cuts.py.
"""

from __future__ import annotations

import itertools
import os
import random
import sys

import pytest
from memory_disk import MemoryDisk
from power_cuts import ARCHIVE, History, Moment, check_nested, check_survivor, random_life, survivors, tour

from shmkv.errors import CorruptData
from shmkv.wal.cipher import Keyring

KEYS = Keyring((bytes(range(32)),), random=random.Random(32).randbytes)
MANY_STATES = int(os.environ.get("SHMKV_POWER_CUT_STATES", "100000"))
FIRST_SEED = int(os.environ.get("SHMKV_POWER_CUT_SEED", "1"))


class Checker:
    """Counts distinct states; each is checked once."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def check(self, history: History, moment: Moment, seed: object, *, count: int, thorough: bool) -> None:
        for name, survivor in survivors(moment, seed, count):
            mark = hash((name == "killed", survivor.fingerprint()))
            if mark in self.seen:
                continue
            self.seen.add(mark)
            try:
                check_survivor(history, moment, survivor, (seed, name), thorough=thorough)
            except (AssertionError, CorruptData) as problem:
                raise AssertionError(f"{seed}: cut after {moment.after}, {name}: {problem}") from problem


@pytest.mark.parametrize(
    ("archive_dir", "keys", "count", "step", "least"),
    [("", None, 4, 1, 1100), (ARCHIVE, None, 1, 2, 350), ("", KEYS, 1, 2, 300)],
    ids=["plain", "archived", "encrypted"],
)
def test_every_power_cut_leaves_an_acknowledged_state(
    archive_dir: str, keys: Keyring | None, count: int, step: int, least: int
) -> None:
    history, checker = tour(MemoryDisk(keys), archive_dir), Checker()
    for number, moment in enumerate(history.moments[::step]):
        checker.check(history, moment, ("tour", number), count=count, thorough=number % 24 == 0)
    # With those of the test below: more than 2,000.
    assert len(checker.seen) >= least, f"only {len(checker.seen)} distinct states"


def test_a_cut_while_a_start_recovers_from_a_kill_loses_nothing_more() -> None:
    history, seen = tour(MemoryDisk()), set()
    for number, moment in enumerate(history.moments):
        for left in check_nested(history, moment, moment.disk, random.Random(number), 2):
            seen.add(left.fingerprint())
    assert len(seen) >= 500, f"only {len(seen)} distinct states"


@pytest.mark.slow
def test_a_hundred_thousand_power_cuts_of_random_lives() -> None:
    checker = Checker()
    for seed in itertools.count(FIRST_SEED):
        history = random_life(MemoryDisk(KEYS if seed % 2 else None), seed)
        for number, moment in enumerate(history.moments):
            checker.check(history, moment, (seed, number), count=6, thorough=number % 50 == 0)
        if len(checker.seen) >= MANY_STATES:
            break
    print(f"{len(checker.seen)} distinct states of lives {FIRST_SEED} to {seed}", file=sys.stderr)
