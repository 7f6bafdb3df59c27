"""The light dataclasses: what is used of them is as of the standard ones, and what is not is refused."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import pytest

from shmkv import dataclass as light

Make = Callable[..., Any]


@pytest.fixture(params=[light, dataclasses], ids=["light", "standard"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def point(kind: Any) -> Any:
    @kind.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2
        tags: list[str] = kind.field(default_factory=list)

        @property
        def both(self) -> tuple[int, int]:
            return self.x, self.y

        @staticmethod
        def origin() -> Point:
            return Point(0, 0)

    return Point


def test_arguments_come_by_place_by_name_or_by_default(point: Any) -> None:
    assert (point(1).x, point(1).y, point(1).tags) == (1, 2, [])
    assert point(1, 3).both == (1, 3)
    assert point(y=4, x=3).both == (3, 4)
    assert point.origin().both == (0, 0)
    one, other = point(1), point(1)
    one.tags.append("mine")
    assert other.tags == []


@pytest.mark.parametrize(("args", "named"), [((), {}), ((1,), {"x": 1}), ((1, 2, [], 4), {}), ((1,), {"z": 1})])
def test_wrong_arguments_are_type_errors(point: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        point(*args, **named)


def test_equal_values_are_equal_of_one_class_only(kind: Any, point: Any) -> None:
    @kind.dataclass(frozen=True)
    class Pair:
        x: int
        y: int = 2

    assert point(1) == point(1, 2)
    assert point(1) != point(2)
    assert point(1) != (1, 2, [])
    assert Pair(1) != point(1)
    assert hash(Pair(1)) == hash(Pair(1, 2))
    assert {Pair(1): "found"}[Pair(1)] == "found"
    assert repr(Pair(1)).endswith("Pair(x=1, y=2)")


def test_frozen_ones_cannot_be_changed_and_slots_take_nothing_more(kind: Any, point: Any) -> None:
    with pytest.raises(AttributeError):
        point(1).x = 2
    with pytest.raises(AttributeError):
        del point(1).x

    @kind.dataclass(slots=True)
    class Counter:
        count: int = 0

    counter = Counter()
    counter.count += 1
    assert counter == Counter(1)
    with pytest.raises(AttributeError):
        counter.other = 1
    with pytest.raises(TypeError):
        hash(counter)


def test_replace_asdict_and_fields(kind: Any, point: Any) -> None:
    @kind.dataclass(frozen=True, slots=True)
    class Line:
        ends: tuple[Any, ...]
        names: dict[str, Any]

    moved = kind.replace(point(1), y=5)
    assert moved.both == (1, 5)
    assert [each.name for each in kind.fields(point)] == ["x", "y", "tags"]
    flat = {"x": 1, "y": 5, "tags": []}
    assert kind.asdict(Line((moved, 1), {"a": moved})) == {"ends": (flat, 1), "names": {"a": flat}}
    with pytest.raises(TypeError):
        kind.replace(moved, z=1)


def test_replace_takes_a_standard_one_too() -> None:
    @dataclasses.dataclass(frozen=True)
    class Pair:
        x: int
        y: int = 2

    assert light.replace(Pair(1), y=3) == Pair(1, 3)


def test_after_the_start_comes_post_init(kind: Any) -> None:
    @kind.dataclass
    class Sum:
        a: int
        b: int

        def __post_init__(self) -> None:
            self.total = self.a + self.b

    assert Sum(1, 2).total == 3


def test_what_is_not_there_is_refused_where_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="base class"):

        @light.dataclass(frozen=True)
        class Longer(Exception):
            x: int

    with pytest.raises(TypeError):
        light.dataclass(order=True)  # type: ignore[call-overload]


def test_a_persister_loads_neither_the_standard_ones_nor_what_they_need(tmp_path: Any) -> None:
    import subprocess

    program = "import sys, shmkv.wal.persister; print(*{'dataclasses', 'inspect', 'ast'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
