"""Waiting through the binding: locks, log and disk; deadlines, Ctrl-C, and closing meanwhile.

The ring's lock is held by another process, so every write has to wait; reads never do.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmkv import errors
from shmkv.segment import _core
from tests.segment.conftest import wait_until

# A busy machine runs a woken thread late; the promise itself is 50 ms.
SLACK_S = 0.25


@pytest.fixture
def interrupt_after() -> Iterator[Callable[[float], None]]:
    """Raise KeyboardInterrupt in the main thread, by a real signal, after so many seconds."""

    def handler(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


WRITES: dict[str, Callable[[_core.Store], Any]] = {
    "set": lambda db: db.set("key", 1),
    "setitem": lambda db: db.__setitem__("key", 1),
    "large": lambda db: db.set("key", b"x" * 100_000),
    "delete": lambda db: db.delete("there"),
    "delitem": lambda db: db.__delitem__("there"),
    "incr": lambda db: db.incr("number"),
    "append": lambda db: db.append("text", "abc"),
    "set_many": lambda db: db.set_many({"a": 1, "b": 2}),
    "delete_many": lambda db: db.delete_many(["there"]),
    "clear": lambda db: db.clear(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_that_meets_a_busy_lock_times_out_naming_the_holder(
    segment: Any, write: Callable[[_core.Store], Any], request: pytest.FixtureRequest
) -> None:
    db = segment.store(lock_timeout_s=0.15)
    db["there"] = 1
    before = segment.arena.ring()["tail"]
    lock = request.getfixturevalue("hold_ring_lock")
    start_s = time.monotonic()
    with pytest.raises(errors.LockTimeout, match=f"ring.* process {lock.pid} holds it"):
        write(db)
    assert 0.15 <= time.monotonic() - start_s < 0.15 + SLACK_S
    assert segment.arena.ring()["tail"] == before
    assert db["there"] == 1
    lock.release()
    write(db)


def test_a_timeout_of_zero_does_not_wait(segment: Any, hold_ring_lock: Any) -> None:
    db = segment.store(lock_timeout_s=0)
    start_s = time.monotonic()
    with pytest.raises(errors.LockTimeout, match=f"process {hold_ring_lock.pid} holds it"):
        db["key"] = 1
    assert time.monotonic() - start_s < SLACK_S


def test_reads_go_on_while_a_writer_waits(segment: Any, request: pytest.FixtureRequest) -> None:
    db = segment.store(lock_timeout_s=10)
    db["there"] = 1
    lock = request.getfixturevalue("hold_ring_lock")
    writer = threading.Thread(target=lambda: db.set("key", 2))
    writer.start()
    for _ in range(200):
        assert db["there"] == 1
    assert "key" not in db
    assert writer.is_alive()
    lock.release()
    writer.join(10)
    assert db["key"] == 2


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_ctrl_c_ends_the_wait_for_a_lock(
    segment: Any,
    write: Callable[[_core.Store], Any],
    interrupt_after: Callable[[float], None],
    request: pytest.FixtureRequest,
) -> None:
    db = segment.store(lock_timeout_s=30)
    db["there"] = 1
    request.getfixturevalue("hold_ring_lock")
    start_s = time.monotonic()
    interrupt_after(0.08)
    with pytest.raises(KeyboardInterrupt):
        write(db)
    assert time.monotonic() - start_s < 0.08 + 0.05 + SLACK_S
    assert db["there"] == 1


def test_a_stopped_holder_is_waited_for_and_not_robbed(segment: Any, hold_ring_lock: Any) -> None:
    db = segment.store(lock_timeout_s=0.2)
    os.kill(hold_ring_lock.pid, signal.SIGSTOP)
    try:
        with pytest.raises(errors.LockTimeout, match=f"process {hold_ring_lock.pid}"):
            db["key"] = 1
    finally:
        os.kill(hold_ring_lock.pid, signal.SIGCONT)
    hold_ring_lock.release()
    db["key"] = 1


def test_a_killed_holder_is_repaired_within_the_wait(segment: Any, hold_ring_lock: Any) -> None:
    db = segment.store(lock_timeout_s=10)
    writer = threading.Thread(target=lambda: db.set("key", 1))
    writer.start()
    os.kill(hold_ring_lock.pid, signal.SIGKILL)
    writer.join(10)
    assert db["key"] == 1
    hold_ring_lock.release()


# ---- closing ---------------------------------------------------------------------------------------------------------
def test_close_waits_for_the_call_that_is_inside(segment: Any, hold_ring_lock: Any) -> None:
    db = segment.store(lock_timeout_s=20)
    db.get("claims a slot")
    results: list[Any] = []
    writer = threading.Thread(target=lambda: results.append(db.set("key", 1)))
    writer.start()
    time.sleep(0.05)
    closer = threading.Thread(target=db.close)
    closer.start()
    wait_until(lambda: db.closed, "the handle to refuse new calls")
    with pytest.raises(ValueError, match="closed"):
        db.get("key")
    closer.join(0.1)
    assert closer.is_alive()
    hold_ring_lock.release()
    closer.join(10)
    assert not closer.is_alive()
    writer.join(10)
    assert results == [True]
    assert segment.store()["key"] == 1


def test_ctrl_c_ends_the_wait_of_close(
    segment: Any, hold_ring_lock: Any, interrupt_after: Callable[[float], None]
) -> None:
    db = segment.store(lock_timeout_s=20)
    writer = threading.Thread(target=lambda: db.set("key", 1))
    writer.start()
    time.sleep(0.05)
    interrupt_after(0.05)
    with pytest.raises(KeyboardInterrupt):
        db.close()
    assert db.closed
    hold_ring_lock.release()
    writer.join(10)
    db.close()


def test_a_signal_handler_that_closes_the_handle_lets_the_waiting_call_finish(
    segment: Any, hold_ring_lock: Any
) -> None:
    db = segment.store(lock_timeout_s=0.4)
    previous = signal.signal(signal.SIGALRM, lambda number, frame: db.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(errors.LockTimeout):
            db["key"] = 1
    finally:
        signal.signal(signal.SIGALRM, previous)
    with pytest.raises(ValueError, match="closed"):
        db.get("key")


def test_a_signal_handler_that_forks_gives_the_child_a_slot_of_its_own(segment: Any, hold_ring_lock: Any) -> None:
    db = segment.store(lock_timeout_s=20)
    children: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: children.append(os.fork()))
    released = False
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        threading.Timer(0.2, hold_ring_lock.release).start()
        db.incr("number")
        released = True
    finally:
        if children == [0]:
            os._exit(0 if released and os.getpid() in {slot["pid"] for slot in segment.arena.slots()} else 1)
        signal.signal(signal.SIGALRM, previous)
    # The child has no thread that would release the lock, but the parent's does it for both.
    _, status = os.waitpid(children[0], 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert db["number"] == 2


# ---- the log ---------------------------------------------------------------------------------------------------------
def test_a_full_ring_stalls_the_writer_with_numbers(make_segment: Any) -> None:
    segment = make_segment(has_log=True, ring_bytes=65536)
    db = segment.store(log_timeout_s=0.15)
    with pytest.raises(errors.LogStalled, match=r"behind .* with \d+ bytes not synced in a ring of 65536"):
        for i in range(1000):
            db[f"key{i}"] = b"x" * 1000
    written = len(db)
    assert written > 10
    segment.publish()
    db["next"] = 1
    assert len(db) == written + 1


def test_ctrl_c_ends_the_wait_for_the_log(make_segment: Any, interrupt_after: Callable[[float], None]) -> None:
    db = make_segment(has_log=True, ring_bytes=65536).store(log_timeout_s=30)
    interrupt_after(0.2)
    start_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        for i in range(1000):
            db[f"key{i}"] = b"x" * 1000
    assert time.monotonic() - start_s < 0.2 + 0.05 + SLACK_S


def test_refused_logs_are_named(make_segment: Any) -> None:
    segment = make_segment(has_log=True)
    db = segment.store()
    db["key"] = 1
    segment.arena.set_state(log_state="DISK_FULL")
    with pytest.raises(errors.DiskFull) as caught:
        db["key"] = 2
    assert caught.value.errno == 28
    segment.arena.set_state(log_state="FAILED")
    with pytest.raises(errors.ReadOnly, match="log failed"):
        db["key"] = 2
    assert db["key"] == 1
    segment.arena.set_state(log_state="OK")
    db["key"] = 2


# ---- durability ------------------------------------------------------------------------------------------------------
def test_always_returns_once_the_write_is_on_disk(make_segment: Any) -> None:
    segment = make_segment(has_log=True)
    db = segment.store(log_timeout_s=20)
    done: list[bool] = []
    writer = threading.Thread(target=lambda: done.append(db.set("key", 1, durability="always")))
    writer.start()
    wait_until(lambda: db.get("key") == 1, "the write to be visible")
    writer.join(0.1)
    assert done == []
    ring = segment.arena.ring()
    assert ring["sync_wanted_lsn"] == ring["tail"]
    segment.publish()
    writer.join(10)
    assert done == [True]


@pytest.mark.parametrize("write", [w for name, w in WRITES.items() if name not in ("delete", "delitem", "delete_many")])
@pytest.mark.parametrize("where", ["store", "handle"])
def test_always_of_store_or_handle_times_out_as_durability_unknown_and_the_write_stands(
    make_segment: Any, where: str, write: Callable[[_core.Store], Any]
) -> None:
    segment = make_segment(has_log=True)
    if where == "store":
        segment.arena.set_state(durability="always")
    db = segment.store(log_timeout_s=0.06, durability="always" if where == "handle" else None)
    before = segment.arena.ring()["tail"]
    with pytest.raises(errors.DurabilityUnknown, match=r"durable up to LSN \d+, needed \d+"):
        write(db)
    assert segment.arena.ring()["tail"] > before
    segment.publish()
    db.sync()


def test_the_call_overrides_handle_and_store(make_segment: Any) -> None:
    segment = make_segment(has_log=True)
    segment.arena.set_state(durability="always")
    segment.store(durability="interval")["a"] = 1
    assert segment.store(log_timeout_s=0.05).set("b", 1, durability="none") is True


def test_ctrl_c_in_the_wait_for_the_disk_leaves_the_write(
    make_segment: Any, interrupt_after: Callable[[float], None]
) -> None:
    db = make_segment(has_log=True).store(log_timeout_s=30)
    interrupt_after(0.08)
    start_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        db.set("key", 1, durability="always")
    assert time.monotonic() - start_s < 0.08 + 0.05 + SLACK_S
    assert db["key"] == 1


def test_a_failed_log_ends_the_wait_for_the_disk_at_once(make_segment: Any) -> None:
    segment = make_segment(has_log=True)
    db = segment.store(log_timeout_s=20)
    threading.Timer(0.1, lambda: segment.arena.set_state(log_state="FAILED")).start()
    start_s = time.monotonic()
    with pytest.raises(errors.DurabilityUnknown, match="log has failed"):
        db.set("key", 1, durability="always")
    assert time.monotonic() - start_s < 2


def test_without_a_log_there_is_nothing_to_wait_for(db: _core.Store) -> None:
    assert db.set("key", 1, durability="always") is True
    db.sync()
    db.sync(db.last_lsn)


def test_sync_waits_for_this_threads_write_or_for_an_lsn(make_segment: Any) -> None:
    segment = make_segment(has_log=True)
    db = segment.store(log_timeout_s=0.05)
    db.sync()
    db["key"] = 1
    first = db.last_lsn
    for call in (db.sync, lambda: db.sync(first), lambda: db.sync(lsn=first, timeout=0.01), lambda: db.sync(timeout=0)):
        with pytest.raises(errors.LogStalled, match="not to LSN"):
            call()
    seen: list[int] = []
    other = threading.Thread(target=lambda: (db.sync(), seen.append(db.last_lsn)))
    other.start()
    other.join(10)
    assert seen == [0]
    segment.publish()
    db.sync()
    db.sync(first)
    segment.store(read_only=True).sync(first)
    db["key"] = 2
    with pytest.raises(errors.LogStalled):
        segment.store(read_only=True, log_timeout_s=0.05).sync(db.last_lsn)
    with pytest.raises(ValueError, match="not written yet"):
        db.sync(segment.arena.ring()["tail"])
    with pytest.raises(errors.DurabilityUnknown, match="before the last restart"):
        db.sync(5)
    with pytest.raises(ValueError, match="0 or more"):
        db.sync(timeout=-1)


# ---- a store without a log, and without anybody who serves it ------------------------------------------------


def dead_process() -> int:
    """The id of a process that has ended; nobody gets it again that soon."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def write_until_refused(db: _core.Store) -> str:
    with pytest.raises(errors.StoreUnavailable) as refused:
        wait_until(lambda: not db.set("key", 1), "the lag limit")
    return str(refused.value)


def test_writers_stop_when_keeper_and_supervisor_are_gone_for_the_lag_limit(segment: Any) -> None:
    db = segment.store(log_timeout_s=0.1)
    segment.arena.set_state(supervisor_pid=dead_process(), lag_limit_ms=150)
    segment.arena.attend()
    begun_s = time.monotonic()
    for number in range(1000):
        db[f"k{number}"] = number
    assert "has had no keeper for" in write_until_refused(db)
    assert time.monotonic() - begun_s >= 0.15 + 0.1 - 0.02
    assert db["k999"] == 999
    with pytest.raises(errors.StoreUnavailable, match=r"limit 0\.1 s"):
        db["key"] = 1


def test_a_silent_keeper_stops_nobody_while_the_supervisor_lives(segment: Any) -> None:
    db = segment.store(log_timeout_s=0)
    segment.arena.set_state(supervisor_pid=os.getpid(), lag_limit_ms=1)
    time.sleep(0.05)
    db["key"] = 1


def test_a_waiting_writer_goes_on_with_the_next_sign_of_life(segment: Any) -> None:
    db = segment.store(log_timeout_s=30)
    segment.arena.set_state(supervisor_pid=dead_process(), lag_limit_ms=50)
    time.sleep(0.1)
    writer = threading.Thread(target=lambda: db.set("key", 2))
    writer.start()
    wait_until(lambda: db._stats()["log_waits"] > 0, "the writer's wait")
    assert "key" not in db
    segment.arena.attend()
    writer.join(10)
    assert db["key"] == 2


def test_an_arena_that_nobody_serves_yet_takes_writes(segment: Any) -> None:
    db = segment.store(log_timeout_s=0)
    assert db._stats()["lag_limit_ms"] == 0
    db["key"] = 1


def test_signs_of_life_are_for_stores_without_a_log(make_segment: Any) -> None:
    with pytest.raises(ValueError, match="without a log"):
        make_segment(has_log=True).arena.attend()


class Explained(_core.Store):
    """Says of a stall what the test wants said."""

    answer: Any = None

    def _explain_stall(self) -> tuple[int, str] | None:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def stalled(make_segment: Any) -> Any:
    """A handle whose writes time out: nobody drains the ring, and the lag limit has passed."""
    segment = make_segment(has_log=True)
    db = segment.store(Explained, log_timeout_s=0.05)
    db["key"] = 1
    segment.arena.set_state(lag_limit_ms=1)
    time.sleep(0.05)
    return segment, db


def test_a_stall_without_another_cause_is_a_stall(stalled: Any) -> None:
    _, db = stalled
    with pytest.raises(errors.LogStalled):
        db["key"] = 2


def test_the_cause_of_a_stall_is_told(stalled: Any) -> None:
    _, db = stalled
    db.answer = (-1, "the name is gone")
    with pytest.raises(errors.StoreUnavailable, match="the name is gone"):
        db["key"] = 2
    db.answer = OSError("no look")
    with pytest.raises(OSError, match="no look"):
        db["key"] = 2
    assert db["key"] == 1


def test_a_stalled_handle_goes_on_in_the_arena_that_has_the_name_now(stalled: Any, make_segment: Any) -> None:
    old, db = stalled
    new = make_segment(incarnation=2)
    db.answer = (os.dup(new.fd), "use the new one")
    with pytest.raises(errors.StoreUnavailable, match="use the new one"):
        db["key"] = 2
    assert "key" not in db
    db["key"] = 3
    assert new.store()["key"] == 3
    assert old.store()["key"] == 1
