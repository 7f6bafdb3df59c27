"""Keys and values of the benchmarks: 16-byte keys, 100-byte values, fresh objects whenever they are used.

Why here: a str caches its hash, and an object that lies in a dict is found by its address; fresh ones help nobody.

Invariants:
  I1  Two lists never share an object.
"""

from __future__ import annotations

import random

KEY_BYTES = 16
VALUE_BYTES = 100


def key(number: int) -> str:
    """The key of a number."""
    return f"k{number:015d}"


def fresh_keys(numbers: list[int]) -> list[str]:
    """New str objects, one for each number, also for one that comes twice."""
    return [f"k{number:015d}" for number in numbers]


def fresh_values(count: int, salt: int) -> list[bytes]:
    """New bytes objects, all different."""
    return [b"%050d%050d" % (salt, number) for number in range(count)]


def uniform(chance: random.Random, keys: int, count: int) -> list[int]:
    """Random numbers of keys."""
    return [int(chance.random() * keys) for _ in range(count)]
