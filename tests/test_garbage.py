"""No bytes whatever break the decoder of values: truncated, flipped, random, deep, or marked where no encoder marks."""

from __future__ import annotations

import datetime
import decimal
import random
import uuid
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import pytest

from shmkv import codecs, values
from shmkv.errors import CorruptData
from shmkv.values import decode, encode

HOUR = datetime.timedelta(hours=1)

SAMPLES = [
    [1, (2.5, "x", None), {"k": b"v", (1,): decimal.Decimal("1.5")}, 2**80],
    {"when": datetime.datetime(2026, 1, 2, tzinfo=ZoneInfo("Europe/Berlin")), "id": uuid.UUID(int=77)},
    datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone(HOUR, "CET")),
    decimal.Decimal("-1.25E+7"),
    2**90,
    ("tuple", ["list"], {}),
]


def survives(kind: int, data: bytes) -> None:
    try:
        decode(kind, data)
    except (CorruptData, codecs.UnknownCodec):
        return


@pytest.mark.parametrize("value", SAMPLES, ids=lambda value: type(value).__name__)
def test_every_truncation_and_every_flipped_byte_is_refused_or_harmless(value: Any) -> None:
    kind, data = encode(value)
    for length in range(len(data)):
        survives(kind, data[:length])
    for place in range(len(data)):
        for change in (0x01, 0x80, 0xFF, 0x10):
            survives(kind, data[:place] + bytes((data[place] ^ change,)) + data[place + 1 :])
    for other in range(20):
        survives(other, data)
    with pytest.raises(CorruptData):
        decode(kind, b"")
    if kind in (values.TYPE_PLAIN, values.TYPE_MARKED):
        with pytest.raises(CorruptData):
            decode(kind, data + b"\0")


def test_seeded_garbage_never_gets_past_the_two_errors() -> None:
    rng = random.Random(20260101)
    for _ in range(20_000):
        survives(rng.randrange(14), rng.randbytes(rng.choice((0, 1, 2, 8, 9, 30, 100))))
    pieces = [encode(value)[1] for value in SAMPLES]
    for _ in range(20_000):
        data = b"".join(rng.choice(pieces)[: rng.randrange(40)] for _ in range(3))
        survives(rng.choice((values.TYPE_PLAIN, values.TYPE_MARKED)), data)


@pytest.mark.parametrize("value", [2**31, [], {}, "text", b"bytes", None], ids=repr)
@pytest.mark.parametrize("mark", [values.Ext.TUPLE_MARK, values.Ext.DICT_MARK])
def test_a_mark_in_a_wrong_place_is_corrupt(mark: int, value: Any) -> None:
    sign = msgpack.ExtType(mark, b"")
    wrong: list[Any] = [sign, {"k": sign}, [value, sign], [sign, sign], {sign: value}, [[sign, 1, 2], sign]]
    for tree in wrong:
        for kind in (values.TYPE_PLAIN, values.TYPE_MARKED):
            with pytest.raises(CorruptData):
                decode(kind, msgpack.packb(tree))
    with pytest.raises(CorruptData):
        decode(values.TYPE_MARKED, msgpack.packb([msgpack.ExtType(values.Ext.DICT_MARK, b""), value]))
    with pytest.raises(CorruptData):
        decode(values.TYPE_MARKED, msgpack.packb([msgpack.ExtType(values.Ext.DICT_MARK, b""), [], value]))


@pytest.mark.parametrize(
    "key", ["../../etc/passwd", "/etc/passwd", "No/Such_Zone", "a/../b", "", "x" * 300, "Europe", "Europe/Berlin\0"]
)
def test_a_time_zone_from_garbage_opens_no_file_elsewhere(key: str) -> None:
    head = encode(datetime.datetime(2026, 1, 2, tzinfo=ZoneInfo("UTC")))[1]
    payload = msgpack.unpackb(head).data[: -len("UTC")] + key.encode()
    with pytest.raises(CorruptData):
        decode(values.TYPE_PLAIN, msgpack.packb(msgpack.ExtType(values.Ext.DATETIME, payload)))


def test_nesting_bombs_cost_no_stack() -> None:
    for bomb in (
        b"\x91" * 100_000,
        b"\x81\xa1k" * 100_000,
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\xdf\xff\xff\xff\xff" * 1000,
    ):
        for kind in (values.TYPE_PLAIN, values.TYPE_MARKED):
            with pytest.raises(CorruptData):
                decode(kind, bomb)


def test_an_unknown_type_names_the_newer_version() -> None:
    with pytest.raises(CorruptData, match=r"type 200 .* newer"):
        decode(200, b"")
