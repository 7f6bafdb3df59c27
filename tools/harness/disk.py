"""A disk of our own that can be filled, frozen, made read-only and cut off: ext4 in a file, on a loop device.

Why here: power cuts and full disks are tried on a real file system, and whoever mounts one must always unmount it.

Invariants:
  I1  The loop device goes with the mount (it is made with autoclear); `close` leaves neither of them nor the file.
  I2  Needs root; `unavailable` says why it can't be had, before anything is made.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

FREEZE, THAW, SHUTDOWN = 0xC0045877, 0xC0045878, 0x8004587D
# What a shutdown still does before the file system is gone.
FLUSH_ALL, FLUSH_JOURNAL, FLUSH_NOTHING = 0, 1, 2
COMMANDS = ("mkfs.ext4", "mount", "umount")
UNMOUNT_TRIES = 120
UNMOUNT_PAUSE_S = 0.25


class DiskFailed(Exception):
    """A mount or an unmount did not work; carries what the command said."""


def unavailable() -> str:
    """Why no disk can be mounted here; empty if one can."""
    if os.geteuid() != 0:
        return "only root can mount"
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        return f"missing: {', '.join(missing)}"
    return "" if os.path.exists("/dev/loop-control") else "no loop devices here"


class LoopDisk:
    """An ext4 of size_bytes at `path`, in a file in `directory`."""

    def __init__(self, directory: str | Path, size_bytes: int, options: str = "") -> None:
        """`options`: as for mount -o, besides loop. Raises DiskFailed."""
        self.path = Path(directory, "disk")
        self._image = Path(directory, "disk.image")
        self._options = ",".join(filter(None, ["loop", options]))
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(size_bytes)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))
        self.mount()

    def mount(self) -> None:
        """Mount it; after a power cut the journal is replayed here."""
        run("mount", "-o", self._options, str(self._image), str(self.path))

    def unmount(self) -> None:
        """Unmount it, waiting a while for processes that were killed to let go; DiskFailed if it does not work.

        Another mount namespace that was made meanwhile holds a copy of the mount, and with it the file system as it
        is now: the next mount would find that instead of the disk. So the end of the loop device is waited for.
        """
        failure = DiskFailed("unmount was not tried")
        for _ in range(UNMOUNT_TRIES):
            try:
                if os.path.ismount(self.path):
                    run("umount", str(self.path))
                if not self._is_attached():
                    return
                failure = DiskFailed(f"{self.path} is unmounted here, but another mount namespace still holds it")
            except DiskFailed as problem:
                failure = problem
            time.sleep(UNMOUNT_PAUSE_S)
        raise failure

    def _is_attached(self) -> bool:
        for found in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if found.read_text().removesuffix("\n") == str(self._image.resolve()):
                    return True
        return False

    def cut_power(self, flush: int = FLUSH_NOTHING) -> None:
        """From now on nothing reaches the disk and every call fails; what was not synced is lost."""
        self._call(SHUTDOWN, struct.pack("I", flush))

    def freeze(self) -> None:
        """Let every writer hang, where no signal reaches it, until `thaw`."""
        self._call(FREEZE, struct.pack("I", 0))

    def thaw(self) -> None:
        """Let them go on; nothing happens to a disk that is not frozen."""
        try:
            self._call(THAW, struct.pack("I", 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def remount(self, options: str) -> None:
        """As mount -o remount."""
        run("mount", "-o", f"remount,{options}", str(self.path))

    def check(self) -> None:
        """Repair it as at a boot, while it is not mounted; DiskFailed when it can't be."""
        done = subprocess.run(["fsck.ext4", "-f", "-p", str(self._image)], capture_output=True, text=True, check=False)
        if done.returncode & ~3:
            raise DiskFailed(f"fsck.ext4: exit code {done.returncode}: {done.stdout.strip()} {done.stderr.strip()}")

    def device(self) -> str:
        """Name of its block device, as in /sys/fs/ext4."""
        return os.path.basename(run("findmnt", "-n", "-o", "SOURCE", str(self.path)).strip())

    def free_bytes(self) -> int:
        """What ordinary users may still write."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take the free space away, in a file `ballast`, but for about leave_bytes."""
        fd = os.open(self.path / "ballast", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            size_bytes, step = os.fstat(fd).st_size, 1 << 20
            while step >= 4096:
                if self.free_bytes() - leave_bytes < step:
                    step //= 2
                    continue
                try:
                    os.posix_fallocate(fd, size_bytes, step)
                    size_bytes += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 2
        finally:
            os.close(fd)

    def give_back(self) -> None:
        """Remove the ballast."""
        (self.path / "ballast").unlink(missing_ok=True)

    def _call(self, number: int, argument: bytes) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, number, argument)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmount it if it is mounted, and remove it."""
        if os.path.ismount(self.path):
            with contextlib.suppress(OSError):
                # A disk that was cut off can't be frozen, and says so here.
                self.thaw()
            self.unmount()
        self.path.rmdir()
        self._image.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def run(*command: str) -> str:
    """Run a command; what it printed. DiskFailed carries its complaint."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DiskFailed(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout
