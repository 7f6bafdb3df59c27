"""A life whose first log file could not be opened at once: the disk of the log was full when the store started.

What is acknowledged when room has come is as durable as everything else, whatever happened before the file was there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from memory_disk import MemoryDisk
from rig import Rig

from shmkv.wal.log import LogDirectory

FULL_OPERATIONS = ("create", "preallocate")


def fill(disk: MemoryDisk) -> None:
    """From now on no file can be made in the folder of the log."""

    def refuse(operation: str, path: str) -> None:
        if operation in FULL_OPERATIONS and "/log/" in path:
            raise OSError(errno.ENOSPC, "full", path)

    disk.before = refuse


def make_room(rig: Rig) -> None:
    rig.disk.before = lambda _operation, _path: None
    for _ in range(5):
        rig.later(1100)
    assert rig.writer.is_open


def stopped_store() -> MemoryDisk:
    """One that holds `first`, was stopped cleanly, and has no spares."""
    disk = MemoryDisk()
    rig = Rig(disk)
    rig.store.set(b"first", b"v")
    rig.turns(50)
    rig.orders.give("retire")
    rig.finish()
    assert rig.persister.exit_code == 0
    rig.close()
    for name in disk.names("/data/log"):
        if name.startswith("spare."):
            disk.unlink(f"/data/log/{name}")
    disk.fsync_dir("/data/log")
    return disk


def start_full(disk: MemoryDisk) -> Rig:
    fill(disk)
    rig = Rig(disk)
    rig.turns(5)
    assert not rig.writer.is_open
    return rig


def first_header(rig: Rig) -> tuple[int, int]:
    """(life before, where it ended) as the newest file says."""
    header = LogDirectory(rig.disk, "/data/log").log_files()[-1].header
    assert header is not None
    return header.previous_incarnation, header.previous_end_lsn


@pytest.mark.parametrize("killed_while_full", [False, True])
@pytest.mark.parametrize("make_disk", [MemoryDisk, stopped_store])
def test_what_is_acknowledged_after_room_came_outlives_a_power_cut(
    make_disk: Callable[[], MemoryDisk], killed_while_full: bool
) -> None:
    rig = start_full(make_disk())
    if killed_while_full:
        rig.restart_warm()
    make_room(rig)
    rig.store.set(b"acknowledged", b"v")
    rig.turns(50)
    assert rig.durable_lsn == rig.tail
    assert first_header(rig)[0] == (0 if make_disk is MemoryDisk else 1)
    found = rig.after_power_cut()
    rig.close()
    kept = {"acknowledged": b"v"} if make_disk is MemoryDisk else {"first": b"v", "acknowledged": b"v"}
    assert {key if isinstance(key, str) else key.decode(): value for key, value in found.items()} == kept


def test_a_snapshot_of_a_life_without_a_log_file_starts() -> None:
    rig = start_full(stopped_store())
    rig.jobs.submit("j", "snapshot", {})
    rig.run_jobs()
    rig.turns()
    assert rig.job_events() == [("j", "done")]
    assert list(rig.after_power_cut().values()) == [b"v"]
    rig.close()
