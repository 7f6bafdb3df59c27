"""Rows of what lies on disk: writers beside a snapshot, its speed, and what encryption costs.

Why here: all of them run one writer at full speed against one store and compare windows of that.

Invariants:
  I1  Windows with and without the thing that is measured take turns, and who goes first changes.
  I2  A window "with" lies wholly inside a time in which one snapshot follows the other: harder than any real use.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter_ns

from harness.processes import fork
from harness.service import Service

import shmkv
from benchmarks.data import fresh_keys, fresh_values, uniform
from benchmarks.memory_rows import load
from benchmarks.row import Row

WINDOW_CALLS = 50_000
SNAPSHOT_BYTES_PER_S = 500e6
PIECE_BYTES = 1 << 20


def snapshots(
    directory: str, keys: int, rounds: int, seconds: float, seed: int, say: Callable[[str], None]
) -> list[Row]:
    """p99 and rate of a writer beside snapshots, speed of a snapshot, memory of the persister."""
    name, memory = f"bench-snapshot-{os.getpid()}", 192_000_000 + 260 * keys
    options = {"memory": memory, "expected_items": keys, "snapshot_interval": 0, "snapshot_log": 0}
    with Service(name, parent_dir=directory, **options) as service:
        service.start()
        service.find_control()
        with shmkv.attach(name, log_timeout=60.0) as db:
            say(f"loading {keys:,} keys")
            load(db, keys)
            rows = _speed(db, service, rounds)
            say("measuring a writer beside snapshots")
            rows += _beside(db, service, keys, rounds, seconds, seed)
        service.stop()
    return rows


def _speed(db: shmkv.Store, service: Service, rounds: int) -> list[Row]:
    measured = []
    for _ in range(rounds):
        db.sync(timeout=60.0)
        began_ns = perf_counter_ns()
        info = db.snapshot()
        took_s = (perf_counter_ns() - began_ns) / 1e9
        measured.append((info.size_bytes / took_s, bare_rate(service.directory, info.size_bytes)))
    ours, disk = (statistics.median(each[i] for each in measured) for i in range(2))
    limit = min(SNAPSHOT_BYTES_PER_S, disk)
    compared = f"asked to answered; the disk itself took the same bytes at {disk / 1e6:,.0f} MB/s"
    title = f"snapshot of {info.entries:,} items, {info.size_bytes / 1e6:,.0f} MB"
    return [Row("snapshot_rate", title, ours / 1e6, limit / 1e6, "MB/s", True, compared)]


def bare_rate(directory: str, size_bytes: int) -> float:
    """Bytes a second of writing that many into a new file, and syncing it."""
    path, piece = f"{directory}/bare-snapshot", os.urandom(PIECE_BYTES)
    began_ns = perf_counter_ns()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for _ in range(-(-size_bytes // PIECE_BYTES)):
            os.write(descriptor, piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        os.unlink(path)
    return size_bytes * 1e9 / (perf_counter_ns() - began_ns)


def _beside(db: shmkv.Store, service: Service, keys: int, rounds: int, seconds: float, seed: int) -> list[Row]:
    chance = random.Random(seed)
    measured: list[tuple[tuple[float, float], tuple[float, float]]] = []
    memory = PersisterMemory(service)
    for number in range(rounds):
        pair: dict[bool, tuple[float, float]] = {}
        for busy in ((False, True), (True, False))[number % 2]:
            if busy:
                with snapshots_one_after_the_other(service.name), memory:
                    pair[busy] = window(db, chance, keys, seconds)
            else:
                pair[busy] = window(db, chance, keys, seconds)
            db.sync(timeout=60.0)
        measured.append((pair[True], pair[False]))
    p99, rate = (statistics.median(ours[i] / theirs[i] for ours, theirs in measured) for i in range(2))
    shown = [statistics.median(each[busy][i] for each in measured) for i in range(2) for busy in range(2)]
    return [
        Row("snapshot_p99", "p99 of set, snapshots one after the other / none", p99, 2.0, "x", False,
            f"{shown[0] / 1e3:,.1f} us / {shown[1] / 1e3:,.1f} us, one writer at full speed"),
        Row("snapshot_writers", "sets a second, snapshots one after the other / none", rate, 0.85, "x", True,
            f"{shown[2]:,.0f}/s / {shown[3]:,.0f}/s"),
        Row("persister_memory", "private memory of the persister, at most, meanwhile", memory.highest_bytes / 1e6, 100,
            "MB", False, f"arena of {service.stats()['mapped_bytes'] / 1e6:,.0f} MB"),
    ]  # fmt: skip


def window(db: shmkv.Store, chance: random.Random, keys: int, seconds: float) -> tuple[float, float]:
    """p99 in ns of single sets, and sets a second, over about that time; inputs are made between the timed parts."""
    took: list[int] = []
    spent_ns = 0
    gc.disable()
    try:
        while spent_ns < seconds * 1e9:
            objects, values = fresh_keys(uniform(chance, keys, WINDOW_CALLS)), fresh_values(WINDOW_CALLS, len(took))
            before_ns = began_ns = perf_counter_ns()
            for key, value in zip(objects, values):  # noqa: B905 - as plain as it gets
                db.set(key, value)
                now_ns = perf_counter_ns()
                took.append(now_ns - before_ns)
                before_ns = now_ns
            spent_ns += before_ns - began_ns
    finally:
        gc.enable()
    return statistics.quantiles(took, n=100)[98], len(took) * 1e9 / spent_ns


@contextmanager
def snapshots_one_after_the_other(name: str) -> Iterator[None]:
    """A process that asks for a snapshot whenever the last one is done; entered when the first one is under way."""
    started, stop = os.pipe(), os.pipe()

    def ask() -> None:
        os.close(stop[1])
        with shmkv.attach(name, timeout=10.0) as db:
            db.snapshot()
            os.write(started[1], b"s")
            os.set_blocking(stop[0], False)
            while not _closed(stop[0]):
                db.snapshot()

    asker = fork(ask)
    os.close(started[1])
    os.close(stop[0])
    try:
        if os.read(started[0], 1) != b"s":
            raise RuntimeError("the process that asks for snapshots failed; see above")
        yield
    finally:
        os.close(stop[1])
        os.close(started[0])
        code = asker.reap()
    if code != 0:
        raise RuntimeError("the process that asks for snapshots failed; see above")


def _closed(descriptor: int) -> bool:
    try:
        return os.read(descriptor, 1) == b""
    except BlockingIOError:
        return False


class PersisterMemory:
    """Watches the anonymous memory of a persister while it is entered: the arena's shared pages don't count."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.highest_bytes = 0

    def _watch(self, pid: int) -> None:
        while not self._stop.wait(0.02):
            with open(f"/proc/{pid}/status") as file:
                size = next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))
            self.highest_bytes = max(self.highest_bytes, size)

    def __enter__(self) -> None:
        family = self._service.family()
        pid = family["persister"].pid
        for process in family.values():
            process.close()
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, args=(pid,))
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._stop.set()
        self._thread.join()


def encryption(directory: str, keys: int, rounds: int, seconds: float, seed: int) -> Row:
    """One writer at full speed, durability interval, into a store with a key and one without."""
    key_path = f"{directory}/bench-key-{os.getpid()}"
    with open(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(os.urandom(32).hex() + "\n")
    options = {"memory": 192_000_000 + 260 * keys, "expected_items": keys, "snapshot_interval": 0, "snapshot_log": 0}
    try:
        with (
            Service(f"bench-secret-{os.getpid()}", parent_dir=directory, key_file=key_path, **options) as secret,
            Service(f"bench-clear-{os.getpid()}", parent_dir=directory, **options) as clear,
        ):
            for service in (secret, clear):
                service.start()
            measured = _in_turns(secret.name, clear.name, keys, rounds, seconds, random.Random(seed))
            for service in (secret, clear):
                service.stop()
    finally:
        os.unlink(key_path)
    ratio = statistics.median(ours / theirs for ours, theirs in measured)
    ours, theirs = (statistics.median(each[i] for each in measured) for i in range(2))
    title = "sets a second, durability interval, log encrypted / in clear"
    return Row("encryption", title, ratio, 0.85, "x", True, f"{ours:,.0f}/s / {theirs:,.0f}/s, until all is on disk")


def _in_turns(
    secret: str, clear: str, keys: int, rounds: int, seconds: float, chance: random.Random
) -> list[tuple[float, float]]:
    """(encrypted, in clear) sets a second, round by round."""
    measured = []
    with shmkv.attach(secret, log_timeout=60.0) as ours, shmkv.attach(clear, log_timeout=60.0) as theirs:
        for db in (ours, theirs):
            load(db, keys)
            db.sync(timeout=60.0)
        for number in range(rounds):
            pair = {
                db.name: _until_synced(db, chance, keys, seconds) for db in ((ours, theirs), (theirs, ours))[number % 2]
            }
            measured.append((pair[secret], pair[clear]))
    return measured


def _until_synced(db: shmkv.Store, chance: random.Random, keys: int, seconds: float) -> float:
    """Sets a second, the time until all of them are on disk included: a ring-full that waits would flatter."""
    _, rate = window(db, chance, keys, seconds)
    began_s = monotonic()
    db.sync(timeout=60.0)
    return rate * seconds / (seconds + monotonic() - began_s)
