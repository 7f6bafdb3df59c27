"""Every system call on files of the data directory, in one class that tests replace.

Why here: what reaches the disk, and in which order, is the whole of durability. With one place for it, a test
can fail the Nth call, record all of them, or keep the "disk" in memory and rebuild what a power cut leaves.

Invariants:
  I1  No other module of shmkv.wal calls the operating system on a file, except to map the arena.
  I2  write_all writes everything or raises OSError; EINTR never shows (PEP 475).
  I3  A name is durable after fsync_dir of its folder, content after fdatasync or fsync: neither implies the other.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

Buffer = bytes | bytearray | memoryview

ZERO_CHUNK_BYTES = 1 << 20
ZERO_SYNC_BYTES = 4 << 20


class Files:
    """The file operations of the log, on the real file system; every method raises OSError."""

    def create(self, path: str) -> int:
        """Make a new file, mode 0600, and return its descriptor; FileExistsError if the name is taken."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: str) -> int:
        """Open an existing file for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def open_to_read(self, path: str) -> int:
        """Open an existing file for reading only."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def preallocate(self, fd: int, size_bytes: int) -> None:
        """Reserve the space of the first size_bytes, so that a full disk shows here and not at a write."""
        os.posix_fallocate(fd, 0, size_bytes)

    def write_all(self, fd: int, pieces: Sequence[Buffer], offset: int) -> int:
        """Write the pieces one after another at offset; returns their size in bytes."""
        wanted = sum(map(len, pieces))
        done = os.pwritev(fd, pieces, offset)
        if done == wanted:
            return wanted
        rest = memoryview(b"".join(pieces))
        while done < wanted:
            step = os.pwritev(fd, [rest[done:]], offset + done)
            if step == 0:
                raise OSError(errno.EIO, f"the disk took {done} of {wanted} bytes at offset {offset} and no more")
            done += step
        return wanted

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fsync_dir(self, path: str) -> None:
        """Make names that were made, renamed or removed in this folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def make_dir(self, path: str) -> None:
        """Make the folder, mode 0700, and its parents; nothing happens if it is there."""
        os.makedirs(path, mode=0o700, exist_ok=True)

    def is_file(self, path: str) -> bool:
        """Whether it is there, and no folder."""
        return os.path.isfile(path)

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def size_bytes(self, path: str) -> int:
        return os.stat(path).st_size

    def free_bytes(self, path: str) -> int:
        """What may still be written to the file system of this folder."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def read_some(self, path: str, size_bytes: int) -> bytes:
        """The first size_bytes of a file, or all of a shorter one."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = bytearray()
            while len(data) < size_bytes and (piece := os.read(fd, size_bytes - len(data))):
                data += piece
            return bytes(data)
        finally:
            os.close(fd)

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        """Fill the view with the bytes at offset; fewer are there only where the file ends. Returns how many."""
        done = 0
        while done < len(view) and (step := os.preadv(fd, [view[done:]], offset + done)):
            done += step
        return done

    def drop_cache(self, fd: int) -> None:
        """Forget the file's pages that are on disk: the next read asks the disk itself."""
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def map(self, path: str) -> memoryview:
        """A read-only view of the whole file; release it when done. Sequential access is expected."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size == 0:
                return memoryview(b"")
            mapping = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        mapping.madvise(mmap.MADV_SEQUENTIAL)
        return memoryview(mapping)

    def lock_dir(self, path: str, timeout_s: float) -> int:
        """Lock a folder for the life of the descriptor that is returned.

        Blocks up to timeout_s while another process holds it (call it from the main thread: it uses SIGALRM);
        then raises TimeoutError. The kernel drops the lock when its holder dies, however it dies.
        """
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                self._lock_slowly(fd, path, timeout_s)
                return fd
        except BaseException:
            os.close(fd)
            raise

    @staticmethod
    def _lock_slowly(fd: int, path: str, timeout_s: float) -> None:
        def expire(_signal: int, _frame: FrameType | None) -> Any:
            raise TimeoutError(
                f"{path} was still locked by another persister after {timeout_s:g} s; "
                f"it may be writing its last records: look for it with `fuser {path}` and try again"
            )

        previous = signal.signal(signal.SIGALRM, expire)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)


def fill_with_zeros(files: Files, fd: int, size_bytes: int, cancelled: Callable[[], bool]) -> bool:
    """Write zeros over the first size_bytes, so that a later fdatasync has no allocation to record.

    Syncs on the way, so that others' syncs do not wait behind all of it. False = `cancelled` said so.
    """
    zeros = bytes(min(ZERO_CHUNK_BYTES, size_bytes))
    offset = 0
    while offset < size_bytes:
        if cancelled():
            return False
        piece = zeros if size_bytes - offset >= len(zeros) else zeros[: size_bytes - offset]
        offset += files.write_all(fd, [piece], offset)
        if offset % ZERO_SYNC_BYTES == 0:
            files.fdatasync(fd)
    return True
