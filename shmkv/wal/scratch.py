"""An arena of its own in private memory, in which a restore puts a state together.

Why here: a state that is a snapshot plus a log needs a table to be applied to, and the living one is in use.

Invariants:
  I1  It takes memory only for what is written into it, and none when it is closed, however the process ends.
  I2  It is never READY: nobody can attach to it, nothing expires in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from shmkv.errors import MemoryLimitExceeded
from shmkv.segment import _core

# Of what the kernel says is available; the rest is for the store that may be serving meanwhile.
MEMORY_SHARE = 0.9


class Scratch:
    """An empty arena of that plan; `close` gives its memory back."""

    def __init__(self, plan: Mapping[str, int], hash_key: bytes) -> None:
        self.plan = dict(plan)
        self._fd = os.memfd_create("shmkv-restore", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._fd, self.plan["size_bytes"])
            ring_bytes = _core.plan(**self.plan)["ring_bytes"]
            first_lsn = -(-_core.LSN_GAP // ring_bytes) * ring_bytes
            _core.format_arena(
                self._fd, **self.plan, name="restore", store_id=bytes(16), incarnation=1, first_lsn=first_lsn,
                has_log=True, hash_key=hash_key,
            )  # fmt: skip
            self.arena = _core.Arena(self._fd, prefault=False)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory back."""
        self.arena.close()
        os.close(self._fd)


def larger(plan: Mapping[str, int]) -> dict[str, int]:
    """The plan for the next try, when this one was too small."""
    return {**plan, "size_bytes": 2 * plan["size_bytes"], "max_size_bytes": 0}


def capacity_bytes(plan: Mapping[str, int]) -> int:
    """What entries can take at most in an arena of that plan."""
    layout = _core.plan(**plan)
    return layout["size_bytes"] - layout["pages_offset"]


def check_machine(need_bytes: int) -> None:
    """Refuse to build what this machine has no memory for. Raises MemoryLimitExceeded."""
    available = available_bytes()
    if available is not None and need_bytes > available * MEMORY_SHARE:
        raise MemoryLimitExceeded(
            f"the restore needs about {need_bytes} bytes of memory for a while, {available} are available on this "
            f"machine; stop other programs, or restore while the store is stopped"
        )


def available_bytes() -> int | None:
    """What the kernel could give to a program now; None if it does not say."""
    with open("/proc/meminfo") as file:
        lines: list[Any] = [line.split() for line in file if line.startswith("MemAvailable:")]
    return int(lines[0][1]) * 1024 if lines else None
