"""Rows of one process against a dict in the same process, and of the arena's size.

Why here: all of them need the same million keys in both.

Invariants:
  I1  Store and dict were filled with the same keys in the same order; the dict's objects are its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import shmkv
from benchmarks.data import fresh_keys, fresh_values, uniform
from benchmarks.rounds import Comparison, assign_each, batches_of, call_batches, call_each, call_each_pair, compare
from benchmarks.row import Row

HOT_KEYS = 1000
BATCH = 100
LOAD_BATCH = 1000
PAGE_MAP_BYTES = 8 + 24  # owner word and meta data of each page
BUCKET_BYTES = 64

Measure = Callable[[], float]


class MemoryRows:
    """A loaded store and a loaded dict."""

    def __init__(self, db: shmkv.Store, keys: int, calls: int, rounds: int, seed: int) -> None:
        self._db = db
        self._keys = keys
        self._calls = calls
        self._rounds = rounds
        self._chance = random.Random(seed)
        load(db, keys)
        # In the same order, or the dict would have its hot keys side by side, and the store would not.
        self._dict = dict(zip(fresh_keys(load_order(keys)), fresh_values(keys, 0), strict=True))

    def get_hot(self) -> Row:
        """db.get of a thousand keys that were set one after the other: the case that suits a dict best."""
        title = f"db.get, {HOT_KEYS:,} hot keys set together / dict.get"
        return self._against_dict("get_hot", title, 1.5, lambda _: self._gets(load_order(self._keys)[:HOT_KEYS]))

    def get_hot_scattered(self) -> Row:
        """The same of a thousand keys that were set at random times: their memory lies apart in both."""
        title = f"db.get, {HOT_KEYS:,} hot keys set at random times / dict.get"
        return self._against_dict("get_hot_scattered", title, None, lambda _: self._gets(list(range(HOT_KEYS))))

    def get_uniform(self) -> Row:
        """db.get of random keys."""
        numbers = list(range(self._keys))
        title = f"db.get, uniform over {self._keys:,} / dict.get"
        return self._against_dict("get_uniform", title, 1.1, lambda _: self._gets(numbers))

    def _gets(self, among: list[int]) -> tuple[Measure, Measure]:
        numbers = [among[i] for i in uniform(self._chance, len(among), self._calls)]
        ours, theirs = fresh_keys(numbers), fresh_keys(numbers)
        return lambda: call_each(self._db.get, ours), lambda: call_each(self._dict.get, theirs)

    def set_call(self) -> Row:
        """db.set(key, value) against an assignment to a dict."""

        def prepare(number: int) -> tuple[Measure, Measure]:
            numbers = uniform(self._chance, self._keys, self._calls)
            ours, theirs = fresh_keys(numbers), fresh_keys(numbers)
            our_values, their_values = fresh_values(self._calls, number + 2), fresh_values(self._calls, number + 2)
            return lambda: call_each_pair(self._db.set, ours, our_values), lambda: assign_each(
                self._dict, theirs, their_values
            )

        return self._against_dict("set", "db.set(k, v) overwriting, uniform / d[k] = v", 1.3, prepare)

    def set_item(self) -> Row:
        """db[key] = value against the same statement on a dict."""

        def prepare(number: int) -> tuple[Measure, Measure]:
            numbers = uniform(self._chance, self._keys, self._calls)
            ours, theirs = fresh_keys(numbers), fresh_keys(numbers)
            our_values, their_values = fresh_values(self._calls, number + 2), fresh_values(self._calls, number + 2)
            return (
                lambda: assign_each(self._db, ours, our_values),  # type: ignore[arg-type]
                lambda: assign_each(self._dict, theirs, their_values),
            )

        return self._against_dict("setitem", "db[k] = v overwriting, uniform / d[k] = v", None, prepare)

    def get_many(self) -> Row:
        """db.get_many of a hundred keys against a loop of dict.get."""

        def prepare(_: int) -> tuple[Measure, Measure]:
            numbers = uniform(self._chance, self._keys, self._calls)
            ours, theirs = batches_of(fresh_keys(numbers), BATCH), fresh_keys(numbers)
            return lambda: call_batches(self._db.get_many, ours), lambda: call_each(self._dict.get, theirs)

        return self._against_dict(
            "get_many", f"db.get_many of {BATCH}, per key, uniform / loop of dict.get", 0.6, prepare
        )

    def _against_dict(
        self, name: str, title: str, limit: float | None, prepare: Callable[[int], tuple[Measure, Measure]]
    ) -> Row:
        found: Comparison = compare(prepare, self._rounds)
        compared = f"{found.ours:.0f} ns / {found.theirs:.0f} ns a key"
        return Row(name, title, found.ratio, limit, "x", False, compared)

    def bytes_per_item(self) -> Row:
        """Arena used by the million items."""
        stats = self._db.stats().numbers
        pages = stats["pages_used"] * stats["page_bytes"]
        buckets = stats["buckets"] * BUCKET_BYTES
        page_map = stats["page_limit"] * PAGE_MAP_BYTES
        rest = (
            stats["mapped_bytes"] - stats["ring_bytes"] - stats["page_limit"] * stats["page_bytes"] - buckets - page_map
        )
        items = stats["items"]
        compared = (
            f"pages in use {pages / items:.1f} + buckets {buckets / items:.1f} + page map of the whole arena "
            f"{page_map / items:.1f}; "
            f"116 are key and value; not counted: ring, and {rest / 1e6:.1f} MB of header, slots and stripes"
        )
        return Row(
            "bytes",
            f"bytes of arena an item, {items:,} items",
            (pages + buckets + page_map) / items,
            170,
            "bytes",
            False,
            compared,
        )


def load_order(keys: int) -> list[int]:
    """Numbers of all keys, shuffled, always in the same way."""
    order = list(range(keys))
    random.Random(1).shuffle(order)
    return order


def load(db: shmkv.Store, keys: int) -> None:
    """Fill a store: keys in random order, 100-byte values."""
    order = load_order(keys)
    for at in range(0, keys, LOAD_BATCH):
        part = order[at : at + LOAD_BATCH]
        db.set_many(dict(zip(fresh_keys(part), fresh_values(len(part), at), strict=True)))
