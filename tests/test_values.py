"""Values come back as exactly what went in, or are refused; and no bytes whatever break the decoder.

Pure tests of the formats, without an arena: every supported type alone and nested, types that look alike, every
truncation and every flipped byte of samples, seeded garbage, and marks in places where no encoder puts them.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import struct
import subprocess
import sys
import threading
import uuid
from collections import OrderedDict, UserDict, namedtuple
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import pytest

from shmkv import values
from shmkv.errors import CorruptData
from shmkv.values import decode, encode

UTC = datetime.UTC
HOUR = datetime.timedelta(hours=1)


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Point(namedtuple("Point", "x y")):
    __slots__ = ()


class Custom:
    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Custom) and other.number == self.number

    def __hash__(self) -> int:
        return hash(self.number)


def again(value: Any) -> Any:
    return decode(*encode(value))


def same(left: Any, right: Any) -> bool:
    """Equal in type, value, order, sign of zero and bits of NaN, at every level."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("<d", left) == struct.pack("<d", right)
    if isinstance(left, decimal.Decimal):
        return left.as_tuple() == right.as_tuple()
    if isinstance(left, datetime.datetime):
        fields = left.replace(tzinfo=None) == right.replace(tzinfo=None) and left.fold == right.fold
        return fields and repr(left.tzinfo) == repr(right.tzinfo)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.keys()), list(right.keys())) and same(list(left.values()), list(right.values()))
    return bool(left == right)


SCALARS: list[Any] = [
    None, False, True, 0, 1, -1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**64 - 1, 2**64,
    2**64 + 1,
    -(2**64), 255, 256, 10**400, -(10**400), 1 << 100_000,
    0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0],
    5e-324,
    b"", b"abc", bytes(range(256)), "", "abc", "\0", "é", "\U0001f600", "a" * 70_000, b"b" * 70_000,
]  # fmt: skip

EXTENSIONS: list[Any] = [
    datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59, 999999),
    datetime.datetime(2026, 3, 29, 2, 30, fold=1),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6, UTC), datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone(-HOUR * 5)),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone(HOUR, "CET")),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone(HOUR, "")),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(seconds=1, microseconds=-7))),
    datetime.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
    datetime.datetime(2026, 7, 1, tzinfo=ZoneInfo("America/Argentina/Buenos_Aires")),
    datetime.datetime(2026, 7, 1, tzinfo=ZoneInfo("Etc/GMT+3")),
    decimal.Decimal("1.10"), decimal.Decimal("-0"), decimal.Decimal("0E-30"), decimal.Decimal("1E+999999"),
    decimal.Decimal("Infinity"),
    decimal.Decimal("-Infinity"), decimal.Decimal("NaN"), decimal.Decimal("-sNaN123"), decimal.Decimal(10**500),
    decimal.Decimal("0." + "7" * 900),
    uuid.UUID(int=0), uuid.UUID("12345678-1234-5678-1234-567812345678"),
]  # fmt: skip

NESTED: list[Any] = [
    [], (), {}, [[]], ((),), [()], ([],), {"a": ()}, {(): []}, [None, True, 1, 1.0, "1", b"1"], (1, [2, (3, [4, ()])]),
    {"name": "Ada", "visits": 3}, {1: "int", 1.5: "float", None: "none", b"k": "bytes", "k": "str", False: "bool"},
    {(1, "a"): {(): 1}, uuid.UUID(int=5): [decimal.Decimal(1)], decimal.Decimal("2.50"): (2**70,)},
    {2**70: 1, -(2**70): 2}, {datetime.datetime(2026, 1, 1, tzinfo=UTC): "x"}, {((1,), (2, (3,))): 1},
    {"b": 1, "a": 2, "c": [{"z": 1, "y": ({"q": 1},)}]}, [0.0, -0.0, math.nan, math.inf],
    [2**63, 2**64 - 1, 2**64, -(2**63) - 1],
    [list(range(70_000))], {str(number): number for number in range(5000)}, [EXTENSIONS, tuple(EXTENSIONS)],
]  # fmt: skip


@pytest.mark.parametrize("value", SCALARS + EXTENSIONS + NESTED, ids=lambda value: f"{type(value).__name__}")
def test_value_comes_back_as_exactly_what_went_in(value: Any) -> None:
    kind, data = encode(value)
    assert type(data) is bytes
    assert same(decode(kind, data), value)
    assert same(again([value, (value,)]), [value, (value,)])
    assert same(again({"deep": {"deeper": (value, [value])}}), {"deep": {"deeper": (value, [value])}})


def test_values_that_look_alike_stay_what_they_are() -> None:
    for group in (
        [1, True, 1.0, decimal.Decimal(1)],
        [0, False, 0.0, -0.0],
        ["a", b"a"],
        [(1, 2), [1, 2]],
        [{}, [], ()],
    ):
        for value in group:
            assert type(again(value)) is type(value)
            assert type(again([value])[0]) is type(value)
            assert type(again((value,))[0]) is type(value)


def test_nan_keys_and_their_order_survive() -> None:
    value = {math.nan: 1, "a": 2, float("nan"): 3, (math.nan,): 4, decimal.Decimal("NaN"): 5, decimal.Decimal("nan"): 6}
    assert list(again(value).values()) == [1, 2, 3, 4, 5, 6]
    assert list(again({math.nan: 1, float("nan"): 2}).values()) == [1, 2]


def test_decimal_and_floats_do_not_depend_on_the_context() -> None:
    with decimal.localcontext() as context:
        context.prec = 3
        context.capitals = 0
        context.traps[decimal.InvalidOperation] = False
        value = decimal.Decimal("1.2345678901234567890E+77")
        assert again(value).as_tuple() == value.as_tuple()
        with pytest.raises(CorruptData):
            decode(values.TYPE_PLAIN, msgpack.packb(msgpack.ExtType(values.Ext.DECIMAL, b"12x")))


@pytest.mark.parametrize(
    "value",
    [Colour.RED, Text("a"), Point(1, 2), OrderedDict(a=1), UserDict(a=1), {1}, frozenset({1}), 1j, bytearray(b"a"),
     memoryview(b"a"), object(),
     int, len, range(3), datetime.date(2026, 1, 1), datetime.time(1), HOUR, Custom(1), msgpack.ExtType(5, b"x"),
     msgpack.Timestamp(1)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_other_types_are_refused_everywhere_with_the_name_and_the_way_out(value: Any) -> None:
    shapes: list[Any] = [value, [value], (1, value), {"k": value}, [{"k": (value,)}]]
    if type(value).__hash__ is not None and not isinstance(value, memoryview):
        shapes += [{value: 1}, {(value,): 1}]
    for shape in shapes:
        with pytest.raises(TypeError, match=r"register_codec") as caught:
            encode(shape)
        assert type(value).__qualname__ in str(caught.value)


def test_a_subclass_is_told_which_type_it_could_be_converted_to() -> None:
    for value, base in ((Colour.RED, "int"), (Text("a"), "str"), (Point(1, 2), "tuple"), (OrderedDict(), "dict")):
        with pytest.raises(TypeError, match=f"convert it to {base}"):
            encode(value)


def test_a_foreign_time_zone_is_refused() -> None:
    class Zone(datetime.tzinfo):
        pass

    with pytest.raises(TypeError, match="ZoneInfo"):
        encode(datetime.datetime(2026, 1, 1, tzinfo=Zone()))
    with open("/usr/share/zoneinfo/UTC", "rb") as file, pytest.raises(ValueError, match="no key"):
        encode(datetime.datetime(2026, 1, 1, tzinfo=ZoneInfo.from_file(file)))


@pytest.mark.parametrize("shape", ["\ud800", ["\udfff"], {"\ud800": 1}, {(1, "\ud800"): 1}, ({"a": "x\udc00"},)])
def test_a_lone_surrogate_is_a_value_error(shape: Any) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        encode(shape)


def test_depth_has_a_limit_and_everything_below_it_works() -> None:
    for wrap in (
        lambda value: [value],
        lambda value: (value,),
        lambda value: {"k": value},
        lambda value: {uuid.UUID(int=1): value},
    ):
        value: Any = 1
        for _ in range(values.DEPTH_LIMIT):
            value = wrap(value)
        assert same(again(value), value)
        with pytest.raises(ValueError, match=f"more than {values.DEPTH_LIMIT} levels"):
            encode(wrap(value))


def test_a_container_that_contains_itself_is_a_value_error() -> None:
    items: list[Any] = []
    items.append(items)
    table: dict[str, Any] = {}
    table["self"] = ([table],)
    twins: list[Any] = []
    twins += [twins, twins]
    for value in (items, table, twins):
        with pytest.raises(ValueError, match="contains itself"):
            encode(value)


def test_a_list_changed_by_another_thread_gives_a_state_that_it_had() -> None:
    shared: list[Any] = [0, 0]
    table: dict[str, Any] = {}
    done = threading.Event()

    def change() -> None:
        number = 0
        while not done.is_set():
            number += 1
            shared[:] = [number, number]
            table[str(number % 100)] = (number, bytes(number % 50))
            table.pop(str((number + 50) % 100), None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            left, right = again(shared)
            assert left == right
            assert all(type(item) is tuple for item in again(table).values())
    finally:
        done.set()
        thread.join()


def test_a_forbidden_type_that_is_put_in_meanwhile_never_gets_through() -> None:
    shared: list[Any] = [b"x"] * 50
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            shared[7] = bytearray(b"x")
            shared[7] = b"x"

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            try:
                assert again(shared) == [b"x"] * 50
            except TypeError as error:
                assert "bytearray" in str(error)
    finally:
        done.set()
        thread.join()


def test_numpy_is_not_imported_by_values_without_arrays() -> None:
    program = "import sys, shmkv.values as v; v.decode(*v.encode([1, (2,)])); sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_stored_bytes_stay_the_same_between_versions() -> None:
    golden: list[tuple[Any, int, str]] = [
        ([1, "a", None], 7, "9301a161c0"),
        ((1, 2), 8, "93c700000102"),
        ({(1,): 2}, 8, "93c7000192c700000102"),
        (2**64, 9, "000000000000000001"),
        ([2**64], 7, "91c70902000000000000000001"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, 6, UTC), 7, "c71503ea0701020304050600000000010000000000000000"),
        (decimal.Decimal("1.5"), 7, "c70304312e35"),
        (uuid.UUID(int=1), 7, "d80500000000000000000000000000000001"),
    ]
    for value, kind, text in golden:
        assert encode(value) == (kind, bytes.fromhex(text))
        assert same(decode(kind, bytes.fromhex(text)), value)
