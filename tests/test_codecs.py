"""Codecs for types of the user: stored by name, run only where that name was registered."""

from __future__ import annotations

import datetime
import decimal
import enum
import pickle
import uuid

import pytest

from shmkv import codecs, values
from shmkv.errors import CorruptData
from shmkv.values import decode, encode
from tests.test_values import Custom, again


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> codecs.CodecRegistry:
    fresh = codecs.CodecRegistry()
    monkeypatch.setattr(codecs, "REGISTRY", fresh)
    monkeypatch.setattr(values, "REGISTRY", fresh)
    return fresh


def register_custom(name: str = "custom") -> None:
    codecs.register_codec(Custom, name, lambda value: b"%d" % value.number, lambda data: Custom(int(data)))


@pytest.mark.usefixtures("registry")
def test_a_registered_type_is_stored_at_every_place() -> None:
    register_custom()
    codecs.register_codec(Colour, "colour", lambda value: bytes((value,)), lambda data: Colour(data[0]))
    for value in (Custom(7), [Custom(7)], (Colour.RED,), {"k": Custom(1)}, {Custom(5): 1}, {Colour.RED: [Custom(-1)]}):
        assert again(value) == value
        assert type(again(value)) is type(value)


@pytest.mark.usefixtures("registry")
def test_pickle_is_used_only_by_who_registers_it() -> None:
    codecs.register_codec(Custom, "pickled", pickle.dumps, pickle.loads)
    assert again(Custom(3)) == Custom(3)


def test_an_unknown_codec_is_named_with_what_to_do(
    registry: codecs.CodecRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_custom("shapes/custom")
    stored = [encode(Custom(1)), encode([Custom(1)]), encode(({"k": Custom(1)},))]
    monkeypatch.setattr(values, "REGISTRY", codecs.CodecRegistry())
    for kind, data in stored:
        with pytest.raises(codecs.UnknownCodec, match=r"'shapes/custom'.*register_codec"):
            decode(kind, data)
    assert registry.for_name("shapes/custom").type is Custom


@pytest.mark.usefixtures("registry")
def test_registration_refuses_what_could_not_come_back() -> None:
    register_custom()
    with pytest.raises(ValueError, match="belongs to"):
        codecs.register_codec(Text, "custom", str.encode, bytes.decode)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only one"):
        register_custom("other")
    for built_in in (int, str, dict, type(None), datetime.datetime, decimal.Decimal, uuid.UUID):
        with pytest.raises(ValueError, match="itself"):
            codecs.register_codec(built_in, "mine", repr, eval)  # type: ignore[arg-type]
    for name in ("", "x" * 256):
        with pytest.raises(ValueError, match="1 to 255"):
            codecs.register_codec(Text, name, str.encode, bytes.decode)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="class"):
        codecs.register_codec("Text", "text", str.encode, bytes.decode)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callables"):
        codecs.register_codec(Text, "text", None, bytes.decode)  # type: ignore[arg-type]


@pytest.mark.usefixtures("registry")
def test_the_same_class_made_anew_replaces_its_codec() -> None:
    for number in range(2):
        made = type("Reloaded", (), {"__module__": "somewhere", "number": number})
        codecs.register_codec(made, "reloaded", lambda value: b"", lambda data, made=made: made())  # type: ignore[misc]
        assert again(made()).number == number


@pytest.mark.usefixtures("registry")
def test_a_codec_that_fails_says_so() -> None:
    codecs.register_codec(Custom, "bad", lambda value: "text", lambda data: 1 // 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="'bad' must encode to bytes"):
        encode(Custom(1))
    with pytest.raises(CorruptData, match=r"'bad' cannot decode .*ZeroDivisionError"):
        decode(values.TYPE_CUSTOM, b"\x03badxyz")
