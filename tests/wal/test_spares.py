"""Spare files: enough of them, made one after another, tried again after a while, given up at a stop."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest
from memory_disk import Fault, MemoryDisk

from shmkv.wal.frame import raw_room
from shmkv.wal.log import FileHeader, LogDirectory
from shmkv.wal.spares import SpareMaker
from shmkv.wal.writer import LogShape

SHAPE = LogShape(file_bytes=8192, spare_count=3)


def maker_on(disk: MemoryDisk, spawn: Callable[[Callable[[], None]], None] = lambda work: work()) -> SpareMaker:
    directory = LogDirectory(disk, "/data/log")
    directory.prepare()
    return SpareMaker(directory, SHAPE, spawn)


def test_as_many_as_the_shape_says_are_made_once() -> None:
    disk = MemoryDisk()
    maker = maker_on(disk)
    for now_ms in range(5):
        maker.care(now_ms)
    assert maker.enough
    assert len(disk.names("/data/log")) == 3
    assert maker_on(disk).enough, "a restart finds them"


def test_a_failure_is_kept_and_tried_again_after_a_second() -> None:
    disk = MemoryDisk()
    maker = maker_on(disk)
    disk.before = fault = Fault(1, operations=("preallocate",), code=errno.ENOSPC, for_ever=True)
    for now_ms in range(0, 3000, 100):
        maker.care(now_ms)
    assert fault.hits == 3
    assert "No space" in maker.error
    assert not maker.enough
    assert all(not name.endswith(".tmp") for name in disk.names("/data/log"))
    disk.before = lambda _operation, _path: None
    maker.care(5000)
    assert maker.enough
    assert maker.error == ""


def test_small_spares_of_other_settings_do_not_count() -> None:
    disk = MemoryDisk()
    directory = LogDirectory(disk, "/data/log")
    directory.prepare()
    for _ in range(3):
        directory.make_spare(4096 + 512)
    maker = SpareMaker(directory, SHAPE, lambda work: work())
    assert not maker.enough


def test_a_new_spare_never_takes_the_name_of_one_that_turns_into_a_log_file() -> None:
    disk = MemoryDisk()
    for life in range(2):
        directory = LogDirectory(disk, "/data/log")
        directory.prepare()
        if life == 0:
            directory.make_spare(8192)
    made: list[str] = []

    def make_another(operation: str, path: str) -> None:
        # The maker's thread is as fast as can be: its spare is there before the one in use has its new name.
        if operation == "rename" and path.endswith(".log") and not made:
            made.append(path)
            directory.make_spare(8192)

    disk.before = make_another
    header = FileHeader(b"0123456789abcdef", 1, 4096, 1, 0, 0, 0, 0)
    fd, size_bytes = directory.start_file(header, least_bytes=0, fallback_bytes=4096)
    disk.close(fd)
    assert (size_bytes, len(made)) == (8192, 1)
    file = directory.inspect(1)
    assert file.header is not None, file.problem
    assert (file.header.first_lsn, file.header.size_bytes) == (4096, 8192)
    assert len([name for name in disk.names("/data/log") if name.startswith("spare.")]) == 1


def test_a_stop_does_not_wait_for_the_rest() -> None:
    disk = MemoryDisk()
    started, go_on = threading.Event(), threading.Event()

    def pause(operation: str, _path: str) -> None:
        if operation == "preallocate":
            started.set()
            assert go_on.wait(10)

    threads: list[threading.Thread] = []

    def spawn(work: Callable[[], None]) -> None:
        threads.append(threading.Thread(target=work))
        threads[-1].start()

    maker = maker_on(disk, spawn)
    disk.before = pause
    maker.care(0)
    assert started.wait(10)
    maker.care(0)
    assert len(threads) == 1, "one at a time"
    threading.Timer(0.05, go_on.set).start()
    maker.cancel()
    threads[0].join(10)
    assert disk.names("/data/log") == []
    maker.care(10_000)
    assert len(threads) == 1


@pytest.mark.parametrize(
    ("ring_bytes", "limit", "file_bytes", "count"),
    [
        (1 << 20, 64 << 20, 4 << 20, 1),
        (8 << 20, 64 << 20, 32 << 20, 1),
        (64 << 20, 64 << 20, 64 << 20, 2),
        (64 << 20, 1 << 20, 3 * 4096 + (32 << 20), 4),
        (4096, 64 << 20, 1 << 20, 1),
    ],
)
def test_files_follow_from_the_ring(ring_bytes: int, limit: int, file_bytes: int, count: int) -> None:
    shape = LogShape.of(ring_bytes, limit)
    assert shape == LogShape(file_bytes, count)
    # Whatever records the ring holds, each up to a quarter of it, the spares hold them.
    assert count * (file_bytes - 4096 - ring_bytes // 4) >= ring_bytes
    # Those of an encrypted log too: whole records that fit into each, but for the one that begins the next file.
    assert count * (raw_room(file_bytes - 4096) - ring_bytes // 4) >= ring_bytes
