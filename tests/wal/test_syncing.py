"""Syncs beside a writer: bounded, complete at the end, and an error is the writer's; without a thread in one order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from memory_disk import MemoryDisk
from small_log import SmallStore

from shmkv.wal import jobs
from shmkv.wal.files import Files
from shmkv.wal.syncing import SYNC_STEP_BYTES, UNSYNCED_STEPS, Syncing

PATH = "/data/x"
LIMIT_BYTES = UNSYNCED_STEPS * SYNC_STEP_BYTES
WAIT_S = 10.0


class Gate(Files):
    """A disk whose syncs wait until they are let through, or fail."""

    def __init__(self) -> None:
        self.open_gate = threading.Event()
        self.begun = threading.Event()
        self.error: OSError | None = None
        self.synced: list[str] = []

    def fdatasync(self, fd: int) -> None:
        self.begun.set()
        assert self.open_gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        self.synced.append("fdatasync")

    def fsync(self, fd: int) -> None:
        self.synced.append("fsync")


def test_without_a_thread_each_step_is_synced_where_it_ends() -> None:
    disk = MemoryDisk()
    fd = disk.create(PATH)
    with Syncing(disk, fd) as syncing:
        for written_bytes in range(0, 2 * SYNC_STEP_BYTES + 1, SYNC_STEP_BYTES // 2):
            syncing.wrote(written_bytes)
        assert disk.operations == ["create x", "sync x", "sync x"]
        syncing.finish()
    assert disk.operations == ["create x", "sync x", "sync x", "sync x"]


def test_the_writer_goes_on_during_a_sync_and_stops_when_too_much_waits() -> None:
    disk = Gate()
    with Syncing(disk, 0, jobs.beside_job) as syncing:
        syncing.wrote(SYNC_STEP_BYTES)
        assert disk.begun.wait(WAIT_S)
        syncing.wrote(LIMIT_BYTES - 1)
        stopped = threading.Thread(target=syncing.wrote, args=(LIMIT_BYTES,))
        stopped.start()
        stopped.join(0.05)
        assert stopped.is_alive()
        assert disk.synced == []
        disk.open_gate.set()
        stopped.join(WAIT_S)
        assert not stopped.is_alive()
        syncing.finish()
    assert disk.synced[0] == "fdatasync"
    assert disk.synced[-1] == "fsync"


@pytest.mark.parametrize("written_bytes", [SYNC_STEP_BYTES + 1, LIMIT_BYTES], ids=["going on", "waiting"])
def test_an_error_of_the_thread_is_raised_by_the_next_step_of_the_writer(written_bytes: int) -> None:
    disk = Gate()
    disk.error = OSError(5, "broken")
    with Syncing(disk, 0, jobs.beside_job) as syncing:
        syncing.wrote(SYNC_STEP_BYTES)
        assert disk.begun.wait(WAIT_S)
        disk.open_gate.set()
        assert syncing._thread is not None
        syncing._thread.join(WAIT_S)
        with pytest.raises(OSError, match="broken"):
            syncing.wrote(written_bytes)
    assert disk.synced == []


def test_an_error_of_the_last_step_is_raised_by_finish_and_nothing_is_synced_after_it() -> None:
    disk = Gate()
    disk.error = OSError(5, "broken")
    with Syncing(disk, 0, jobs.beside_job) as syncing:
        syncing.wrote(SYNC_STEP_BYTES)
        assert disk.begun.wait(WAIT_S)
        disk.open_gate.set()
        with pytest.raises(OSError, match="broken"):
            syncing.finish()
    assert disk.synced == []


def test_a_writer_that_gives_up_leaves_no_thread(tmp_path: Path) -> None:
    files, before = Files(), threading.active_count()
    fd = files.create(str(tmp_path / "x"))
    try:
        with pytest.raises(KeyError), Syncing(files, fd, jobs.beside_job) as syncing:
            syncing.wrote(files.write_all(fd, [os.urandom(4096)], 0))
            raise KeyError
    finally:
        files.close(fd)
    assert threading.active_count() == before


@pytest.mark.parametrize("has_thread", [True, False])
def test_what_a_publication_removes_gives_its_room_back_beside(
    has_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, closed = MemoryDisk(), threading.Event()
    store = SmallStore(disk)

    def close(work: Callable[[], None]) -> None:
        work()
        closed.set()

    def spawn(work: Callable[[], None]) -> threading.Thread:
        if not has_thread:
            raise RuntimeError("can't start new thread")
        return jobs.beside_job(lambda: close(work))

    for number in range(2):
        store.append(f"key{number}", bytes(2000))
        store.snapshot()
    publish = store.generations.publish
    monkeypatch.setattr(store.generations, "publish", lambda facts, _: publish(facts, spawn))
    store.append("key2", bytes(2000))
    store.snapshot()
    assert not has_thread or closed.wait(WAIT_S)
    assert all(disk.exists(path) for _, path in disk.open_files.values()), "nothing that was removed is held open"
    assert len(disk.names("/data/snapshot")) == 2
