"""Syncs of a file that is being written: every few MiB, in a thread beside the writer or in the writer's own.

Why here: whoever makes blocks needs the processor, whoever syncs waits for the disk; one after the other they take as
long as both together. What waits for a sync lies in the page cache, so nothing is copied for it.

Invariants:
  I1  At most UNSYNCED_STEPS steps wait for a sync, so that none of the log stands behind much of them.
  I2  finish returns when all is on disk. An error of any sync is raised in the writer's thread: by its next step, or by
      finish; nothing is synced after it.
  I3  After the context's end nothing touches the file.
  I4  Without a `spawn` all is done in the writer's thread: the order of file operations is always the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shmkv.wal.files import Files

SYNC_STEP_BYTES = 8 << 20
UNSYNCED_STEPS = 2

Spawn = Callable[[Callable[[], None]], threading.Thread]


class Syncing:
    """Syncs what one writer appends to one file; a context that ends before the descriptor is closed."""

    def __init__(self, files: Files, fd: int, spawn: Spawn | None = None) -> None:
        """spawn(work) runs work in a thread that it has started, and returns that; None = no thread."""
        self._files = files
        self._fd = fd
        self._changed = threading.Condition()
        self._written_bytes = 0
        self._synced_bytes = 0
        self._ended = False
        self._error: BaseException | None = None
        self._thread = None if spawn is None else spawn(self._work)

    def __enter__(self) -> Syncing:
        return self

    def __exit__(self, *_: object) -> None:
        """Blocks for the sync that is under way."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def wrote(self, written_bytes: int) -> None:
        """The file is now so long. Blocks while too much waits for a sync; raises what a sync raised."""
        if self._thread is None:
            if written_bytes - self._synced_bytes >= SYNC_STEP_BYTES:
                self._files.fdatasync(self._fd)
                self._synced_bytes = written_bytes
            return
        with self._changed:
            self._written_bytes = written_bytes
            self._changed.notify_all()
            self._changed.wait_for(self._may_go_on)
            if self._error is not None:
                raise self._error

    def finish(self) -> None:
        """Sync the rest: on return the content is on disk."""
        self.__exit__()
        if self._error is not None:
            raise self._error
        self._files.fsync(self._fd)

    def _may_go_on(self) -> bool:
        waiting_bytes = self._written_bytes - self._synced_bytes
        return self._error is not None or waiting_bytes < UNSYNCED_STEPS * SYNC_STEP_BYTES

    # ---- beside the writer ----------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (written_bytes := self._next_step()) is not None:
                self._files.fdatasync(self._fd)
                with self._changed:
                    self._synced_bytes = written_bytes
                    self._changed.notify_all()
        except BaseException as error:
            # Raised again in the writer's thread, see I2.
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next_step(self) -> int | None:
        """How much is written when there is a step to sync; None = no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._written_bytes - self._synced_bytes >= SYNC_STEP_BYTES)
            return None if self._ended else self._written_bytes
