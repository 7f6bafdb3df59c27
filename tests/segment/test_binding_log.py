"""Ring and log through the Arena: what a persister copies, publishes, waits for, checks and applies."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from typing import Any

import pytest

from shmkv import errors
from shmkv.segment import _core
from tests.segment.conftest import STORE_ID, Segment, drain, verify_log


# ---- ring ------------------------------------------------------------------------------------------------------------
def test_records_leave_the_ring_whole_and_in_order(logged: Segment) -> None:
    db = logged.store()
    log = b""
    for i in range(300):
        db[f"key{i}"] = os.urandom(i * 13 % 3000)
        if i % 10 == 9:
            log += drain(logged)
    assert logged.arena.ring()["head"] == logged.arena.ring()["tail"] == _core.LSN_GAP + len(log)
    found = verify_log(log, _core.LSN_GAP)
    assert (found["consumed_bytes"], found["records"], found["stopped"], found["applied"]) == (len(log), 300, None, 0)
    assert found["next_lsn"] == _core.LSN_GAP + len(log)


def test_pieces_wrap_are_read_only_and_outlive_the_arena(logged: Segment) -> None:
    db = logged.store()
    for i in range(14):
        db[f"fill{i}"] = b"x" * 4000
    drain(logged)
    for i in range(5):
        db[f"wrap{i}"] = b"y" * 4000
    ring = logged.arena.ring()
    pieces = logged.arena.ring_pieces(ring["head"], ring["tail"])
    assert len(pieces) == 2
    assert all(piece.readonly for piece in pieces)
    assert sum(map(len, pieces)) == ring["tail"] - ring["head"]
    assert logged.arena.ring_pieces(ring["head"], ring["head"]) == ()
    data = b"".join(pieces)
    logged.arena.close()
    db.close()
    gc.collect()
    assert b"".join(pieces) == data
    with pytest.raises(TypeError):
        pieces[0][0] = 1
    del pieces
    logged.arena = _core.Arena(logged.fd)


def test_lsns_outside_the_ring_are_refused(logged: Segment) -> None:
    arena = logged.arena
    db = logged.store()
    db["key"] = 1
    ring = arena.ring()
    head, tail = ring["head"], ring["tail"]
    wrong = [
        lambda: arena.ring_pieces(head - 8, tail),
        lambda: arena.ring_pieces(head, tail + 8),
        lambda: arena.ring_pieces(tail, head),
        lambda: arena.publish_written(tail + 8),
        lambda: arena.publish_durable(tail + 8, 0),
        lambda: arena.publish_durable(head - 8, 0),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match="LSN"):
            call()
    assert arena.ring() == ring | {"now_ms": arena.ring()["now_ms"]}
    with pytest.raises(OverflowError):
        arena.publish_written(-1)


def test_publishing_moves_the_words(logged: Segment) -> None:
    logged.store()["key"] = 1
    ring = logged.arena.ring()
    assert ring["tail"] > ring["written_lsn"] == ring["durable_lsn"] == ring["head"]
    logged.arena.publish_written(ring["tail"])
    after = logged.arena.ring()
    assert (after["written_lsn"], after["head"]) == (ring["tail"], ring["head"])
    logged.arena.publish_durable(ring["tail"], ring["now_ms"])
    after = logged.arena.ring()
    assert after["durable_lsn"] == after["head"] == after["tail"]
    assert after["durable_time_ms"] == ring["now_ms"]
    assert logged.arena.info()["persister_pid"] == os.getpid()


def test_with_durability_none_the_head_follows_what_is_written(logged: Segment) -> None:
    logged.arena.set_state(durability="none")
    logged.store()["key"] = 1
    tail = logged.arena.ring()["tail"]
    logged.arena.publish_written(tail)
    assert logged.arena.ring()["head"] == tail


def test_ring_wait_ends_by_work_by_a_sync_and_by_its_timeout(logged: Segment) -> None:
    arena, db = logged.arena, logged.store(log_timeout_s=20)
    tail = arena.ring()["tail"]
    start_s = time.monotonic()
    assert arena.ring_wait(tail, 0.12) == tail
    assert 0.12 <= time.monotonic() - start_s < 1
    assert arena.ring_wait(tail, 0) == tail
    woken: list[float] = []

    def persist() -> None:
        arena.ring_wait(tail, 20)
        woken.append(time.monotonic())
        logged.publish()

    persister = threading.Thread(target=persist)
    persister.start()
    time.sleep(0.1)
    db.set("key", 1, durability="always")
    assert time.monotonic() - woken[0] < 1
    persister.join(10)
    persister = threading.Thread(target=lambda: arena.ring_wait(arena.ring()["tail"], 20))
    persister.start()
    for i in range(8):
        db[f"key{i}"] = b"x" * 4000
    persister.join(10)
    assert not persister.is_alive()


def test_ring_collect_gives_the_records_that_a_sync_is_wanted_for(logged: Segment) -> None:
    arena, db = logged.arena, logged.store(log_timeout_s=0.01)
    start = arena.ring()["tail"]
    assert arena.ring_collect(start, 0, 1000)[::2] == (start, None)
    db["key"] = 1
    tail = arena.ring()["tail"]
    assert arena.ring_collect(start, 0, 1000)[::2] == (tail, None), "nobody waits"
    with pytest.raises(TimeoutError):
        db.sync()
    data = b"".join(arena.ring_pieces(start, tail))
    before_ms = arena.ring()["now_ms"]
    found_tail, now_ms, records = arena.ring_collect(start, 20, tail - start)
    assert (found_tail, records) == (tail, data)
    assert before_ms <= now_ms <= arena.ring()["now_ms"]
    assert arena.ring_collect(start, 0, tail - start - 1)[2] is None, "more than the limit"
    assert arena.ring_collect(start - 8, 0, 1000)[2] is None, "below the head"
    assert arena.ring_collect(tail, 0, 1000)[2] is None
    arena.publish_durable(tail, now_ms)
    assert arena.ring_collect(start, 0, 1000)[2] is None, "given back"
    with pytest.raises(TypeError, match="takes 3 arguments"):
        arena.ring_collect(start, 0)  # type: ignore[call-arg]


def test_ring_collect_joins_what_the_end_of_the_ring_parts(logged: Segment) -> None:
    arena, db = logged.arena, logged.store(log_timeout_s=0.01)
    ring_bytes = arena.ring()["ring_bytes"]
    parted = 0
    for number in range(2 * ring_bytes // 1000):
        start = arena.ring()["tail"]
        db["key"] = bytes([number % 256]) * 1000
        tail = arena.ring()["tail"]
        with pytest.raises(TimeoutError):
            db.sync(timeout=0.001)
        pieces = arena.ring_pieces(start, tail)
        parted += len(pieces) == 2
        assert arena.ring_collect(start, 0, 2000)[2] == b"".join(pieces)
        arena.publish_durable(tail, 0)
    assert parted >= 1


def test_ctrl_c_ends_ring_wait(logged: Segment) -> None:
    def handler(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        start_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            logged.arena.ring_wait(logged.arena.ring()["tail"], 30)
        assert time.monotonic() - start_s < 0.5
    finally:
        signal.signal(signal.SIGALRM, previous)


# ---- records ---------------------------------------------------------------------------------------------------------
def test_a_mark_is_a_record_with_its_wall_time(logged: Segment) -> None:
    logged.store()["key"] = 1
    tail = logged.arena.ring()["tail"]
    assert logged.arena.mark(123_456_789) == tail
    found = verify_log(drain(logged), _core.LSN_GAP)
    assert (found["records"], found["wall_ms"], found["stopped"]) == (2, 123_456_789, None)


def test_verify_says_where_and_why_it_stopped(logged: Segment) -> None:
    db = logged.store()
    ends = []
    for i in range(10):
        db[f"key{i}"] = b"x" * 100
        ends.append(logged.arena.ring()["tail"] - _core.LSN_GAP)
    data = drain(logged)
    assert verify_log(data[: ends[4] + 10], _core.LSN_GAP) == verify_log(data[: ends[4]], _core.LSN_GAP) | {
        "stopped": "short"
    }
    torn = bytearray(data)
    torn[ends[6] + 60] ^= 1
    found = verify_log(bytes(torn), _core.LSN_GAP)
    assert (found["consumed_bytes"], found["records"], found["stopped"]) == (ends[6], 7, "body crc")
    assert verify_log(data, _core.LSN_GAP + 8)["stopped"] == "lsn"
    other = _core.verify(data, store_id=bytes(16), incarnation=1, first_lsn=_core.LSN_GAP)
    assert (other["records"], other["stopped"]) == (0, "header crc")
    assert verify_log(bytes(64), _core.LSN_GAP)["records"] == 0
    assert verify_log(b"", _core.LSN_GAP)["stopped"] is None
    with pytest.raises(ValueError, match="16 bytes"):
        _core.verify(data, store_id=b"", incarnation=1, first_lsn=1)
    with pytest.raises(TypeError):
        _core.verify("text", store_id=STORE_ID, incarnation=1, first_lsn=1)  # type: ignore[arg-type]


def test_a_log_is_applied_to_a_new_arena_which_then_goes_on_past_it(make_segment: Any) -> None:
    old = make_segment(has_log=True, ring_bytes=1 << 20)
    db = old.store()
    db.set_many({f"key{i}": i for i in range(2000)})
    db.delete_many([f"key{i}" for i in range(0, 2000, 2)])
    db.incr("key1", 10)
    db.set("text", "\u20ac", expires_at=4e9, pin=True)
    data = drain(old)
    new = make_segment(has_log=True, incarnation=2)
    with pytest.raises(ValueError, match="CREATING"):
        new.arena.apply(data, store_id=STORE_ID, incarnation=1, first_lsn=_core.LSN_GAP)
    with pytest.raises(ValueError, match="CREATING"):
        new.arena.set_lsn(3 * _core.LSN_GAP)
    new.arena.set_state(state="CREATING")
    for _ in range(2):
        found = new.arena.apply(memoryview(data), store_id=STORE_ID, incarnation=1, first_lsn=_core.LSN_GAP)
        assert found["consumed_bytes"] == len(data)
    with pytest.raises(ValueError, match="multiples of 8"):
        new.arena.set_lsn(3 * _core.LSN_GAP + 4)
    new.arena.set_lsn(3 * _core.LSN_GAP)
    new.arena.set_state(state="READY")
    copy = new.store()
    assert len(copy) == len(db) == 1001
    assert copy["key1"] == 11
    assert copy._entry("text") == db._entry("text")
    assert "key2" not in copy
    copy["next"] = 1
    assert copy.last_lsn == 3 * _core.LSN_GAP


def test_a_log_that_does_not_fit_is_a_memory_error(make_segment: Any) -> None:
    big = make_segment(size_bytes=32 << 20, has_log=True, ring_bytes=16 << 20)
    db = big.store()
    db.set_many({f"key{i}": b"x" * 4000 for i in range(2000)})
    small = make_segment(has_log=True, incarnation=2)
    small.arena.set_state(state="CREATING")
    with pytest.raises(errors.MemoryLimitExceeded, match="more memory"):
        small.arena.apply(drain(big), store_id=STORE_ID, incarnation=1, first_lsn=_core.LSN_GAP)


@pytest.mark.parametrize(("data", "crc"), [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)])
def test_crc32c_is_castagnolis(data: bytes, crc: int) -> None:
    assert _core.crc32c(data) == crc
    assert _core.crc32c(data[3:], _core.crc32c(data[:3])) == crc
    large = data * 50_000
    assert _core.crc32c(memoryview(large)[7:], crc=_core.crc32c(large[:7])) == _core.crc32c(large)
