"""A warm start looks at the log's tail: damage there is found, that far behind it is left to cold starts and scrubs."""

from __future__ import annotations

import pytest
from memory_disk import MemoryDisk
from small_log import SmallStore, log_path

from shmkv.errors import CorruptData
from shmkv.segment import _core
from shmkv.wal.log import HEADER_BLOCK_BYTES
from shmkv.wal.recovery import Segment
from shmkv.wal.tail import TAIL_BYTES, tail_start
from shmkv.wal.writer import LogShape

SHAPE = LogShape(file_bytes=8 << 20, spare_count=1)
VALUE_BYTES = 60_000


def full_store(sizes: list[int]) -> tuple[SmallStore, list[int]]:
    """A store with one record for each size in its first file; and where they begin."""
    store = SmallStore(MemoryDisk(), shape=SHAPE)
    first_lsns = []
    for number, size in enumerate(sizes):
        first_lsns.append(store.tail)
        store.append(f"key{number}", b"v" * size)
    store.sync()
    return store, first_lsns


def segment_of(store: SmallStore) -> Segment:
    file = store.started.directory.inspect(1)
    assert file.header is not None
    return Segment(file, file.header.first_lsn, store.tail, file.header.incarnation)


def start_of_tail(store: SmallStore) -> int:
    return tail_start(store.disk, segment_of(store), store.manifest.store_id, _core.verify)


def test_the_tail_begins_with_the_first_whole_record_of_the_last_mebibyte() -> None:
    store, first_lsns = full_store([VALUE_BYTES] * 60)
    assert start_of_tail(store) == next(lsn for lsn in first_lsns if lsn >= store.tail - TAIL_BYTES)


def test_a_short_log_is_read_from_its_start() -> None:
    store, first_lsns = full_store([VALUE_BYTES] * 10)
    assert start_of_tail(store) == first_lsns[0]


@pytest.mark.parametrize(("sizes", "index"), [([VALUE_BYTES, 100, 3 << 20], 0), ([3 << 20, 100, 5 << 19], 1)])
def test_a_record_larger_than_the_tail_is_found_further_back(sizes: list[int], index: int) -> None:
    store, first_lsns = full_store(sizes)
    # The search doubles: 4 MiB are more than the first log has, and reach into the big record of the second.
    assert start_of_tail(store) == first_lsns[index]


def test_bytes_that_look_like_places_of_records_are_no_records() -> None:
    store, first_lsns = full_store([VALUE_BYTES] * 60)
    position = store.tail - TAIL_BYTES
    position += -position % 8
    store.disk.content(log_path(1))[at(store, position + 8) : at(store, position + 16)] = position.to_bytes(8, "little")
    assert start_of_tail(store) == next(lsn for lsn in first_lsns if lsn > position)


def at(store: SmallStore, lsn: int) -> int:
    return HEADER_BLOCK_BYTES + lsn - store.manifest.first_lsn


@pytest.mark.parametrize("record", [-1, -2, -10])
@pytest.mark.parametrize("place", [0, 9, 20, 40, 50_000])
def test_damage_in_the_tail_keeps_the_arena_from_being_adopted(record: int, place: int) -> None:
    store, first_lsns = full_store([VALUE_BYTES] * 60)
    store.disk.content(log_path(1))[at(store, first_lsns[record] + place)] ^= 1
    with pytest.raises(CorruptData, match=f"LSN {first_lsns[record]} .*The arena still holds"):
        store.restart_warm()


@pytest.mark.parametrize("lost_bytes", [8, VALUE_BYTES, 2 << 20])
def test_a_log_that_ends_before_the_head_keeps_the_arena_from_being_adopted(lost_bytes: int) -> None:
    store, _ = full_store([VALUE_BYTES] * 60)
    end = at(store, store.tail)
    store.disk.content(log_path(1))[end - lost_bytes : end] = bytes(lost_bytes)
    with pytest.raises(CorruptData, match="The arena still holds"):
        store.restart_warm()


def test_damage_far_behind_the_tail_lets_the_arena_live_and_is_found_by_the_next_cold_start() -> None:
    store, first_lsns = full_store([VALUE_BYTES] * 60)
    store.disk.content(log_path(1))[at(store, first_lsns[3] + 40)] ^= 1
    store.restart_warm()
    store.append("after")
    store.sync()
    with pytest.raises(CorruptData, match=f"LSN {first_lsns[3]}"):
        SmallStore(store.disk, shape=SHAPE)
