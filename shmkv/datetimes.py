"""Datetimes as bytes and back: the fields of the wall clock, fold, and how the time zone is found again.

The fields are stored, not an instant: the rules of a zone may change, and a value must come back as it went in.

Invariants:
  I1  A time zone is an offset, or a key of the time zone data base: nothing else is stored, and nothing else is read.
  I2  A key is checked against a narrow pattern before it is looked up, since the look-up opens files by that name.
"""

from __future__ import annotations

import datetime
import re
import struct
import sys
from enum import IntEnum
from typing import Final

from shmkv.errors import CorruptData


class _Zone(IntEnum):
    """How the time zone is stored; the numbers never change."""

    NAIVE = 0
    OFFSET = 1
    NAMED_OFFSET = 2
    ZONEINFO = 3


_OFFSET: Final = struct.Struct("<q")  # microseconds
_DATETIME: Final = struct.Struct("<HBBBBBIBB")  # year .. second, microsecond, fold, _Zone
_KEY: Final = re.compile(r"[A-Za-z0-9_+-]{1,64}(?:/[A-Za-z0-9_+-]{1,64}){0,7}", re.ASCII)


def encode_datetime(value: datetime.datetime) -> bytes:
    """Bytes of a datetime; TypeError or ValueError for a time zone that could not be found again."""
    zone, detail = _encode_zone(value.tzinfo)
    return (
        _DATETIME.pack(
            value.year,
            value.month,
            value.day,
            value.hour,
            value.minute,
            value.second,
            value.microsecond,
            value.fold,
            zone,
        )
        + detail
    )


def _encode_zone(zone: datetime.tzinfo | None) -> tuple[_Zone, bytes]:
    if zone is None:
        return _Zone.NAIVE, b""
    if type(zone) is datetime.timezone:
        offset = _OFFSET.pack(zone.utcoffset(None) // datetime.timedelta(microseconds=1))
        name = zone.tzname(None)
        if name == datetime.timezone(zone.utcoffset(None)).tzname(None):
            return _Zone.OFFSET, offset
        return _Zone.NAMED_OFFSET, offset + name.encode()
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo:
        key: str | None = getattr(zone, "key", None)
        if key is None or _KEY.fullmatch(key) is None:
            raise ValueError(
                f"the time zone {zone!r} has no key of the time zone data base and could not be found again; use "
                f"ZoneInfo(key) or datetime.timezone"
            )
        return _Zone.ZONEINFO, key.encode()
    raise TypeError(
        f"datetimes with a time zone of type {type(zone).__module__}.{type(zone).__qualname__} are not stored; use "
        f"zoneinfo.ZoneInfo or datetime.timezone"
    )


def decode_datetime(data: bytes) -> datetime.datetime:
    """The datetime that `encode_datetime` stored; ValueError or struct.error if the bytes are none."""
    *fields, microsecond, fold, zone = _DATETIME.unpack_from(data)
    year, month, day, hour, minute, second = fields
    tzinfo = _decode_zone(zone, data[_DATETIME.size :])
    return datetime.datetime(year, month, day, hour, minute, second, microsecond, tzinfo, fold=fold)


def _decode_zone(zone: int, detail: bytes) -> datetime.tzinfo | None:
    if zone == _Zone.NAIVE and not detail:
        return None
    if zone == _Zone.OFFSET:
        return datetime.timezone(datetime.timedelta(microseconds=_OFFSET.unpack(detail)[0]))
    if zone == _Zone.NAMED_OFFSET:
        offset = datetime.timedelta(microseconds=_OFFSET.unpack_from(detail)[0])
        return datetime.timezone(offset, detail[_OFFSET.size :].decode())
    if zone != _Zone.ZONEINFO:
        raise ValueError(f"datetime has a time zone of unknown kind {zone}")
    key = detail.decode("ascii")
    if _KEY.fullmatch(key) is None:
        raise ValueError("datetime has a time zone that is no key of the time zone data base")
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(key)
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:
        raise CorruptData(
            f"the time zone {key!r} of a stored datetime is unknown on this machine; install the package tzdata"
        ) from error
