"""Long work beside the loop: snapshots, backups, restores, one after another in one thread of low priority.

Why here: no write may wait for any of it. The loop only posts and polls; what a job needs of the loop (a sync) it asks
for in a word that the loop looks at.

Invariants:
  I1  One job runs at a time; others wait in the order in which they came.
  I2  A job that was submitted ends with exactly one event "done" or "failed", also when the store stops.
  I3  What a job raises ends the job, never the process: the log goes on.
  I4  The loop never waits for a job while it has something to write.
"""

from __future__ import annotations

import errno
import importlib
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from shmkv import errors
from shmkv.dataclass import dataclass, replace
from shmkv.segment import _core
from shmkv.wal.channel import Events

if TYPE_CHECKING:
    from shmkv.wal.cipher import Keyring
    from shmkv.wal.files import Files
    from shmkv.wal.generations import Generations
    from shmkv.wal.log import LogDirectory
    from shmkv.wal.manifest import ManifestSlots
    from shmkv.wal.syncing import Spawn

NICE, LOWEST_NICE = 10, 19
REPORT_INTERVAL_S = 0.2
DURABLE_TIMEOUT_S = 60.0
# Modules with a function run_job(context, arguments) -> result; imported when the first job of that kind runs.
MODULES: Mapping[str, str] = {
    "snapshot": "shmkv.wal.snapshot",
    "backup": "shmkv.wal.backup",
    "restore": "shmkv.wal.restore",
    "scrub": "shmkv.wal.scrub",
    "rotate_key": "shmkv.wal.rotation",
}
# What a client can raise again by name.
_KNOWN_ERRORS = (OSError, TimeoutError, FileNotFoundError, FileExistsError, PermissionError, ValueError, TypeError)


class Cancelled(Exception):
    """The store stops: the job gives up where it is, and cleans up."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Settings of the store that jobs need; plan as for _core.plan, sizes in bytes, archive_dir "" = none."""

    name: str
    plan: Mapping[str, int]
    file_bytes: int
    compression: str = "none"
    archive_dir: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What a job may use. arena, files, directory: also used by the loop, each call is safe beside it.

    wait_durable(lsn, timeout_s) returns when the log below lsn is on disk, raises LogStalled or Cancelled.
    progress(done_bytes, of_bytes) is cheap, call it often. cancelled() = raise Cancelled soon. spawn:
    threads beside the job's own, None = none, so that its file operations come in one order.
    """

    arena: _core.Arena
    files: Files
    data_dir: str
    keys: Keyring
    slots: ManifestSlots
    directory: LogDirectory
    generations: Generations
    settings: JobSettings
    wall_ms: Callable[[], int]
    wait_durable: Callable[[int, float], None]
    progress: Callable[[int, int], None] = lambda *_: None
    cancelled: Callable[[], bool] = lambda: False
    spawn: Spawn | None = None


Job = Callable[[Context, dict[str, Any]], dict[str, Any]]


class SyncWish:
    """A word between the job thread, which sets it, and the loop, which looks at it and answers."""

    def __init__(self, durable_lsn: Callable[[], int]) -> None:
        """durable_lsn: how far the log is on disk, safe to call from any thread."""
        self._durable_lsn = durable_lsn
        self._answered = threading.Event()
        self._refusal = ""
        self.wanted_lsn = 0

    def wait(self, lsn: int, timeout_s: float = DURABLE_TIMEOUT_S) -> None:
        """Until the log below lsn is on disk. Blocks up to timeout_s, then raises LogStalled."""
        self._answered.clear()
        self.wanted_lsn = lsn
        try:
            if self._durable_lsn() < lsn and not self._refusal:
                self._answered.wait(timeout_s)
        finally:
            self.wanted_lsn = 0
        if self._durable_lsn() < lsn:
            why = self._refusal or f"not within {timeout_s:g} s"
            raise errors.LogStalled(f"the log did not get to disk up to LSN {lsn}: {why}; look at the disk, try again")

    def answer(self) -> None:
        """The log is on disk as far as was wished."""
        self.wanted_lsn = 0
        self._answered.set()

    def refuse(self, reason: str) -> None:
        """Nothing will be synced any more."""
        self._refusal = reason
        self._answered.set()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended; error "" = well."""

    job: str
    kind: str
    error: str = ""


class Jobs:
    """The queue and its thread. Methods are the loop's, and return at once, but `wait`."""

    def __init__(
        self,
        context: Context,
        events: Events,
        *,
        spawn: Callable[[Callable[[], None]], None],
        find: Callable[[str], Job] | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """spawn(work) runs work beside the caller; find(kind) gives the function, KeyError for an unknown kind."""
        self._context = replace(context, progress=self._progress, cancelled=self._is_cancelled)
        self._events = events
        self._spawn = spawn
        self._find = find or find_job
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._queue: deque[tuple[str, str, dict[str, Any]]] = deque()
        self._current: tuple[str, str] | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._cancel = threading.Event()
        self._closed = False
        self._reported_s = 0.0
        self.outcomes: deque[Outcome] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return self._idle.is_set()

    def submit(self, job: str, kind: str, arguments: Mapping[str, Any]) -> None:
        """Run it when those before it have ended."""
        if self._closed:
            self._end(Outcome(job, kind, "the store stops: nothing new is begun"), "StoreUnavailable")
        else:
            self._enqueue(job, kind, arguments)

    def close(self) -> None:
        """The store stops: ask the job that runs to give up, fail those that wait and all that come."""
        self._closed = True
        self._cancel.set()
        self._fail_waiting("the store stops before it was this job's turn")

    def run_last(self, job: str, kind: str, arguments: Mapping[str, Any]) -> None:
        """One more job after close; only while idle."""
        assert self.idle, "wait until the others have given up"
        self._cancel.clear()
        self._enqueue(job, kind, arguments)

    def wait(self, timeout_s: float) -> bool:
        """Until idle, or timeout_s; whether it is."""
        return self._idle.wait(timeout_s)

    # ---- the thread -----------------------------------------------------------------------------------------

    def _enqueue(self, job: str, kind: str, arguments: Mapping[str, Any]) -> None:
        with self._lock:
            self._queue.append((job, kind, dict(arguments)))
            needs_thread = self._idle.is_set()
            self._idle.clear()
        if not needs_thread:
            return
        try:
            self._spawn(self._work)
        except RuntimeError as error:
            # The machine gives no thread: the log goes on without one.
            self._fail_waiting(str(error))
            self._idle.set()

    def _fail_waiting(self, reason: str) -> None:
        with self._lock:
            waiting = list(self._queue)
            self._queue.clear()
        for job, kind, _ in waiting:
            self._end(Outcome(job, kind, reason), "StoreUnavailable")

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._current = None
                    self._idle.set()
                    return
                job, kind, arguments = self._queue.popleft()
                self._current = (job, kind)
            self._run(job, kind, arguments)

    def _run(self, job: str, kind: str, arguments: dict[str, Any]) -> None:
        self._reported_s = self._clock_s() - REPORT_INTERVAL_S
        self._progress(0, 0)
        try:
            result = self._find(kind)(self._context, arguments)
        except Cancelled:
            self._end(Outcome(job, kind, "it was given up because the store stops"), "StoreUnavailable")
        except Exception as error:
            # The boundary of I3: whatever went wrong is told to whoever asked; the supervisor says it in its lines too.
            if not isinstance(error, errors.ShmkvError | OSError):
                traceback.print_exc()
            self._end(Outcome(job, kind, str(error) or repr(error)), error_kind(error))
        else:
            self._end(Outcome(job, kind), "", result)

    def _end(self, outcome: Outcome, kind_of_error: str, result: dict[str, Any] | None = None) -> None:
        about: dict[str, Any] = {"job": outcome.job, "kind": outcome.kind}
        if outcome.error:
            self._events.emit("job", **about, state="failed", error=outcome.error, error_kind=kind_of_error)
        else:
            self._events.emit("job", **about, state="done", result=result or {})
        self.outcomes.append(outcome)

    def _progress(self, done_bytes: int, of_bytes: int) -> None:
        now_s = self._clock_s()
        if now_s - self._reported_s < REPORT_INTERVAL_S or self._current is None:
            return
        self._reported_s = now_s
        job, kind = self._current
        self._events.emit(
            "job", droppable=True, job=job, kind=kind, state="running", done_bytes=done_bytes, of_bytes=of_bytes
        )

    def _is_cancelled(self) -> bool:
        return self._cancel.is_set()


def find_job(kind: str) -> Job:
    """The function of that kind of job. Raises ValueError for a kind that there is not."""
    if kind not in MODULES:
        raise ValueError(f"there is no job {kind!r}; known are {', '.join(MODULES)}")
    run: Job = importlib.import_module(MODULES[kind]).run_job
    return run


def error_kind(error: BaseException) -> str:
    """The class by which a client can raise it again: the nearest one of shmkv.errors, or a built-in."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "DiskFull"
    for kind in type(error).__mro__:
        if kind in _KNOWN_ERRORS or getattr(errors, kind.__name__, None) is kind:
            return kind.__name__
    return "ShmkvError"


def in_thread(work: Callable[[], None]) -> None:
    """Run it beside the caller, behind everybody else who wants the processor."""

    def run() -> None:
        # By the thread's own id: on Linux each has a priority of its own.
        nice = os.getpriority(os.PRIO_PROCESS, 0) + NICE
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(nice, LOWEST_NICE))
        work()

    threading.Thread(target=run, name="jobs", daemon=True).start()


def beside_job(work: Callable[[], None]) -> threading.Thread:
    """Run it beside a job that calls this, with the priority of its thread; returns the thread, to be joined."""
    thread = threading.Thread(target=work, name="job-helper", daemon=True)
    thread.start()
    return thread
