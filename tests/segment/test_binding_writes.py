"""Options of writes, numbers, appends, and many keys at once."""

from __future__ import annotations

import datetime
import time
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest

import shmkv.values
from shmkv import errors
from shmkv.segment import _core

UTC = datetime.UTC


def expiry_ms(db: _core.Store, key: str) -> int:
    entry = db._entry(key)
    assert entry is not None
    return entry[2]


# ---- conditions ------------------------------------------------------------------------------------------------------
def test_if_absent_and_if_present_hold_or_leave_the_value_alone(db: _core.Store) -> None:
    assert db.set("key", 1, if_present=True) is False
    assert "key" not in db
    assert db.set("key", 1, if_absent=True) is True
    assert db.set("key", 2, if_absent=True) is False
    assert db["key"] == 1
    assert db.set("key", 3, if_present=True) is True
    assert db["key"] == 3


def test_if_version_compares_with_the_entry_that_is_there(db: _core.Store) -> None:
    assert db.set("key", 1, if_version=7) is False
    db["key"] = 1
    first = db._entry("key")
    assert first is not None
    assert first[1] == db.last_lsn
    assert db.set("key", 2, if_version=first[1]) is True
    assert db.set("key", 3, if_version=first[1]) is False
    assert db["key"] == 2
    assert db.delete("key", if_version=first[1]) is False
    assert db.delete("key", if_version=db.last_lsn) is True
    assert db.delete("key") is False


def test_pin_is_kept_in_the_flags(db: _core.Store) -> None:
    db.set("key", 1, pin=True)
    entry = db._entry("key")
    assert entry is not None
    assert entry[3] & 1


# ---- expiry ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ttl", [10, 10.0, datetime.timedelta(seconds=10)], ids=repr)
def test_ttl_is_taken_in_seconds(db: _core.Store, ttl: Any) -> None:
    db.set("key", 1, ttl=ttl)
    assert abs(expiry_ms(db, "key") - time.time() * 1000 - 10_000) < 1000
    db.set_many({"many": 1}, ttl=ttl)
    assert abs(expiry_ms(db, "many") - expiry_ms(db, "key")) < 1000
    db.incr("number", ttl=ttl)
    assert abs(expiry_ms(db, "number") - expiry_ms(db, "key")) < 1000


def test_an_expired_entry_is_gone_for_every_reader(db: _core.Store) -> None:
    db.set("key", 1, ttl=0.001)
    time.sleep(0.01)
    assert db.get("key") is None
    assert "key" not in db
    assert db.get_many(["key"]) == {}
    assert db._entry("key") is None
    assert db.set("key", 2, if_absent=True) is True


def test_expires_at_takes_unix_seconds_and_aware_datetimes(db: _core.Store) -> None:
    at = datetime.datetime(2100, 1, 1, tzinfo=UTC)
    db.set("a", 1, expires_at=at)
    db.set("b", 1, expires_at=at.timestamp())
    db.set("c", 1, expires_at=at.astimezone(datetime.timezone(datetime.timedelta(hours=5))))
    assert expiry_ms(db, "a") == expiry_ms(db, "b") == expiry_ms(db, "c") == int(at.timestamp()) * 1000
    db.set("past", 1, expires_at=0)
    assert "past" not in db


def test_a_new_value_loses_its_ttl_unless_it_is_kept(db: _core.Store) -> None:
    db.set("key", 1, ttl=100)
    before = expiry_ms(db, "key")
    db.set("key", 2, keep_ttl=True)
    assert expiry_ms(db, "key") == before
    db.set("key", 3)
    assert expiry_ms(db, "key") == 0


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"ttl": 0}, ValueError, "more than 0"),
        ({"ttl": -1.5}, ValueError, "more than 0"),
        ({"ttl": float("nan")}, ValueError, "finite"),
        ({"ttl": float("inf")}, ValueError, "finite"),
        ({"ttl": 1e300}, ValueError, "at most"),
        ({"ttl": "5"}, TypeError, "seconds or a timedelta, not str"),
        ({"ttl": True}, TypeError, "not bool"),
        ({"ttl": datetime.timedelta(0)}, ValueError, "more than 0"),
        ({"expires_at": datetime.datetime(2100, 1, 1)}, ValueError, "time zone"),
        ({"expires_at": "2100"}, TypeError, "aware datetime"),
        ({"expires_at": datetime.date(2100, 1, 1)}, TypeError, "aware datetime"),
        ({"ttl": 1, "expires_at": 4e9}, ValueError, "not both"),
        ({"ttl": 1, "keep_ttl": True}, ValueError, "not both"),
        ({"if_absent": True, "if_present": True}, ValueError, "never hold"),
        ({"if_absent": True, "if_version": 3}, ValueError, "never hold"),
        ({"if_version": 0}, ValueError, "if_absent"),
        ({"if_version": -1}, ValueError, "1 to 2"),
        ({"if_version": 2**64}, ValueError, "1 to 2"),
        ({"if_version": "1"}, TypeError, "an int"),
        ({"durability": "sometimes"}, ValueError, "'always'"),
        ({"durability": 2}, TypeError, "'always'"),
        ({"unknown": 1}, TypeError, "unexpected keyword argument 'unknown'"),
        ({"key": 1}, TypeError, "multiple values"),
    ],
    ids=repr,
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    db: _core.Store, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        db.set("key", 1, **options)
    assert len(db) == 0


def test_arguments_are_counted_as_python_does(db: _core.Store) -> None:
    wrong: list[Callable[[], Any]] = [
        lambda: db.get(),
        lambda: db.get(1, 2, 3),
        lambda: db.set("key"),
        lambda: db.set("key", 1, 2),  # type: ignore[call-arg]
        lambda: db.delete(),
        lambda: db.delete("a", 1),
        lambda: db.incr(),
        lambda: db.append("a"),  # type: ignore[call-arg]
        lambda: db.append("a", "b", "c"),
        lambda: db.set_many(),
        lambda: db.sync(1, 2, 3),  # type: ignore[call-arg]
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call()


def test_a_keyword_that_is_not_interned_is_understood(db: _core.Store) -> None:
    db.set("key", 1, **{"".join(["if_", "absent"]): True})
    assert db.set("key", 2, **{"".join(["if_", "absent"]): True}) is False


# ---- numbers and appends ---------------------------------------------------------------------------------------------
def test_incr_and_decr_count_from_the_initial_value(db: _core.Store) -> None:
    assert [db.incr("n"), db.incr("n", 5), db.decr("n", 2), db.incr("n", -4)] == [1, 6, 4, 0]
    assert db.incr("m", 1, initial=10) == 11
    assert db.decr("m", amount=1) == 10
    assert type(db["m"]) is int


def test_incr_keeps_the_ttl_of_a_key_that_is_there(db: _core.Store) -> None:
    db.set("n", 1, ttl=100)
    before = expiry_ms(db, "n")
    db.incr("n", ttl=5000)
    assert expiry_ms(db, "n") == before


def test_incr_of_what_is_no_number_is_a_type_error(db: _core.Store) -> None:
    for value in ("text", b"1", None, True):
        db["key"] = value
        with pytest.raises(TypeError, match="no number"):
            db.incr("key")
        assert db["key"] == value
    for amount in (True, "1", None, [1]):
        with pytest.raises(TypeError, match="amount is an int or a float"):
            db.incr("n", amount)
    with pytest.raises(TypeError, match="initial is an int or a float"):
        db.incr("n", 1, initial="0")


def test_what_does_not_fit_64_bits_goes_to_the_slow_hook_with_the_signed_amount(segment: Any) -> None:
    calls: list[Any] = []

    class Slow(_core.Store):
        def _incr_slow(self, *arguments: Any) -> Any:
            calls.append(arguments)
            return "slow"

    db = segment.store(Slow)
    db["n"] = 2**63 - 1
    assert db.incr("n") == "slow"
    assert db.incr("f", 0.5, ttl=9) == "slow"
    assert db.decr("n", 2**63) == "slow"
    assert db.decr("n", -(2**63)) == "slow"
    db["f"] = 1.5
    assert db.decr("f", 2, initial=3) == "slow"
    assert calls == [
        ("n", 1, 0, None),
        ("f", 0.5, 0, 9),
        ("n", -(2**63), 0, None),
        ("n", 2**63, 0, None),
        ("f", -2, 3, None),
    ]
    assert db["n"] == 2**63 - 1


def test_an_int_that_is_stored_by_a_codec_is_still_a_number(segment: Any) -> None:
    class Slow(_core.Store):
        def _incr_slow(self, *arguments: Any) -> Any:
            return "slow"

    _core.set_codec(shmkv.values.encode, shmkv.values.decode)
    db = segment.store(Slow)
    db["n"] = 2**70
    assert db.incr("n") == "slow"


def test_the_base_class_has_no_arithmetic_beyond_64_bits(db: _core.Store) -> None:
    with pytest.raises(OverflowError):
        db.incr("n", 0.5)


def test_append_makes_or_extends_a_value_of_its_type(db: _core.Store) -> None:
    assert db.append("s", "abc") == 3
    assert db.append("s", "\u20ac") == 6
    assert db["s"] == "abc\u20ac"
    assert db.append("b", b"x" * 70_000) == 70_000
    assert db.append("b", b"y") == 70_001
    assert db["b"] == b"x" * 70_000 + b"y"
    with pytest.raises(TypeError, match="not of type bytes"):
        db.append("s", b"raw")
    with pytest.raises(TypeError, match="not int"):
        db.append("s", 1)  # type: ignore[arg-type]


# ---- many keys -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, 5000])
def test_many_keys_are_set_read_and_deleted(db: _core.Store, n: int) -> None:
    items = {f"key{i}": i for i in range(n)}
    db.set_many(items)
    assert len(db) == n
    assert db.get_many([*items, "none"]) == items
    assert list(db.get_many(items)) == list(items)
    assert db.delete_many([*items, "none"]) == n
    assert db.delete_many(items) == 0
    assert len(db) == 0


def test_large_and_small_values_mix_in_get_many(make_segment: Any) -> None:
    db = make_segment(size_bytes=16 << 20).store()
    items: dict[Any, Any] = {f"key{i}": b"v" * (i * 37 % 9000) for i in range(300)}
    items["large"] = b"x" * 100_000
    items["text"] = "\u20ac" * 30_000
    for key, value in items.items():
        db[key] = value
    assert db.get_many(items) == items


def test_keys_may_come_from_any_iterable_and_mappings_of_any_kind(db: _core.Store) -> None:
    db.set_many(UserDict({"a": 1, b"b": "two"}))
    assert db.get_many(key for key in ("a", b"b", "c")) == {"a": 1, b"b": "two"}
    assert db.get_many({"a", "b"}) == {"a": 1, "b": "two"}
    assert db.get_many(["a", "a", b"a"]) == {"a": 1, b"a": 1}


@pytest.mark.parametrize("keys", ["abc", b"abc", 5, None], ids=repr)
def test_one_key_instead_of_many_is_a_type_error(db: _core.Store, keys: Any) -> None:
    for call in (db.get_many, db.delete_many, db.set_many):
        with pytest.raises(TypeError):
            call(keys)


def test_set_many_writes_nothing_if_one_item_cannot_be_stored(db: _core.Store) -> None:
    for items in ({"a": 1, "b": "\ud800"}, {"a": 1, "\ud800": 1}, {"a": 1, 3: 1}):
        with pytest.raises((TypeError, ValueError)):
            db.set_many(items)
    assert len(db) == 0


def test_set_many_that_runs_out_of_memory_says_how_far_it_came(segment: Any) -> None:
    db = segment.store()
    items = {f"key{i}": b"x" * 20_000 for i in range(2000)}
    with pytest.raises(errors.MemoryLimitExceeded, match="asked for") as caught:
        db.set_many(items)
    written = len(db)
    assert 0 < written < len(items)
    assert f"{written} of 2000 items" in caught.value.__notes__[0]
    assert all(db[key] == value for key, value in list(items.items())[:written])


def test_a_full_store_refuses_with_numbers_and_takes_writes_again_after_deletes(db: _core.Store) -> None:
    n = 0
    with pytest.raises(errors.MemoryLimitExceeded, match=r"\d+ bytes were asked for, \d+ of \d+"):
        for n in range(100_000):
            db[f"key{n}"] = b"x" * 5000
    assert n > 100
    assert db.delete_many([f"key{i}" for i in range(n)]) == n
    db["again"] = b"x" * 5000


# ---- iteration and clear ---------------------------------------------------------------------------------------------
def scan(db: _core.Store, with_values: bool) -> list[Any]:
    cursor, found = 0, []
    while cursor != _core.CURSOR_END:
        cursor, part = db._scan(cursor, with_values)
        found += part
    return found


def test_a_scan_gives_each_key_once(db: _core.Store) -> None:
    items: dict[Any, Any] = {f"key{i}": i for i in range(3000)} | {b"\xff\xfe": "raw", "large": b"x" * 150_000}
    db.set_many(items)
    assert sorted(scan(db, False), key=repr) == sorted(items, key=repr)
    pairs = scan(db, True)
    assert len(pairs) == len(items)
    assert dict(pairs) == items
    assert db._scan(_core.CURSOR_END, False) == (_core.CURSOR_END, [])


def test_a_cursor_of_another_arena_is_refused(db: _core.Store, make_segment: Any) -> None:
    other = make_segment(incarnation=2).store()
    db.set_many({f"key{i}": i for i in range(3000)})
    cursor, _ = db._scan(0, False)
    with pytest.raises(errors.StoreUnavailable, match="begin it anew"):
        other._scan(cursor, False)


def test_clear_empties_the_store_at_once(db: _core.Store) -> None:
    db.set_many({f"key{i}": i for i in range(1000)})
    db.clear()
    assert len(db) == 0
    assert scan(db, False) == []
    assert db.get("key1") is None
    db["key1"] = "new"
    assert len(db) == 1
