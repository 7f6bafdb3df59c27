"""Planning, formatting and maintaining arenas through the binding: what supervisor and keeper rely on."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from shmkv import errors
from shmkv.segment import _core
from tests.segment.conftest import STORE_ID, Segment, drain, verify_log, wait_until

MIB = 1 << 20


# ---- plan and format -------------------------------------------------------------------------------------------------
def test_a_plan_fits_its_size() -> None:
    plan = _core.plan(size_bytes=64 * MIB)
    assert plan["size_bytes"] == plan["max_size_bytes"] == 64 * MIB
    assert plan["ring_bytes"] == 8 * MIB
    assert plan["pages_offset"] + plan["page_count"] * 4096 <= 64 * MIB
    assert _core.plan(size_bytes=64 * MIB, ring_bytes=MIB, stripes=32)["stripes"] == 32
    assert _core.plan(size_bytes=64 * MIB, expected_items=10)["buckets"] < plan["buckets"]


def test_a_size_that_is_too_small_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(ValueError, match="at least") as caught:
        _core.plan(size_bytes=2 * MIB)
    least = int(str(caught.value).split("at least ")[1].split(";")[0])
    assert _core.plan(size_bytes=least)["size_bytes"] == least


@pytest.mark.parametrize(
    "wrong", [{"ring_bytes": 100}, {"stripes": 17}, {"stripes": 8}, {"max_size_bytes": MIB}], ids=repr
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        _core.plan(size_bytes=64 * MIB, **wrong)


FORMAT = {
    "size_bytes": 8 * MIB,
    "name": "t",
    "store_id": STORE_ID,
    "incarnation": 1,
    "first_lsn": _core.LSN_GAP,
    "has_log": True,
}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"store_id": b"short"}, ValueError),
        ({"name": "n" * 72}, ValueError),
        ({"first_lsn": 12345}, ValueError),
        ({"size_bytes": 16 * MIB}, ValueError),
        ({"size_bytes": 0}, ValueError),
        ({"name": None}, TypeError),
        ({"has_log": None}, TypeError),
        ({"incarnation": None}, TypeError),
        ({"first_lsn": None}, TypeError),
    ],
    ids=repr,
)
def test_format_refuses_what_makes_no_arena(change: dict[str, Any], error: type[Exception]) -> None:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, 8 * MIB)
        arguments: dict[str, Any] = {key: value for key, value in (FORMAT | change).items() if value is not None}
        with pytest.raises(error):
            _core.format_arena(fd, **arguments)
        assert os.pread(fd, 8, 0) == bytes(8)
    finally:
        os.close(fd)


def test_a_header_is_read_without_mapping_and_from_either_copy(segment: Segment) -> None:
    header = _core.read_header(segment.fd)
    info = segment.arena.info()
    assert header == info
    wanted = {
        "name": "test",
        "store_id": STORE_ID,
        "incarnation": 1,
        "state": "READY",
        "log_state": "OK",
        "retired": False,
        "condemned": False,
        "has_log": False,
        "durability": "interval",
        "layout_version": _core.LAYOUT_VERSION,
        "layout_hash": _core.LAYOUT_HASH,
        "first_lsn": _core.LSN_GAP,
        "tail": _core.LSN_GAP,
        "head": _core.LSN_GAP,
    }
    assert wanted.items() <= header.items()
    assert (
        abs(header["wall_minus_boot_ms"] + time.clock_gettime(time.CLOCK_BOOTTIME) * 1000 - time.time() * 1000) < 5000
    )
    good = os.pread(segment.fd, 4096, 0)
    os.pwrite(segment.fd, bytes(4096), 0)
    assert _core.read_header(segment.fd) == header
    os.pwrite(segment.fd, bytes(4096), 4096)
    with pytest.raises(errors.CorruptData, match="neither copy"):
        _core.read_header(segment.fd)
    os.pwrite(segment.fd, good, 0)


def test_a_file_that_is_too_short_has_no_header(tmp_path: Any) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * 100)
    with path.open("rb") as file, pytest.raises(errors.CorruptData, match="100 bytes read"):
        _core.read_header(file.fileno())


# ---- state -----------------------------------------------------------------------------------------------------------
def test_state_is_changed_by_name_and_seen_by_all(segment: Segment) -> None:
    arena = segment.arena
    arena.set_state(
        supervisor_pid=1234, log_state="DISK_FULL", lag_limit_ms=777, durability="always", condemned=True, adopted=True
    )
    info = segment.arena.info()
    changed = {
        "supervisor_pid": 1234,
        "log_state": "DISK_FULL",
        "lag_limit_ms": 777,
        "durability": "always",
        "condemned": True,
    }
    assert changed.items() <= info.items()
    assert (info["epoch"], info["state"]) == (1, "READY")
    arena.set_state(condemned=False, log_state="OK")
    assert (arena.info()["condemned"], arena.info()["epoch"], arena.info()["lag_limit_ms"]) == (False, 1, 777)


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "RETIRED"},
        {"state": "ready"},
        {"log_state": "X"},
        {"durability": "x"},
        {"supervisor_pid": -1},
        {"lag_limit_ms": 2**32},
    ],
    ids=repr,
)
def test_a_wrong_state_is_refused_and_changes_nothing(segment: Segment, wrong: dict[str, Any]) -> None:
    before = segment.arena.info()
    with pytest.raises(ValueError, match=r"unknown|0 to 2"):
        segment.arena.set_state(**{"condemned": True, **wrong})
    assert segment.arena.info() == before


# ---- maintenance -----------------------------------------------------------------------------------------------------
def test_sweeping_and_compacting_give_back_what_clear_and_deletes_left(segment: Segment) -> None:
    db = segment.store()
    db.set_many({f"key{i}": b"x" * 400 for i in range(3000)})
    free = segment.arena.stats()["pages_free"]
    db.clear()
    for stripe in range(segment.arena.info()["stripes"]):
        segment.arena.sweep(stripe)
    assert segment.arena.stats()["entries"] == 0
    assert segment.arena.stats()["pages_free"] > free
    db.set_many({f"key{i}": b"x" * 400 for i in range(3000)})
    db.delete_many([f"key{i}" for i in range(3000) if i % 8])
    assert sum(segment.arena.compact(stripe) for stripe in range(segment.arena.info()["stripes"])) > 0
    assert len(db) == 375
    for stripe in (16, -1, 2**40):
        with pytest.raises((ValueError, OverflowError)):
            segment.arena.sweep(stripe)


def test_an_audit_finds_damage_and_says_where(make_segment: Any) -> None:
    segment = make_segment()
    db = segment.store()
    value = b"to be damaged in memory"
    db["key"] = value
    memory = os.pread(segment.fd, os.fstat(segment.fd).st_size, 0)
    pages = segment.arena.info()["ring_offset"] + segment.arena.info()["ring_bytes"]
    at = memory.index(value, pages)
    os.pwrite(segment.fd, b"X", at)
    findings = segment.arena.audit()
    os.pwrite(segment.fd, value[:1], at)
    assert len(findings) >= 1
    assert set(findings[0]) == {"what", "stripe", "offset", "found", "expected"}
    assert 0 <= at - findings[0]["offset"] < 100


def test_a_retired_arena_says_so_and_keeps_its_ring(logged: Segment) -> None:
    db = logged.store()
    db["key"] = 1
    tail = logged.arena.ring()["tail"]
    logged.arena.retire()
    logged.arena.retire()
    info = logged.arena.info()
    assert (info["retired"], info["state"]) == (True, "RETIRED")
    assert verify_log(drain(logged), _core.LSN_GAP)["next_lsn"] == tail
    with pytest.raises(errors.StoreUnavailable):
        db["key"] = 2


def test_counters_add_up_over_threads_that_ended(segment: Segment) -> None:
    db = segment.store()
    before = segment.arena.stats()

    def work() -> None:
        for i in range(10):
            db[f"key{i}"] = 1
            db.get(f"key{i}")
            db.get("none")
        del db["key0"]

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    wait_until(lambda: len(segment.arena.slots()) <= 1, "the slot to come back")
    after = segment.arena.stats()
    assert {name: after[name] - before[name] for name in ("gets", "hits", "sets", "deletes", "items")} == {
        "gets": 20,
        "hits": 10,
        "sets": 10,
        "deletes": 1,
        "items": 9,
    }
    assert db._stats() == segment.arena.stats()


def test_after_close_every_use_of_an_arena_is_a_value_error(segment: Segment) -> None:
    arena = _core.Arena(segment.fd)
    arena.close()
    arena.close()
    for call in (
        arena.info,
        arena.ring,
        arena.slots,
        arena.reap,
        arena.retire,
        arena.stats,
        arena.audit,
        arena.set_state,
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_set_errors_takes_the_whole_table_or_nothing() -> None:
    table = {name: getattr(errors, name) for name in dir(errors) if isinstance(getattr(errors, name), type)}
    with pytest.raises(KeyError):
        _core.set_errors({name: kind for name, kind in table.items() if name != "LogStalled"})
    with pytest.raises(TypeError, match="no exception class"):
        _core.set_errors(table | {"LogStalled": int})
    with pytest.raises(TypeError, match="callables"):
        _core.set_codec(1, 2)  # type: ignore[arg-type]
    _core.set_errors(table)


def test_every_message_of_the_tree_is_documented_and_fits_a_built_in() -> None:
    for name in (
        "KeyNotFound",
        "StoreUnavailable",
        "ReadOnly",
        "MemoryLimitExceeded",
        "LockTimeout",
        "DiskFull",
        "CorruptData",
    ):
        kind = getattr(errors, name)
        assert kind.__doc__
        assert any(base.__module__ == "builtins" for base in kind.__bases__)
