"""Keys and values through the binding: what goes in comes out, and what cannot go in is refused by name."""

from __future__ import annotations

import enum
from typing import Any

import pytest

import shmkv.values
from shmkv import errors
from shmkv.segment import _core

NATIVE_VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63 - 1,
    -(2**63),
    0.0,
    -0.0,
    1.5,
    float("inf"),
    5e-324,
    b"",
    b"x",
    b"\0" * 7,
    bytes(range(256)),
    "",
    "a",
    "ascii text",
    "\0",
    "\xe9",
    "\u20ac uro",
    "\U0001f600" * 3,
]


@pytest.mark.parametrize("value", NATIVE_VALUES, ids=repr)
def test_a_native_value_comes_back_equal_and_of_its_exact_type(db: _core.Store, value: Any) -> None:
    db["key"] = value
    assert repr(db["key"]) == repr(value)
    assert type(db["key"]) is type(value)
    assert db.get_many(["key"]) == {"key": value}


def test_nan_comes_back_as_nan(db: _core.Store) -> None:
    db["key"] = float("nan")
    assert db["key"] != db["key"]


@pytest.mark.parametrize("size", [4095, 4096, 4097, 8192, 65535, 65536, 65537, 200_000])
@pytest.mark.parametrize("kind", ["bytes", "ascii", "wide"])
def test_values_around_each_limit_of_a_buffer_come_back(db: _core.Store, size: int, kind: str) -> None:
    pattern = bytes(i * 7 % 251 for i in range(size))
    value: Any = {"bytes": pattern, "ascii": pattern.hex()[:size], "wide": "\u20ac" * (size // 3) + "a" * (size % 3)}[
        kind
    ]
    db["key"] = value
    assert db["key"] == value
    assert db.get("key") == value
    assert db.get_many(["key", "none"]) == {"key": value}
    entry = db._entry("key")
    assert entry is not None
    assert entry[0] == value
    assert entry[4] == size


def test_a_value_of_one_mebibyte_comes_back(make_segment: Any) -> None:
    db = make_segment(size_bytes=64 << 20).store()
    value = bytes(range(256)) * 4096
    db["key"] = value
    assert db["key"] == value
    db["key"] = value.decode("latin-1")
    assert db["key"] == value.decode("latin-1")


def test_a_value_above_the_limit_is_refused_with_both_numbers(db: _core.Store) -> None:
    limit = db._stats()["value_limit"]
    with pytest.raises(errors.ValueTooLarge, match=f"{limit + 1} bytes.*{limit}"):
        db["key"] = b"x" * (limit + 1)
    with pytest.raises(errors.ValueTooLarge, match=f"{limit + 1} bytes.*{limit}"):
        db.set_many({"other": 1, "key": b"x" * (limit + 1)})
    assert len(db) == 0


@pytest.mark.parametrize(
    "key", ["", "a", "k" * 65535, "\xe9", "\u20ac", "\0", b"", b"\xff\xfe", b"\0\0"], ids=lambda k: repr(k)[:20]
)
def test_a_key_is_found_and_listed_as_it_was_given(db: _core.Store, key: str | bytes) -> None:
    db[key] = 1
    assert key in db
    _, keys = whole_scan(db)
    assert keys == [key if isinstance(key, str) else as_text(key)]
    del db[key]
    assert key not in db


def as_text(key: bytes) -> str | bytes:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def whole_scan(db: _core.Store) -> tuple[int, list[Any]]:
    cursor, found = 0, []
    while cursor != _core.CURSOR_END:
        cursor, part = db._scan(cursor, False)
        found += part
    return cursor, found


def test_str_and_bytes_of_the_same_text_are_one_key(db: _core.Store) -> None:
    db["caf\xe9"] = 1
    assert db["caf\xe9".encode()] == 1
    db[b"a"] = 2
    assert db["a"] == 2
    assert len(db) == 2


def test_subclasses_of_str_and_bytes_serve_as_keys(db: _core.Store) -> None:
    class Text(str):
        pass

    class Raw(bytes):
        pass

    class Color(enum.StrEnum):
        RED = "red"

    db[Text("a")] = 1
    db[Raw(b"b")] = 2
    db[Color.RED] = 3
    assert [db["a"], db["b"], db["red"], db[Text("a")], db[Color.RED]] == [1, 2, 3, 1, 3]


@pytest.mark.parametrize("key", [1, None, 1.5, ("a",), bytearray(b"a"), memoryview(b"a")], ids=type)
def test_other_keys_are_a_type_error_in_every_method(db: _core.Store, key: Any) -> None:
    calls = [
        lambda: db[key],
        lambda: db.get(key),
        lambda: key in db,
        lambda: db.set(key, 1),
        lambda: db.delete(key),
        lambda: db.get_many([key]),
        lambda: db.delete_many([key]),
        lambda: db.incr(key),
        lambda: db.append(key, "a"),
        lambda: db._entry(key),
        lambda: db.__setitem__(key, 1),
        lambda: db.__delitem__(key),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="a key is a str or bytes, not "):
            call()
    with pytest.raises(TypeError):
        db.set_many({1: 2})


def test_a_lone_surrogate_is_a_value_error(db: _core.Store) -> None:
    with pytest.raises(ValueError, match="surrogates"):
        db["\ud800"] = 1
    with pytest.raises(ValueError, match="surrogates"):
        db["key"] = "\udfff"
    assert len(db) == 0


def test_a_key_that_is_too_long_is_refused_with_both_numbers(db: _core.Store) -> None:
    for key in ("k" * 65536, b"k" * 70000):
        for call in (db.get, db.delete, db.incr, db._entry, lambda k: db.set(k, 1)):
            with pytest.raises(errors.KeyTooLarge, match=f"{len(key)} bytes.*65535"):
                call(key)
        for many in (db.delete_many, lambda keys: db.set_many(dict.fromkeys(keys, 1)), db.get_many):
            with pytest.raises(errors.KeyTooLarge):
                many(["ok", key])
    assert len(db) == 0


def test_a_missing_key_raises_key_not_found_with_the_key(db: _core.Store) -> None:
    for call in (lambda: db["gone"], lambda: db.__delitem__("gone")):
        with pytest.raises(errors.KeyNotFound) as caught:
            call()
        assert caught.value.args == ("gone",)
        assert isinstance(caught.value, KeyError)
        assert "'gone'" in str(caught.value)
    sentinel = object()
    assert db.get("gone") is None
    assert db.get("gone", sentinel) is sentinel
    assert db.get("gone", default=sentinel) is sentinel
    assert db.get(key="gone", default=sentinel) is sentinel


def test_a_key_is_found_among_many_that_share_its_stripe(db: _core.Store) -> None:
    for i in range(5000):
        db[f"key{i}"] = i
    assert all(db[f"key{i}"] == i for i in range(5000))
    assert len(db) == 5000


def test_values_that_c_does_not_know_go_through_the_codec(db: _core.Store) -> None:
    _core.set_codec(shmkv.values.encode, shmkv.values.decode)
    for value in ([1, "two", b"3"], (1, (2,)), {"a": {"b": None}}, 2**63, -(2**64), [b"x" * 100_000]):
        db["key"] = value
        assert db["key"] == value
        assert type(db["key"]) is type(value)
        assert db.get_many(["key"]) == {"key": value}


class Wrong(int):
    pass


@pytest.mark.parametrize("value", [Wrong(1), object(), {1, 2}], ids=lambda value: type(value).__name__)
def test_what_no_codec_takes_is_a_type_error_and_changes_nothing(db: _core.Store, value: Any) -> None:
    _core.set_codec(shmkv.values.encode, shmkv.values.decode)
    for call in (
        lambda: db.set("key", value),
        lambda: db.__setitem__("key", value),
        lambda: db.set_many({"a": 1, "key": value}),
    ):
        with pytest.raises(TypeError):
            call()
    assert len(db) == 0


def test_a_codec_that_closes_the_store_makes_the_write_fail_and_nothing_else(segment: Any) -> None:
    db = segment.store()

    def closing_encode(value: Any) -> tuple[int, bytes]:
        db.close()
        return shmkv.values.encode(value)

    _core.set_codec(closing_encode, shmkv.values.decode)
    try:
        with pytest.raises(ValueError, match="closed"):
            db["key"] = [1]
    finally:
        _core.set_codec(shmkv.values.encode, shmkv.values.decode)


@pytest.mark.parametrize("wrong", [None, 1, (1,), ("a", b""), (256, b""), (-1, b""), (7, "text")], ids=repr)
def test_an_encoder_that_returns_nonsense_is_a_type_error(db: _core.Store, wrong: Any) -> None:
    _core.set_codec(lambda value: wrong, shmkv.values.decode)
    try:
        with pytest.raises(TypeError, match="encoder must return"):
            db["key"] = [1]
    finally:
        _core.set_codec(shmkv.values.encode, shmkv.values.decode)
