"""A real persister process on a real arena and a real directory, as the supervisor would start it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import posix_ipc

from shmkv import paths
from shmkv.segment import _core

ROOT = Path(__file__).parents[2]
ARENA_BYTES = 8 << 20
DEADLINE_S = 20.0


class RealStore:
    """Name, data directory and shared object of one store; `persister` is the process that runs now."""

    def __init__(self, name: str, data_dir: Path) -> None:
        self.name = name
        self.data_dir = data_dir
        self.fd = -1
        self.persister: RealPersister | None = None
        self.log: list[RealPersister] = []

    def create(self, size_bytes: int = ARENA_BYTES) -> None:
        """The shared object, with all its pages and nothing in it."""
        memory = posix_ipc.SharedMemory(paths.object_name(self.name), posix_ipc.O_CREX, mode=0o600)
        self.fd = memory.fd
        os.ftruncate(self.fd, size_bytes)
        os.posix_fallocate(self.fd, 0, size_bytes)

    def start(self, *, created: bool, **options: Any) -> RealPersister:
        """A persister, not yet ready."""
        size_bytes = os.fstat(self.fd).st_size
        arguments = {
            "name": self.name,
            "data_dir": str(self.data_dir),
            "created": created,
            "durability": "always",
            "plan": {"size_bytes": size_bytes, "max_size_bytes": size_bytes, "ring_bytes": 0, "expected_items": 0},
            **options,
        }
        self.persister = RealPersister(arguments)
        self.log.append(self.persister)
        return self.persister

    def serve(self, *, created: bool, **options: Any) -> dict[str, Any]:
        """Start, wait for ready, open the store for clients; the ready event."""
        ready = self.start(created=created, **options).wait_for("ready")
        with contextlib.closing(_core.Arena(self.fd)) as arena:
            arena.set_state(state="READY")
        return ready

    def attach(self, durability: str = "always") -> _core.Store:
        return _core.Store(self.fd, self.name, durability=durability)

    def power_off(self) -> None:
        """Every process and the arena are gone; the page cache stays."""
        if self.persister is not None:
            self.persister.kill()
        self.forget_arena()

    def forget_arena(self) -> None:
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_shared_memory(paths.object_name(self.name))
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def exists(self) -> bool:
        return os.path.exists(paths.object_path(self.name))

    def contents(self) -> dict[Any, Any]:
        """All keys and values of the living arena."""
        with contextlib.closing(self.attach()) as store:
            cursor, found = 0, {}
            while cursor != _core.CURSOR_END:
                cursor, pairs = store._scan(cursor, True)
                found.update(pairs)
            return found

    def log_path(self, number: int) -> Path:
        return self.data_dir / "log" / f"{number:010d}.log"


class RealPersister:
    """The process; events are read with a deadline."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        command_read, self._commands = os.pipe()
        self._events, event_write = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shmkv.wal.persister", json.dumps({**arguments, "event_fd": event_write})],
            stdin=command_read,
            stderr=subprocess.PIPE,
            pass_fds=(event_write,),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        os.close(command_read)
        os.close(event_write)
        self._rest = b""
        self.seen: list[dict[str, Any]] = []

    def wait_for(self, kind: str) -> dict[str, Any]:
        """The next event of that kind; fails when the process ends or the deadline passes first."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            while b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                self.seen.append(json.loads(line))
                if self.seen[-1]["event"] == kind:
                    return self.seen[-1]
            ready, _, _ = select.select([self._events], [], [], max(0.0, deadline_s - time.monotonic()))
            data = os.read(self._events, 65536) if ready else b""
            assert data, f"no event {kind!r}; seen {self.seen}; exit code {self.process.poll()}"
            self._rest += data

    def order(self, command: str, **arguments: Any) -> None:
        os.write(self._commands, json.dumps({"do": command, **arguments}).encode() + b"\n")

    def hang_up(self) -> None:
        """The supervisor is gone."""
        os.close(self._commands)
        self._commands = -1

    def end(self) -> int:
        """The exit code, within the deadline."""
        code = self.process.wait(DEADLINE_S)
        self._close()
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self._close()

    def _close(self) -> None:
        if self.process.stderr is not None:
            self.stderr = self.process.stderr.read().decode()
            self.process.stderr.close()
            self.process.stderr = None
        for fd in (self._commands, self._events):
            if fd >= 0:
                os.close(fd)
        self._commands = self._events = -1
