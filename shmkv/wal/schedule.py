"""Snapshots of a running store: brings together when one is due (pace.py), who takes it (jobs.py) and what came of it.

Why here: the loop asks once with each heartbeat and once at the end; neither pace nor jobs know of each other.

Invariants:
  I1  Nothing here waits or touches the disk.
  I2  Every snapshot that was published counts, whoever asked for it: the next one is due as long after it.
"""

from __future__ import annotations

import itertools
from typing import Any

from shmkv.wal.generations import Generations
from shmkv.wal.jobs import Context, Jobs
from shmkv.wal.pace import SnapshotPace, SnapshotSettings
from shmkv.wal.start import Started

SNAPSHOT = "snapshot"
PERIODIC, FINAL = "periodic-", "final"


class Schedule:
    """The snapshots of one life of an arena."""

    def __init__(self, pace: SnapshotPace, jobs: Jobs, generations: Generations) -> None:
        self._pace = pace
        self._jobs = jobs
        self._generations = generations
        self._numbers = itertools.count(1)
        self._newest = generations.newest()
        self._periodic = ""

    def request(self, message: dict[str, Any]) -> None:
        """A job that somebody asked for."""
        arguments = {name: value for name, value in message.items() if name not in ("do", "job", "kind")}
        self._jobs.submit(str(message.get("job")), str(message.get("kind")), arguments)

    def care(self, now_ms: int, tail: int, data_end: int, *, healthy: bool) -> None:
        """Take note of what ended, begin what is due; healthy = the log has room and works."""
        self._note(now_ms)
        # Others come first: they may give a snapshot too.
        if healthy and self._jobs.idle and self._pace.due(now_ms, tail, data_end):
            self._pace.began()
            self._periodic = f"{PERIODIC}{next(self._numbers)}"
            self._jobs.submit(self._periodic, SNAPSHOT, {})

    def _note(self, now_ms: int) -> None:
        newest = self._generations.newest()
        if newest is not None and newest != self._newest:
            self._newest = newest
            self._pace.published(newest.start_lsn, newest.size_bytes)
        while self._jobs.outcomes:
            outcome = self._jobs.outcomes.popleft()
            if outcome.job == self._periodic and outcome.error:
                self._pace.failed(now_ms)
            elif outcome.job == self._periodic:
                self._pace.ended()

    def finished(self, now_ms: int, data_end: int, *, wanted: bool) -> bool:
        """At the end of the store, again and again: True when no job runs and, if wanted, the last snapshot is over.

        The arena is retired and its log on disk when this is asked with wanted. A last snapshot that fails is told,
        and is no reason not to end: the log holds everything.
        """
        if not self._jobs.idle:
            return False
        self._note(now_ms)
        if not wanted or self._periodic == FINAL or not self._pace.changed(data_end):
            return True
        self._periodic = FINAL
        self._jobs.run_last(FINAL, SNAPSHOT, {})
        return False

    def wait(self, timeout_s: float) -> None:
        """Until no job runs, or timeout_s."""
        self._jobs.wait(timeout_s)

    def close(self) -> None:
        """The store stops: give up what runs."""
        self._jobs.close()


def pace_after(started: Started, context: Context, settings: SnapshotSettings, *, warm: bool) -> SnapshotPace:
    """The pace of snapshots behind a start: what it found beyond the newest snapshot counts from the beginning."""
    newest, manifest = started.generations.newest(), started.slots.manifest
    assert manifest is not None
    if warm and newest is not None and newest.incarnation == manifest.incarnation:
        begin_lsn, changed = newest.start_lsn, False
    else:
        # A warm start does not read what is in the log before this life: so perhaps something is.
        begin_lsn, changed = manifest.first_lsn, warm or started.records > 0
    return SnapshotPace(
        settings,
        context.arena.ring()["now_ms"],
        begin_lsn=begin_lsn,
        behind_bytes=started.log_bytes,
        changed=changed,
        newest_bytes=0 if newest is None else newest.size_bytes,
        age_ms=0 if newest is None else context.wall_ms() - newest.wall_ms,
    )
