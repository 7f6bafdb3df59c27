"""The shared memory object of a store: find it, judge it, make it, keep others off, remove it.

Why here: the supervisor owns the object's name and its pages; what is inside belongs to others.

Invariants:
  I1  Whoever holds the flock on the object that the name leads to is its only supervisor. The kernel
      gives it back at every kind of end; children don't inherit it (close-on-exec).
  I2  All pages are reserved before it serves, so that no write to it dies of SIGBUS later.
  I3  A name is removed only while it leads to the object that is open here.
  I4  No lock inside the arena is taken.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from enum import Enum, auto
from typing import Any

import posix_ipc

from shmkv import paths
from shmkv.config import format_size
from shmkv.supervisor.states import Exit

RESERVE_STEP_BYTES = 32 << 20
MEMORY_RESERVE_BYTES = 64 << 20  # left for the processes themselves


class Refused(Exception):
    """The supervisor can't go on: an exit code, the class of shmkv.errors for callers, and the reason."""

    def __init__(self, code: Exit, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.kind = kind
        self.reason = reason


class Verdict(Enum):
    """What to do with an arena that was found."""

    ADOPT = auto()  # it served, and can go on
    FINISH = auto()  # its ring may hold writes that are not in the log: drain, remove, make anew
    DISCARD = auto()  # it never served


class ArenaFile:
    """An open shared memory object; `fd` is to be mapped by others, `inode` is its identity."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self._reservation: Reservation | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the object, as the kernel says now."""
        return os.fstat(self.fd).st_size

    def is_current(self) -> bool:
        """Whether the name still leads here."""
        return paths.object_inode(self.name) == self.inode

    def unlink(self) -> bool:
        """Remove the name if it leads here; the memory goes with the last process that maps it."""
        if not self.is_current():
            return False
        posix_ipc.unlink_shared_memory(paths.object_name(self.name))
        return True

    def reserve(self, size_bytes: int) -> None:
        """Begin to reserve all pages, beside what comes next; returns at once."""
        self._reservation = Reservation(self.fd, size_bytes)

    def shortage(self) -> Refused | None:
        """Why not all pages could be reserved; None if they are. Waits for the reservation."""
        if self._reservation is None:
            return None
        error = self._reservation.wait()
        if error is not None and error.errno == errno.ENOSPC:
            return _no_room(self.size_bytes, 0, paths.SHM_DIR)
        return None if error is None else _not_set_up(self.name, error)

    def close(self) -> None:
        """Give the descriptor, and with it the flock, back; a reservation that goes on is given up."""
        if self._reservation is not None:
            self._reservation.cancel()
        os.close(self.fd)


class Reservation:
    """A thread that reserves the pages of an object, about 0.2 s for 1 GiB; in steps, so that it can be given up."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self._error: OSError | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, name="reserve", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for start in range(0, self._size_bytes, RESERVE_STEP_BYTES):
                if self._cancelled:
                    return
                os.posix_fallocate(self._fd, start, min(RESERVE_STEP_BYTES, self._size_bytes - start))
        except OSError as error:
            self._error = error

    def wait(self) -> OSError | None:
        """Wait for its end; the error that ended it."""
        self._thread.join()
        return self._error

    def cancel(self) -> None:
        """Do no further step; waits for the one that runs, some milliseconds."""
        self._cancelled = True
        self._thread.join()


def find(name: str) -> ArenaFile | None:
    """Open the object of that name and become its supervisor; None if there is none.

    Raises Refused when another process supervises it, or it is another user's.
    """
    while True:
        try:
            memory = posix_ipc.SharedMemory(paths.object_name(name))
        except posix_ipc.ExistentialError:
            return None
        except (PermissionError, posix_ipc.PermissionsError) as error:
            raise Refused(
                Exit.CANNOT_CREATE, "StoreUnavailable",
                f"shared memory {paths.object_path(name)} belongs to another user ({error}); take another name",
            ) from None  # fmt: skip
        arena = _own(name, memory.fd)
        if arena.is_current():
            return arena
        # Removed between open and flock: look again.
        arena.close()


def create(name: str, size_bytes: int, mode: int, group: str) -> ArenaFile:
    """Make the object and begin to reserve its pages; Refused with the numbers and a remedy when there is no room.

    What only the reservation can tell comes from `shortage`. Crash: an object without a header, which the next
    start discards.
    """
    try:
        memory = posix_ipc.SharedMemory(paths.object_name(name), posix_ipc.O_CREX, mode=mode)
    except posix_ipc.ExistentialError:
        raise Refused(
            Exit.LOCK_HELD, "StoreExists", f"another process made {paths.object_path(name)} just now; try again"
        ) from None
    except OSError as error:
        raise Refused(
            Exit.CANNOT_CREATE, "StoreUnavailable", f"{paths.object_path(name)} cannot be made: {error}"
        ) from None
    arena = _own(name, memory.fd)
    try:
        _check_room(arena.fd, size_bytes)
        os.fchmod(arena.fd, mode)
        # A sandbox may forbid the call, which is not needed when the group is ours.
        if group and os.fstat(arena.fd).st_gid != _group_id(group):
            os.fchown(arena.fd, -1, _group_id(group))
        os.ftruncate(arena.fd, size_bytes)
        arena.reserve(size_bytes)
    except BaseException as error:
        arena.unlink()
        arena.close()
        if isinstance(error, OSError):
            raise _not_set_up(name, error) from None
        raise
    return arena


def judge(header: dict[str, Any] | None, info: dict[str, Any] | None) -> Verdict:
    """What an arena is good for, from `read_header` (None: no good header) and `Arena.info` (None: can't be mapped)."""
    if header is None:
        return Verdict.DISCARD
    if info is None:
        return Verdict.FINISH
    if info["state"] == "CREATING":
        return Verdict.DISCARD
    return Verdict.FINISH if info["state"] == "RETIRED" or info["retired"] or info["condemned"] else Verdict.ADOPT


def holder_of_lock(fd: int) -> int | None:
    """Process id that holds the flock of this file, from /proc/locks; None if it can't be told."""
    status = os.fstat(fd)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with open("/proc/locks") as file:
        for line in file:
            words = line.split()
            if len(words) >= 6 and words[1] == "FLOCK" and words[5] == wanted and words[4].isdecimal():
                return int(words[4]) or None
    return None


def lock_directory(directory: str) -> int:
    """Take DIRECTORY/lock for the life of this process and return its descriptor.

    The lock is an flock, as the package filelock takes it on Linux (importing that costs 80 ms of a warm
    start that is to take 400). Raises Refused, naming path and holder.
    """
    path = f"{directory}/lock"
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Refused(
                Exit.CANNOT_CREATE, "StoreUnavailable", f"lock {path} cannot be opened: {error.strerror}"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = holder_of_lock(fd)
            os.close(fd)
            raise _held(path, holder) from None
        if _leads_to(path, fd):
            return fd
        # A supervisor that ended removed the file between open and flock: look again.
        os.close(fd)


def unlock_directory(directory: str, fd: int, *, remove: bool) -> None:
    """Give the lock back; with `remove` the file goes first, while the lock still keeps others off."""
    if remove and _leads_to(f"{directory}/lock", fd):
        os.unlink(f"{directory}/lock")
    os.close(fd)


def _leads_to(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _own(name: str, fd: int) -> ArenaFile:
    os.set_inheritable(fd, False)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = holder_of_lock(fd)
        os.close(fd)
        raise _held(paths.object_path(name), holder) from None
    return ArenaFile(name, fd)


def arena_kept(fate: str, error: str) -> Refused:
    """The end of a supervisor whose persister left before the log was complete."""
    why = f": {error}" if error else ""
    return Refused(
        Exit.RETRY, "StoreUnavailable",
        f"the persister {fate} before the log was complete{why}; the shared memory is kept, and the next start of this "
        f"store goes on from it",
    )  # fmt: skip


def _held(path: str, holder: int | None) -> Refused:
    who = f"process {holder}" if holder else "another process"
    return Refused(
        Exit.LOCK_HELD, "StoreExists",
        f"lock {path} is held by {who}, which runs this store; attach to it, stop it (shmkv-admin shutdown) or take "
        f"another name",
    )  # fmt: skip


def _check_room(fd: int, size_bytes: int) -> None:
    status = os.fstatvfs(fd)
    free_bytes = status.f_bavail * status.f_frsize
    # A tmpfs without a size limit reports no blocks at all.
    if status.f_blocks and free_bytes < size_bytes:
        raise _no_room(size_bytes, free_bytes, paths.SHM_DIR)
    available_bytes = _available_memory()
    if available_bytes is not None and available_bytes < size_bytes + MEMORY_RESERVE_BYTES:
        raise _no_room(size_bytes, available_bytes, "the memory of this machine")


def free_shm_bytes() -> int:
    """How large an arena could be made now."""
    status = os.statvfs(paths.SHM_DIR)
    limits = [status.f_bavail * status.f_frsize] if status.f_blocks else []
    available_bytes = _available_memory()
    if available_bytes is not None:
        limits.append(max(0, available_bytes - MEMORY_RESERVE_BYTES))
    return min(limits, default=1 << 62)


def _not_set_up(name: str, error: OSError) -> Refused:
    return Refused(Exit.CANNOT_CREATE, "StoreUnavailable", f"{paths.object_path(name)} cannot be set up: {error}")


def _no_room(size_bytes: int, free_bytes: int, place: str) -> Refused:
    return Refused(
        Exit.CANNOT_CREATE, "MemoryLimitExceeded",
        f"the store needs {format_size(size_bytes)} and {place} has {format_size(free_bytes)} free; lower memory, "
        f"remove stores that nobody uses (shmkv-admin list), or enlarge {paths.SHM_DIR} (mount -o remount,size=..., "
        f"docker run --shm-size=...)",
    )  # fmt: skip


def _available_memory() -> int | None:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _group_id(group: str) -> int:
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Refused(
            Exit.BAD_CONFIG, "InvalidSetting", f"group {group!r} does not exist; create it or change the setting"
        ) from None
