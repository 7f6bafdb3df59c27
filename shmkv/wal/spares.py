"""Makes spare log files ahead of their use, beside the loop.

Why here: zero-filling 64 MiB takes some 200 ms, during which nobody's write may wait.

Invariants:
  I1  At most one thread makes spares.
  I2  An error is kept for the loop to see, and tried again only when the loop asks again after RETRY_MS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shmkv.wal.log import LogDirectory
from shmkv.wal.writer import LogShape

RETRY_MS = 1000


class SpareMaker:
    """Keeps shape.spare_count spares of shape.file_bytes; `error` says why there are fewer, "" = no reason known."""

    def __init__(self, directory: LogDirectory, shape: LogShape, spawn: Callable[[Callable[[], None]], None]) -> None:
        self._directory = directory
        self._shape = shape
        self._spawn = spawn
        self._running = False
        self._cancelled = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._retry_at = 0
        self.error = ""

    @property
    def enough(self) -> bool:
        """Whether what the ring may hold has a place on the disk, whatever happens to the disk's free space."""
        return sum(size >= self._shape.file_bytes for size in self._directory.spare_sizes) >= self._shape.spare_count

    def care(self, now_ms: int) -> None:
        """Start making what is missing; returns at once."""
        if self._running or self.enough or now_ms < self._retry_at or self._cancelled.is_set():
            return
        self._running = True
        self._idle.clear()
        self._spawn(lambda: self._make(now_ms))

    def cancel(self) -> None:
        """Make no more; waits for the chunk that is being written."""
        self._cancelled.set()
        self._idle.wait()

    def _make(self, now_ms: int) -> None:
        try:
            while not self.enough and not self._cancelled.is_set():
                self._directory.make_spare(self._shape.file_bytes, cancelled=self._cancelled.is_set)
            self.error = ""
        except OSError as error:
            self.error = str(error)
            self._retry_at = now_ms + RETRY_MS
        finally:
            self._running = False
            self._idle.set()


def in_thread(work: Callable[[], None]) -> None:
    """Run it beside the caller."""
    threading.Thread(target=work, name="spares", daemon=True).start()
