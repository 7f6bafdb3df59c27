"""What the supervisor says: lines for people, events for a program that launched it.

Why here: one place decides what goes to standard output, to standard error and to the event descriptor.

Invariants:
  I1  Nothing said here can end the supervisor: a reader that is gone, or too slow, loses lines.
"""

from __future__ import annotations

import os
import time
from typing import Any

from shmkv.supervisor.lines import encode


class Report:
    """Lines to standard output and error; with an event descriptor, events there and only warnings as lines."""

    def __init__(self, name: str, event_fd: int | None = None) -> None:
        self._prefix = f'shmkv: store "{name}"'
        self._event_fd = event_fd
        if event_fd is not None:
            os.set_blocking(event_fd, False)

    def note(self, text: str) -> None:
        """What went as planned; silent for a program."""
        if self._event_fd is None:
            _write(2, f"{self._prefix}: {text}\n".encode())

    def warn(self, text: str) -> None:
        """What did not."""
        _write(2, f"{self._prefix}: {text}\n".encode())

    def ready(self, line: str, event: dict[str, Any]) -> None:
        """The store is ready: one line on standard output, or the event."""
        if self._event_fd is None:
            _write(1, f"{self._prefix} {line}\n".encode())
        else:
            _write(self._event_fd, encode({"event": "ready", **event}))

    def failed(self, code: int, kind: str, reason: str) -> None:
        """The end, and why."""
        if self._event_fd is None:
            _write(2, f"{self._prefix}: {reason}\n".encode())
        else:
            _write(self._event_fd, encode({"event": "failed", "exit": code, "kind": kind, "error": reason}))


def seconds_since_exec() -> float:
    """Age of this process, from its start time in /proc (10 ms steps)."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b") ")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _write(descriptor: int, line: bytes) -> None:
    try:
        os.write(descriptor, line)
    except (BrokenPipeError, BlockingIOError, OSError):
        # I1: a closed terminal, a full pipe or a full disk under a log file must not stop a store.
        return
