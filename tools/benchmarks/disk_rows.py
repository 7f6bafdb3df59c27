"""Rows of the disk: a durable set against a bare write and fdatasync, and the two kinds of restart.

Why here: they need stores of their own, which they kill.

Invariants:
  I1  The bare loop writes as many bytes as our record has, into a file that was written and synced before.
  I2  Restarts of a full and of an empty store take turns.
"""

from __future__ import annotations

import os
import random
import statistics
from time import perf_counter_ns

from harness.service import Service, ServiceFailed

import shmkv
from benchmarks.data import fresh_keys, fresh_values, key, uniform
from benchmarks.memory_rows import load_order
from benchmarks.rounds import call_each_pair, compare
from benchmarks.row import Row

RECORD_BYTES = 32 + 12 + 16 + 104  # header, entry header behind the version, key, value padded to 8
BARE_FILE_BYTES = 64 << 20


def durable_one(db: shmkv.Store, directory: str, keys: int, rounds: int, calls: int, seed: int) -> Row:
    """One process that waits for the disk at each set."""
    chance = random.Random(seed)
    path = f"{directory}/bare"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for at in range(0, BARE_FILE_BYTES, 1 << 20):
            os.pwrite(descriptor, bytes(1 << 20), at)
        os.fsync(descriptor)
        position = 0

        def prepare(number: int) -> tuple[object, object]:
            objects, values = fresh_keys(uniform(chance, keys, calls)), fresh_values(calls, number + 2)
            record = os.urandom(RECORD_BYTES)

            def bare() -> float:
                nonlocal position
                began_ns = perf_counter_ns()
                for _ in range(calls):
                    os.pwrite(descriptor, record, position)
                    os.fdatasync(descriptor)
                    position = (position + RECORD_BYTES) % (BARE_FILE_BYTES - RECORD_BYTES)
                return calls * 1e9 / (perf_counter_ns() - began_ns)

            return lambda: 1e9 / call_each_pair(db.set, objects, values), bare

        found = compare(prepare, rounds)  # type: ignore[arg-type]
    finally:
        os.close(descriptor)
        os.unlink(path)
    compared = f"{found.ours:,.0f}/s / {found.theirs:,.0f}/s bare pwrite + fdatasync of {RECORD_BYTES} bytes"
    return Row("durable_1", "durable sets, 1 process / bare write + fdatasync", found.ratio, 0.7, "x", True, compared)


def restarts(directory: str, keys: int, memory: str, rounds: int, kinds: set[str]) -> list[Row]:
    """Warm and cold starts of a killed store, full and empty in turns."""
    rows = []
    with (
        Service(f"bench-full-{os.getpid()}", parent_dir=directory, memory=memory, expected_items=keys) as full,
        Service(f"bench-empty-{os.getpid()}", parent_dir=directory, memory=memory, expected_items=keys) as empty,
    ):
        for service in (full, empty):
            service.start()
        with shmkv.attach(full.name, log_timeout=60.0) as db:
            load_singly(db, keys)
            db.sync(timeout=60.0)
        if "warm" in kinds or "warm_size" in kinds:
            rows += _warm(full, empty, keys, memory, rounds)
        if "cold" in kinds:
            rows.append(_cold(full, empty, keys, rounds))
        for service in (full, empty):
            service.stop()
    return [row for row in rows if row.name in kinds]


def load_singly(db: shmkv.Store, keys: int) -> None:
    """One record for each key: a batch would put ten keys into one."""
    for name, value in zip(fresh_keys(load_order(keys)), fresh_values(keys, 1), strict=True):
        db.set(name, value)


def _restart(service: Service, keys: int, *, cold: bool) -> tuple[float, float]:
    """ms from exec to ready and to the first read."""
    service.kill()
    if cold:
        service.remove_arena()
    start = service.start(key(keys // 2))
    if start.warm == cold:
        raise ServiceFailed(f"expected a {'cold' if cold else 'warm'} start, but the supervisor said: {start.line}")
    return start.ready_s * 1000, start.first_read_s * 1000


def _warm(full: Service, empty: Service, keys: int, memory: str, rounds: int) -> list[Row]:
    measured = [(_restart(full, keys, cold=False), _restart(empty, keys, cold=False)) for _ in range(rounds + 1)][1:]
    ready, first = (statistics.median(each[0][i] for each in measured) for i in range(2))
    bare = statistics.median(each[1][1] for each in measured)
    ratio = statistics.median(each[0][1] / each[1][1] for each in measured)
    title = f"warm restart of a killed store, {keys:,} keys in {memory}, exec to first read"
    return [
        Row("warm", title, first, 400, "ms", False, f"exec to ready {ready:.0f} ms"),
        Row("warm_size", "the same / with an empty arena", ratio, 1.1, "x", False, f"{first:.0f} ms / {bare:.0f} ms"),
    ]


def _cold(full: Service, empty: Service, keys: int, rounds: int) -> Row:
    measured = [(_restart(full, keys, cold=True), _restart(empty, keys, cold=True)) for _ in range(rounds)]
    whole, bare = (statistics.median(each[i][1] for each in measured) for i in range(2))
    compared = f"exec to first read {whole:,.0f} ms, all of it counted; of an empty store {bare:,.0f} ms"
    title = f"cold start from a log of {keys:,} records"
    return Row("cold", title, keys / whole * 1000, 1_000_000, "records/s", True, compared)
