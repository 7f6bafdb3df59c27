"""Fixtures that every test may use: private places, running stores, and the check that nothing is left behind.

A test that starts a store asks for `supervised` or `launched`; both end with a full audit of the arena and
with `nothing_left`: no process, no shared object, no runtime file.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shmkv import paths

ROOT = Path(__file__).parent.parent
MARK = "SHMKV_TEST_RUN"
DEADLINE_S = 20.0


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """The first true value of the condition; fails, naming it, when it does not come in time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            pytest.fail(f"waited {timeout_s:g} s in vain for: {what}")
        select.select([], [], [], 0.005)


def processes_of(mark: str) -> dict[int, str]:
    """Living processes that carry the mark of a test in their environment: pid to command line."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
            command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0") and command:
            found[int(entry)] = command
    return found


@dataclass
class Places:
    """Private directories of one test, and what its stores are called."""

    mark: str
    runtime: Path
    state: Path
    names: list[str] = field(default_factory=list)

    def name(self, stem: str = "store") -> str:
        """A name that no other test run uses."""
        name = f"t{self.mark}-{stem}-{len(self.names)}"
        self.names.append(name)
        return name

    def processes(self, part: str = "") -> dict[int, str]:
        """Processes of this test whose command line holds `part`."""
        return {pid: command for pid, command in processes_of(self.mark).items() if part in command}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """Private runtime and state directories; at the end nothing of the test may be left."""
    mark = f"{os.getpid()}x{time.monotonic_ns() % 10**9}"
    result = Places(mark, tmp_path / "run", tmp_path / "state")
    result.runtime.mkdir(mode=0o700)
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(result.runtime))
    monkeypatch.setenv("XDG_STATE_HOME", str(result.state))
    for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"):
        monkeypatch.delenv(variable, raising=False)
    yield result
    check_nothing_left(result)


def check_nothing_left(places: Places) -> None:
    """No process, no shared object, no runtime file; what is found is removed, so that one failure stays one."""
    try:
        wait_until(lambda: not processes_of(places.mark), f"the end of {processes_of(places.mark)}", 5.0)
        mine = [name for name in paths.store_names() if places.mark in name or _made_here(name)]
        assert not mine, f"shared objects left: {mine}"
        files = [path for path in places.runtime.rglob("*") if not path.is_dir()]
        assert not files, f"runtime files left: {files}"
    finally:
        for pid in processes_of(places.mark):
            os.kill(pid, signal.SIGKILL)
        for name in paths.store_names():
            if places.mark in name or _made_here(name):
                os.unlink(paths.object_path(name))


def _made_here(name: str) -> bool:
    owner = paths.temporary_owner(name)
    return owner is not None and owner[0] == os.getpid()


class Supervised:
    """A supervisor that runs `python -m shmkv.supervisor`, as a user would start it."""

    def __init__(self, name: str, *options: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shmkv.supervisor", name, *options], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ready_line(self, timeout_s: float = DEADLINE_S) -> str:
        """Wait for the line that says that the store is ready; fails with the error lines if it ends before."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline() if readable else ""
        if "is ready" not in line:
            self.process.kill()
            pytest.fail(f"not ready: {line!r} {self.process.communicate()}")
        return line.strip()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait: (exit code, error lines)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, lines = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, lines

    def end(self) -> tuple[int, str]:
        """Wait for an end that something else caused: (exit code, error lines)."""
        _, lines = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, lines


@pytest.fixture
def supervised(places: Places) -> Iterator[Callable[..., Supervised]]:
    """Start supervisors: `supervised(name, *options)`, with 16 MiB unless said.

    Those alive at the end are audited and stopped.
    """
    started: list[Supervised] = []

    def start(name: str, *options: str, ready: bool = True) -> Supervised:
        memory = () if "--memory" in options else ("--memory", "16MiB")
        result = Supervised(name, *memory, *options)
        started.append(result)
        if ready:
            result.ready_line()
        return result

    yield start
    # A test that failed may have left a child stopped, for which its supervisor would wait.
    for pid in places.processes():
        os.kill(pid, signal.SIGCONT)
    for each in started:
        try:
            if each.process.poll() is None:
                audit(each.name)
        finally:
            each.stop()


def audit(name: str) -> None:
    """The arena of that name has no fault; one that is gone has none either."""
    import posix_ipc

    from shmkv.segment import _core

    try:
        memory = posix_ipc.SharedMemory(paths.object_name(name))
    except posix_ipc.ExistentialError:
        return
    try:
        arena = _core.Arena(memory.fd)
        try:
            assert arena.audit() == []
        finally:
            arena.close()
    finally:
        memory.close_fd()


@pytest.fixture
def launched(places: Places) -> Iterator[Callable[..., Any]]:
    """Start stores with `shmkv.launch(**arguments)`, with 16 MB unless said; each is audited and closed at the end."""
    import shmkv

    started: list[Any] = []

    def start(name: str | None = None, **arguments: Any) -> Any:
        store = shmkv.launch(name, **{"memory": "16MB", **arguments})  # type: ignore[attr-defined]
        started.append(store)
        return store

    yield start
    for store in started:
        try:
            if not store.closed:
                audit(store.name)
        finally:
            store.close()
