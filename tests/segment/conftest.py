"""Arenas for tests of the binding: real shared memory without a name, so that a killed test leaves nothing behind."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmkv.segment import _core

SIZE_BYTES = 8 << 20
STORE_ID = b"0123456789abcdef"
RING_LOCK_OFFSET = 64  # within the control page


class Segment:
    """One arena in state READY: its descriptor, its Arena, and the stores that were opened on it."""

    def __init__(
        self, *, size_bytes: int = SIZE_BYTES, incarnation: int = 1, has_log: bool = False, **plan: int
    ) -> None:
        self.fd = os.memfd_create("shmkv-test", os.MFD_CLOEXEC)
        os.posix_fallocate(self.fd, 0, size_bytes)
        _core.format_arena(
            self.fd,
            size_bytes=size_bytes,
            name="test",
            store_id=STORE_ID,
            incarnation=incarnation,
            first_lsn=incarnation * _core.LSN_GAP,
            has_log=has_log,
            **plan,
        )
        self.arena = _core.Arena(self.fd)
        self.arena.set_state(state="READY")
        self.stores: list[_core.Store] = []

    def store(self, kind: type[_core.Store] = _core.Store, **settings: Any) -> _core.Store:
        """Open one more handle."""
        store = kind(self.fd, "test", **settings)
        self.stores.append(store)
        return store

    def publish(self) -> None:
        """Do what a persister does when all that was written is on disk."""
        ring = self.arena.ring()
        self.arena.publish_durable(ring["tail"], ring["now_ms"])

    def slot_threads(self) -> set[int]:
        """Thread ids that hold a slot."""
        return {slot["tid"] for slot in self.arena.slots()}

    def close(self) -> None:
        for store in self.stores:
            store.close()
        self.arena.close()
        os.close(self.fd)


class RingLock:
    """The ring's lock, held by a child process that has a slot, so that no doctor takes it away."""

    def __init__(self, segment: Segment) -> None:
        ready_read, ready_write = os.pipe()
        self._stop_read, self._stop = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _hold_ring_lock(segment, ready_write, self._stop_read)
        os.close(ready_write)
        assert os.read(ready_read, 1) == b"1"
        os.close(ready_read)

    def release(self) -> None:
        """Let the child unlock and end."""
        pid, self.pid = self.pid, 0
        if pid:
            # A byte, not only the end of the pipe: a child of the test may have inherited this end.
            os.write(self._stop, b"1")
            os.waitpid(pid, 0)
            os.close(self._stop)
            os.close(self._stop_read)


def _hold_ring_lock(segment: Segment, ready: int, stop: int) -> None:
    try:
        store = _core.Store(segment.fd, "test")
        store.get("claims a slot")
        offset = segment.arena.info()["control_offset"]
        memory = mmap.mmap(segment.fd, offset + mmap.PAGESIZE)
        lock = ctypes.byref(ctypes.c_char.from_buffer(memory, offset + RING_LOCK_OFFSET))
        libc = ctypes.CDLL(None)
        assert libc.pthread_mutex_lock(lock) == 0
        os.write(ready, b"1")
        os.read(stop, 1)
        libc.pthread_mutex_unlock(lock)
        store.close()
    finally:
        os._exit(0)


def drain(segment: Segment) -> bytes:
    """What a persister would copy to the log now."""
    ring = segment.arena.ring()
    data = b"".join(segment.arena.ring_pieces(ring["head"], ring["tail"]))
    segment.arena.publish_written(ring["tail"])
    segment.arena.publish_durable(ring["tail"], ring["now_ms"])
    return data


def verify_log(data: bytes, first_lsn: int) -> dict[str, Any]:
    return _core.verify(data, store_id=STORE_ID, incarnation=1, first_lsn=first_lsn)


def mapped(fd: int) -> int:
    """How often the object behind fd is mapped into this process."""
    inode = str(os.fstat(fd).st_ino)
    with open("/proc/self/maps") as maps:
        return sum(line.split()[4] == inode for line in maps)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 10.0) -> None:
    """Poll until the condition holds; fails, naming it, when it does not come in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            pytest.fail(f"waited {timeout_s:g} s in vain for: {what}")
        time.sleep(0.002)


@pytest.fixture
def make_segment() -> Iterator[Callable[..., Segment]]:
    """Make arenas with `make_segment(**plan)`; each is audited at the end."""
    made: list[Segment] = []

    def make(**plan: Any) -> Segment:
        made.append(Segment(**plan))
        return made[-1]

    yield make
    for segment in made:
        try:
            if not segment.arena.info()["retired"]:
                assert segment.arena.audit() == []
        finally:
            segment.close()


@pytest.fixture
def segment(make_segment: Callable[..., Segment]) -> Segment:
    """One arena without a log."""
    return make_segment()


@pytest.fixture
def db(segment: Segment) -> _core.Store:
    """A writable handle on `segment`."""
    return segment.store()


@pytest.fixture
def hold_ring_lock(segment: Segment) -> Iterator[RingLock]:
    """The ring lock of `segment`, held by another process until `release` or the end of the test."""
    lock = RingLock(segment)
    yield lock
    lock.release()


@pytest.fixture
def logged(make_segment: Callable[..., Segment]) -> Segment:
    """An arena with a log and the smallest ring."""
    return make_segment(has_log=True, ring_bytes=65536)
