"""The disk does not answer, or its writer is stopped, under a running store: durable calls end as unknown, writers wait
and are refused in time, reads go on, nobody starts a second persister beside the first, and all goes on afterwards.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from harness.disk import LoopDisk

import shmkv
from tests.conftest import wait_until
from tests.system.disks import HANG, SYNC, Shim
from tests.system.trouble import Trouble, needs_disk


def check_hung(store: Trouble, before: dict[str, int]) -> None:
    """No call of the persister comes back: what a client sees meanwhile."""
    with store.attach() as db:
        started_s = time.monotonic()
        with pytest.raises(shmkv.DurabilityUnknown, match="the log is behind"):
            db.set("unknown", 1, durability="always")
        with pytest.raises((shmkv.LogStalled, shmkv.DurabilityUnknown)):
            db.sync(timeout=0.2)
        accepted = 0
        with pytest.raises(shmkv.LogStalled, match="nothing was written"):
            for number in range(100_000):
                db[f"late{number}"] = number
                accepted = number + 1
        assert f"late{accepted}" not in db
        assert time.monotonic() - started_s < 10
        assert {key: db[key] for key in before} == before
        assert db["unknown"] == 1
        assert db.stats().lag_bytes > 0
        code, findings = store.doctor()
        assert code == 1
        assert "disk" in findings["log"]["remedy"]
    before["accepted"] = accepted


def check_resumed(store: Trouble, count: int) -> None:
    with store.attach(5) as db:
        db.set("resumed", 1, durability="always")
        assert [db[f"late{number}"] for number in range(count)] == list(range(count))
        assert db["unknown"] == 1
        wait_until(lambda: db.stats().lag_bytes == 0, "the log to be complete")
        store.shows("OK")


def test_a_sync_that_hangs_makes_writers_wait_and_then_goes_on(shimmed: tuple[Trouble, Shim]) -> None:
    store, shim = shimmed
    running = store.start("--lag-limit", "0.5s", durability="interval")
    with store.attach() as db:
        db["before"] = 1
        (persister,) = store.persisters()
        shim.set(SYNC, HANG)
        wait_until(lambda: shim.hits(SYNC) or db.set("before", 1) is None, "the sync to hang")
    seen = {"before": 1}
    check_hung(store, seen)
    assert store.persisters() == [persister]
    shim.heal()
    check_resumed(store, seen["accepted"])
    assert store.persisters() == [persister]
    assert running.stop()[0] == 0
    store.start()
    check_resumed(store, seen["accepted"])


@needs_disk
def test_a_frozen_disk_is_waited_for_by_the_one_persister_and_said(on_disk: tuple[Trouble, LoopDisk]) -> None:
    store, disk = on_disk
    running = store.start("--lag-limit", "0.5s", "--heartbeat-timeout", "1s", durability="interval")
    with store.attach() as db:
        db["before"] = 1
        db.sync()
    (persister,) = store.persisters()
    disk.freeze()
    seen = {"before": 1}
    check_hung(store, seen)
    wait_until(lambda: store.child()["hangs"], "the supervisor to notice")
    assert store.persisters() == [persister], "a second one would hang as well"
    assert store.child()["failures"] == 0
    code, findings = store.doctor()
    assert code == 1
    assert "waits for the disk" in findings["persister"]["seen"]
    disk.thaw()
    check_resumed(store, seen["accepted"])
    wait_until(lambda: not store.child()["hangs"], "the supervisor to notice")
    assert store.persisters() == [persister]
    code, lines = running.stop()
    assert code == 0
    assert f"the persister (process {persister}) has waited for the disk for" in lines
    assert f"the persister (process {persister}) goes on" in lines


def child_signals(pid: int) -> int:
    """Signals that were sent to a process and not yet taken, as bits; all threads."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith(("SigPnd", "ShdPnd")):
                found |= int(line.split()[1], 16)
    return found


@needs_disk
def test_a_stop_while_the_disk_hangs_keeps_the_arena(on_disk: tuple[Trouble, LoopDisk]) -> None:
    store, disk = on_disk
    running = store.start("--lag-limit", "0.5s", "--stop-timeout", "0.5s", durability="interval")
    with store.attach() as db:
        disk.freeze()
        db["in the ring"] = 1
        running.process.send_signal(signal.SIGTERM)
        (persister,) = store.persisters()
        wait_until(lambda: child_signals(persister) & 1 << signal.SIGKILL - 1, "the kill of the persister")
        # It can't end before the disk answers, and so nobody takes its place or its lock.
        assert running.process.poll() is None
        assert os.path.exists(f"/proc/{persister}")
        assert store.persisters() in ([], [persister])
        disk.thaw()
    code, lines = running.end()
    assert code == 1
    assert "did not end in time and is killed" in lines
    assert "the next start of this store goes on from it" in lines
    assert store.is_kept()
    store.start()
    with store.attach() as db:
        assert db["in the ring"] == 1


def test_a_persister_that_is_stopped_stalls_writers_and_is_not_doubled(shimmed: tuple[Trouble, Shim]) -> None:
    store, _ = shimmed
    running = store.start("--lag-limit", "0.5s", durability="interval")
    with store.attach() as db:
        db["before"] = 1
    (persister,) = store.persisters()
    os.kill(persister, signal.SIGSTOP)
    seen = {"before": 1}
    check_hung(store, seen)
    _, findings = store.doctor()
    assert "stopped" in findings["persister"]["seen"]
    assert store.persisters() == [persister]
    os.kill(persister, signal.SIGCONT)
    check_resumed(store, seen["accepted"])
    assert running.stop()[0] == 0


@pytest.mark.slow
def test_a_persister_that_stays_stopped_is_replaced_by_one_that_waits_for_its_end(
    shimmed: tuple[Trouble, Shim],
) -> None:
    store, _ = shimmed
    running = store.start("--lag-limit", "0.5s", "--heartbeat-timeout", "1s", durability="interval")
    (persister,) = store.persisters()
    os.kill(persister, signal.SIGSTOP)
    seen: dict[str, int] = {}
    check_hung(store, seen)
    wait_until(lambda: store.persisters() not in ([], [persister]), "a new persister")
    assert len(store.persisters()) == 1
    check_resumed(store, seen["accepted"])
    code, lines = running.stop()
    assert code == 0
    assert "was silent for" in lines


@pytest.mark.slow
def test_a_snapshot_that_hangs_holds_up_no_write_and_no_more_than_a_stop(
    shimmed_snapshots: tuple[Trouble, Shim],
) -> None:
    store, shim = shimmed_snapshots
    options = ("--snapshot-log", "0", "--snapshot-interval", "0.2s", "--stop-timeout", "1s")
    running = store.start(*options)
    shim.set(SYNC, HANG)
    with store.attach(5) as db:
        number = 0
        while not shim.hits(SYNC) or number < 100:
            db[f"k{number}"] = number
            number += 1
        store.shows("OK")
    code, lines = running.stop()
    assert code == 1
    assert "did not end in time and is killed" in lines
    assert store.is_kept()
    shim.heal()
    running = store.start(*options)
    with store.attach() as db:
        assert len(db) == number
    assert running.stop()[0] == 0
    assert list((store.data / "snapshot").glob("*.snapshot"))
    store.start()
    with store.attach() as db:
        assert len(db) == number
