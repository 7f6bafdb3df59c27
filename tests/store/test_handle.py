"""The handle itself: read-only, closed, pickled, copied, collected; every method in each of these states."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest

import shmkv

WRITES: dict[str, Any] = {
    "setitem": lambda db: db.__setitem__("k", 1),
    "delitem": lambda db: db.__delitem__("k"),
    "set": lambda db: db.set("k", 1),
    "delete": lambda db: db.delete("k"),
    "set_many": lambda db: db.set_many({"k": 1}),
    "delete_many": lambda db: db.delete_many(["k"]),
    "incr": lambda db: db.incr("k"),
    "incr float": lambda db: db.incr("k", 0.5),
    "decr": lambda db: db.decr("k"),
    "append": lambda db: db.append("k", "x"),
    "clear": lambda db: db.clear(),
    "pop": lambda db: db.pop("k"),
    "pop default": lambda db: db.pop("z", None),
    "popitem": lambda db: db.popitem(),
    "setdefault": lambda db: db.setdefault("k", 1),
    "update": lambda db: db.update(a=1),
    "modify": lambda db: db.modify("k", lambda value: value),
    "expire": lambda db: db.expire("k", 5),
    "persist": lambda db: db.persist("k"),
}
READS: dict[str, Any] = {
    "getitem": lambda db: db["k"],
    "get": lambda db: db.get("k"),
    "in": lambda db: "k" in db,
    "len": len,
    "iter": list,
    "keys": lambda db: list(db.keys()),
    "items": lambda db: list(db.items()),
    "values": lambda db: list(db.values()),
    "scan": lambda db: db.scan(prefix="k"),
    "get_many": lambda db: db.get_many(["k"]),
    "entry": lambda db: db.entry("k"),
    "ttl": lambda db: db.ttl("k"),
    "stats": lambda db: db.stats(),
    "eq": lambda db: db == {"k": 1},
    "bool": bool,
}
HANDLE: dict[str, Any] = {
    "sync": lambda db: db.sync(),
    "last_lsn": lambda db: db.last_lsn,
    "with": lambda db: db.__enter__(),
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "incarnation": lambda db: db.incarnation,
    "store_id": lambda db: db.store_id,
}


@pytest.mark.parametrize("use", WRITES.values(), ids=WRITES.keys())
def test_every_write_through_a_read_only_handle_raises(db: shmkv.Store, reader: shmkv.Store, use: Any) -> None:
    db["k"] = 5
    with pytest.raises(shmkv.ReadOnly, match="read_only"):
        use(reader)
    assert dict(db.items()) == {"k": 5}


@pytest.mark.parametrize("use", READS.values(), ids=READS.keys())
def test_every_read_works_through_a_read_only_handle(db: shmkv.Store, reader: shmkv.Store, use: Any) -> None:
    db["k"] = 5
    use(reader)
    assert reader.read_only
    assert reader == db


@pytest.mark.parametrize("use", [*WRITES.values(), *READS.values(), *HANDLE.values()], ids=[*WRITES, *READS, *HANDLE])
@pytest.mark.parametrize("read_only", [False, True], ids=["writer", "reader"])
def test_every_use_after_close_is_a_value_error(db: shmkv.Store, use: Any, read_only: bool) -> None:
    handle = shmkv.attach(db.name, read_only=read_only)
    assert not handle.closed
    handle.close()
    handle.close()
    assert handle.closed
    with pytest.raises(ValueError, match="closed"):
        use(handle)
    assert "closed" in repr(handle)
    assert len(db) == 0


def test_an_iteration_ends_with_the_handle(db: shmkv.Store) -> None:
    db.update({str(number): b"x" * 300 for number in range(3000)})
    handle = shmkv.attach(db.name)
    walk = iter(handle.items())
    next(walk)
    handle.close()
    with pytest.raises(ValueError, match="closed"):
        list(walk)


def test_repr_names_the_store_and_its_state(db: shmkv.Store, reader: shmkv.Store) -> None:
    assert repr(db) == f"<shmkv.LaunchedStore {db.name!r} open>"
    assert repr(reader) == f"<shmkv.Store {db.name!r} read-only>"


def test_pickle_and_copy_make_handles_of_their_own(db: shmkv.Store, reader: shmkv.Store) -> None:
    for handle in (db, reader):
        for made in (pickle.loads(pickle.dumps(handle)), copy.copy(handle), copy.deepcopy({"h": [handle]})["h"][0]):
            assert type(made) is shmkv.Store
            assert (made.name, made.read_only, made.store_id) == (handle.name, handle.read_only, handle.store_id)
            made.close()
    assert not db.closed
    data = pickle.dumps(db)
    assert len(data) < 300


def test_handles_can_be_referenced_weakly_and_collected(db: shmkv.Store) -> None:
    handle = shmkv.attach(db.name)
    handle["k"] = 1
    watch = weakref.ref(handle)
    del handle
    gc.collect()
    assert watch() is None
    assert db["k"] == 1


def test_stats_count_what_happens(db: shmkv.Store) -> None:
    before = db.stats()
    db["k"] = b"x" * 1000
    assert db["k"]
    after = db.stats()
    assert after.items == 1
    assert after.sets == before.sets + 1
    assert after.gets > before.gets
    assert after.used_bytes >= 1000
    assert (after.name, after.memory_bytes, after.durable, after.log_state) == (db.name, 64_000_000, False, "OK")
    assert after.numbers["items"] == 1
    assert after.threads >= 1


def test_sync_without_a_log_returns_at_once(db: shmkv.Store) -> None:
    db["k"] = 1
    db.sync()
    db.sync(timeout=0.1)
