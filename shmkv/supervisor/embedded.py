"""A private supervisor as a child of this process: what `shmkv.launch` stands on.

Why here: the program's side of it; the child's side is `private`, which is the ordinary supervisor.

Invariants:
  I1  The store ends when its owner does, however that ends: the child watches a pidfd of the owner. A
      pipe would not do: the owner's forked workers inherit it.
  I2  Only the process that started a store can end it; a forked child that tries ends nothing.
  I3  Nothing of a throw-away store stays. Its name tells who made it, so what a mass kill leaves is
      swept by the next `start_embedded` of the same user.
  I4  Nothing stays in this process either: no descriptor, no thread, no zombie after `stop`.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from shmkv import config, errors, paths
from shmkv.config import Settings
from shmkv.processes import is_alive, start_time
from shmkv.supervisor.child import describe_exit
from shmkv.supervisor.lines import decode
from shmkv.supervisor.spawn import child_environment
from shmkv.supervisor.states import Exit

START_TIMEOUT_S = 30.0
KILL_WAIT_S = 5.0
# An object without a readable header may be in the making; its maker's death proves it is not.
ABANDONED_AFTER_S = 60.0


class Info(NamedTuple):
    """What the supervisor said when the store was ready."""

    name: str
    pid: int
    warm: bool
    records: int
    seconds: float
    data_dir: str | None
    control: str | None
    warnings: tuple[str, ...]


class Embedded:
    """A running private supervisor; `stop` ends it."""

    def __init__(self, settings: Settings, process: subprocess.Popen[bytes], info: Info) -> None:
        self.settings = settings
        self.info = info
        self._process = process
        self._owner_pid = os.getpid()
        self._stopped = False

    def stop(self) -> None:
        """End the store and wait for it: the arena goes, data that has a directory stays there.

        Does nothing in a forked child, and the second time. Blocks for at most `stop_timeout` and some
        seconds. Raises StoreUnavailable when the supervisor could not end it cleanly; what is not in the
        log by then is still in the shared memory, and the next start with this data directory adopts it.
        """
        if os.getpid() != self._owner_pid or self._stopped:
            return
        self._stopped = True
        self._process.terminate()
        try:
            code = self._process.wait(self.settings.stop_timeout + KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait(KILL_WAIT_S)
        if code == Exit.CLEAN:
            return
        if self.settings.memory_only:
            remove_arena(self.settings.name)
        elif paths.object_inode(self.settings.name) is not None:
            # Its supervisor was killed: a fresh one finishes what that left.
            _start(self.settings, START_TIMEOUT_S, with_runtime=self.info.control is not None).stop()
        else:
            raise errors.StoreUnavailable(
                f"the supervisor of {self.settings.name!r} {describe_exit(code)}; look at its messages"
            )

    def alive(self) -> bool:
        """Whether the supervisor runs; always False in a forked child, which can't know."""
        return os.getpid() == self._owner_pid and not self._stopped and self._process.poll() is None


def start_embedded(
    name: str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    timeout_s: float = START_TIMEOUT_S,
    **options: Any,
) -> Embedded:
    """Start a private store and wait until `attach` works.

    `name`: None makes one up. `data_dir`: None is a throw-away store without a log. `options`: settings of
    `shmkv.config.KEYS`; those that are None keep their default.
    Raises what the supervisor refused with (StoreExists, MemoryLimitExceeded, CorruptData, InvalidSetting
    ...), StoreUnavailable when it is not ready after `timeout_s`. Crash: what is left ends by itself.
    """
    sweep_dead_stores()
    chosen = {key: value for key, value in options.items() if value is not None}
    if data_dir is None:
        chosen["memory_only"] = True
    else:
        chosen["data_dir"] = os.path.abspath(os.fspath(data_dir))
    named = name if name is not None else _made_up_name()
    sources = {key: (config.parse(key, value, "the arguments"), "argument") for key, value in chosen.items()}
    # One that keeps data can be asked for snapshots and backups, over its control socket.
    with_runtime = name is not None or data_dir is not None
    return _start(config.from_sources(named, sources), timeout_s, with_runtime=with_runtime)


def sweep_dead_stores() -> list[str]:
    """Remove throw-away stores of this user whose maker is dead; their names."""
    removed = []
    for name in paths.store_names():
        owner = paths.temporary_owner(name)
        if owner is not None and not is_alive(*owner) and _is_ours_to_sweep(name):
            remove_arena(name)
            _remove_runtime(name)
            removed.append(name)
    return removed


def _remove_runtime(name: str) -> None:
    """Lock and socket of a supervisor that was killed; one that runs holds the lock, and is none of these."""
    from contextlib import suppress

    directory = paths.runtime_dir(name)
    for path in (paths.control_path(directory), f"{directory}/lock"):
        with suppress(FileNotFoundError):
            os.unlink(path)
    paths.remove_if_empty(directory)


def remove_arena(name: str) -> None:
    """Tell those who still use it that it is over, then remove the name; nothing happens if it is gone."""
    import posix_ipc

    from shmkv.supervisor.opening import retire

    try:
        memory = posix_ipc.SharedMemory(paths.object_name(name))
        try:
            retire(memory.fd)
        finally:
            memory.close_fd()
        posix_ipc.unlink_shared_memory(paths.object_name(name))
    except posix_ipc.ExistentialError:
        # Another cleaner was faster, at either step.
        return


def _made_up_name() -> str:
    return paths.temporary_name(os.getpid(), start_time(os.getpid()) or 0, int.from_bytes(os.urandom(6), "big"))


def _is_ours_to_sweep(name: str) -> bool:
    """I3, and not another container's: a process id means nothing in another pid namespace."""
    import posix_ipc

    from shmkv.segment import _core

    try:
        status = os.stat(paths.object_path(name))
        if status.st_uid != os.geteuid():
            return False
        memory = posix_ipc.SharedMemory(paths.object_name(name))
    except (FileNotFoundError, posix_ipc.ExistentialError):
        return False
    try:
        header: Mapping[str, Any] = _core.read_header(memory.fd)
    except (errors.CorruptData, errors.IncompatibleStore):
        return time.time() - status.st_mtime > ABANDONED_AFTER_S
    finally:
        memory.close_fd()
    return bool(header["pid_namespace"] == os.stat("/proc/self/ns/pid").st_ino)


def _start(settings: Settings, timeout_s: float, *, with_runtime: bool) -> Embedded:
    event_read, event_write = os.pipe2(os.O_CLOEXEC)
    owner_fd = os.pidfd_open(os.getpid())
    arguments = {
        "settings": settings._asdict(),
        "event_fd": event_write,
        "owner_fd": owner_fd,
        "with_runtime": with_runtime,
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "shmkv.supervisor.private", json.dumps(arguments)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(event_write, owner_fd),
            start_new_session=True, env=child_environment(),
        )  # fmt: skip
    except BaseException:
        os.close(event_read)
        raise
    finally:
        os.close(event_write)
        os.close(owner_fd)
    try:
        return Embedded(settings, process, _wait_until_ready(settings.name, process, event_read, timeout_s))
    except BaseException:
        # Also on Ctrl-C: nobody would ever stop it.
        process.terminate()
        try:
            process.wait(KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        os.close(event_read)


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], event_fd: int, timeout_s: float) -> Info:
    deadline_s = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([event_fd], [], [], max(0.0, deadline_s - time.monotonic()))
        if not readable:
            raise errors.StoreUnavailable(f"store {name!r} was not ready within {timeout_s:g} s; give it more time")
        data = os.read(event_fd, 65536)
        if not data:
            code = process.wait(KILL_WAIT_S)
            raise errors.StoreUnavailable(
                f"the supervisor of {name!r} {describe_exit(code)} before the store was ready"
            )
        line += data
    event = decode(line.splitlines()[-1])
    if event["event"] == "failed":
        kind = getattr(
            errors,
            event["kind"],
            config.InvalidSetting if event["kind"] == "InvalidSetting" else errors.StoreUnavailable,
        )
        raise kind(event["error"])
    del event["event"]
    return Info(**{**event, "warnings": tuple(event["warnings"])})
