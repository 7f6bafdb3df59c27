"""The disk fails or fills up under a running store: no write is said to be safe that is not, reads go on, the trouble
can be seen everywhere, and the store goes on by itself where that is possible.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.disk import LoopDisk

import shmkv
from tests.conftest import wait_until
from tests.system.disks import ALLOCATE, FALL_SHORT, OPEN, RENAME, SYNC, WRITE, Shim
from tests.system.programs import Program, check_written, numbers, writer
from tests.system.trouble import VALUE, Trouble, has_all, needs_disk, write_until_refused

Run = Callable[..., Program]

# ---- a full disk -------------------------------------------------------------------------------------------------


@needs_disk
def test_a_full_disk_refuses_writes_and_serves_reads_until_there_is_space(on_disk: tuple[Trouble, LoopDisk]) -> None:
    store, disk = on_disk
    running = store.start()
    with store.attach() as db:
        db["before"] = 1
        store.shows("OK")
        disk.fill()
        count = write_until_refused(db, shmkv.DiskFull)
        for change in (lambda: db.set("before", 2), lambda: db.incr("n"), lambda: db.update({"a": 1})):
            with pytest.raises(shmkv.DiskFull, match="disk"):
                change()
        assert db["before"] == 1
        assert has_all(db, count)
        db.sync()
        store.shows("DISK_FULL")
        assert len(store.persisters()) == 1
        disk.give_back()
        wait_until(lambda: db.stats().log_state == "OK", "the log to go on")
        db["after"] = 2
        store.shows("OK")
    code, lines = running.stop()
    assert code == 0
    assert f"the log in {store.data} is DISK_FULL: [Errno 28]" in lines
    assert f"the log in {store.data} is OK" in lines
    store.start()
    with store.attach() as db:
        assert db["before"] == 1
        assert db["after"] == 2
        assert has_all(db, count)
        assert len(db) == count + 2


@needs_disk
@pytest.mark.parametrize("spares", [True, False])
def test_a_stop_on_a_full_disk_is_clean_and_the_next_start_serves_reads(
    on_disk: tuple[Trouble, LoopDisk], spares: bool
) -> None:
    store, disk = on_disk
    running = store.start()
    with store.attach() as db:
        disk.fill()
        count = write_until_refused(db, shmkv.DiskFull)
    assert running.stop()[0] == 0
    assert not store.is_kept()
    if not spares:
        for spare in (store.data / "log").glob("spare.*"):
            spare.unlink()
        disk.fill()
    running = store.start()
    with store.attach() as db:
        assert has_all(db, count)
        write_until_refused(db, shmkv.DiskFull, "more")
        store.shows("DISK_FULL")
        disk.give_back()
        wait_until(lambda: db.stats().log_state == "OK", "the log to go on")
        db["after"] = 1
    assert running.stop()[0] == 0
    store.start()
    with store.attach() as db:
        assert has_all(db, count)
        assert db["after"] == 1


@pytest.mark.slow
@needs_disk
def test_keys_expire_on_a_full_disk_too(on_disk: tuple[Trouble, LoopDisk]) -> None:
    store, disk = on_disk
    running = store.start()
    with store.attach() as db:
        db.set_many({f"short{number}": VALUE for number in range(50)}, ttl=2.0)
        disk.fill()
        write_until_refused(db, shmkv.DiskFull)
        wait_until(lambda: "short0" not in db, "the end of a key")
        store.shows("DISK_FULL")
        disk.give_back()
        wait_until(lambda: db.stats().log_state == "OK", "the log to go on")
        wait_until(lambda: not [key for key in db if key.startswith("short")], "the end of all of them")
    code, lines = running.stop()
    assert code == 0
    assert "keeper" not in lines


def test_a_quota_and_a_file_size_limit_are_a_full_disk(shimmed: tuple[Trouble, Shim]) -> None:
    store, shim = shimmed
    running = store.start(durability="interval")
    with store.attach() as db:
        shim.set(ALLOCATE, errno.EDQUOT)
        write_until_refused(db, shmkv.DiskFull)
        store.shows("DISK_FULL")
        shim.heal()
        wait_until(lambda: db.stats().log_state == "OK", "the log to go on")
        (persister,) = store.persisters()
        _, hard = resource.prlimit(persister, resource.RLIMIT_FSIZE)
        # As `ulimit -f`: a write beyond it sends SIGXFSZ, which must not end the process.
        resource.prlimit(persister, resource.RLIMIT_FSIZE, (64 << 10, hard))
        write_until_refused(db, shmkv.DiskFull, "limited")
        store.shows("DISK_FULL")
        resource.prlimit(persister, resource.RLIMIT_FSIZE, (hard, hard))
        wait_until(lambda: db.stats().log_state == "OK", "the log to go on")
        db["after"] = 1
        assert store.persisters() == [persister]
    code, lines = running.stop()
    assert code == 0
    assert f"[Errno {errno.EDQUOT}]" in lines
    assert f"[Errno {errno.EFBIG}]" in lines


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [WRITE, SYNC])
def test_one_error_costs_a_file_and_nothing_else(shimmed: tuple[Trouble, Shim], program: Run, operation: int) -> None:
    store, shim = shimmed
    running = store.start()
    durable = program(writer, store.name, "w", "always")
    durable.wait_for(20)
    shim.set(operation, errno.EIO, times=1)
    durable.more(20)
    assert shim.hits(operation) == 1
    store.shows("OK")
    acknowledged = len(numbers(durable.kill()))
    code, lines = running.stop()
    assert code == 0
    assert "[Errno 5] Input/output error" in lines
    store.start()
    with store.attach() as db:
        check_written(db, "w", acknowledged)


@pytest.mark.parametrize("operation", [WRITE, SYNC])
def test_an_error_that_stays_makes_the_store_read_only_and_the_arena_is_kept(
    shimmed: tuple[Trouble, Shim], program: Run, operation: int
) -> None:
    store, shim = shimmed
    running = store.start()
    with store.attach() as db:
        db["before"] = 1
        durable = program(writer, store.name, "w", "always")
        durable.wait_for(20)
        shim.set(operation, errno.EIO)
        lines, _ = durable.end()
        assert lines[-1] == "DurabilityUnknown", "neither acknowledged nor refused: it may come to the disk"
        acknowledged = len(numbers(lines))
        with pytest.raises(shmkv.ReadOnly, match="log failed"):
            db["more"] = 1
        with pytest.raises(shmkv.DurabilityUnknown, match="log has failed"):
            db.sync(db.entry(f"w-{acknowledged}").version)
        assert db["before"] == 1
        assert "more" not in db
        check_written(db, "w", acknowledged)
        store.shows("FAILED")
        (persister,) = store.persisters()
        assert store.child()["failures"] == 0
        shim.heal()
        with pytest.raises(shmkv.ReadOnly):
            db["more"] = 1
        assert store.persisters() == [persister], "nothing leaves that state but a restart"
    code, said = running.stop()
    assert code == 1
    assert f"the log in {store.data} is FAILED: [Errno 5]" in said
    assert "0000000001.log: [Errno 5]" in said
    assert "could not be written to the log" in said
    assert "the next start of this store goes on from it" in said
    assert store.is_kept()
    running = store.start()
    with store.attach() as db:
        check_written(db, "w", acknowledged)
        assert db["before"] == 1
        db["after"] = 2
        store.shows("OK")
    assert running.stop()[0] == 0


@pytest.mark.slow
def test_a_failed_log_that_still_fails_at_the_next_start_is_named_and_nothing_is_lost(
    shimmed: tuple[Trouble, Shim], program: Run
) -> None:
    store, shim = shimmed
    running = store.start()
    durable = program(writer, store.name, "w", "always")
    durable.wait_for(5)
    shim.set(SYNC, errno.EIO)
    acknowledged = len(numbers(durable.end()[0]))
    assert running.stop()[0] == 1
    for _ in range(2):
        code, lines = store.start(ready=False).end()
        assert code == 1
        assert "[Errno 5]" in lines
        assert store.is_kept()
    shim.heal()
    store.start()
    with store.attach() as db:
        check_written(db, "w", acknowledged)


def test_a_disk_that_takes_only_part_of_each_write_gets_all_of_it(shimmed: tuple[Trouble, Shim]) -> None:
    store, shim = shimmed
    running = store.start(durability="interval")
    with store.attach() as db:
        shim.set(WRITE, FALL_SHORT)
        db.update({f"k{number}": VALUE for number in range(500)})
        db.sync()
        assert shim.hits(WRITE) > 0
        store.shows("OK")
    assert running.stop()[0] == 0
    store.start()
    with store.attach() as db:
        assert has_all(db, 500)


@needs_disk
def test_a_file_system_that_turns_read_only_keeps_everything_in_the_arena(
    on_disk: tuple[Trouble, LoopDisk], program: Run
) -> None:
    store, disk = on_disk
    running = store.start()
    durable = program(writer, store.name, "w", "always")
    durable.wait_for(20)
    # What ext4 does by itself, with errors=remount-ro, when it finds its own blocks damaged.
    Path(f"/sys/fs/ext4/{disk.device()}/trigger_fs_error").write_text("test")
    lines, _ = durable.end()
    acknowledged = len(numbers(lines))
    with store.attach() as db:
        check_written(db, "w", acknowledged)
        assert db.stats().log_state in ("DISK_FULL", "FAILED")
        store.shows(db.stats().log_state)
        with pytest.raises((shmkv.ReadOnly, shmkv.DiskFull)):
            db["more"] = 1
    code, said = running.stop()
    assert "Read-only file system" in said
    assert code == 1
    assert store.is_kept()
    disk.unmount()
    disk.check()
    disk.mount()
    store.start()
    with store.attach() as db:
        check_written(db, "w", acknowledged)


# ---- snapshots ---------------------------------------------------------------------------------------------------


@needs_disk
def test_a_snapshot_without_room_is_refused_before_it_takes_the_room_of_the_log(
    on_disk: tuple[Trouble, LoopDisk],
) -> None:
    store, disk = on_disk
    running = store.start("--snapshot-log", "0", "--snapshot-interval", "0")
    with store.attach() as db:
        db.update({f"k{number}": VALUE for number in range(1000)})
        disk.fill(leave_bytes=3 << 20)
        with pytest.raises(OSError, match="make room"):
            db.snapshot()
        db["after"] = 1
        store.shows("OK")
        assert not list((store.data / "snapshot").glob("*"))
        # The last snapshot, at the stop, fails for the same reason: no reason not to end.
    code, lines = running.stop()
    assert code == 0
    assert lines.count("no snapshot: about") >= 2
    running = store.start()
    with store.attach() as db:
        assert has_all(db, 1000)
        disk.give_back()
        assert db.snapshot().entries == 1001
    assert running.stop()[0] == 0
    store.start()
    with store.attach() as db:
        assert has_all(db, 1000)
        assert db["after"] == 1


@pytest.mark.parametrize(
    "operation", [SYNC, *(pytest.param(each, marks=pytest.mark.slow) for each in (OPEN, WRITE, RENAME))]
)
def test_an_error_in_a_snapshot_is_told_and_the_log_goes_on(
    shimmed_snapshots: tuple[Trouble, Shim], operation: int
) -> None:
    store, shim = shimmed_snapshots
    running = store.start("--snapshot-log", "0", "--snapshot-interval", "0")
    with store.attach() as db:
        db.update({f"k{number}": VALUE for number in range(200)})
        first = db.snapshot()
        db["between"] = 1
        shim.set(operation, errno.EIO)
        with pytest.raises(OSError, match="Errno 5"):
            db.snapshot()
        db["after"] = 2
        store.shows("OK")
        shim.heal()
        assert db.snapshot().generation > first.generation
        assert not list((store.data / "snapshot").glob("*.tmp"))
        shim.set(operation, errno.EIO)
    assert running.stop()[0] == 0
    shim.heal()
    store.start()
    with store.attach() as db:
        assert has_all(db, 200)
        assert (db["between"], db["after"]) == (1, 2)
