"""Slots over the life of threads and processes: claimed once each, given back, reaped, never inherited."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from typing import Any

from shmkv.segment import _core
from tests.segment.conftest import mapped, wait_until


def run_in_child(function: Any) -> int:
    """Exit code of a forked child that runs the function: 0 if it returns, 1 if it raises."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- threads ---------------------------------------------------------------------------------------------------------
def test_a_thread_gives_its_slot_back_when_it_ends(segment: Any) -> None:
    db = segment.store()
    inside, leave = threading.Event(), threading.Event()
    ids: list[int] = []

    def work() -> None:
        db["key"] = 1
        ids.append(threading.get_native_id())
        inside.set()
        leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    assert ids[0] in segment.slot_threads()
    leave.set()
    thread.join()
    wait_until(lambda: ids[0] not in segment.slot_threads(), "the slot to come back")


def test_slots_come_back_when_the_last_handle_goes(segment: Any) -> None:
    arena = segment.arena
    db = _core.Store(segment.fd, "test")
    db["key"] = 1
    assert threading.get_native_id() in segment.slot_threads()
    db.close()
    arena.close()
    reader = _core.Arena(segment.fd, read_only=True)
    assert reader.slots() == []
    reader.close()
    segment.arena = _core.Arena(segment.fd)


def test_threads_that_use_more_stores_than_the_cache_holds_keep_one_slot_each(make_segment: Any) -> None:
    segments = [make_segment(size_bytes=6 << 20) for _ in range(9)]
    stores = [segment.store() for segment in segments]
    for i in range(200):
        for store in stores:
            store["key"] = i
    assert [store["key"] for store in stores] == [199] * 9
    assert [len(segment.arena.slots()) for segment in segments] == [1] * 9


def test_threads_that_hammer_one_handle_lose_no_increment(segment: Any) -> None:
    db = segment.store(lock_timeout_s=30)
    threads, rounds = 6, 1500
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        try:
            for i in range(rounds):
                db.incr("total")
                key = f"key{random_.randrange(50)}"
                value = bytes([seed]) * random_.randrange(1, 6000)
                db[key] = value
                seen = db.get(f"key{random_.randrange(50)}", b"")
                assert len(set(seen)) <= 1
                if i % 50 == 0:
                    assert all(len(set(v)) <= 1 for v in db.get_many([f"key{k}" for k in range(50)]).values())
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(1, threads + 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert db["total"] == threads * rounds


def test_large_values_are_never_torn_between_threads(make_segment: Any) -> None:
    db = make_segment(size_bytes=32 << 20).store(lock_timeout_s=30)
    db["large"] = b"a" * 300_000
    stop = threading.Event()
    torn: list[Any] = []

    def read() -> None:
        while not stop.is_set():
            value = db["large"]
            if value.count(value[0]) != len(value):
                torn.append(value)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(150):
        db["large"] = bytes([97 + i % 26]) * (250_000 + i * 997)
    stop.set()
    for reader in readers:
        reader.join()
    assert torn == []


# ---- processes -------------------------------------------------------------------------------------------------------
def test_a_forked_child_uses_the_handle_with_a_slot_of_its_own(segment: Any) -> None:
    db = segment.store()
    db["key"] = "parent"
    mine = {slot["slot"]: slot["pid"] for slot in segment.arena.slots()}

    def child() -> None:
        assert db["key"] == "parent"
        db["key"] = "child"
        db.incr("count")
        slots = {slot["slot"]: slot["pid"] for slot in segment.arena.slots()}
        assert mine.items() <= slots.items()
        assert os.getpid() in slots.values()

    assert run_in_child(child) == 0
    assert db["key"] == "child"
    assert db.incr("count") == 2
    assert segment.arena.reap() == 1
    assert {slot["slot"]: slot["pid"] for slot in segment.arena.slots()} == mine


def test_a_child_that_closes_its_handle_ends_nothing(segment: Any) -> None:
    db = segment.store()
    db["key"] = 1

    def child() -> None:
        db.close()
        segment.arena.close()
        assert mapped(segment.fd) == 0

    assert run_in_child(child) == 0
    assert db["key"] == 1
    db["key"] = 2
    assert threading.get_native_id() in segment.slot_threads()


def test_a_fork_while_other_threads_work_leaves_a_usable_child(segment: Any) -> None:
    db = segment.store(lock_timeout_s=30)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            db["shared"] = b"x" * 100_000
            db.get("shared")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()

    def child() -> None:
        for _ in range(20):
            db.incr("count")
        assert len(db["shared"]) == 100_000
        db.close()

    try:
        codes = [run_in_child(child) for _ in range(15)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 15
    assert db["count"] == 300


def test_a_fork_that_runs_no_handlers_is_noticed(segment: Any) -> None:
    # In an interpreter of its own: such a child must not meet a lock that another thread of its parent held.
    code = (
        "import ctypes, os, sys\nfrom shmkv.segment import _core\n"
        "fd = int(sys.argv[1]); db = _core.Store(fd, 'test'); arena = _core.Arena(fd); db['key'] = 1\n"
        "pid = ctypes.PyDLL(None).syscall(int(sys.argv[2]), 17, 0, 0, 0, 0)\n"
        "if pid == 0:\n"
        "    db.get('key')\n"
        "    os._exit(0 if os.getpid() in {slot['pid'] for slot in arena.slots()} else 3)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or db['key'] - 1)\n"
    )
    clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    command = [sys.executable, "-c", code, str(segment.fd), str(clone)]
    subprocess.run(command, check=True, pass_fds=[segment.fd], timeout=30)
    assert segment.arena.reap() == 1


def test_a_process_gives_its_slots_back_when_it_ends(segment: Any) -> None:
    code = (
        "import sys, threading\nfrom shmkv.segment import _core\n"
        "db = _core.Store(int(sys.argv[1]), 'test')\n"
        "t = threading.Thread(target=lambda: db.incr('n')); t.start(); t.join(); db.incr('n')\n"
        "threading.Thread(target=lambda: (db.incr('n'), threading.Event().wait()), daemon=True).start()\n"
        "while db['n'] < 3: pass\n"
    )
    before = segment.arena.slots()
    subprocess.run([sys.executable, "-c", code, str(segment.fd)], check=True, pass_fds=[segment.fd], timeout=30)
    assert segment.store()["n"] == 3
    assert [slot["slot"] for slot in segment.arena.slots() if slot["pid"] != os.getpid()] == []
    assert len(before) <= 1


def test_a_killed_process_is_reaped(segment: Any) -> None:
    code = (
        "import sys\nfrom shmkv.segment import _core\ndb = _core.Store(int(sys.argv[1]), 'test')\n"
        "db['key'] = 1; print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(segment.fd)],
        pass_fds=[segment.fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"ready\n"
    alive = {slot["pid"]: slot["alive"] for slot in segment.arena.slots()}
    assert alive[process.pid] == 1
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    assert {slot["pid"]: slot["alive"] for slot in segment.arena.slots()}[process.pid] == 0
    assert segment.arena.reap() == 1
    assert process.pid not in {slot["pid"] for slot in segment.arena.slots()}
