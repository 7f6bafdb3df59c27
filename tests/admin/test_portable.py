"""Values as JSON: each comes back as exactly itself; what is no value is refused with a ValueError."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import random
import struct
import uuid
from typing import Any
from zoneinfo import ZoneInfo

import numpy
import pytest

from shmkv.admin.portable import DECODER, tagged, to_text
from shmkv.values import DEPTH_LIMIT, encode

D = datetime.datetime
UTC = datetime.UTC


def deep() -> Any:
    """As deep as a store holds, with the forms that need most levels of JSON."""
    value: Any = 0
    for level in range(DEPTH_LIMIT):
        value = {(1, 2): value} if level % 2 else (value,)
    return {None: value} if DEPTH_LIMIT % 2 else value


OTHER_NAN = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
BERLIN = ZoneInfo("Europe/Berlin")
VALUES = [
    None, True, False, 0, -1, 2**53 - 1, 1 - 2**53, 2**53, -(2**53), 2**63, -(2**64), 10**5000,
    0.0, -0.0, 1.5, 1e300, 5e-324, math.nan, math.inf, -math.inf, OTHER_NAN,
    b"", b"\0\xff", "", "grüß Gott \u2028 \0 \x7f \U0001f600 \\ud800 \"", "$bytes",
    [], (), {}, [()], ([],), {"$bytes": 1}, {"$": None}, {"$a": 1, "b": 2}, {"key": 1, "value": 2},
    {1: 2, (1, b"2"): 3, b"x": 4, None: 5, 2.5: 6, False: 7}, [1, [2, [3, (4, {"5": {6: ()}})]]],
    D(2024, 1, 2), D(2024, 1, 2, 3, 4, 5, 6), D(2024, 10, 27, 2, 30, fold=1), D(1, 1, 1, tzinfo=UTC),
    D(2024, 10, 27, 2, 30, tzinfo=BERLIN), D(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
    D(9999, 12, 31, 23, 59, 59, 999999, tzinfo=datetime.timezone(datetime.timedelta(hours=-5, microseconds=3))),
    D(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1), "CET")), D(2024, 1, 1, fold=1, tzinfo=UTC),
    decimal.Decimal("1.50"), decimal.Decimal("-0"), decimal.Decimal("1E+400"), decimal.Decimal("sNaN12"),
    decimal.Decimal("-Infinity"), uuid.UUID(int=7),
    numpy.arange(6).reshape(2, 3), numpy.asfortranarray(numpy.ones((2, 3))), numpy.zeros((0, 3)), numpy.array(5.0),
    numpy.zeros(2, dtype=[("a", "<i4"), ("b", ">f8", (2,))]), numpy.array(["2024-01-01"], dtype="M8[s]"),
    numpy.array([math.nan, -0.0]), {"nested": [numpy.arange(2), (uuid.UUID(int=1), decimal.Decimal("0.1"))]}, deep(),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_a_value_comes_back_as_exactly_itself(number: int) -> None:
    value = VALUES[number]
    text = to_text(tagged(value))
    assert "\n" not in text
    assert json.loads(text, parse_constant=pytest.fail) is not ...
    assert encode(DECODER.decode(text)) == encode(value)


def test_random_nests_come_back() -> None:
    chance = random.Random(5)
    leaves = [value for value in VALUES if not isinstance(value, numpy.ndarray | list | tuple | dict)]
    keys = [leaf for leaf in leaves if not isinstance(leaf, decimal.Decimal) or not leaf.is_snan()]

    def make(depth: int) -> Any:
        kind = chance.randrange(4) if depth < 6 else 3
        if kind == 0:
            return [make(depth + 1) for _ in range(chance.randrange(4))]
        if kind == 1:
            return tuple(make(depth + 1) for _ in range(chance.randrange(4)))
        if kind == 2:
            return {chance.choice(keys): make(depth + 1) for _ in range(chance.randrange(4))}
        return chance.choice(leaves)

    for _ in range(500):
        value = make(0)
        assert encode(DECODER.decode(to_text(tagged(value)))) == encode(value)


def test_numbers_beyond_a_double_are_no_numbers_of_json() -> None:
    assert tagged(2**53 - 1) == 2**53 - 1
    assert tagged(2**53) == {"$int": "0x20000000000000"}


@pytest.mark.parametrize(
    "text",
    [
        "NaN", "-Infinity", '{"$nothing":1}', '{"$bytes":"a"}', '{"$bytes":1}', '{"$bytes":"AA=\\n"}', '{"$int":5}',
        '{"$int":"0x"}', '{"$int":"1_0"}', '{"$float":"1.5"}', '{"$float":"0000000000000000"}', '{"$float":"nan "}',
        '{"$tuple":{"a":1}}', '{"$dict":[[1,2],[1,3]]}', '{"$dict":[[1]]}', '{"$dict":[[[],1]]}', '{"a":1,"a":2}',
        '{"$datetime":"yesterday"}', '{"$datetime":5}', '{"$datetime":{}}',
        '{"$datetime":{"time":"2024-01-01","fold":2}}',
        '{"$datetime":{"time":"2024-01-01","fold":0,"zone":"../../etc/passwd"}}',
        '{"$datetime":{"time":"2024-01-01","fold":0,"zone":"Mars/Olympus"}}',
        '{"$datetime":{"time":"2024-01-01","fold":0,"offset_us":1e30}}',
        '{"$datetime":{"time":"2024-01-01","fold":0,"offset_us":99999999999999}}',
        '{"$datetime":{"time":"2024-01-01","fold":0,"more":1}}', '{"$decimal":" 1"}', '{"$decimal":"1e5x"}',
        '{"$decimal":"1E99999999999999999999"}', '{"$uuid":"7"}', '{"$array":[]}', '{"$array":{}}',
        '{"$array":{"dtype":"O","order":"C","shape":[1],"base64":"AAAAAAAAAAA="}}',
        '{"$array":{"dtype":"<i8","order":"K","shape":[1],"base64":"AAAAAAAAAAA="}}',
        '{"$array":{"dtype":"<i8","order":"C","shape":[1000000000000],"base64":"AAAAAAAAAAA="}}',
        '{"$codec":["",""]}', '{"$codec":[5,""]}', '{"$codec":["' + "x" * 300 + '",""]}',
    ],
)  # fmt: skip
def test_what_is_no_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        DECODER.decode(text)


def test_what_no_store_holds_has_no_form() -> None:
    with pytest.raises(TypeError, match="set"):
        tagged({1})


def test_values_of_unknown_codecs_travel_as_their_bytes() -> None:
    value = DECODER.decode('{"$codec":["test.portable.unknown","AAEC"]}')
    assert encode(value) == (11, b"\x15test.portable.unknown\0\1\2")
    assert to_text(tagged([value])) == '[{"$codec":["test.portable.unknown","AAEC"]}]'
    assert DECODER.decode('{"$dict":[[{"$codec":["test.portable.unknown","AAEC"]},1]]}') == {value: 1}
