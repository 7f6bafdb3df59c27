"""Values as JSON and back: every type that a store holds, so that it comes back as exactly that type.

Why here: an export must outlive the stored form of values, be read by other programs, and be written by them, too.
What JSON has is written as that; all else is an object with one member whose name starts with "$" (docs/formats.md).

Invariants:
  I1  restore(tagged(value)) has the type and the value of `value`, bit by bit for floats and arrays.
  I2  Reading runs no code but constructors named here: values of codecs travel as their name and bytes.
  I3  Reading any JSON gives a value, or a ValueError that says what is wrong with it.
"""

from __future__ import annotations

import binascii
import datetime
import decimal
import json
import math
import re
import struct
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from shmkv.codecs import REGISTRY, UnknownCodec, register_codec
from shmkv.datetimes import decode_datetime, encode_datetime

# Beyond this many programs read numbers of JSON as the nearest double.
SAFE_INT: Final = (1 << 53) - 1
TAG: Final = "$"

_AS_IT_IS: Final = frozenset({str, bool, type(None)})
_STR: Final = frozenset({str})
_HEX: Final = re.compile(r"-?0x[0-9a-f]+", re.ASCII)
_DECIMAL: Final = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?(?:E[+-]?[0-9]+)?|Infinity|s?NaN[0-9]*)", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_NAN: Final = struct.pack(">d", math.nan)
_FLOATS: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_LENGTH: Final = struct.Struct("<I")
_OFFSET: Final = struct.Struct("<q")
# The stored form of a datetime without a zone ends with the kind of the zone.
_NAIVE, _FIXED, _NAMED, _KEYED = range(4)


# ---- values to JSON ------------------------------------------------------------------------------------------------


def tagged(value: Any) -> Any:
    """The value as what json.dumps writes; TypeError for a type that no store holds."""
    kind = type(value)
    if kind in _AS_IT_IS:
        return value
    if kind is int:
        return value if -SAFE_INT <= value <= SAFE_INT else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": _float_text(value)}
    if kind is dict:
        return _tagged_dict(value)
    if kind is list:
        return [item if type(item) in _AS_IT_IS else tagged(item) for item in value]
    if kind is tuple:
        return {"$tuple": [item if type(item) in _AS_IT_IS else tagged(item) for item in value]}
    return _tagged_leaf(value, kind)


def _tagged_dict(value: dict[Any, Any]) -> dict[str, Any]:
    if _STR.issuperset(map(type, value)) and not (len(value) == 1 and next(iter(value)).startswith(TAG)):
        return {key: item if type(item) in _AS_IT_IS else tagged(item) for key, item in value.items()}
    return {"$dict": [[tagged(key), tagged(item)] for key, item in value.items()]}


def _tagged_leaf(value: Any, kind: type[Any]) -> dict[str, Any]:
    if kind is bytes:
        return {"$bytes": base64(value)}
    if kind is datetime.datetime:
        return {"$datetime": _datetime_form(value)}
    if kind is decimal.Decimal:
        return {"$decimal": str(value)}
    if kind is uuid.UUID:
        return {"$uuid": str(value)}
    codec = REGISTRY.for_type(kind)
    if codec is not None:
        return {"$codec": [codec.name, base64(codec.encode(value))]}
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        return {"$array": _array_form(value)}
    raise TypeError(f"values of type {kind.__module__}.{kind.__qualname__} have no portable form")


def _float_text(value: float) -> str:
    if not math.isnan(value):
        return "inf" if value > 0 else "-inf"
    bits = struct.pack(">d", value)
    return "nan" if bits == _NAN else bits.hex()


def _datetime_form(value: datetime.datetime) -> Any:
    fields, stored = encode_datetime(value.replace(tzinfo=None)), encode_datetime(value)
    zone, detail = stored[len(fields) - 1], stored[len(fields) :]
    if zone in (_NAIVE, _FIXED) and not value.fold:
        return value.isoformat()
    form: dict[str, Any] = {"time": value.replace(tzinfo=None).isoformat(), "fold": value.fold}
    if zone == _KEYED:
        return {**form, "zone": detail.decode()}
    if zone != _NAIVE:
        form["offset_us"] = _OFFSET.unpack_from(detail)[0]
    if zone == _NAMED:
        form["name"] = detail[_OFFSET.size :].decode()
    return form


def _array_form(value: Any) -> dict[str, Any]:
    from shmkv.arrays import encode_array

    stored = encode_array(value)
    start = _LENGTH.size + _LENGTH.unpack_from(stored)[0]
    dtype, fortran, shape = msgpack.unpackb(stored[_LENGTH.size : start])
    return {"dtype": dtype, "order": "F" if fortran else "C", "shape": shape, "base64": base64(stored[start:])}


def base64(data: bytes) -> str:
    """Bytes as base64 text."""
    return binascii.b2a_base64(data, newline=False).decode()


# ---- JSON to values ------------------------------------------------------------------------------------------------


def restore(pairs: list[tuple[str, Any]]) -> Any:
    """What an object of JSON stands for, once its members are restored: a hook for a decoder of JSON. ValueError."""
    if len(pairs) == 1 and pairs[0][0][:1] == TAG:
        tag, content = pairs[0]
        restorer = _RESTORERS.get(tag)
        if restorer is None:
            raise ValueError(
                f"{tag[:40]!r} is no type of this version, which knows {', '.join(_RESTORERS)}; a dict with one key "
                f"that starts with {TAG!r} is written as $dict"
            )
        try:
            return restorer(content)
        except (TypeError, KeyError, ArithmeticError, OSError, struct.error) as error:
            raise ValueError(f"the content of {tag!r} does not fit: {error}") from error
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same name twice")
    return result


def _constant(text: str) -> Any:
    raise ValueError(f'{text} is not JSON; it is written as {{"$float": "nan"}}, "inf" or "-inf"')


DECODER: Final = json.JSONDecoder(object_pairs_hook=restore, parse_constant=_constant)
ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))


def _value_encoder() -> Callable[[Any], str]:
    # JSONEncoder.encode makes one of these for each call, which costs as much as encoding a small value.
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return ENCODER.encode
    pieces = make(None, ENCODER.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)
    return lambda document: "".join(pieces(document, 0))


to_text: Final = _value_encoder()


def _text(content: Any, pattern: re.Pattern[str] | None = None) -> str:
    if type(content) is not str:
        raise ValueError(f"a str is needed, not {type(content).__name__}")
    if pattern is not None and pattern.fullmatch(content) is None:
        raise ValueError(f"{content[:40]!r} is not what belongs there")
    return content


def _list(content: Any, length: int | None = None) -> list[Any]:
    if type(content) is not list or (length is not None and len(content) != length):
        raise ValueError("a list is needed" + (f" with {length} items" if length is not None else ""))
    return content


def _bytes(content: Any) -> bytes:
    return binascii.a2b_base64(_text(content), strict_mode=True)


def _float(content: Any) -> float:
    text = _text(content)
    if text in _FLOATS:
        return _FLOATS[text]
    value: float = struct.unpack(">d", bytes.fromhex(text))[0]
    if not math.isnan(value):
        raise ValueError("only what is no number is written as bits")
    return value


def _dict(content: Any) -> dict[Any, Any]:
    result = dict(_list(pair, 2) for pair in _list(content))
    if len(result) != len(content):
        raise ValueError("a dict has the same key twice")
    return result


def _datetime(content: Any) -> datetime.datetime:
    if type(content) is str:
        return datetime.datetime.fromisoformat(content)
    form = {**content}
    naive = datetime.datetime.fromisoformat(_text(form.pop("time"))).replace(tzinfo=None, fold=form.pop("fold"))
    zone, detail = _NAIVE, b""
    if "zone" in form:
        zone, detail = _KEYED, _text(form.pop("zone")).encode("ascii")
    elif "offset_us" in form:
        zone, detail = _FIXED, _OFFSET.pack(form.pop("offset_us"))
        if "name" in form:
            zone, detail = _NAMED, detail + _text(form.pop("name")).encode()
    if form:
        raise ValueError(f"unknown: {', '.join(map(str, form))}")
    return decode_datetime(encode_datetime(naive)[:-1] + bytes((zone,)) + detail)


def _array(content: Any) -> Any:
    from shmkv.arrays import decode_array

    order = ("C", "F").index(content["order"])
    description = msgpack.packb([content["dtype"], bool(order), content["shape"]])
    return decode_array(_LENGTH.pack(len(description)) + description + _bytes(content["base64"]))


def _decimal(content: Any) -> decimal.Decimal:
    return decimal.Decimal(_text(content, _DECIMAL), decimal.Context(traps=[decimal.InvalidOperation]))


def _codec(content: Any) -> Any:
    name, data = _list(content, 2)
    try:
        codec = REGISTRY.for_name(_text(name))
    except UnknownCodec:
        stand_in(name)
        codec = REGISTRY.for_name(name)
    return codec.decode(_bytes(data))


_RESTORERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$int": lambda content: int(_text(content, _HEX), 16),
    "$float": _float,
    "$bytes": _bytes,
    "$tuple": lambda content: tuple(_list(content)),
    "$dict": _dict,
    "$datetime": _datetime,
    "$decimal": _decimal,
    "$uuid": lambda content: uuid.UUID(_text(content, _UUID)),
    "$array": _array,
    "$codec": _codec,
}


def stand_in(name: str) -> None:
    """Let this process read and write values of a codec that it does not have, as their bytes."""

    @dataclass(frozen=True, slots=True)
    class Stored:
        data: bytes

    register_codec(Stored, name, lambda value: value.data, Stored)
