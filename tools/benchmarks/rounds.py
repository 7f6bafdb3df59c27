"""How two things are compared: in turns, both warmed up, both without the garbage collector, ratio by ratio.

Why here: one way for every row, so that no row can be kinder to us than another.

Invariants:
  I1  Both sides run the same loop, over inputs that were made outside of the timed part and are used once.
  I2  Who goes first changes with every round.
  I3  The ratio is the median of the rounds' ratios; both medians are reported beside it.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns

WARM_ROUNDS = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians of both sides and of their ratio; the unit is the caller's."""

    ours: float
    theirs: float
    ratio: float


def compare(prepare: Callable[[int], tuple[Callable[[], float], Callable[[], float]]], rounds: int) -> Comparison:
    """`prepare(round)` makes the inputs and returns two functions that measure: ours, theirs."""
    measured: list[tuple[float, float]] = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(-WARM_ROUNDS, rounds):
            ours, theirs = prepare(number)
            if number % 2 == 0:
                first = ours()
                pair = (first, theirs())
            else:
                first = theirs()
                pair = (ours(), first)
            if number >= 0:
                measured.append(pair)
    finally:
        if was_enabled:
            gc.enable()
    return Comparison(
        statistics.median(ours for ours, _ in measured),
        statistics.median(theirs for _, theirs in measured),
        statistics.median(ours / theirs for ours, theirs in measured),
    )


def call_each(function: Callable[[str], object], keys: list[str]) -> float:
    """ns for each call of a function of one key."""
    began_ns = perf_counter_ns()
    for key in keys:
        function(key)
    return (perf_counter_ns() - began_ns) / len(keys)


def call_each_pair(function: Callable[[str, bytes], object], keys: list[str], values: list[bytes]) -> float:
    """ns for each call of a function of a key and a value."""
    began_ns = perf_counter_ns()
    for key, value in zip(keys, values):  # noqa: B905 - both loops in their plainest form
        function(key, value)
    return (perf_counter_ns() - began_ns) / len(keys)


def assign_each(target: dict[str, bytes], keys: list[str], values: list[bytes]) -> float:
    """ns for each `target[key] = value`."""
    began_ns = perf_counter_ns()
    for key, value in zip(keys, values):  # noqa: B905 - both loops in their plainest form
        target[key] = value
    return (perf_counter_ns() - began_ns) / len(keys)


def call_batches(function: Callable[[list[str]], object], batches: list[list[str]]) -> float:
    """ns for each key of calls of a function of many keys."""
    began_ns = perf_counter_ns()
    for batch in batches:
        function(batch)
    return (perf_counter_ns() - began_ns) / sum(map(len, batches))


def batches_of(keys: list[str], size: int) -> list[list[str]]:
    """The same key objects, in lists of `size`."""
    return [keys[at : at + size] for at in range(0, len(keys), size)]
