"""As a mapping the handle behaves as a dict would: keys, values, equality, views, update, pop."""

from __future__ import annotations

import datetime
import decimal
import itertools
import math
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import pytest

import shmkv
from shmkv.store import UPDATE_BATCH


def test_it_is_a_mutable_mapping(db: shmkv.Store) -> None:
    assert isinstance(db, MutableMapping)
    assert not db
    db["a"] = 1
    assert db["a"] == 1
    assert db[b"a"] == 1
    assert "a" in db
    assert b"a" in db
    assert "b" not in db
    assert len(db) == 1
    assert db
    assert list(db) == ["a"]
    assert db.get("a") == 1
    assert db.get("b") is None
    assert db.get("b", default=7) == 7
    del db["a"]
    assert "a" not in db
    with pytest.raises(KeyError):
        db["a"]
    with pytest.raises(shmkv.KeyNotFound, match="'a'"):
        del db["a"]


@pytest.mark.parametrize(
    "key", ["", "a", "é", "\0", "\U0001f600", "x" * 65_535, b"", b"\xff\xfe", b"\x80" * 65_535, b"caf\xc3\xa9"]
)
def test_every_key_up_to_its_limit_comes_back_as_text_where_it_is_text(db: shmkv.Store, key: str | bytes) -> None:
    db[key] = "value"
    assert db[key] == "value"
    expected = key
    if isinstance(key, bytes):
        try:
            expected = key.decode()
        except UnicodeDecodeError:
            expected = key
    assert list(db) == list(db.keys()) == [expected]
    assert list(db.items()) == [(expected, "value")]
    assert db.pop(key) == "value"
    assert len(db) == 0


def test_wrong_keys_are_refused_with_the_right_error(db: shmkv.Store) -> None:
    for key in (1, None, ("a",), bytearray(b"a"), 1.5):
        for use in (
            db.get,
            db.__getitem__,
            db.delete,
            db.pop,
            db.entry,
            lambda key: db.set(key, 1),
            lambda key: db.update({key: 1}),
        ):
            with pytest.raises(TypeError):
                use(key)  # type: ignore[operator]
    for key in ("x" * 65_536, b"x" * 65_536, "é" * 32_768):
        with pytest.raises(shmkv.KeyTooLarge, match=r"65,?535"):
            db[key] = 1
    with pytest.raises(ValueError, match="surrogate"):
        db["\ud800"] = 1
    with pytest.raises(ValueError, match="surrogate"):
        db["a"] = "\ud800"
    with pytest.raises(ValueError, match="surrogate"):
        db["a"] = ["\ud800"]
    assert len(db) == 0


VALUES: list[Any] = [
    None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**63, 2**200, -(2**200), 1.5, -0.0, math.inf, math.nan, "",
    "text", "é" * 5000, b"", b"\0bytes",
    b"x" * 100_000, [1, (2, "3"), {"k": b"v"}], (), {}, {(1, 2): None, 3: 4.5},
    datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), decimal.Decimal("1.10"),
    uuid.UUID(int=9), [list(range(20_000))],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_value_comes_back_through_every_way_of_reading(db: shmkv.Store, value: Any) -> None:
    def check(found: Any) -> None:
        assert type(found) is type(value)
        assert repr(found) == repr(value)

    db["k"] = value
    check(db["k"])
    check(db.get("k"))
    check(db.get_many(["k"])["k"])
    check(next(iter(db.values())))
    check(dict(db.items())["k"])
    entry = db.entry("k")
    assert entry is not None
    check(entry.value)
    db.set_many({"k": value})
    check(db.pop("k"))


def test_numpy_arrays_are_stored(db: shmkv.Store) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(60_000, dtype=">f8").reshape(200, 300, order="F")
    db["k"] = array
    found = db["k"]
    assert found.dtype == array.dtype
    assert found.flags.f_contiguous
    assert (found == array).all()
    db["k"] = {"nested": [array[::7]]}
    assert (db["k"]["nested"][0] == array[::7]).all()
    with pytest.raises(TypeError, match=r"\.item\(\)"):
        db["k"] = numpy.float64(1)
    with pytest.raises(TypeError, match="objects"):
        db["k"] = numpy.array([object()])


def test_a_refused_value_leaves_the_old_one(db: shmkv.Store) -> None:
    db["k"] = "old"
    for value in (object(), {1}, bytearray(b"x"), [object()], type("I", (int,), {})(1)):
        with pytest.raises(TypeError, match="register_codec"):
            db["k"] = value
        with pytest.raises(TypeError, match="register_codec"):
            db.set_many({"j": 1, "k": value})
    assert db["k"] == "old"
    assert "j" not in db


def test_a_value_that_is_too_large_names_size_and_limit(db: shmkv.Store) -> None:
    limit = db.stats().numbers["value_limit"]
    db["k"] = b"x" * (limit - 100)
    with pytest.raises(shmkv.ValueTooLarge, match=str(limit)):
        db["k"] = b"x" * (limit + 1)
    assert len(db["k"]) == limit - 100


def test_equality_is_that_of_mappings(db: shmkv.Store) -> None:
    assert db == {}
    db.update({"a": 1, b"\xff": [2]})
    assert db == {"a": 1, b"\xff": [2]}
    assert db == {b"a": 1, b"\xff": [2]}
    assert db == {"a": 1, b"\xff": [2]}
    assert db != {"a": 1}
    assert db != {"a": 1, b"a": 1, b"\xff": [2]}
    assert db != {"a": 2, b"\xff": [2]}
    assert db != [("a", 1)]
    assert db == db
    with shmkv.attach(db.name) as other:
        assert db == other
    with pytest.raises(TypeError):
        hash(db)


def test_views_are_live_and_behave_as_those_of_a_dict(db: shmkv.Store) -> None:
    keys, values, items = db.keys(), db.values(), db.items()
    assert (len(keys), len(values), len(items)) == (0, 0, 0)
    db.update(a=1, b=2)
    assert sorted(keys) == ["a", "b"]
    assert sorted(values) == [1, 2]
    assert sorted(items) == [("a", 1), ("b", 2)]
    assert "a" in keys
    assert 2 in values
    assert 3 not in values
    assert ("a", 1) in items
    assert ("a", 2) not in items
    assert keys & {"a", "z"} == {"a"}
    assert keys | {"z"} == {"a", "b", "z"}
    assert items == {("a", 1), ("b", 2)}


def test_update_takes_what_a_dict_takes(db: shmkv.Store) -> None:
    class Keyed:
        def keys(self) -> list[str]:
            return ["x"]

        def __getitem__(self, key: str) -> int:
            return 5

    db.update({"a": 1}, b=2)
    db.update([("c", 3), ("a", 4)])
    db.update(Keyed())
    db.update(itertools.chain([("z", 26)]))
    db |= {"d": 4}
    with shmkv.attach(db.name) as other:
        db.update(other)
    assert db == {"a": 4, "b": 2, "c": 3, "x": 5, "z": 26, "d": 4}
    for wrong in (5, [1], ["abc"], {1: 2}):
        with pytest.raises((TypeError, ValueError)):
            db.update(wrong)


def test_update_keeps_the_order_of_text_and_bytes_of_one_key(db: shmkv.Store) -> None:
    db.update([("a", 1), (b"a", 2), ("a", 3)])
    assert db["a"] == 3
    db.update((str(number % 7), number) for number in range(3 * UPDATE_BATCH))
    assert {key: db[key] for key in "0123456"} == {
        str(number % 7): number for number in range(3 * UPDATE_BATCH - 7, 3 * UPDATE_BATCH)
    }


def test_pop_popitem_and_setdefault(db: shmkv.Store) -> None:
    with pytest.raises(shmkv.KeyNotFound):
        db.pop("a")
    assert db.pop("a", None) is None
    assert db.setdefault("a", [1]) == [1]
    assert db.setdefault("a", [2]) == [1]
    assert db.setdefault("n") is None
    assert "n" in db
    assert db.pop("a") == [1]
    expected = {f"key {number}": number for number in range(3000)}
    db.update(expected)
    db.pop("n")
    found = {}
    while db:
        key, value = db.popitem()
        found[key] = value
    assert found == expected
    with pytest.raises(KeyError):
        db.popitem()
    db["again"] = 1
    assert db.popitem() == ("again", 1)


def test_clear_and_counts(db: shmkv.Store) -> None:
    db.update({str(number): number for number in range(5000)})
    assert len(db) == 5000
    db.clear()
    assert len(db) == 0
    assert list(db) == []
    assert db.get("17") is None


def test_a_value_is_a_copy(db: shmkv.Store) -> None:
    value = {"n": [1]}
    db["k"] = value
    value["n"].append(2)
    db["k"]["n"].append(3)
    db.setdefault("k", {})["n"] = None
    assert db["k"] == {"n": [1]}


def test_mappings_of_other_kinds_may_be_compared_and_set(db: shmkv.Store) -> None:
    class Odd(Mapping[str, int]):
        def __getitem__(self, key: str) -> int:
            return {"a": 1, "b": 2}[key]

        def __iter__(self) -> Iterator[str]:
            return iter("ab")

        def __len__(self) -> int:
            return 2

    db.update(Odd())
    db.set_many(Odd())
    assert db == Odd()
