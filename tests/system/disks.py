"""A disk that misbehaves when a test says so: this end of the shim in disk_shim.c."""

from __future__ import annotations

import errno
import mmap
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("disk_shim.c")

OPEN, WRITE, SYNC, RENAME, UNLINK, ALLOCATE, MKDIR = range(7)
HANG, FALL_SHORT = -1, -2
FOR_EVER = -1
_RULE = struct.Struct("=iiii")


class Shim:
    """What the calls of every process do that was started with `environment`, on files below `disk_dir`."""

    def __init__(self, directory: Path, disk_dir: Path) -> None:
        library, control = directory / "shim.so", directory / "shim.control"
        build = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(build, check=True, capture_output=True)
        control.write_bytes(bytes(mmap.PAGESIZE))
        with control.open("r+b") as file:
            self._rules = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.environment = {
            "LD_PRELOAD": str(library), "SHMKV_TEST_DISK_CONTROL": str(control), "SHMKV_TEST_DISK_DIR": str(disk_dir),
        }  # fmt: skip

    def set(self, operation: int, what: int = errno.EIO, *, skip: int = 0, times: int = FOR_EVER) -> None:
        """From now on: an errno, HANG or FALL_SHORT for calls of that kind, after `skip` of them, `times` times."""
        _RULE.pack_into(self._rules, operation * _RULE.size, 0, skip, times, 0)
        # Last, so that no call sees half of a rule.
        struct.pack_into("=i", self._rules, operation * _RULE.size, what)

    def hits(self, operation: int) -> int:
        """How many calls it has hit since it was set."""
        found: tuple[int, int, int, int] = _RULE.unpack_from(self._rules, operation * _RULE.size)
        return found[3]

    def heal(self) -> None:
        """All calls work again, and those that hang go on."""
        for operation in range(MKDIR + 1):
            struct.pack_into("=i", self._rules, operation * _RULE.size, 0)

    def close(self) -> None:
        self.heal()
        self._rules.close()
