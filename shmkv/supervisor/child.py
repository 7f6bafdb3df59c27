"""One child: a fresh interpreter that runs a module, its command pipe, its event pipe and its state.

Why here: `loop` decides by the tables of `states`; this file is the only one that makes processes.

Invariants:
  I1  A child gets standard input, output and error, its event pipe and what was named; nothing else.
  I2  It leads a session of its own, so Ctrl-C on a terminal reaches only the supervisor.
  I3  When the supervisor dies, the kernel closes the command pipe: that is how the child knows.
  I4  Until `reap` returned an exit code the process id is ours, so a kill can't hit a stranger.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys

from shmkv.supervisor.lines import LineReader, Message, encode
from shmkv.supervisor.states import Child, ChildDo, ChildEvent, child_step, next_failures

EVENT_FD = 3
EXTRA_FD = 4
READ_BYTES = 65536
# Above every descriptor number that a child is given, so that moving one into place overwrites no other.
SAFE_FD = 16
# Python ignores the first two and a supervisor the third; a child starts with the defaults.
RESET_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
PRIVATE_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID")


class Process:
    """A running child; descriptors: `pidfd` (readable at its end), `events` (its messages)."""

    def __init__(self, module: str, arguments: Message, extra_fd: int | None = None) -> None:
        """Start `python -m module JSON`; OSError when the machine can't. `extra_fd` becomes EXTRA_FD there."""
        command_read, command_write = os.pipe2(os.O_CLOEXEC)
        event_read, event_write = os.pipe2(os.O_CLOEXEC)
        given = [(command_read, 0), (event_write, EVENT_FD)]
        if extra_fd is not None:
            given.append((extra_fd, EXTRA_FD))
        moved = [(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, SAFE_FD), target) for source, target in given]
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", module, json.dumps(arguments)],
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
        self.pidfd = os.pidfd_open(self.pid)
        self.events = event_read
        self._commands = command_write
        self._reader = LineReader()

    def send(self, command: Message) -> bool:
        """Write one command; False when the child reads no more, whose end is about to be seen."""
        try:
            return os.write(self._commands, encode(command)) > 0
        except (BrokenPipeError, BlockingIOError):
            return False

    def receive(self) -> list[Message] | None:
        """Messages that have come, without waiting; None after the last one, ProtocolError for rubbish."""
        try:
            data = os.read(self.events, READ_BYTES)
        except BlockingIOError:
            return []
        return self._reader.feed(data) if data else None

    def kill(self) -> None:
        """SIGKILL; the end is seen through `pidfd`."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> int | None:
        """Exit code, minus the signal number for a signal; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def waits_for_disk(self) -> bool:
        """Whether it sleeps in the kernel where no signal reaches it, or a debugger holds it."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return file.read().rpartition(b") ")[2][:1] in (b"D", b"t")
        except (FileNotFoundError, ProcessLookupError):
            return False

    def close(self) -> None:
        """Give the descriptors back; to a living child this says that the supervisor is gone."""
        for descriptor in (self.pidfd, self.events, self._commands):
            os.close(descriptor)


class ManagedChild:
    """A role (persister, keeper, worker-1 ...), its state, and the process that fills it, if any."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.state = Child.DOWN
        self.process: Process | None = None
        self.failures = 0
        self.started_s = 0.0
        self.heard_s = 0.0
        self.last_exit: int | None = None
        self.last_error = ""
        self.progress: Message = {}

    def step(self, event: ChildEvent) -> ChildDo:
        """Move by the table; the caller carries out what comes back."""
        self.state, action = child_step(self.state, event)
        return action

    def started(self, process: Process | None, now_s: float) -> None:
        """A process fills the role now; None: it could not be made."""
        self.process = process
        self.started_s = self.heard_s = now_s
        self.last_error = ""

    def ended(self, code: int, now_s: float) -> None:
        """Its process is gone: count the death, close the descriptors."""
        if self.process is not None:
            self.process.close()
        self.process = None
        self.last_exit = code
        self.failures = next_failures(self.failures, now_s - self.started_s)

    def status(self, now_s: float) -> Message:
        """What `status` says about it; seconds since its start and since its last message."""
        alive = self.process is not None
        return {
            "role": self.role,
            "state": self.state.name,
            "pid": self.process.pid if self.process is not None else None,
            "up_s": round(now_s - self.started_s, 3) if alive else None,
            "heard_s": round(now_s - self.heard_s, 3) if alive else None,
            "failures": self.failures,
            "last_exit": self.last_exit,
            "last_error": self.last_error,
            "progress": self.progress,
        }


def child_environment() -> dict[str, str]:
    """The supervisor's environment without what is meant for it alone, and with the way to this package."""
    environment = {key: value for key, value in os.environ.items() if key not in PRIVATE_VARIABLES}
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if os.path.basename(root) not in ("site-packages", "dist-packages"):
        known = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = f"{known}:{root}" if known else root
    return environment


def describe_exit(code: int) -> str:
    """An exit code as people say it."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
