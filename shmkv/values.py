"""Values as (type, bytes), and back: what lies in the arena for each type that the store knows.

The C core encodes None, bool, int up to 64 bits, float, bytes and str itself and calls this module for all others; the
formats of those natives stand here as well, so that tools can read values without an arena.

    TYPE_PLAIN   one msgpack object; what msgpack has no type for is an extension (Ext)
    TYPE_MARKED  the same, but some of its arrays start with a mark and stand for a tuple, or for a dict with keys that
                 a msgpack map cannot hold
    TYPE_BIG_INT two's complement, little-endian
    TYPE_ARRAY   see arrays.py
    TYPE_CUSTOM  length of the codec's name (1 byte), the name, what the codec made

Marks were chosen over nested extensions because the decoder then needs no recursion: its depth costs no stack.

Invariants:
  I1  Types are dispatched exactly: a value comes back as the type that went in, or is refused with a TypeError.
  I2  Decoding runs no code but constructors named here and codecs that this process registered.
  I3  Decoding any bytes whatever gives a value, CorruptData, UnknownCodec, or WrongKey from a codec that encrypts.
  I4  Containers are copied level by level before they are looked at, so another thread that changes them meanwhile
      cannot slip in a type that was not checked.
"""

from __future__ import annotations

import datetime
import decimal
import re
import struct
import sys
import uuid
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

import msgpack

from shmkv.codecs import BUILT_IN_TYPES, REGISTRY, UnknownCodec
from shmkv.datetimes import decode_datetime, encode_datetime
from shmkv.errors import CorruptData, WrongKey

DEPTH_LIMIT: Final = 200

TYPE_NONE: Final = 0
TYPE_FALSE: Final = 1
TYPE_TRUE: Final = 2
TYPE_INT: Final = 3
TYPE_FLOAT: Final = 4
TYPE_BYTES: Final = 5
TYPE_STR: Final = 6
TYPE_PLAIN: Final = 7
TYPE_MARKED: Final = 8
TYPE_BIG_INT: Final = 9
TYPE_ARRAY: Final = 10
TYPE_CUSTOM: Final = 11


class Ext(IntEnum):
    """Codes of msgpack extensions; they are stored, so they never change."""

    TUPLE_MARK = 0
    DICT_MARK = 1
    BIG_INT = 2
    DATETIME = 3
    DECIMAL = 4
    UUID = 5
    ARRAY = 6
    CUSTOM = 7


_SCALARS: Final = frozenset({type(None), bool, int, float, bytes, str})
_INT: Final = struct.Struct("<q")
_FLOAT: Final = struct.Struct("<d")
_DECIMAL: Final = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?(?:[Ee][+-]?[0-9]+)?|Infinity|s?NaN[0-9]*)", re.ASCII)
_DECIMAL_CONTEXT: Final = decimal.Context(traps=[decimal.InvalidOperation])


def encode(value: Any) -> tuple[int, bytes]:
    """The type and the bytes of a value; TypeError for types that are not stored, ValueError for impossible values."""
    kind = type(value)
    if kind in (list, tuple, dict):
        walk = _Walk()
        tree = walk.tree(value, 0)
        return (TYPE_MARKED if walk.marked else TYPE_PLAIN), _pack(tree)
    scalar = _SCALAR_ENCODERS.get(kind)
    if scalar is not None:
        return scalar(value)
    leaf = _leaf(value)
    if leaf.code == Ext.ARRAY:
        return TYPE_ARRAY, leaf.data
    if leaf.code == Ext.CUSTOM:
        return TYPE_CUSTOM, leaf.data
    return TYPE_PLAIN, _pack(leaf)


def decode(kind: int, data: bytes) -> Any:
    """The value of a type and its bytes; CorruptData if they are none, UnknownCodec if its codec is not registered,
    WrongKey if its codec says so.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise CorruptData(
            f"value type {kind} is unknown to this version, which knows 0 to {TYPE_CUSTOM}; a newer shmkv may have "
            f"written it"
        )
    try:
        return decoder(data)
    except (CorruptData, UnknownCodec, WrongKey):
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError, struct.error, OSError) as error:
        what = f"value of type {kind} with {len(data)} bytes cannot be decoded"
        raise CorruptData(f"{what}: {error}; write it anew") from error


def _encode_int(value: int) -> tuple[int, bytes]:
    if -(1 << 63) <= value < 1 << 63:
        return TYPE_INT, _INT.pack(value)
    return TYPE_BIG_INT, _int_bytes(value)


def _encode_str(value: str) -> tuple[int, bytes]:
    try:
        return TYPE_STR, value.encode()
    except UnicodeEncodeError as error:
        raise _surrogate(error) from error


def _surrogate(error: UnicodeEncodeError) -> ValueError:
    return ValueError(
        f"a str with a lone surrogate (position {error.start}) cannot be stored as UTF-8; store bytes instead, for "
        f"instance text.encode('utf-8', 'surrogatepass')"
    )


def _int_bytes(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


_SCALAR_ENCODERS: Final[dict[type, Callable[[Any], tuple[int, bytes]]]] = {
    type(None): lambda _: (TYPE_NONE, b""),
    bool: lambda value: (TYPE_TRUE if value else TYPE_FALSE, b""),
    int: _encode_int,
    float: lambda value: (TYPE_FLOAT, _FLOAT.pack(value)),
    bytes: lambda value: (TYPE_BYTES, value),
    str: _encode_str,
}


class _Walk:
    """One pass over a nested value that makes a tree of types which msgpack packs exactly."""

    __slots__ = ("marked",)

    def __init__(self) -> None:
        self.marked = False

    def tree(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _SCALARS:
            return value
        if depth >= DEPTH_LIMIT and kind in (list, tuple, dict):
            raise ValueError(
                f"the value is nested more than {DEPTH_LIMIT} levels deep, or contains itself; store its parts under "
                f"keys of their own"
            )
        if kind is list:
            items = value.copy()
            if _SCALARS.issuperset(map(type, items)):
                return items
            return [self.tree(item, depth + 1) for item in items]
        if kind is dict:
            return self._map(value.copy(), depth)
        if kind is tuple:
            self.marked = True
            return [_TUPLE_MARK, *[self.tree(item, depth + 1) for item in value]]
        return _leaf(value)

    def _map(self, value: dict[Any, Any], depth: int) -> Any:
        if _SCALARS.issuperset(map(type, value)):
            if _SCALARS.issuperset(map(type, value.values())):
                return value
            return {key: self.tree(item, depth + 1) for key, item in value.items()}
        self.marked = True
        flat: list[Any] = [_DICT_MARK]
        for key, item in value.items():
            flat.append(self.tree(key, depth + 1))
            flat.append(self.tree(item, depth + 1))
        return flat


_TUPLE_MARK: Final = msgpack.ExtType(Ext.TUPLE_MARK, b"")
_DICT_MARK: Final = msgpack.ExtType(Ext.DICT_MARK, b"")


def _pack(tree: Any) -> bytes:
    try:
        return bytes(msgpack.Packer(default=_big_int, strict_types=True).pack(tree))
    except UnicodeEncodeError as error:
        raise _surrogate(error) from error


def _big_int(value: Any) -> msgpack.ExtType:
    """What msgpack cannot pack in a checked tree: an int of more than 64 bits."""
    return msgpack.ExtType(Ext.BIG_INT, _int_bytes(value))


def _leaf(value: Any) -> msgpack.ExtType:
    """A value that has no parts, as an extension; TypeError if its type is not stored."""
    kind = type(value)
    if kind is datetime.datetime:
        return msgpack.ExtType(Ext.DATETIME, encode_datetime(value))
    if kind is decimal.Decimal:
        return msgpack.ExtType(Ext.DECIMAL, str(value).encode())
    if kind is uuid.UUID:
        return msgpack.ExtType(Ext.UUID, value.bytes)
    codec = REGISTRY.for_type(kind)
    if codec is not None:
        data = codec.encode(value)
        if type(data) is not bytes:
            raise TypeError(f"the codec {codec.name!r} must encode to bytes, but it returned {type(data).__name__}")
        name = codec.name.encode()
        return msgpack.ExtType(Ext.CUSTOM, b"".join((bytes((len(name),)), name, data)))
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        from shmkv.arrays import encode_array

        return msgpack.ExtType(Ext.ARRAY, encode_array(value))
    raise _refused(kind)


def _refused(kind: type[Any]) -> TypeError:
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    base = next((known.__name__ for known in kind.__mro__[1:] if known is not object and known in BUILT_IN_TYPES), None)
    advice = f"convert it to {base}, or " if base is not None else ""
    if kind.__module__ == "numpy" and hasattr(kind, "item"):
        advice = "convert it with .item(), or "
    return TypeError(
        f"values of type {name} are not stored, because a value must come back as exactly its type; {advice}add a "
        f"codec with shmkv.register_codec({kind.__name__}, name, encode, decode)"
    )


def _decode_big_int(data: bytes) -> int:
    if not data:
        raise ValueError("an int has one byte at least")
    return int.from_bytes(data, "little", signed=True)


def _decode_decimal(data: bytes) -> decimal.Decimal:
    text = data.decode("ascii")
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError(f"{text[:40]!r} is no decimal number")
    return decimal.Decimal(text, _DECIMAL_CONTEXT)


def _decode_custom(data: bytes) -> Any:
    if not data or len(data) < 1 + data[0]:
        raise ValueError("the name of its codec is cut short")
    codec = REGISTRY.for_name(data[1 : 1 + data[0]].decode())
    try:
        return codec.decode(data[1 + data[0] :])
    except (UnknownCodec, WrongKey):
        raise
    except Exception as error:
        raise CorruptData(
            f"the codec {codec.name!r} cannot decode a stored value of {len(data) - 1 - data[0]} bytes: "
            f"{type(error).__name__}: {error}; was it written by another version of the codec?"
        ) from error


def _decode_array(data: bytes) -> Any:
    from shmkv.arrays import decode_array

    return decode_array(data)


_EXTENSIONS: Final[dict[int, Callable[[bytes], Any]]] = {
    Ext.BIG_INT: _decode_big_int,
    Ext.DATETIME: decode_datetime,
    Ext.DECIMAL: _decode_decimal,
    Ext.UUID: lambda data: uuid.UUID(bytes=data),
    Ext.ARRAY: _decode_array,
    Ext.CUSTOM: _decode_custom,
}


def _extension(code: int, data: bytes) -> Any:
    decoder = _EXTENSIONS.get(code)
    if decoder is None:
        raise ValueError(f"extension {code} does not belong there")
    return decoder(data)


class _Mark:
    """Stands at the head of a decoded list until the list becomes a tuple or a dict."""


class _Marks:
    """Turns marked lists into what they stand for, and counts, so that a mark elsewhere is found out."""

    def __init__(self) -> None:
        self.open = 0
        self._tuple = _Mark()
        self._dict = _Mark()

    def extension(self, code: int, data: bytes) -> Any:
        if code > Ext.DICT_MARK:
            return _extension(code, data)
        self.open += 1
        return self._tuple if code == Ext.TUPLE_MARK else self._dict

    def container(self, items: list[Any]) -> Any:
        if not items or type(items[0]) is not _Mark:
            return items
        self.open -= 1
        if items[0] is self._tuple:
            return tuple(items[1:])
        return dict(zip(items[1::2], items[2::2], strict=True))


def _decode_plain(data: bytes) -> Any:
    return msgpack.unpackb(data, strict_map_key=False, ext_hook=_extension)


def _decode_marked(data: bytes) -> Any:
    marks = _Marks()
    value = msgpack.unpackb(data, strict_map_key=False, ext_hook=marks.extension, list_hook=marks.container)
    if marks.open != 0:
        raise ValueError("a mark stands where no container starts")
    return value


def _empty(value: Any) -> Callable[[bytes], Any]:
    def decode_empty(data: bytes) -> Any:
        if data:
            raise ValueError(f"{value} has no bytes")
        return value

    return decode_empty


_DECODERS: Final[dict[int, Callable[[bytes], Any]]] = {
    TYPE_NONE: _empty(None),
    TYPE_FALSE: _empty(False),
    TYPE_TRUE: _empty(True),
    TYPE_INT: lambda data: _INT.unpack(data)[0],
    TYPE_FLOAT: lambda data: _FLOAT.unpack(data)[0],
    TYPE_BYTES: bytes,
    TYPE_STR: lambda data: data.decode(),
    TYPE_PLAIN: _decode_plain,
    TYPE_MARKED: _decode_marked,
    TYPE_BIG_INT: _decode_big_int,
    TYPE_ARRAY: _decode_array,
    TYPE_CUSTOM: _decode_custom,
}
