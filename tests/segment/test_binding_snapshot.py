"""Entry images through the Arena: filled from a store that may be written, checked, and loaded into a new one."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shmkv import errors
from shmkv.segment import _core
from tests.segment.conftest import SIZE_BYTES, STORE_ID, Segment, drain

HEADER = struct.Struct("<QIIHHBBH")  # version, body crc, value length, key length, namespace, type, flags, spare


def images(arena: _core.Arena, capacity: int = 1 << 16) -> Iterator[tuple[int, bytes]]:
    """All images, block by block: (stripe, bytes)."""
    buffer, cursor = bytearray(capacity), 0
    while cursor != _core.CURSOR_END:
        cursor, used, entries, stripe, needed = arena.fill(cursor, buffer)
        if needed:
            buffer = bytearray(needed)
        assert (used == 0) == (entries == 0)
        if used:
            yield stripe, bytes(buffer[:used])


def take_apart(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """(key, version, whole image) of each entry, by the format alone."""
    at = 0
    while at < len(data):
        version, _, value_length, key_length, _, _, flags, _ = HEADER.unpack_from(data, at)
        key_at = at + 24 + (8 if flags & 2 else 0)
        end = (key_at + (key_length + 7) // 8 * 8 + value_length + 7) // 8 * 8
        yield data[key_at : key_at + key_length], version, data[at:end]
        at = end
    assert at == len(data)


class Scratch:
    """An arena in state CREATING."""

    def __init__(self, *, hash_key: bytes | None = None, size_bytes: int = SIZE_BYTES, **plan: int) -> None:
        self.fd = os.memfd_create("shmkv-test", os.MFD_CLOEXEC)
        os.posix_fallocate(self.fd, 0, size_bytes)
        _core.format_arena(
            self.fd,
            size_bytes=size_bytes,
            name="test",
            store_id=STORE_ID,
            incarnation=2,
            first_lsn=2 * _core.LSN_GAP,
            has_log=False,
            hash_key=hash_key,
            **plan,
        )
        self.arena = _core.Arena(self.fd)

    def contents(self) -> dict[Any, Any]:
        """Serve, and read everything; the audit must find nothing."""
        self.arena.set_state(state="READY")
        assert self.arena.audit() == []
        store = _core.Store(self.fd, "test")
        try:
            return contents(store)
        finally:
            store.close()

    def close(self) -> None:
        self.arena.close()
        os.close(self.fd)


def contents(store: _core.Store) -> dict[Any, Any]:
    found, cursor = {}, 0
    while cursor != _core.CURSOR_END:
        cursor, pairs = store._scan(cursor, True)
        found.update(pairs)
    return found


@pytest.fixture
def scratch() -> Iterator[Any]:
    made: list[Scratch] = []

    def make(**plan: Any) -> Scratch:
        made.append(Scratch(**plan))
        return made[-1]

    yield make
    for each in made:
        each.close()


def mixed(db: _core.Store) -> None:
    for i in range(2000):
        db[f"key{i}"] = os.urandom(i % 300)
    db.set("pinned", "text", pin=True)
    db.set("expires", 7, ttl=3600)
    db.set("", None)
    db["large"] = os.urandom(200_000)
    db.delete_many([f"key{i}" for i in range(0, 2000, 3)])


def test_what_is_filled_and_loaded_is_the_same_store(segment: Segment, db: _core.Store, scratch: Any) -> None:
    mixed(db)
    blocks = list(images(segment.arena))
    expected = {key: db._entry(key) for key in contents(db)}
    copy = scratch(hash_key=segment.arena.info()["hash_key"])
    for _, data in blocks:
        entries = list(take_apart(data))
        found = copy.arena.load(data)
        assert found == {
            "consumed_bytes": len(data),
            "entries": len(entries),
            "applied": len(entries),
            "highest_version": max(version for _, version, _ in entries),
            "stopped": None,
        }
        assert _core.check_entries(data) == found | {"applied": 0}
        assert copy.arena.load(data)["applied"] == 0
    assert len(copy.contents()) == len(expected)
    store = _core.Store(copy.fd, "test")
    assert {key: store._entry(key) for key in expected} == expected
    store.close()


def test_any_buffer_that_holds_the_largest_entry_gives_the_same_images(segment: Segment, db: _core.Store) -> None:
    mixed(db)
    del db["large"]
    whole = b"".join(data for _, data in images(segment.arena, 1 << 20))
    for capacity in (400, 1000, 4096):
        assert b"".join(data for _, data in images(segment.arena, capacity)) == whole
    keys = [key for key, _, _ in take_apart(whole)]
    assert len(keys) == len(set(keys)) == len(db)


def test_an_entry_larger_than_the_buffer_says_what_it_needs(segment: Segment, db: _core.Store) -> None:
    db["large"] = bytes(100_000)
    cursor, found = 0, []
    while cursor != _core.CURSOR_END:
        next_cursor, used, entries, _, needed = segment.arena.fill(cursor, bytearray(99_000))
        if needed:
            assert (used, entries) == (0, 0)
            assert segment.arena.fill(cursor, bytearray(needed - 8))[4] == needed
            next_cursor, used, entries, _, again = segment.arena.fill(next_cursor, bytearray(needed))
            assert (used, entries, again) == (needed, 1, 0)
            found.append(needed)
        cursor = next_cursor
    assert found == [24 + 8 + 100_000]
    assert segment.arena.fill(_core.CURSOR_END, bytearray(8))[:3] == (_core.CURSOR_END, 0, 0)


def test_a_hash_key_is_kept_and_given_back(segment: Segment, scratch: Any) -> None:
    key = os.urandom(16)
    copy = scratch(hash_key=key, stripes=32)
    assert copy.arena.info()["hash_key"] == _core.read_header(copy.fd)["hash_key"] == key
    assert copy.arena.info()["stripes"] == 32
    assert segment.arena.info()["hash_key"] not in (bytes(16), key)
    with pytest.raises(ValueError, match="hash_key has 15 bytes"):
        scratch(hash_key=key[:15])


def test_threads_load_stripes_of_their_own_into_any_count_of_stripes(
    segment: Segment, db: _core.Store, scratch: Any
) -> None:
    mixed(db)
    blocks = list(images(segment.arena, 300_000))
    stripes_then = segment.arena.info()["stripes"]
    for stripes in (16, 64):
        copy = scratch(hash_key=segment.arena.info()["hash_key"], stripes=stripes, size_bytes=2 * SIZE_BYTES)

        def load(part: int, copy: Scratch = copy, stripes: int = stripes) -> None:
            for stripe, data in blocks:
                if stripe * 4 // stripes_then == part:
                    first, end = part * stripes // 4, (part + 1) * stripes // 4
                    assert copy.arena.load(data, first_stripe=first, end_stripe=end)["stopped"] is None

        threads = [threading.Thread(target=load, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert copy.contents() == contents(db)


def test_an_entry_of_another_stripe_is_refused(segment: Segment, db: _core.Store, scratch: Any) -> None:
    mixed(db)
    copy = scratch(hash_key=segment.arena.info()["hash_key"])
    stripe, data = next(images(segment.arena))
    other = scratch()
    found = copy.arena.load(data, first_stripe=stripe + 1)
    assert (found["consumed_bytes"], found["entries"], found["stopped"]) == (0, 0, "stripe")
    assert other.arena.load(data, first_stripe=stripe, end_stripe=stripe + 1)["stopped"] == "stripe"
    with pytest.raises(ValueError, match="16 stripes"):
        copy.arena.load(data, end_stripe=17)
    with pytest.raises(ValueError, match="16 stripes"):
        copy.arena.load(data, first_stripe=3, end_stripe=2)
    assert copy.arena.load(data, first_stripe=stripe, end_stripe=stripe)["stopped"] == "stripe"
    assert len(copy.contents()) == 0


def test_loading_is_for_arenas_that_do_not_serve(segment: Segment, db: _core.Store) -> None:
    db["key"] = 1
    data = b"".join(data for _, data in images(segment.arena))
    with pytest.raises(ValueError, match="CREATING"):
        segment.arena.load(data)


def test_a_full_arena_is_an_error_in_numbers(make_segment: Any, scratch: Any) -> None:
    big = make_segment(size_bytes=4 * SIZE_BYTES)
    store = big.store()
    for i in range(100):
        store[f"key{i}"] = bytes(100_000)
    copy = scratch()
    with pytest.raises(errors.MemoryLimitExceeded, match="full after"):
        for _, data in images(big.arena, 1 << 20):
            copy.arena.load(data)
    copy.arena.set_state(state="READY")
    assert copy.arena.audit() == []


def test_cleared_entries_are_left_out_and_expired_ones_are_not(segment: Segment, db: _core.Store) -> None:
    for i in range(100):
        db[f"old{i}"] = i
    db.clear()
    for i in range(50):
        db.set(f"new{i}", i, ttl=0.001 if i % 2 else None)
    threading.Event().wait(0.02)
    assert len(contents(db)) == 25
    keys = {key for _, data in images(segment.arena) for key, _, _ in take_apart(data)}
    assert keys == {b"new%d" % i for i in range(50)}


def test_a_retired_arena_is_filled_as_before(segment: Segment, db: _core.Store) -> None:
    mixed(db)
    before = b"".join(data for _, data in images(segment.arena))
    segment.arena.retire()
    assert b"".join(data for _, data in images(segment.arena)) == before
    reader = _core.Arena(segment.fd, read_only=True)
    assert b"".join(data for _, data in images(reader)) == before
    reader.close()


def test_a_snapshot_while_writing_and_its_log_make_the_store(make_segment: Any, scratch: Any) -> None:
    old = make_segment(has_log=True, ring_bytes=1 << 20, size_bytes=2 * SIZE_BYTES)
    db = old.store(log_timeout_s=20)
    log, done = bytearray(), threading.Event()

    def write() -> None:
        other, count = old.store(log_timeout_s=20), 0
        while not done.is_set():
            count += 1
            other[f"key{count % 500}"] = os.urandom(count % 700)
            other.delete(f"key{count * 7 % 500}")
            if count % 1000 == 0:
                other.clear()
            if count % 50 == 0:
                other[f"large{count % 3}"] = os.urandom(70_000)

    def persist() -> None:
        while not done.is_set():
            old.arena.ring_wait(old.arena.ring()["tail"], 0.01)
            log.extend(drain(old))

    for i in range(500):
        db[f"key{i}"] = i
    log.extend(drain(old))
    threads = [threading.Thread(target=write), threading.Thread(target=write), threading.Thread(target=persist)]
    for thread in threads:
        thread.start()
    taken = []
    for _ in range(20):
        start_lsn = old.arena.ring()["tail"]
        taken.append((start_lsn, list(images(old.arena, 4096)), old.arena.ring()["tail"]))
    done.set()
    for thread in threads:
        thread.join()
    log.extend(drain(old))
    for start_lsn, blocks, end_lsn in taken:
        copy = scratch(hash_key=old.arena.info()["hash_key"], size_bytes=2 * SIZE_BYTES)
        for _, data in blocks:
            found = copy.arena.load(data)
            assert found["stopped"] is None
            assert found["highest_version"] < end_lsn
        data = bytes(log[start_lsn - _core.LSN_GAP :])
        found = copy.arena.apply(data, store_id=STORE_ID, incarnation=1, first_lsn=start_lsn)
        assert (found["stopped"], found["consumed_bytes"]) == (None, len(data))
        assert copy.contents() == contents(db)


# ---- damage ----------------------------------------------------------------------------------------------------------
def test_any_flipped_bit_is_seen_but_in_the_version(segment: Segment, db: _core.Store, scratch: Any) -> None:
    db.set("key", b"value of eleven", ttl=1e6)
    (_, data), *rest = images(segment.arena)
    assert not rest
    copy = scratch()
    for bit in range(64, len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        found = copy.arena.load(bytes(damaged))
        assert found["stopped"] in ("length", "body crc"), bit
        assert (found["consumed_bytes"], found["entries"], found["applied"]) == (0, 0, 0)
    for length in range(len(data)):
        assert _core.check_entries(data[:length])["stopped"] == (None if length == 0 else "length")
    assert _core.check_entries(bytes(8) + data[8:])["stopped"] == "version"
    assert len(copy.contents()) == 0


def sealed(version: int, key: bytes, value: bytes, **fields: int) -> bytes:
    """An image whose checksum is right, whatever its fields say."""
    numbers = {"value_length": len(value), "key_length": len(key), "namespace": 0, "type": 5, "flags": 0} | fields
    padded = key + fields.get("padding", 0).to_bytes(1, "little") * (-len(key) % 8)
    body = (
        struct.pack(
            "<IHHBBH",
            *(numbers[name] for name in ("value_length", "key_length", "namespace", "type")),
            numbers["flags"],
            0,
        )
        + (bytes(8) if numbers["flags"] & 2 else b"")
        + padded
        + value
    )
    return struct.pack("<QI", version, _core.crc32c(body)) + body + bytes(-(12 + len(body)) % 8)


def test_nonsense_under_good_checksums_is_refused(scratch: Any) -> None:
    copy = scratch()
    for fields in (
        {"namespace": 64},
        {"namespace": 65535},
        {"value_length": 2**32 - 1},
        {"value_length": 12},
        {"key_length": 65535},
        {"padding": 1},
    ):
        found = copy.arena.load(sealed(5, b"key", b"value", **fields))
        assert (found["stopped"] in ("length", "body crc"), found["entries"]) == (True, 0), fields
    for version in (0, 4, (1 << 41) + 1, 1 << 62, 2**64 - 8):
        assert copy.arena.load(sealed(version, b"key", b"value"))["stopped"] == "version"
    assert len(copy.contents()) == 0


def test_of_two_images_of_a_key_the_newer_one_counts_in_any_order(scratch: Any) -> None:
    one, two = sealed(1 << 40, b"key", b"one"), sealed((1 << 40) + 8, b"key", b"two two two two")
    for data in (one + two, two + one, one + one + two + two + one):
        copy = scratch()
        assert copy.arena.load(data)["stopped"] is None
        assert copy.contents() == {"key": b"two two two two"}


def test_what_is_at_or_below_a_clear_of_the_arena_is_left_out(make_segment: Any, scratch: Any) -> None:
    old = make_segment(has_log=True)
    old.store().clear()
    log, lsn = drain(old), _core.LSN_GAP
    for version, expected in ((lsn - 8, 0), (lsn, 0), (lsn + 8, 1)):
        copy = scratch()
        copy.arena.apply(log, store_id=STORE_ID, incarnation=1, first_lsn=lsn)
        found = copy.arena.load(sealed(version, b"key", b"value"))
        assert (found["entries"], found["applied"]) == (1, expected)
        assert len(copy.contents()) == expected


def test_damage_in_the_arena_is_named_and_not_copied(make_segment: Any) -> None:
    segment = make_segment()
    db = segment.store()
    db["key"] = b"a value to be damaged"
    with os.fdopen(os.dup(segment.fd), "r+b") as memory:
        at = memory.read().index(b"a value to be damaged", segment.arena.info()["page_count"])
        # The ring holds the same bytes before the pages do.
        memory.seek(0)
        at = memory.read().rindex(b"a value to be damaged")
        os.pwrite(segment.fd, b"A", at)
        with pytest.raises(errors.CorruptData, match=r"stripe \d+, key hash [0-9a-f]{16}: wrong checksum"):
            list(images(segment.arena))
        os.pwrite(segment.fd, b"a", at)
    assert sum(len(list(take_apart(data))) for _, data in images(segment.arena)) == 1


# ---- limits of the log -----------------------------------------------------------------------------------------------
def test_a_limit_stops_after_the_record_with_that_lsn(logged: Segment, scratch: Any) -> None:
    db = logged.store()
    lsns = []
    for i in range(10):
        db[f"key{i}"] = i
        lsns.append(db.last_lsn)
    end = logged.arena.ring()["tail"]
    data = drain(logged)
    for i, lsn in enumerate(lsns):
        for limit, records in ((lsn, i + 1), (lsn - 1, i), (lsn + 1, i + 1)):
            copy = scratch()
            found = copy.arena.apply(data, store_id=STORE_ID, incarnation=1, first_lsn=_core.LSN_GAP, limit_lsn=limit)
            assert found["records"] == found["applied"] == records
            assert found["next_lsn"] == [*lsns, end][records]
            assert found["stopped"] == (None if records == 10 else "limit")
            assert len(copy.contents()) == records


def test_a_time_limit_stops_before_the_first_mark_that_is_later(logged: Segment) -> None:
    db = logged.store()
    marks = []
    for i in range(5):
        db[f"key{i}"] = i
        marks.append(logged.arena.mark(1000 + i))
    data = drain(logged)
    arguments: dict[str, Any] = {"store_id": STORE_ID, "incarnation": 1, "first_lsn": _core.LSN_GAP}
    for i in range(5):
        found = _core.verify(data, limit_wall_ms=1000 + i, **arguments)
        assert (found["mark_lsn"], found["wall_ms"]) == (marks[i], 1000 + i)
        assert found["stopped"] == (None if i == 4 else "limit")
        again = _core.verify(data, limit_lsn=found["mark_lsn"], **arguments)
        assert (again["records"], again["mark_lsn"]) == (2 * i + 2, marks[i])
    found = _core.verify(data, limit_wall_ms=999, **arguments)
    assert (found["records"], found["mark_lsn"], found["stopped"]) == (1, 0, "limit")
