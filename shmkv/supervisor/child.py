"""One child: the process that fills it, the messages that come and go, and its state.

Why here: `crew` decides by the tables of `states`; `spawn` makes the processes.

Invariants:
  I1  When the supervisor dies, the kernel closes the command pipe: that is how the child knows.
  I2  Until `reap` returned an exit code the process id is ours, so a kill can't hit a stranger.
"""

from __future__ import annotations

import json
import os
import signal

from shmkv.supervisor.lines import LineReader, Message, encode
from shmkv.supervisor.spawn import Spawned, spawn
from shmkv.supervisor.states import Child, ChildDo, ChildEvent, Exit, child_step, next_failures

READ_BYTES = 65536


class Process:
    """A running child; descriptors: `pidfd` (readable at its end), `events` (its messages)."""

    def __init__(
        self, module: str, arguments: Message, extra_fd: int | None = None, *, spawned: Spawned | None = None
    ) -> None:
        """Start `python -m module JSON`; OSError when the machine can't. `extra_fd` becomes EXTRA_FD there.

        `spawned`: an interpreter with that module that waits for its arguments; it gets them.
        """
        self._spawned = spawn(module, json.dumps(arguments), extra_fd) if spawned is None else spawned
        self.pid = self._spawned.pid
        self.pidfd = self._spawned.pidfd
        self.events = self._spawned.events
        self._reader = LineReader()
        if spawned is not None:
            self.send(arguments)

    def send(self, command: Message) -> bool:
        """Write one command; False when the child reads no more, whose end is about to be seen."""
        try:
            return os.write(self._spawned.commands, encode(command)) > 0
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
        """Whether a thread of it sleeps in the kernel where no signal reaches it, or a debugger holds it."""
        try:
            threads = os.listdir(f"/proc/{self.pid}/task")
            return any(_state(f"/proc/{self.pid}/task/{thread}") in (b"D", b"t") for thread in threads)
        except (FileNotFoundError, ProcessLookupError):
            return False

    def close(self) -> None:
        """Give the descriptors back; to a living child this says that the supervisor is gone."""
        self._spawned.close()


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
        self.last_kind = ""  # the class of that error, as far as the child said it
        self.hangs = False  # the disk holds it for so long that it was said
        self.patience_s: float | None = None  # asked to end: how long it may take from its last sign of progress on
        self.progress: Message = {}

    def step(self, event: ChildEvent) -> ChildDo:
        """Move by the table; the caller carries out what comes back."""
        self.state, action = child_step(self.state, event)
        return action

    def started(self, process: Process | None, now_s: float) -> None:
        """A process fills the role now; None: it could not be made."""
        self.process = process
        self.hangs = False
        self.started_s = self.heard_s = now_s
        self.patience_s = None
        self.last_error = self.last_kind = ""

    def ended(self, code: int, now_s: float) -> None:
        """Its process is gone: count the death, close the descriptors."""
        if self.process is not None:
            self.process.close()
        self.process = None
        self.last_exit = code
        # Who was asked to end, as before a restored arena, and did, has not failed.
        asked = self.state is Child.STOPPING and code == Exit.CLEAN
        self.failures = 0 if asked else next_failures(self.failures, now_s - self.started_s)

    def status(self, now_s: float) -> Message:
        """What `status` says about it; seconds since its start and since its last message."""
        alive = self.process is not None
        return {
            "role": self.role,
            "state": self.state.name,
            "pid": self.process.pid if self.process is not None else None,
            "up_s": round(now_s - self.started_s, 3) if alive else None,
            "heard_s": round(now_s - self.heard_s, 3) if alive else None,
            "hangs": self.hangs,
            "failures": self.failures,
            "last_exit": self.last_exit,
            "last_error": self.last_error,
            "progress": self.progress,
        }


def _state(task: str) -> bytes:
    with open(f"{task}/stat", "rb") as file:
        return file.read().rpartition(b") ")[2][:1]


def describe_exit(code: int) -> str:
    """An exit code as people say it."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
