"""How a typed program uses shmkv: checked by mypy, never run. What must be wrong carries the ignore that proves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import Any, assert_type

import shmkv


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def handles() -> None:
    with shmkv.attach("orders", timeout=1.0, read_only=True) as db:
        assert_type(db, shmkv.Store)
        assert_type(db.name, str)
        assert_type(db.read_only, bool)
        assert_type(db.last_lsn, int)
    with shmkv.launch("scratch", memory="256MB", data_dir="scratch", expected_items=None, eviction="noeviction") as own:
        takes_mapping(own)
        takes_store(own)
    shmkv.attach(5)  # type: ignore[arg-type]
    shmkv.attach("orders", timeout="soon")  # type: ignore[arg-type]


def takes_mapping(mapping: MutableMapping[str | bytes, Any]) -> Mapping[str | bytes, Any]:
    return mapping


def takes_store(db: shmkv.Store) -> None:
    db["key"] = {"name": "Ada"}
    db[b"key"] = 1
    db[1] = 2  # type: ignore[index]
    assert_type(db.set("key", 1, ttl=timedelta(seconds=5), if_absent=True), bool)
    assert_type(db.delete("key", if_version=5), bool)
    assert_type(db.append("key", "text"), int)
    assert_type(db.delete_many(["a", b"b"]), int)
    assert_type(db.get_many(["a"]), dict[str | bytes, Any])
    assert_type("key" in db, bool)
    assert_type(len(db), int)
    assert_type(db.ttl("key"), float | None)
    assert_type(db.expire("key", 5), bool)
    assert_type(db.persist("key"), bool)
    assert_type(db.scan(prefix="user:", match="*"), Iterator[str | bytes])
    for key, value in db.items():
        assert_type(key, str | bytes)
        assert_type(value, Any)
    entry = db.entry("key")
    if entry is not None:
        assert_type(entry, shmkv.Entry)
        assert_type(entry.version, int)
    assert_type(db.stats(), shmkv.Stats)
    assert_type(db.snapshot(), shmkv.SnapshotInfo)
    assert_type(db.backup("one.backup", compression="zstd"), shmkv.BackupInfo)
    assert_type(db.restore("one.backup", to_lsn=5), shmkv.RestoreInfo)
    assert_type(db.popitem(), tuple[str | bytes, Any])
    db.modify("key", lambda value: value + 1, default=0)
    db.set("key", 1, tll=5)  # type: ignore[call-arg]


def codecs() -> None:
    shmkv.register_codec(Point, "point", lambda point: b"%d" % point.x, lambda data: Point(int(data)))
    shmkv.register_codec(Point, "point", lambda point: point.y, lambda data: Point(0))  # type: ignore[attr-defined]


def errors() -> None:
    try:
        shmkv.attach("orders")
    except shmkv.StoreNotFound as error:
        assert_type(error, shmkv.StoreNotFound)
    except shmkv.ShmkvError:
        raise
