"""Makes child processes: a fresh interpreter that runs a module, with a pipe for commands and one for events.

Why here: the supervisor starts its first child before it has loaded anything else, so this file imports nothing of
shmkv, and little besides.

Invariants:
  I1  A child gets standard input, output and error, its event pipe and what was named; nothing else.
  I2  It leads a session of its own, so Ctrl-C on a terminal reaches only the supervisor.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys

EVENT_FD = 3
EXTRA_FD = 4
# Above every descriptor number that a child is given, so that moving one into place overwrites no other.
SAFE_FD = 16
# Python ignores the first two and a supervisor the third; a child starts with the defaults.
RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
PRIVATE_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")


class Spawned:
    """A child's process id and our ends: `pidfd` (readable at its end), `commands` to write, `events` to read."""

    __slots__ = ("commands", "events", "pid", "pidfd")

    def __init__(self, pid: int, commands: int, events: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.commands = commands
        self.events = events

    def close(self) -> None:
        """Give the descriptors back; to a living child this says that the supervisor is gone."""
        for descriptor in (self.pidfd, self.events, self.commands):
            os.close(descriptor)


def spawn(module: str, argument: str, extra_fd: int | None = None) -> Spawned:
    """Start `python -m module argument`; OSError when the machine can't. `extra_fd` becomes EXTRA_FD there."""
    command_read, command_write = os.pipe2(os.O_CLOEXEC)
    event_read, event_write = os.pipe2(os.O_CLOEXEC)
    given = [(command_read, 0), (event_write, EVENT_FD)]
    if extra_fd is not None:
        given.append((extra_fd, EXTRA_FD))
    moved = [(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, SAFE_FD), target) for source, target in given]
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", module, argument],
            child_environment(),
            file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for source, target in moved],
            setsid=True,
            setsigdef=RESET_SIGNALS,
            setsigmask=(),
        )
    except BaseException:
        os.close(command_write)
        os.close(event_read)
        raise
    finally:
        for descriptor in (command_read, event_write, *(source for source, _ in moved)):
            os.close(descriptor)
    os.set_blocking(event_read, False)
    os.set_blocking(command_write, False)
    return Spawned(pid, command_write, event_read)


def child_environment() -> dict[str, str]:
    """The supervisor's environment without what is meant for it alone, and with the way to this package."""
    environment = {key: value for key, value in os.environ.items() if key not in PRIVATE_VARIABLES}
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.basename(root) not in ("site-packages", "dist-packages"):
        known = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = f"{known}:{root}" if known else root
    return environment
