"""Long work of a store (snapshot, backup, restore ...): asked for over the control socket, done by the persister.

Why here: the supervisor outlives the persister, so that only it can say what became of a job whose worker was killed.

Invariants:
  I1  A job that was accepted ends in exactly one of "done" and "failed", whoever dies; its followers hear that.
  I2  A restore is done only when the store serves the restored data; until then its state is "running".
  I3  Nothing here waits, and what is remembered is bounded: all that run, and the last KEPT_JOBS that ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from shmkv.config import format_size
from shmkv.supervisor.arena import free_shm_bytes
from shmkv.supervisor.child import ManagedChild
from shmkv.supervisor.control import MEMORY_ONLY, RequestRefused
from shmkv.supervisor.lines import Message
from shmkv.supervisor.report import job_text
from shmkv.supervisor.states import Child

KEPT_JOBS = 16
KEPT_SNAPSHOTS = 2
# What the persister does in its job thread; see shmkv/wal/jobs.py.
KINDS = ("snapshot", "backup", "restore", "scrub", "rotate_key")
# What tells a snapshot from another one of the same number.
_IDENTITY = ("generation", "end_lsn", "entries", "size_bytes")
NOT_ARGUMENTS = ("do", "kind", "follow", "job")
RUNNING, DONE, FAILED = "running", "done", "failed"

Publish = Callable[[str, Message, bool], None]


class Jobs:
    """The jobs of one store, by id, and the snapshots that came of them."""

    def __init__(self, persister: ManagedChild | None, memory_bytes: int, is_serving: Callable[[], bool]) -> None:
        """`memory_bytes`: of the arena that a restore needs beside the one that it replaces."""
        self._persister = persister
        self._memory_bytes = memory_bytes
        self._is_serving = is_serving
        self._publish: Publish = lambda job, event, last: None
        self._events: dict[str, Message] = {}
        self._number = 0
        self._snapshots: list[Message] = []
        self._restored: Message | None = None  # the restore job whose data the next arena is made of

    def publish_to(self, publish: Publish) -> None:
        """`publish(job, event, last)` tells those who follow a job."""
        self._publish = publish

    # ---- requests -----------------------------------------------------------------------------

    def on_start(self, request: Message) -> Message:
        """{"do":"start_job","kind":..,"follow":bool, arguments} -> {"job": ID}; with follow, events come after it."""
        kind = request.get("kind")
        if kind not in KINDS:
            raise RequestRefused("ValueError", f"unknown job {str(kind)[:40]!r}; known are {', '.join(KINDS)}")
        if self._persister is None:
            raise RequestRefused("IncompatibleStore", MEMORY_ONLY)
        if not self._is_serving():
            raise RequestRefused("StoreUnavailable", "the store is starting or stopping; try again when it is ready")
        if kind == "restore":
            self._check_restore()
        self._number += 1
        # The process id, since a client may ask the next supervisor for a job of this one.
        job = f"{os.getpid()}-{self._number}"
        arguments = {name: value for name, value in request.items() if name not in NOT_ARGUMENTS}
        process = self._persister.process if self._persister.state is Child.UP else None
        if process is None or not process.send({"do": "job", "job": job, "kind": kind, **arguments}):
            raise RequestRefused("StoreUnavailable", "the persister does not listen: it is being restarted; try again")
        self._events[job] = {"job": job, "kind": kind, "state": RUNNING, "done_bytes": 0, "of_bytes": 0}
        return self._answer(job, request)

    def _check_restore(self) -> None:
        if any(event["kind"] == "restore" for event in self.running()):
            raise RequestRefused("StoreUnavailable", "another restore runs; wait for its end (shmkv-admin stats)")
        free_bytes = free_shm_bytes()
        if free_bytes < self._memory_bytes:
            raise RequestRefused(
                "MemoryLimitExceeded",
                f"the restored store needs {format_size(self._memory_bytes)} of shared memory beside the old arena, "
                f"which stays until the last program has noticed; {format_size(free_bytes)} is free. Stop the store "
                f"(shmkv-admin shutdown), restore, and start it again",
            )

    def on_look(self, request: Message) -> Message:
        """{"do":"job","job":ID,"follow":bool} -> the last event of that job."""
        job = request.get("job")
        if not isinstance(job, str) or job not in self._events:
            raise RequestRefused("ValueError", f"unknown job {str(job)[:40]!r}; this supervisor forgot it or is new")
        return self._answer(job, request)

    def _answer(self, job: str, request: Message) -> Message:
        event = self._events[job]
        follow = bool(request.get("follow")) and event["state"] == RUNNING
        return {**event, **({"follow": job} if follow else {})}

    # ---- what the persister says --------------------------------------------------------------

    def heard(self, message: Message) -> None:
        """One event of a job, also of one that the persister began by itself."""
        job = str(message.get("job"))
        known = self._events.get(job)
        if known is not None and known["state"] != RUNNING:
            return
        event = {**(known or {}), **message, "job": job}
        event.pop("event", None)
        # The newest is last, so that the oldest is forgotten first.
        self._events.pop(job, None)
        self._events[job] = event
        ended = event.get("state") != RUNNING
        if event.get("state") == DONE and event.get("kind") in ("snapshot", "backup"):
            self._remember_snapshot(event.get("result") or {})
        self._publish(job, event, ended)
        if ended:
            self._forget()

    def fail(self, job: str, reason: str, kind: str = "StoreUnavailable") -> None:
        """End one job that can't go on."""
        self.heard({"job": job, "state": FAILED, "error": reason, "error_kind": kind})

    def persister_ended(self, what: str) -> None:
        """With it every job ends but a restore whose data is ready: that goes on without it."""
        self._lose(f"the persister ended before the job was done: {what}", but=self._restored)

    def store_ended(self) -> None:
        """The supervisor ends: nobody will say anything about a job any more."""
        what = "; it holds the old or the restored data, never a mixture" if self._restored is not None else ""
        self._lose(f"the store was stopped before the job was done{what}", but=None)

    def _lose(self, reason: str, but: Message | None) -> None:
        for event in self.running():
            if but is None or event["job"] != but["job"]:
                self.fail(event["job"], reason)

    def running(self) -> list[Message]:
        """The jobs that have not ended."""
        return [event for event in self._events.values() if event.get("state") == RUNNING]

    def status(self) -> list[Message]:
        """All jobs that are remembered, the newest last."""
        return list(self._events.values())

    def text(self) -> str:
        """What runs, in words; empty if nothing does."""
        return next((job_text(event) for event in self.running()), "")

    # ---- restore ------------------------------------------------------------------------------

    @property
    def restored_generation(self) -> int | None:
        """The snapshot that is to be the store, which no manifest names yet."""
        return None if self._restored is None else int(self._restored["result"]["generation"])

    def is_restored(self, message: Message, serving: bool) -> bool:
        """Take one event of the persister; True: restored data is ready, and the arena must give way to it."""
        if message.get("kind") != "restore" or message.get("state") != DONE:
            self.heard(message)
            return False
        if not serving:
            self.fail(str(message.get("job")), "the store is being stopped; nothing was replaced")
            return False
        self._restored = message
        self.heard({**message, "state": RUNNING, "phase": "switching"})
        return True

    def store_serves(self) -> None:
        """A new arena is announced: if a restore waited for that, tell how it went."""
        if self._restored is None:
            return
        message, self._restored = self._restored, None
        # Not the number alone: if what was restored got lost on the way, an ordinary snapshot may have taken it.
        wanted = {key: message["result"].get(key) for key in _IDENTITY}
        if wanted in [{key: each.get(key) for key in _IDENTITY} for each in self._snapshots]:
            self.heard({**message, "phase": ""})
        else:
            reason = "the switch did not take place (see the persister's messages); the store holds the old data"
            self.fail(str(message["job"]), reason)

    # ---- snapshots ----------------------------------------------------------------------------

    @property
    def snapshots(self) -> list[Message]:
        """The snapshots of the store, oldest first."""
        return list(self._snapshots)

    def know_snapshots(self, snapshots: list[Any]) -> None:
        """What the persister found at its start."""
        self._snapshots = [dict(each) for each in snapshots if isinstance(each, dict)]

    def _remember_snapshot(self, result: Message) -> None:
        snapshot = result.get("snapshot", result)
        if "generation" not in snapshot or snapshot["generation"] in [each["generation"] for each in self._snapshots]:
            return
        self._snapshots = [*self._snapshots, dict(snapshot)][-KEPT_SNAPSHOTS:]

    def _forget(self) -> None:
        ended = [job for job, event in self._events.items() if event.get("state") != RUNNING]
        for job in ended[:-KEPT_JOBS]:
            del self._events[job]
