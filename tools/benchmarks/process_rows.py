"""Rows of several processes: two that read, and sixteen that write durably.

Why here: all of them start processes at one moment and add their rates up.

Invariants:
  I1  Every process makes its inputs before the common start, and counts only whole chunks up to the common end.
"""

from __future__ import annotations

import gc
import math
import os
import random
import statistics
import struct
import time
from collections.abc import Callable
from functools import partial

from harness.processes import fork

import shmkv
from benchmarks.data import fresh_keys, fresh_values, uniform
from benchmarks.row import Row

CHUNK = 2000
LEAD_S = 0.05
NUMBER = struct.Struct("<d")
Work = Callable[[float, float], float]  # (start, end) on the monotonic clock -> operations a second


def together(count: int, seconds: float, make: Callable[[int], Work]) -> float:
    """Total rate of `count` processes over `seconds`; `make(number)` prepares in each, before the common start."""
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    rates_read, rates_write = os.pipe()

    def body(number: int) -> None:
        gc.disable()
        work = make(number)
        os.write(ready_write, b"r")
        (start_s,) = NUMBER.unpack(os.read(go_read, NUMBER.size))
        time.sleep(max(0.0, start_s - time.monotonic()))
        os.write(rates_write, NUMBER.pack(work(start_s, start_s + seconds)))

    processes = [fork(body, number) for number in range(count)]
    os.close(ready_write)
    os.close(rates_write)
    ready = 0
    while ready < count and (data := os.read(ready_read, count)):
        ready += len(data)
    os.write(go_write, NUMBER.pack(time.monotonic() + LEAD_S) * count)
    failed = sum(process.reap() != 0 for process in processes)
    rates = os.read(rates_read, 65536)
    for descriptor in (ready_read, go_read, go_write, rates_read):
        os.close(descriptor)
    if failed:
        raise RuntimeError(f"{failed} of {count} measuring processes failed")
    return math.fsum(rate for (rate,) in NUMBER.iter_unpack(rates))


def reading(name: str, keys: int, count: int, seed: int) -> Work:
    """db.get of fresh random keys."""
    db = shmkv.attach(name, timeout=10.0)
    objects = fresh_keys(uniform(random.Random(seed), keys, count))

    def work(start_s: float, end_s: float) -> float:
        get, done = db.get, 0
        while time.monotonic() < end_s and done < count:
            for key in objects[done : done + CHUNK]:
                get(key)
            done += CHUNK
        return done / (time.monotonic() - start_s)

    return work


def spinning() -> Work:
    """A loop that touches no memory."""

    def work(start_s: float, end_s: float) -> float:
        done = number = 0
        while time.monotonic() < end_s:
            for _ in range(CHUNK):
                number = (number * 1103515245 + 12345) & 0x7FFFFFFF
            done += CHUNK
        return done / (time.monotonic() - start_s)

    return work


def writing(name: str, number: int) -> Work:
    """Durable sets of fresh keys and values."""
    db = shmkv.attach(name, timeout=10.0, durability="always")
    keys, values = fresh_keys(list(range(number * 1000, number * 1000 + 1000))), fresh_values(1000, number)

    def work(start_s: float, end_s: float) -> float:
        done = 0
        while time.monotonic() < end_s:
            db.set(keys[done % 1000], values[done % 1000])
            done += 1
        return done / (time.monotonic() - start_s)

    return work


def read_scaling(name: str, keys: int, rounds: int, seconds: float, seed: int) -> Row:
    """Two reading processes against one, measured by what two cores are worth at that moment."""
    per_process = int(3_000_000 * seconds)
    measured = []
    for number in range(rounds):
        reader = partial(_reader_of_round, name, keys, per_process, seed + 10 * number)
        one, two = (together(count, seconds, reader) for count in (1, 2))
        one_spins, two_spin = (together(count, seconds, lambda _: spinning()) for count in (1, 2))
        measured.append((two / one, two_spin / one_spins, one, two))
    ratio = statistics.median(read / spin for read, spin, _, _ in measured)
    reads, spins, one, two = (statistics.median(each[i] for each in measured) for i in range(4))
    compared = f"{two / 1e6:.2f} M / {one / 1e6:.2f} M gets/s = {reads:.2f}; two CPU loops / one = {spins:.2f}"
    return Row(
        "read_scaling", "two reading processes / one, by what two CPU loops get", ratio, 0.95, "x", True, compared
    )


def _reader_of_round(name: str, keys: int, count: int, seed: int, number: int) -> Work:
    return reading(name, keys, count, seed + number)


def durable_scaling(name: str, rounds: int, seconds: float) -> Row:
    """Sixteen durable writers against one: one fdatasync serves them all."""
    measured = []
    for _ in range(rounds):
        many = together(16, seconds, lambda k: writing(name, k))
        one = together(1, seconds, lambda k: writing(name, k))
        measured.append((many, one))
    ratio = statistics.median(many / one for many, one in measured)
    many, one = (statistics.median(each[i] for each in measured) for i in range(2))
    compared = f"{many:,.0f}/s / {one:,.0f}/s"
    return Row("durable_16", "durable sets, 16 processes / 1 process", ratio, 6.0, "x", True, compared)
