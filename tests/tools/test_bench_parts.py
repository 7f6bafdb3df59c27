"""The bench treats both sides alike and judges each row on the right side of its limit."""

import gc

import pytest
from benchmarks.data import KEY_BYTES, VALUE_BYTES, fresh_keys, fresh_values, key
from benchmarks.rounds import Comparison, compare
from benchmarks.row import Row


def test_both_sides_take_turns_without_the_garbage_collector() -> None:
    calls: list[str] = []

    def prepare(number: int) -> tuple[object, object]:
        def side(name: str, result: float) -> object:
            def measure() -> float:
                assert not gc.isenabled()
                calls.append(name)
                return result

            return measure

        return side("ours", 2.0), side("theirs", 4.0)

    assert compare(prepare, rounds=2) == Comparison(2.0, 4.0, 0.5)  # type: ignore[arg-type]
    assert calls == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert gc.isenabled()


def test_keys_and_values_are_fresh_objects_of_the_said_size() -> None:
    first, second = fresh_keys([1, 1]), fresh_keys([1])
    assert first[0] == first[1] == second[0] == key(1)
    assert len({id(each) for each in (*first, *second)}) == 3
    assert len(first[0].encode()) == KEY_BYTES
    assert {len(value) for value in fresh_values(3, 5)} == {VALUE_BYTES}


@pytest.mark.parametrize(("at_least", "good"), [(True, False), (False, True)])
def test_a_row_is_judged_on_the_side_of_its_limit(at_least: bool, good: bool) -> None:
    row = Row("name", "title", 1.0, 1.5, "x", at_least, "")
    assert row.good is good
    assert row.shown_limit == (">= 1.50x" if at_least else "<= 1.50x")


def test_a_row_without_a_limit_is_good() -> None:
    assert Row("name", "title", 99.0, None, "x", False, "").good
