"""What one worker did and is about to do, in a mapped file of its own that outlives it.

Why here: the expected state is kept outside of the store, and a SIGKILL leaves it as it was at that instruction: each
word is one aligned store of 8 bytes, and a shared mapping keeps what was stored.

Invariants:
  I1  The intent is complete before the call begins, the state is updated after it returned, then the intent is cleared.
  I2  So a key may hold its state or, if an intent names it, what that intends; nothing else.
  I3  One writer at a time: the worker, or whoever buried it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from enum import IntEnum

DATA_KEYS = 200  # set, set_many, delete; state: sequence, 0 = absent
CHUNK_KEYS = 20  # append; state: sequence * CHUNK_LIMIT + pieces, 0 = absent
COUNT_KEYS = 20  # incr of the worker's own; state: the number, 0 = absent
SHARED_KEYS = 8  # incr of everybody's; state: acknowledged increments of this worker
CHUNK_LIMIT = 64
MANY_LIMIT = 24
WINDOWS = 1 << 16
LATENCY_BUCKETS = 64


class Op(IntEnum):
    """What is about to happen."""

    NONE = 0
    CHANGE = 1  # of one key or a few: intended states in the intent's table
    SHARED = 2  # increment of a shared counter


class Word(IntEnum):
    """Places of the single words."""

    OP = 0
    COUNT = 1  # keys in the intent
    SEQUENCE = 2  # highest ever used by this worker
    OPERATIONS = 3
    REFUSED = 4  # calls that said that they did nothing
    LOST = 5
    TORN = 6
    UNKNOWN = 7  # shared increments that a kill left open
    INCARNATIONS = 8  # processes that this slot has had
    INTENT = 16


INTENT_KEYS = Word.INTENT
INTENT_STATES = INTENT_KEYS + MANY_LIMIT
STATES = INTENT_STATES + MANY_LIMIT
KEYS = DATA_KEYS + CHUNK_KEYS + COUNT_KEYS + SHARED_KEYS
FIRST_CHUNK, FIRST_COUNT = DATA_KEYS, DATA_KEYS + CHUNK_KEYS
FIRST_SHARED = FIRST_COUNT + COUNT_KEYS
STALLS = STATES + KEYS
WORDS = STALLS + WINDOWS


class Journal:
    """The words of one worker's file; made before the fork, shared with the child."""

    def __init__(self, path: str, slot: int) -> None:
        self.slot = slot
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(descriptor, WORDS * 8)
        self._map = mmap.mmap(descriptor, WORDS * 8)
        os.close(descriptor)
        self.words = memoryview(self._map).cast("B").cast("q")

    def intend(self, changes: list[tuple[int, int]]) -> None:
        """The next call changes these keys to these states."""
        words = self.words
        for i, (key, state) in enumerate(changes):
            words[INTENT_KEYS + i] = key
            words[INTENT_STATES + i] = state
        words[Word.COUNT] = len(changes)
        words[Word.OP] = Op.CHANGE

    def intend_shared(self, key: int) -> None:
        """The next call increments a shared counter."""
        self.words[INTENT_KEYS] = key
        self.words[Word.COUNT] = 1
        self.words[Word.OP] = Op.SHARED

    def done(self) -> None:
        """The call returned: what was intended is the state."""
        words = self.words
        if words[Word.OP] == Op.SHARED:
            words[STATES + words[INTENT_KEYS]] += 1
        else:
            for i in range(words[Word.COUNT]):
                words[STATES + words[INTENT_KEYS + i]] = words[INTENT_STATES + i]
        words[Word.OP] = Op.NONE

    def undone(self) -> None:
        """The call said that it changed nothing."""
        self.words[Word.OP] = Op.NONE
        self.words[Word.REFUSED] += 1

    def in_flight(self) -> dict[int, int]:
        """Key -> intended state of a call that was cut short; shared counters left out."""
        words = self.words
        if words[Word.OP] != Op.CHANGE:
            return {}
        return {words[INTENT_KEYS + i]: words[INTENT_STATES + i] for i in range(words[Word.COUNT])}

    def state(self, key: int) -> int:
        """The acknowledged state of a key."""
        return self.words[STATES + key]

    def settle(self, key: int, state: int) -> None:
        """What was in flight turned out to be this."""
        self.words[STATES + key] = state

    def clear_intent(self) -> None:
        """All that was in flight is settled; a shared increment stays unknown for ever."""
        if self.words[Word.OP] == Op.SHARED:
            self.words[Word.UNKNOWN] += 1
        self.words[Word.OP] = Op.NONE

    def shared(self, number: int) -> int:
        """Acknowledged increments of one shared counter."""
        return self.words[STATES + FIRST_SHARED + number]

    def stall_ns(self, window: int) -> int:
        """Longest call of this worker that ended in a window."""
        return self.words[STALLS + window % WINDOWS]

    def key_name(self, key: int) -> str:
        """Where a key of this worker lies in the store."""
        if key >= FIRST_SHARED:
            return f"shared:{key - FIRST_SHARED}"
        return f"w{self.slot}:{key}"

    def own_keys(self) -> Iterator[int]:
        """All keys but the shared ones."""
        return iter(range(FIRST_SHARED))

    def close(self) -> None:
        """Unmap the file."""
        self.words.release()
        self._map.close()
