"""Handles and mappings: opening, closing, reading only, the type, and that nothing leaks."""

from __future__ import annotations

import collections.abc
import gc
import os
import pickle
import sys
import threading
import weakref
from typing import Any

import pytest

import shmkv.values
from shmkv import errors
from shmkv.segment import _core
from tests.segment.conftest import STORE_ID, mapped


# ---- opening and closing ---------------------------------------------------------------------------------------------
def test_a_handle_says_what_it_is(segment: Any) -> None:
    db = segment.store()
    assert (db.name, db.read_only, db.closed, db.store_id, db.incarnation, db.last_lsn) == (
        "test",
        False,
        False,
        STORE_ID,
        1,
        0,
    )
    for attribute in ("name", "read_only", "closed", "store_id", "incarnation", "last_lsn"):
        with pytest.raises(AttributeError):
            setattr(db, attribute, 1)


def test_handles_of_one_object_share_a_mapping_that_goes_with_the_last(segment: Any) -> None:
    segment.arena.close()
    assert mapped(segment.fd) == 0
    first, second = segment.store(), segment.store()
    reader = segment.store(read_only=True)
    assert mapped(segment.fd) == 2
    first["key"] = 1
    assert second["key"] == reader["key"] == 1
    first.close()
    assert second["key"] == 1
    reader.close()
    assert mapped(segment.fd) == 1
    del second, first
    segment.stores.clear()
    assert mapped(segment.fd) == 0
    segment.arena = _core.Arena(segment.fd)


def test_after_close_every_use_is_a_value_error_and_close_is_harmless(db: _core.Store) -> None:
    db["key"] = 1
    db.close()
    db.close()
    uses = [
        lambda: db["key"],
        lambda: db.get("key"),
        lambda: db.set("key", 1),
        lambda: db.delete("key"),
        lambda: "key" in db,
        lambda: len(db),
        lambda: db.get_many([]),
        lambda: db.get_many(["a"]),
        lambda: db.set_many({"a": 1}),
        lambda: db.delete_many(["a"]),
        lambda: db.incr("a"),
        lambda: db.append("a", "b"),
        db.clear,
        db.sync,
        lambda: db._entry("a"),
        lambda: db._scan(0, True),
        db._stats,
        lambda: db.last_lsn,
        lambda: db.store_id,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="store is closed"):
            use()
    assert db.closed
    assert db.name == "test"
    with pytest.raises(ValueError, match="opened once"):
        db.__init__(0, "again")  # type: ignore[misc]


def test_a_store_that_was_never_opened_is_a_value_error(segment: Any) -> None:
    with pytest.raises(ValueError, match="not open"):
        _core.Store.__new__(_core.Store).get("key")


def test_what_is_no_arena_is_refused_and_named(tmp_path: Any) -> None:
    for size_bytes in (0, 100, 1 << 20):
        path = tmp_path / f"{size_bytes}"
        path.write_bytes(b"\1" * size_bytes)
        with path.open("r+b") as file, pytest.raises(errors.CorruptData, match=r"start the store's supervisor|restart"):
            _core.Store(file.fileno(), "wrong")
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.Store(999_999, "wrong")


def test_a_settings_error_leaves_nothing_open(segment: Any) -> None:
    wrong: list[dict[str, Any]] = [
        {"lock_timeout_s": -1},
        {"log_timeout_s": "1"},
        {"durability": "never"},
        {"unknown": 1},
    ]
    for settings in wrong:
        with pytest.raises((ValueError, TypeError)):
            _core.Store(segment.fd, "test", **settings)


def test_another_layout_is_incompatible_with_both_numbers(segment: Any) -> None:
    copy = os.memfd_create("copy", os.MFD_CLOEXEC)
    try:
        page = bytearray(os.pread(segment.fd, 16384, 0))
        size = os.fstat(segment.fd).st_size
        os.ftruncate(copy, size)
        length = header_length(page)
        for start in (0, 4096):
            page[start + 8 : start + 12] = (77).to_bytes(4, "little")
            crc = _core.crc32c(bytes(page[start : start + length - 8 + 4]))
            page[start + length - 4 : start + length] = crc.to_bytes(4, "little")
        os.pwrite(copy, page, 0)
        assert _core.read_header(copy)["layout_version"] == 77
        with pytest.raises(errors.IncompatibleStore, match=f"layout version: found 77, needed {_core.LAYOUT_VERSION}"):
            _core.Store(copy, "copy")
    finally:
        os.close(copy)


def header_length(page: bytearray) -> int:
    """Length of the header struct, found as the place of its checksum over all before it."""
    for at in range(64, 4092, 4):
        if int.from_bytes(page[at : at + 4], "little") == _core.crc32c(bytes(page[:at])) and any(page[at : at + 4]):
            return at + 4
    raise AssertionError("no checksum found in the header")


# ---- read-only -------------------------------------------------------------------------------------------------------
def test_a_read_only_handle_reads_and_claims_no_slot(segment: Any) -> None:
    segment.store()["key"] = 1
    taken = len(segment.arena.slots())
    fd = os.open(f"/proc/self/fd/{segment.fd}", os.O_RDONLY)
    try:
        reader = _core.Store(fd, "test", read_only=True)
        seen: list[Any] = []
        thread = threading.Thread(
            target=lambda: seen.append((reader["key"], reader.get_many(["key"]), reader._scan(0, True)))
        )
        thread.start()
        thread.join()
        assert seen[0][:2] == (1, {"key": 1})
        assert reader["key"] == 1
        assert len(reader) == 1
        assert len(segment.arena.slots()) == taken
        reader.close()
    finally:
        os.close(fd)


def test_every_write_through_a_read_only_handle_is_refused(segment: Any) -> None:
    reader = segment.store(read_only=True)
    writes = [
        lambda: reader.set("a", 1),
        lambda: reader.__setitem__("a", 1),
        lambda: reader.delete("a"),
        lambda: reader.incr("a"),
        lambda: reader.__delitem__("a"),
        lambda: reader.append("a", "b"),
        lambda: reader.set_many({"a": 1}),
        lambda: reader.delete_many(["a"]),
        reader.clear,
    ]
    for write in writes:
        with pytest.raises(errors.ReadOnly, match="read-only"):
            write()
    arena = _core.Arena(segment.fd, read_only=True)
    for call in (
        arena.retire,
        arena.reap,
        lambda: arena.sweep(0),
        lambda: arena.set_state(state="READY"),
        lambda: arena.mark(1),
    ):
        with pytest.raises(errors.ReadOnly):
            call()
    arena.close()


# ---- the type --------------------------------------------------------------------------------------------------------
class MappingStore(_core.Store, collections.abc.MutableMapping):  # type: ignore[type-arg,misc]
    __slots__ = ()

    def __iter__(self) -> Any:
        cursor = 0
        while cursor != _core.CURSOR_END:
            cursor, keys = self._scan(cursor, False)
            yield from keys


def test_it_is_the_base_of_a_mutable_mapping(segment: Any) -> None:
    db = segment.store(MappingStore)
    db.update({"a": 1}, b=2)
    assert dict(db) == {"a": 1, "b": 2}
    assert db == {"a": 1, "b": 2}
    assert db.pop("a") == 1
    assert db.setdefault("c", 3) == 3
    assert sorted(db.items()) == [("b", 2), ("c", 3)]
    assert isinstance(db, collections.abc.MutableMapping)
    db.clear()
    assert list(db) == []


def test_a_subclass_overrides_what_it_likes_and_passes_it_on() -> None:
    class First(_core.Store):
        def get(self, key: Any, default: Any = None) -> Any:
            return "first"

    class Second(First):
        pass

    assert Second.__dict__.get("get") is None
    assert "set" in Second.__dict__
    assert Second.get is First.get


def test_handles_can_be_weakly_referenced_and_collected(segment: Any) -> None:
    class Cyclic(_core.Store):
        me: Any

    db = Cyclic(segment.fd, "test")
    db.me = db
    reference = weakref.ref(db)
    del db
    gc.collect()
    assert reference() is None


def test_a_store_cannot_be_pickled_by_accident(db: _core.Store) -> None:
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(db)


# ---- leaks -----------------------------------------------------------------------------------------------------------
def test_no_operation_leaks_blocks_or_references(segment: Any) -> None:
    _core.set_codec(shmkv.values.encode, shmkv.values.decode)
    db = segment.store()
    key, raw, wide, large = "key", b"raw", "\u20ac" * 30, b"x" * 70_000
    objects = [key, raw, wide, large]

    def refused(call: Any) -> None:
        try:
            call()
        except (KeyError, TypeError, ValueError, OSError):
            return
        raise AssertionError("it should have been refused")

    def once() -> None:
        db[key] = raw
        db.set(key, wide, ttl=5.5, durability="none")
        db.set(wide, large, if_absent=True)
        db.set(key, [1, "two", (3.0,)])
        assert db[key] == [1, "two", (3.0,)]
        assert db.get(wide) == large
        db.get_many([key, raw, wide, "none"])
        db.set_many({key: raw, wide: wide, "list": [1]}, ttl=9)
        db.incr("n", 3)
        db.append("s", "text")
        db._entry(key)
        db._scan(0, True)
        db._stats()
        segment.arena.info()
        segment.arena.slots()
        del db["s"]
        db.delete_many([key, wide, "none"])
        refused(lambda: db["none"])
        refused(lambda: db.set(key, object()))
        refused(lambda: db.set(key, 1, ttl=0))
        refused(lambda: db.set(key, 1, nonsense=1))
        refused(lambda: db.set_many({key: raw, wide: "\ud800"}))
        refused(lambda: db.get_many([key, 5]))
        refused(lambda: _core.Store(segment.fd, "x", durability="x"))
        _core.Store(segment.fd, "x").close()

    for _ in range(50):
        once()
    gc.collect()
    counts, blocks = [sys.getrefcount(o) for o in objects], sys.getallocatedblocks()
    for _ in range(400):
        once()
    gc.collect()
    assert [sys.getrefcount(o) for o in objects] == counts
    assert sys.getallocatedblocks() - blocks < 100


def test_memory_stays_level_over_many_large_reads_and_handles(make_segment: Any) -> None:
    segment = make_segment(size_bytes=16 << 20)
    db = segment.store()
    db["large"] = b"x" * 500_000

    def resident_kib() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4

    def once() -> None:
        assert len(db["large"]) == 500_000
        db.get_many(["large"])
        db._scan(0, True)
        other = _core.Store(segment.fd, "test", read_only=True)
        assert "large" in other
        other.close()

    for _ in range(30):
        once()
    before = resident_kib()
    for _ in range(200):
        once()
    assert resident_kib() - before < 4096
