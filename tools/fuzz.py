"""make fuzz: what comes back from memory and disk is changed at random; it must be refused or read whole, never crash.

Log records (`verify` and `apply`), arena headers, values in their stored form, and files of every kind (harness/
fuzz_files.py). Each batch runs in a forked process, so that a crash is a finding and not the end. Exit code 1 if there
was one. The seed that is printed repeats a run.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from harness import fuzz_files
from harness.processes import fork
from harness.service import ended_by_signal

import shmkv
from shmkv.segment import _core
from shmkv.values import decode, encode

BATCH = 200
RECORD_BATCH = 10  # each formats two arenas
ARENA_BYTES = 16 << 20
STORE_ID, INCARNATION = bytes(range(16)), 3
IDENTITY: dict[str, Any] = {"store_id": STORE_ID, "incarnation": INCARNATION}
# What a refusal may look like; anything else is a finding.
REFUSALS = (shmkv.ShmkvError, ValueError)
SAMPLES: list[Any] = [
    [1, 2.5, None, True],
    {"a": (1, 2), 3: b"x"},
    datetime(2024, 1, 2, 3, 4, 5, 678, UTC),
    Decimal("1.50"),
    UUID(int=7),
    2**100,
    -(2**64),
    {"nested": [{"deep": (Decimal(1), [b"", ""])}]},
    (),
    [[]],
]


def new_arena(first_lsn: int) -> tuple[int, _core.Arena]:
    """An empty arena in anonymous memory, and its descriptor."""
    fd = os.memfd_create("fuzz")
    os.ftruncate(fd, ARENA_BYTES)
    _core.format_arena(fd, size_bytes=ARENA_BYTES, name="fuzz", first_lsn=first_lsn, has_log=True, **IDENTITY)
    return fd, _core.Arena(fd)


def some_records() -> tuple[bytes, int]:
    """Log records of every kind that the store writes today, and the LSN of the first."""
    first_lsn = _core.LSN_GAP
    fd, arena = new_arena(first_lsn)
    arena.set_state(state="READY")
    with_store = _core.Store(fd, "fuzz")
    for number in range(20):
        with_store.set(f"key {number % 7}", os.urandom(number * 11))
    with_store.set_many({f"many {number}": number for number in range(30)})
    with_store.set("expires", 1, ttl=100)
    with_store.delete("key 1")
    with_store.incr("count")
    with_store.append("log", b"abc")
    arena.mark(1)
    with_store.clear()
    with_store.set("last", "text")
    tail = arena.ring()["tail"]
    data = b"".join(bytes(piece) for piece in arena.ring_pieces(first_lsn, tail))
    with_store.close()
    arena.close()
    os.close(fd)
    return data, first_lsn


def change(chance: random.Random, data: bytes) -> bytes:
    """Flip bits, overwrite, cut out, double or cut off."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at, size = chance.randrange(len(changed)), chance.choice((1, 2, 4, 8, 64))
        kind = chance.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + size] = chance.randbytes(len(changed[at : at + size]))
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = changed[at : at + size]
        else:
            changed[at : at + size] = b"\xff" * len(changed[at : at + size])
        if not changed:
            break
    return bytes(changed)


def recovered(data: bytes, first_lsn: int) -> tuple[int, dict[Any, Any]]:
    """What applying a log gives: bytes accepted, and every key with value, version, expiry, flags, size."""
    fd, arena = new_arena(first_lsn)
    consumed = arena.apply(data, first_lsn=first_lsn, **IDENTITY)["consumed_bytes"]
    if consumed != _core.verify(data, first_lsn=first_lsn, **IDENTITY)["consumed_bytes"]:
        raise AssertionError("apply and verify do not agree on where the log ends")
    arena.set_lsn(first_lsn + _core.LSN_GAP)
    if findings := arena.audit(deep=True):
        raise AssertionError(f"applying a log left {findings[0]}")
    arena.set_state(state="READY")
    entries: dict[Any, Any] = {}
    store, cursor = _core.Store(fd, "fuzz"), 0
    while cursor != _core.CURSOR_END:
        cursor, keys = store._scan(cursor, False)
        entries.update((key, store._entry(key)) for key in keys)
    store.close()
    arena.close()
    os.close(fd)
    return consumed, entries


def fuzz_records(chance: random.Random) -> None:
    """What is accepted of a changed log gives what that much of the original gives: only padding may differ."""
    data, first_lsn = some_records()
    for _ in range(RECORD_BATCH):
        consumed, entries = recovered(change(chance, data), first_lsn)
        expected, originals = recovered(data[:consumed], first_lsn)
        if (consumed, entries) != (expected, originals):
            wrong = [key for key in entries | originals if entries.get(key) != originals.get(key)]
            raise AssertionError(
                f"{consumed} bytes accepted, {expected} of them original; keys that differ: {wrong[:5]}"
            )


def fuzz_header(chance: random.Random) -> None:
    """A changed header is refused, or its other copy is used."""
    fd, arena = new_arena(_core.LSN_GAP)
    arena.close()
    for _ in range(BATCH // 4):
        at, size = chance.randrange(3 * 4096), chance.choice((1, 4, 8, 64, 4096))
        before = os.pread(fd, size, at)
        os.pwrite(fd, chance.randbytes(size), at)
        for look in (lambda: _core.read_header(fd), lambda: _core.Arena(fd, read_only=True).close()):
            try:
                look()
            except REFUSALS:
                continue
        os.pwrite(fd, before, at)
    os.close(fd)


def fuzz_values(chance: random.Random) -> None:
    """A changed value is decoded to some value, or refused."""
    for _ in range(BATCH):
        kind, data = encode(chance.choice(SAMPLES))
        changed = change(chance, bytes(data)) if data else chance.randbytes(8)
        try:
            decode(kind if chance.random() < 0.9 else chance.randrange(256), changed)
        except REFUSALS:
            continue


TARGETS: dict[str, Callable[[random.Random], None]] = {
    "records": fuzz_records,
    "header": fuzz_header,
    "values": fuzz_values,
    **{name: partial(target, change=change) for name, target in fuzz_files.TARGETS.items()},
}


def main(argv: list[str]) -> int:
    """Fuzz for a while; 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--target", choices=sorted(TARGETS), action="append", help="only this one; may come several times"
    )
    options = parser.parse_args(argv)
    ended_by_signal()
    names = options.target or sorted(TARGETS)
    print(f"shmkv fuzz, seed {options.seed}: {', '.join(names)} for {options.seconds:g} s")
    end_s, batches, failures = time.monotonic() + options.seconds, 0, 0
    while time.monotonic() < end_s:
        name, seed = names[batches % len(names)], options.seed + batches
        code = fork(TARGETS[name], random.Random(seed)).reap()
        batches += 1
        if code != 0:
            failures += 1
            print(f"FOUND: target {name}, exit code {code}; repeat with --target {name} --seed {seed} --seconds 0.1")
    print(f"{batches} batches, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
