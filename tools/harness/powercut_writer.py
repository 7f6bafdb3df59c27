"""One writer of the power-cut test: numbered changes on keys of its own, a journal off the disk that is cut, and how
many of the changes a recovered store holds.

Why here: the content of a writer's keys says exactly how many of its changes are in the store, because each change
leaves something that no other leaves. So "nothing acknowledged is lost" and "what is left is a prefix" are one
comparison.

Invariants:
  I1  `begun` counts a change before its call, `returned` and `durable` after it came back; 8-byte words in a mapping
      that a SIGKILL leaves as it is.
  I2  Every change leaves a state that differs from all states before it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any

import shmkv
from harness.processes import Parent

SPAN = 97  # keys of a writer
DELETE_EVERY, DELETE_AT = 11, 5
WINDOW = 1 << 16
RETRY_PAUSE_S = 0.01
PACE_S = 0.0005  # between two changes of a writer that does not wait for the disk
ATTACH_TIMEOUT_S = 10.0


class Word(IntEnum):
    """Places of the single words; LSNs of the last WINDOW changes follow."""

    BEGUN = 0
    RETURNED = 1
    DURABLE = 2
    REFUSED = 3
    UNKNOWN = 4
    LSNS = 8


class Journal:
    """What a writer did, in memory that outlives it; made before the fork."""

    def __init__(self, name: str, level: str) -> None:
        self.name = name
        self.level = level
        self._map = mmap.mmap(-1, (Word.LSNS + WINDOW) * 8)
        self.words = memoryview(self._map).cast("B").cast("Q")

    def lsn(self, number: int) -> int:
        """Of change `number`; 0 if its call did not return."""
        return int(self.words[Word.LSNS + number % WINDOW])

    def go_on_from(self, count: int) -> None:
        """The store holds exactly `count` changes."""
        self.words[Word.BEGUN] = self.words[Word.RETURNED] = self.words[Word.DURABLE] = count

    def close(self) -> None:
        self.words.release()
        self._map.close()


def deletes(number: int) -> bool:
    """Whether that change deletes its key, which holds a value then."""
    return number >= SPAN and number % DELETE_EVERY == DELETE_AT


def value(name: str, number: int) -> bytes:
    """What change `number` sets: mostly small, now and then some pages, rarely a part of a log file."""
    text = f"{name} {number} ".encode()
    size_bytes = 60_000 if number % 199 == 7 else 5000 if number % 19 == 3 else 60
    return text * (size_bytes // len(text) + 1)


def work(store: str, journal: Journal, parent: Parent) -> None:
    """Make changes until killed; what was refused is tried again."""
    db = shmkv.attach(store, timeout=ATTACH_TIMEOUT_S, durability=journal.level, log_timeout=1.0)
    words, name, waits = journal.words, journal.name, journal.level == "always"
    number = int(words[Word.RETURNED])
    while not parent.orphaned():
        key = f"{name}:{number % SPAN}"
        words[Word.BEGUN] = number + 1
        durable = waits
        try:
            if deletes(number):
                del db[key]
            else:
                db[key] = value(name, number)
        except shmkv.DurabilityUnknown:
            words[Word.UNKNOWN] += 1
            durable = False
        except (shmkv.LogStalled, shmkv.DiskFull, shmkv.ReadOnly, shmkv.LockTimeout):
            words[Word.REFUSED] += 1
            time.sleep(RETRY_PAUSE_S)
            continue
        except (shmkv.StoreUnavailable, shmkv.StoreNotFound):
            return
        words[Word.LSNS + number % WINDOW] = db.last_lsn
        number += 1
        words[Word.RETURNED] = number
        if durable:
            words[Word.DURABLE] = number
        if not waits:
            time.sleep(PACE_S)


def changes_in(db: Mapping[str, Any], journal: Journal) -> Iterator[int]:
    """Each number of changes, between those durable and those begun, that the writer's keys look like; one in a
    good store, as a rule of I2."""
    name, words = journal.name, journal.words
    prefix = f"{name}:"
    found = {int(key[len(prefix) :]): content for key, content in db.items() if key.startswith(prefix)}
    count, last = int(words[Word.DURABLE]), int(words[Word.BEGUN])
    wrong = set(found)
    for number in range(max(0, count - SPAN), count):
        compare(name, number, found, wrong)
    while True:
        if not wrong:
            yield count
        if count >= last:
            return
        compare(name, count, found, wrong)
        count += 1


def compare(name: str, number: int, found: dict[int, Any], wrong: set[int]) -> None:
    """Whether the key of a change holds what it left."""
    slot = number % SPAN
    expected = None if deletes(number) else value(name, number)
    (wrong.discard if found.get(slot) == expected else wrong.add)(slot)


def describe(db: Mapping[str, Any], journal: Journal) -> str:
    """What a wrong store holds of a writer, for people."""
    numbers = []
    for key, content in db.items():
        if key.startswith(f"{journal.name}:"):
            parts = bytes(content).split(b" ", 2) if isinstance(content, bytes) else []
            numbers.append(int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else -1)
    words = journal.words
    return (
        f"writer {journal.name}: {len(numbers)} keys, highest change {max(numbers, default=-1)}; begun "
        f"{words[Word.BEGUN]}, returned {words[Word.RETURNED]}, durable {words[Word.DURABLE]}"
    )


def ordered(journals: list[Journal], counts: list[int]) -> bool:
    """Whether what the store holds of all writers together is a prefix of the log."""
    kept = [journal.lsn(count - 1) for journal, count in zip(journals, counts, strict=True) if count]
    lost = [
        journal.lsn(count)
        for journal, count in zip(journals, counts, strict=True)
        if count < journal.words[Word.RETURNED]
    ]
    return not lost or not kept or max(kept) < min(lost)


def seed_of() -> int:
    """A seed for a run that was given none."""
    return int.from_bytes(os.urandom(4), "big")
