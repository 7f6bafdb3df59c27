"""Many threads and processes, and code that uses the store in the middle of another call.

Signal handlers, collections and codecs come at any moment; forks, kills and closes, too. Nothing may be lost or torn.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import shmkv

Audit = Callable[[str], list[dict[str, Any]]]


def in_threads(number: int, work: Any) -> None:
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_no_step_of_many_threads_is_lost(db: shmkv.Store) -> None:
    def work(index: int) -> None:
        for step in range(300):
            db.incr("int")
            db.incr("float", 0.5)
            db.incr("big", 2**64)
            db.modify("list", lambda value: (value + 1) % 10**9, default=0)
            db.append("text", "x")
            db[f"own {index} {step}"] = (index, step)

    in_threads(8, work)
    assert (db["int"], db["float"], db["big"], db["list"], len(db["text"])) == (2400, 1200.0, 2400 * 2**64, 2400, 2400)
    assert len(db) == 2405


def test_pop_and_setdefault_have_one_winner_each(db: shmkv.Store) -> None:
    taken: list[int] = []
    made: list[int] = []

    def work(index: int) -> None:
        for step in range(300):
            if db.setdefault(f"made {step}", index) == index:
                made.append(step)
            value = db.pop(f"taken {step}", None)
            if value is not None:
                taken.append(value)

    db.update({f"taken {step}": step for step in range(300)})
    in_threads(6, work)
    assert sorted(taken) == list(range(300))
    assert sorted(made) == list(range(300))


def test_more_threads_than_cores_come_and_go(db: shmkv.Store) -> None:
    for _ in range(5):
        in_threads(40, lambda index: db.set(str(index), index))
    assert len(db) == 40
    assert db.stats().threads < 200


def test_one_thread_closes_while_others_are_inside(db: shmkv.Store) -> None:
    db.update({str(number): b"x" * 200_000 for number in range(3)})
    for _ in range(20):
        handle = shmkv.attach(db.name)
        started = threading.Barrier(4)

        def work(index: int, handle: shmkv.Store = handle, started: threading.Barrier = started) -> None:
            started.wait()
            if index == 0:
                handle.close()
                return
            try:
                for _ in range(1000):
                    assert handle["1"] == b"x" * 200_000
            except ValueError as error:
                assert "closed" in str(error)

        in_threads(4, work)


def fork_and(work: Any) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_a_forked_child_uses_the_same_handle(db: shmkv.Store) -> None:
    def work() -> None:
        for _ in range(500):
            db.incr("n")
            db.modify("m", lambda value: value + 1, default=0)

    children = [fork_and(work) for _ in range(4)]
    work()
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert db["n"] == db["m"] == 2500


def test_a_child_that_closes_the_handle_ends_nothing(db: shmkv.Store) -> None:
    def work() -> None:
        db["from child"] = 1
        with db:
            pass
        assert db.closed

    assert os.waitpid(fork_and(work), 0)[1] == 0
    assert db["from child"] == 1
    db["still"] = "there"
    assert db["still"] == "there"


def worker(db: shmkv.Store, number: int) -> int:
    for _ in range(100):
        db.incr("n")
    db[f"worker {number}"] = {"pid": os.getpid()}
    return len(db)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_handles_travel_to_worker_processes(db: shmkv.Store, method: str) -> None:
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert all(count > 0 for count in pool.starmap(worker, [(db, number) for number in range(4)]))
    assert db["n"] == 400
    assert len({db[f"worker {number}"]["pid"] for number in range(4)} - {os.getpid()}) >= 1


def test_a_killed_writer_loses_nothing_and_blocks_nobody(db: shmkv.Store, audit: Audit) -> None:
    def work() -> None:
        for number in itertools.count():
            db.set("last", number)
            db[f"filler {number % 50}"] = b"x" * (number % 3000)

    for _ in range(20):
        pid = fork_and(work)
        deadline = time.monotonic() + 5
        seen = db.get("last", -1)
        while db.get("last", -1) == seen:
            assert time.monotonic() < deadline
        acknowledged = db["last"]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert db["last"] >= acknowledged
        db["last"] = -1
        assert all(value == b"x" * len(value) for key, value in db.items() if key != "last")
    assert audit(db.name) == []


def test_signal_handlers_may_use_the_store_in_the_middle_of_a_call(db: shmkv.Store) -> None:
    hits = 0

    def handle(*_: object) -> None:
        nonlocal hits
        hits += 1
        db.incr("from handler")
        db["big from handler"] = b"y" * 100_000
        list(itertools.islice(db.items(), 20))

    old = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        deadline = time.monotonic() + 1.5
        number = 0
        while time.monotonic() < deadline:
            number += 1
            db["k"] = b"x" * 100_000
            assert len(db["k"]) == 100_000
            db.update({f"m{key}": (number,) for key in range(100)})
            assert len(db.get_many([f"m{key}" for key in range(100)])) == 100
            assert sum(1 for _ in db.items()) >= 100
            db.incr("from loop")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert hits > 10
    assert (db["from handler"], db["from loop"]) == (hits, number)


def test_collections_may_use_the_store_in_the_middle_of_a_call(db: shmkv.Store) -> None:
    class Finalized:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            db.incr("collected")
            db.get_many(["a", "b", "big"])
            db["big"] = [b"z" * 50_000]

    threshold = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        for number in range(300):
            Finalized()
            db.update({"a": [number], "b": (number, {"x": [[]]})})
            assert db.get_many(["a", "b"]) == {"a": [number], "b": (number, {"x": [[]]})}
            assert {"a", "b"} <= {key for key, _ in db.items()}
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert db["collected"] == 300


def test_encoding_may_use_the_store(db: shmkv.Store) -> None:
    class Sneaky:
        pass

    def encode(value: Sneaky) -> bytes:
        db["k"] = "set while encoding"
        with shmkv.attach(db.name) as other:
            other["j"] = 1
        return b"encoded"

    def decode(data: bytes) -> Sneaky:
        db["l"] = "set while decoding"
        return Sneaky()

    shmkv.register_codec(Sneaky, "tests/sneaky", encode, decode)
    db["k"] = [Sneaky()]
    assert type(db["k"][0]) is Sneaky
    assert [type(value) for value in db.get_many(["k"])["k"]] == [Sneaky]
    assert len(list(db.values())) == 3
    assert (db["j"], db["l"]) == (1, "set while decoding")


def test_an_array_changed_by_another_thread_while_it_is_set_is_stored_whole(db: shmkv.Store, audit: Audit) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(50_000, "i8")
    done = threading.Event()

    def change() -> None:
        number = 0
        while not done.is_set():
            number += 1
            array[:] = number

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            db["a"] = array
            found = db["a"]
            assert found.shape == array.shape
            assert found.max() - found.min() <= 1000
            db.set_many({"b": {"nested": array}})
            assert db["b"]["nested"].dtype == array.dtype
    finally:
        done.set()
        thread.join()
    assert audit(db.name) == []
