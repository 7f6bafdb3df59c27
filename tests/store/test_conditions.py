"""Conditions, versions and expiry; and the steps that read, then write if nothing changed."""

from __future__ import annotations

import datetime
import decimal
import time

import pytest

import shmkv


def test_conditions_of_set_and_delete(db: shmkv.Store) -> None:
    assert db.set("a", 1, if_present=True) is False
    assert db.set("a", 1, if_absent=True) is True
    assert db.set("a", 2, if_absent=True) is False
    assert db.set("a", 2, if_present=True) is True
    entry = db.entry("a")
    assert entry is not None
    assert entry.version == db.last_lsn
    assert db.set("a", 3, if_version=entry.version - 1) is False
    assert db.set("a", 3, if_version=entry.version) is True
    assert db.delete("a", if_version=entry.version) is False
    assert db["a"] == 3
    assert db.delete("a") is True
    assert db.delete("a") is False


def test_entry_tells_value_version_ttl_and_size(db: shmkv.Store) -> None:
    assert db.entry("a") is None
    db.set(b"a", b"12345", ttl=100)
    entry = db.entry(b"a")
    assert entry is not None
    assert (entry.key, entry.value, entry.version, entry.size) == ("a", b"12345", db.last_lsn, 5)
    assert entry.ttl is not None
    assert 98 < entry.ttl <= 100.01
    with pytest.raises(AttributeError):
        entry.value = 1  # type: ignore[misc]


def test_ttl_expire_and_persist(db: shmkv.Store) -> None:
    db["a"] = [1]
    assert db.ttl("a") is None
    assert db.expire("a", 50) is True
    ttl = db.ttl("a")
    assert ttl is not None
    assert 48 < ttl <= 50.01
    assert db.expire("a", datetime.timedelta(minutes=2)) is True
    assert (db.ttl("a") or 0) > 100
    assert db.persist("a") is True
    assert db.persist("a") is False
    assert db.ttl("a") is None
    assert db["a"] == [1]
    assert db.expire("b", 1) is False
    assert db.persist("b") is False
    with pytest.raises(shmkv.KeyNotFound):
        db.ttl("b")
    for ttl_value in (0, -1, -0.5):
        with pytest.raises(ValueError, match="ttl"):
            db.expire("a", ttl_value)
        with pytest.raises(ValueError, match="ttl"):
            db.set("a", 1, ttl=ttl_value)
    for wrong in ("10", None):
        with pytest.raises(TypeError, match="ttl"):
            db.expire("a", wrong)


def test_what_has_expired_is_gone_for_every_method(db: shmkv.Store) -> None:
    db.set("a", 1, ttl=0.05)
    deadline = time.monotonic() + 5
    while "a" in db:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert db.get("a") is None
    assert db.entry("a") is None
    assert list(db) == []
    assert db.pop("a", 7) == 7
    assert db.persist("a") is False
    assert db.set("a", 2, if_present=True) is False
    assert db.setdefault("a", 3) == 3
    assert db.ttl("a") is None


def test_expires_at_takes_aware_datetimes_and_unix_seconds(db: shmkv.Store) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    for moment in (soon, soon.timestamp()):
        db.set("a", 1, expires_at=moment)
        assert 57 < (db.ttl("a") or 0) <= 61
    with pytest.raises(ValueError, match="time zone"):
        db.set("a", 1, expires_at=soon.replace(tzinfo=None))


def test_modify_replaces_and_returns_the_new_value(db: shmkv.Store) -> None:
    with pytest.raises(shmkv.KeyNotFound):
        db.modify("a", len)
    assert db.modify("a", lambda value: value + 1, default=0) == 1
    assert db.modify("a", lambda value: value + 1, default=100) == 2
    assert db.modify("a", lambda value: value + 1) == 3
    assert db["a"] == 3
    assert db.modify("none", lambda value: (value,), default=None) == (None,)


def test_modify_hands_out_a_copy_of_the_default(db: shmkv.Store) -> None:
    default: list[int] = []

    def add(value: list[int]) -> list[int]:
        if not value:
            db["a"] = [9]
        value.append(1)
        return value

    assert db.modify("a", add, default=default) == [9, 1]
    assert default == []


def test_modify_runs_again_when_another_writer_was_faster(db: shmkv.Store) -> None:
    db["a"] = 1
    seen = []

    def change(value: int) -> int:
        seen.append(value)
        if len(seen) < 3:
            db["a"] = value * 10
        return value + 1

    assert db.modify("a", change) == 101
    assert seen == [1, 10, 100]
    assert db["a"] == 101

    def vanish(value: int) -> int:
        db.delete("a")
        return value

    with pytest.raises(shmkv.KeyNotFound):
        db.modify("a", vanish)


def test_modify_keeps_the_expiry_unless_it_is_given_one(db: shmkv.Store) -> None:
    db.set("a", 1, ttl=100)
    db.modify("a", lambda value: value)
    assert 90 < (db.ttl("a") or 0) <= 100.01
    db.modify("a", lambda value: value, ttl=1000)
    assert 900 < (db.ttl("a") or 0) <= 1000.01
    db.modify("b", lambda value: value, default=1, ttl=10)
    assert 8 < (db.ttl("b") or 0) <= 10.01


def test_an_exception_of_the_function_changes_nothing(db: shmkv.Store) -> None:
    db["a"] = [1]
    with pytest.raises(ZeroDivisionError):
        db.modify("a", lambda value: 1 // 0)
    with pytest.raises(TypeError, match="register_codec"):
        db.modify("a", lambda value: object())
    assert db["a"] == [1]


def test_incr_and_decr_of_every_kind_of_number(db: shmkv.Store) -> None:
    assert db.incr("a") == 1
    assert db.incr("a", 5) == 6
    assert db.decr("a", 10) == -4
    assert db.incr("b", initial=10) == 11
    assert db.decr("c") == -1
    for start, amount in (
        (2**63 - 1, 1),
        (-(2**63), -1),
        (2**70, -(2**70)),
        (1, 0.5),
        (0.5, 1),
        (0.1, 0.2),
        (2**64, 1),
        (5, 2**65),
        (3, -(2**63)),
    ):
        db["n"] = start
        result = db.incr("n", amount)
        assert result == start + amount
        assert type(result) is type(start + amount)
        assert db["n"] == result
        back = db.decr("n", amount)
        assert back == result - amount
        assert type(back) is type(result - amount)
    assert db.incr("new", 0.5, initial=2**64) == 2**64 + 0.5
    assert db.decr("new2", 2**65, initial=1.0) == 1.0 - 2**65


def test_incr_keeps_the_expiry_and_sets_it_only_for_a_new_key(db: shmkv.Store) -> None:
    for amount in (1, 0.5, 2**70):
        db.clear()
        db.incr("a", amount, ttl=100)
        db.incr("a", amount, ttl=5000)
        assert 90 < (db.ttl("a") or 0) <= 100.01


def test_incr_of_what_is_no_number_is_a_type_error(db: shmkv.Store) -> None:
    for value in ("1", None, True, [1], b"1"):
        db["a"] = value
        for amount in (1, 0.5, 2**70):
            with pytest.raises(TypeError):
                db.incr("a", amount)
        assert db["a"] == value
    for amount in ("1", None, True, decimal.Decimal(1)):
        with pytest.raises(TypeError):
            db.incr("n", amount)
        with pytest.raises(TypeError):
            db.incr("n", 1, initial=amount)
    assert "n" not in db


def test_append_grows_text_and_bytes(db: shmkv.Store) -> None:
    assert db.append("a", "é") == 2
    assert db.append("a", "b") == 3
    assert db["a"] == "éb"
    assert db.append("b", b"1") == 1
    with pytest.raises(TypeError):
        db.append("a", b"x")
    with pytest.raises(TypeError):
        db.append("a", 5)  # type: ignore[arg-type]


def test_many_at_once(db: shmkv.Store) -> None:
    db.set_many({f"k{number}": number for number in range(1000)}, ttl=100)
    assert db.get_many([f"k{number}" for number in range(0, 2000, 100)]) == {
        f"k{number}": number for number in range(0, 1000, 100)
    }
    assert 90 < (db.ttl("k5") or 0) <= 100.01
    assert db.delete_many(["k1", "k2", "k1", "missing", b"k3"]) == 3
    assert len(db) == 997
    with pytest.raises(TypeError):
        db.get_many("k1")
