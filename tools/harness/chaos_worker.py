"""A worker of chaos: random calls at full speed on its own keys, each announced before and checked against its journal.

Why here: runs in a forked process that is killed at any instruction; its successor begins by settling what it left.

Invariants:
  I1  Whatever is read of an own key must be its acknowledged state: anything else is counted as lost or torn.
  I2  The journal alone decides what a successor expects.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

import shmkv
from harness.chaos_journal import (
    CHUNK_KEYS,
    CHUNK_LIMIT,
    COUNT_KEYS,
    DATA_KEYS,
    FIRST_CHUNK,
    FIRST_COUNT,
    FIRST_SHARED,
    MANY_LIMIT,
    SHARED_KEYS,
    STALLS,
    WINDOWS,
    Journal,
    Word,
)  # fmt: skip
from harness.chaos_values import chunk, make, parse, parse_chunks
from harness.processes import Parent

TORN = -1
ATTACH_TIMEOUT_S = 60.0
# Each of these says that nothing was changed.
REFUSALS = (shmkv.LogStalled, shmkv.LockTimeout, shmkv.DiskFull, shmkv.MemoryLimitExceeded)


def state_in_store(db: shmkv.Store, journal: Journal, key: int) -> int:
    """What the store holds for a key, as a state of the journal; TORN if that is none."""
    value = db.get(journal.key_name(key))
    if value is None:
        return 0
    if key < FIRST_CHUNK:
        sequence = parse(unique(journal, key), value)
        return TORN if sequence is None else sequence
    if key < FIRST_COUNT:
        found = parse_chunks(unique(journal, key), value)
        return TORN if found is None else found[0] * CHUNK_LIMIT + found[1]
    return value if type(value) is int else TORN


def unique(journal: Journal, key: int) -> int:
    """A number for a key that no other worker's key has."""
    return journal.slot * 1000 + key


def settle(db: shmkv.Store, journal: Journal) -> None:
    """Find out what became of the call that a kill cut short."""
    for key, intended in journal.in_flight().items():
        seen = state_in_store(db, journal, key)
        if seen not in (journal.state(key), intended):
            complain(journal, key, seen, f"in flight from {journal.state(key)} to {intended}")
        journal.settle(key, seen)
    journal.clear_intent()


def complain(journal: Journal, key: int, seen: int, expected: str) -> None:
    """Count a violation and say what it was."""
    journal.words[Word.TORN if seen == TORN else Word.LOST] += 1
    text = f"chaos: key {journal.key_name(key)}: state {'torn' if seen == TORN else seen}, {expected}\n"
    os.write(2, text.encode())


class Worker:
    """One process's work; `run` never returns by itself while the tool lives."""

    def __init__(self, db: shmkv.Store, journal: Journal, window: memoryview, chance: random.Random) -> None:
        self._db = db
        self._journal = journal
        self._window = window
        self._chance = chance
        self._actions: list[tuple[Callable[[], None], int]] = [
            (self._set, 40), (self._get, 15), (self._delete, 8), (self._set_many, 6), (self._append, 10),
            (self._count, 10), (self._count_shared, 8), (self._get_many, 3),
        ]  # fmt: skip

    def run(self, parent: Parent) -> None:
        """Random calls until the stop word is set or the tool is gone."""
        actions, weights = zip(*self._actions, strict=True)
        words = self._journal.words
        while not self._window[1] and not parent.orphaned():
            for action in self._chance.choices(actions, weights, k=64):
                began_ns = time.monotonic_ns()
                action()
                took_ns = time.monotonic_ns() - began_ns
                place = STALLS + self._window[0] % WINDOWS
                if took_ns > words[place]:
                    words[place] = took_ns
                words[Word.OPERATIONS] += 1

    def _change(self, changes: list[tuple[int, int]], call: Callable[..., Any], *arguments: Any) -> None:
        self._journal.intend(changes)
        try:
            call(*arguments)
        except REFUSALS:
            self._journal.undone()
            return
        self._journal.done()

    def _next_sequence(self) -> int:
        self._journal.words[Word.SEQUENCE] += 1
        return self._journal.words[Word.SEQUENCE]

    def _expect(self, key: int, seen: int) -> None:
        state = self._journal.state(key)
        if seen != state:
            complain(self._journal, key, seen, f"expected {state}")
            self._journal.settle(key, seen)

    def _set(self) -> None:
        key, sequence = self._chance.randrange(DATA_KEYS), self._next_sequence()
        value = make(unique(self._journal, key), sequence)
        self._change([(key, sequence)], self._db.set, self._journal.key_name(key), value)

    def _delete(self) -> None:
        key = self._chance.randrange(DATA_KEYS)
        self._change([(key, 0)], self._db.delete, self._journal.key_name(key))

    def _get(self) -> None:
        key = self._chance.randrange(FIRST_SHARED)
        self._expect(key, state_in_store(self._db, self._journal, key))

    def _get_many(self) -> None:
        keys = self._chance.sample(range(DATA_KEYS), 10)
        names = {self._journal.key_name(key): key for key in keys}
        values = self._db.get_many(list(names))
        for name, key in names.items():
            sequence = parse(unique(self._journal, key), values[name]) if name in values else 0
            self._expect(key, TORN if sequence is None else sequence)

    def _set_many(self) -> None:
        # Each key is atomic, the call is not: the intent names them all, and each may have happened.
        changes = [
            (key, self._next_sequence())
            for key in self._chance.sample(range(DATA_KEYS), self._chance.randint(2, MANY_LIMIT))
        ]
        values = {self._journal.key_name(key): make(unique(self._journal, key), sequence) for key, sequence in changes}
        self._journal.intend(changes)
        try:
            self._db.set_many(values)
        except REFUSALS:
            settle(self._db, self._journal)
            self._journal.words[Word.REFUSED] += 1
            return
        self._journal.done()

    def _append(self) -> None:
        key = FIRST_CHUNK + self._chance.randrange(CHUNK_KEYS)
        sequence, count = divmod(self._journal.state(key), CHUNK_LIMIT)
        if count >= CHUNK_LIMIT - 1:
            self._change([(key, 0)], self._db.delete, self._journal.key_name(key))
            return
        if count == 0:
            sequence = self._next_sequence()
        piece = chunk(unique(self._journal, key), sequence, count)
        self._change([(key, sequence * CHUNK_LIMIT + count + 1)], self._db.append, self._journal.key_name(key), piece)

    def _count(self) -> None:
        key = FIRST_COUNT + self._chance.randrange(COUNT_KEYS)
        self._change([(key, self._journal.state(key) + 1)], self._db.incr, self._journal.key_name(key))

    def _count_shared(self) -> None:
        key = FIRST_SHARED + self._chance.randrange(SHARED_KEYS)
        self._journal.intend_shared(key)
        try:
            self._db.incr(self._journal.key_name(key))
        except REFUSALS:
            self._journal.undone()
            return
        self._journal.done()


def work(name: str, journal: Journal, window: memoryview, seed: int, parent: Parent) -> None:
    """Body of the forked process: attach, settle what the predecessor left, then work."""
    with shmkv.attach(name, timeout=ATTACH_TIMEOUT_S) as db:
        settle(db, journal)
        journal.words[Word.INCARNATIONS] += 1
        Worker(db, journal, window, random.Random(seed)).run(parent)
