"""Processes for the tools: forked workers that are killed and reaped, and strangers that are found by a mark.

Why here: whoever kills processes for a living must never hit one that is not its own.

Invariants:
  I1  A signal goes only through a pidfd that was opened before the process was recognised.
  I2  The tool has one thread whenever it forks.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Process:
    """A process and the descriptor that names it whatever happens to its number."""

    pid: int
    pidfd: int

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; nothing happens if the process is gone."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def has_ended(self, timeout_s: float = 0.0) -> bool:
        """Whether it has ended, waiting up to timeout_s for that."""
        waiter = select.poll()
        waiter.register(self.pidfd, select.POLLIN)
        return bool(waiter.poll(timeout_s * 1000))

    def reap(self) -> int:
        """Wait for the end of a child of ours and return its exit code, minus the signal's number if one ended it."""
        _, status = os.waitpid(self.pid, 0)
        self.close()
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.pidfd)


def fork(function: Callable[..., None], *arguments: Any) -> Process:
    """Run a function in a forked child, which ends with it: exit code 0, or 1 and a traceback on standard error."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Process(pid, os.pidfd_open(pid))
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Parent:
    """What a worker knows of the process that forked it; made before the fork."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def orphaned(self) -> bool:
        """Whether the tool is gone, so that a worker should go, too."""
        return os.getppid() != self._pid


def marked(mark: str) -> Iterator[tuple[Process, str]]:
    """Living processes with that text in their environment, and their command lines; the caller closes them."""
    wanted = mark.encode()
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            process = Process(int(name), os.pidfd_open(int(name)))
        except (ProcessLookupError, OSError):
            continue
        environment, command = _read(name, "environ"), _read(name, "cmdline")
        if wanted in environment and not process.has_ended():
            yield process, command.replace(b"\0", b" ").decode(errors="replace")
        else:
            process.close()


def _read(name: str, file: str) -> bytes:
    try:
        with open(f"/proc/{name}/{file}", "rb") as stream:
            return stream.read()
    except OSError:
        return b""  # ended meanwhile, or another user's: not ours


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Look every 5 ms until a condition holds; TimeoutError saying `what` did not come."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(0.005)
