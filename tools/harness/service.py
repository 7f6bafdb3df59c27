"""One store under a real supervisor, as a user would run it, with a handle on each of its processes.

Why here: tour, chaos and bench start, kill, re-adopt and remove stores in the same way.

Invariants:
  I1  Everything lies in one directory of ours: log, runtime files, what the supervisor says.
  I2  Its processes are found by a random mark in their environment, so orphans are found, too.
  I3  After `destroy` there is no process, no shared object and no file.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import posix_ipc

import shmkv
from harness.processes import Process, marked
from shmkv import paths
from shmkv.segment import _core

ROLES = {"shmkv.wal.persister": "persister", "shmkv.supervisor.keeper": "keeper", "shmkv.supervisor": "supervisor"}
# The temp dir is often memory, and a log belongs on a disk.
DISK_DIR = os.environ.get("TMPDIR") or "/var/tmp"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 90.0


class ServiceFailed(Exception):
    """The supervisor did not do what it should; carries what it said."""


@dataclass(frozen=True, slots=True)
class Start:
    """How one start went; seconds since just before the supervisor's exec."""

    line: str
    ready_s: float
    first_read_s: float

    @property
    def warm(self) -> bool:
        """Whether the arena was adopted."""
        return "(warm)" in self.line


class Service:
    """A store that can be started, killed in parts or as a whole, started again, and removed."""

    def __init__(self, name: str, *, parent_dir: str | None = None, **options: Any) -> None:
        """`parent_dir`: where its directory is made, default DISK_DIR. `options`: settings, as of the command."""
        self.name = name
        self.directory = tempfile.mkdtemp(prefix=f"shmkv-{name}-", dir=parent_dir or DISK_DIR)
        self.data_dir = f"{self.directory}/data"
        self._mark = f"SHMKV_TEST_RUN={os.path.basename(self.directory)}"
        self._options = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        self._supervisor: subprocess.Popen[bytes] | None = None

    # ---- start and stop -------------------------------------------------------------------------

    def start(self, first_key: str | None = None, *more_options: str) -> Start:
        """Start the supervisor, wait until it is ready, attach and read one key.

        Raises ServiceFailed when it ends, or is not ready after START_TIMEOUT_S.
        """
        command = [sys.executable, "-P", "-m", "shmkv.supervisor", self.name, f"--data-dir={self.data_dir}"]
        began_s = time.monotonic()
        with open(f"{self.directory}/said", "ab") as said:
            self._supervisor = subprocess.Popen(
                [*command, *self._options, *more_options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                env=self._environment(),
                start_new_session=True,
            )
        line = self._ready_line()
        ready_s = time.monotonic() - began_s
        with shmkv.attach(self.name, timeout=10.0) as db:
            db.get(first_key if first_key is not None else "a key")
            first_read_s = time.monotonic() - began_s
        return Start(line, ready_s, first_read_s)

    def find_control(self) -> None:
        """Let this process, and those that it forks, find the control socket: snapshots are asked for there."""
        os.environ["XDG_RUNTIME_DIR"] = f"{self.directory}/run"

    def _environment(self) -> dict[str, str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SHMKV_")}
        # As an installation has it: without compiled modules each start would compile them anew.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        key, _, value = self._mark.partition("=")
        environment[key] = value
        environment["XDG_RUNTIME_DIR"] = f"{self.directory}/run"
        root = os.path.dirname(os.path.dirname(os.path.abspath(shmkv.__file__)))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
        return environment

    def _ready_line(self) -> str:
        assert self._supervisor is not None
        assert self._supervisor.stdout is not None
        output = self._supervisor.stdout.fileno()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        said = b""
        while b"is ready" not in said or not said.endswith(b"\n"):
            readable, _, _ = select.select([output], [], [], max(0.0, deadline_s - time.monotonic()))
            data = os.read(output, 65536) if readable else b""
            if not data:
                problem = "ended before it was ready" if readable else f"was not ready after {START_TIMEOUT_S:g} s"
                raise ServiceFailed(f"the supervisor {problem}; it said:\n{self.said()}")
            said += data
        return said.decode()

    def stop(self) -> None:
        """End it cleanly and check that it went so; ServiceFailed if not."""
        assert self._supervisor is not None
        self._supervisor.terminate()
        try:
            code = self._supervisor.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ServiceFailed(
                f"the supervisor did not stop within {STOP_TIMEOUT_S:g} s; it said:\n{self.said()}"
            ) from None
        self._forget()
        if code != 0:
            raise ServiceFailed(f"the supervisor stopped with exit code {code}; it said:\n{self.said()}")

    def said(self) -> str:
        """The last lines that the supervisor and its children wrote to standard error."""
        with open(f"{self.directory}/said", errors="replace") as file:
            return "".join(file.readlines()[-30:])

    def _forget(self) -> None:
        if self._supervisor is not None and self._supervisor.stdout is not None:
            self._supervisor.stdout.close()
        self._supervisor = None

    # ---- kill -----------------------------------------------------------------------------------

    def family(self) -> dict[str, Process]:
        """The processes that run now, by role; the caller closes them."""
        found: dict[str, Process] = {}
        for process, command in marked(self._mark):
            role = next((role for module, role in ROLES.items() if f"-m {module} " in command), f"other: {command}")
            found[role] = process
        return found

    def kill(self, *roles: str, also: list[Process] | None = None) -> int:
        """SIGKILL these roles (none named: all of them) and `also`, in one go; waits for their end; how many died."""
        family = self.family()
        victims = [family[role] for role in (roles or tuple(sorted(family, reverse=True))) if role in family]
        for process in [*victims, *(also or [])]:
            process.kill()
        for process in victims:
            if not process.has_ended(STOP_TIMEOUT_S):
                raise ServiceFailed(f"process {process.pid} did not end by SIGKILL within {STOP_TIMEOUT_S:g} s")
        for process in family.values():
            process.close()
        if self._supervisor is not None and (not roles or "supervisor" in roles):
            self._supervisor.wait(STOP_TIMEOUT_S)
            self._forget()
        return len(victims)

    def remove_arena(self) -> None:
        """Take the shared memory away as a machine crash would: no process of the store may run."""
        posix_ipc.unlink_shared_memory(paths.object_name(self.name))

    # ---- look -----------------------------------------------------------------------------------

    def arena(self) -> _core.Arena:
        """The arena, for audits and numbers; the caller closes it."""
        memory = posix_ipc.SharedMemory(paths.object_name(self.name))
        try:
            return _core.Arena(memory.fd)
        finally:
            memory.close_fd()

    def audit(self) -> list[dict[str, Any]]:
        """What a deep audit finds wrong: nothing, in a good store."""
        arena = self.arena()
        try:
            return arena.audit(deep=True)
        finally:
            arena.close()

    def stats(self) -> dict[str, int]:
        """The numbers of the arena."""
        arena = self.arena()
        try:
            return arena.stats()
        finally:
            arena.close()

    def log_bytes(self) -> int:
        """Size of everything in the data directory."""
        return sum(
            os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(self.data_dir) for name in names
        )

    # ---- end ------------------------------------------------------------------------------------

    def destroy(self) -> list[str]:
        """Remove whatever is left and say what that was: nothing after a clean stop, the data directory aside."""
        left = []
        for role, process in self.family().items():
            left.append(f"process {process.pid} ({role})")
            process.kill()
            process.has_ended(STOP_TIMEOUT_S)
            process.close()
        if self._supervisor is not None:
            self._supervisor.wait(STOP_TIMEOUT_S)
            self._forget()
        if paths.object_inode(self.name) is not None:
            left.append(f"shared object {paths.object_path(self.name)}")
            self.remove_arena()
        shutil.rmtree(self.directory)
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.path.exists(self.directory):
            self.destroy()


def ended_by_signal() -> None:
    """Let SIGTERM end the tool as Ctrl-C does, so that what it started is removed."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
