"""The log that a restore goes on with: which records count, from which files, and that none of them is missing.

Why here: between chain.py, which only looks at headers, and restore.py, which has an arena to apply records to.

Invariants:
  I1  Records are applied without a hole, from the base on, up to a limit that was fixed before the first of them.
  I2  A log that ends before what was asked for is an error for an LSN, and a warning with numbers for a time.
  I3  Nothing but the folders that were named is read, and nothing in them is changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from shmkv.dataclass import dataclass, field, replace
from shmkv.errors import CorruptData, ShmkvError
from shmkv.segment import _core
from shmkv.wal.chain import Point, hole, life_at_lsn, life_at_time, lives_of, segments_to
from shmkv.wal.cipher import Keyring
from shmkv.wal.files import Files
from shmkv.wal.log import LOG_DIR, LogDirectory, LogFile, file_number
from shmkv.wal.pace import MARK_RECORD_BYTES
from shmkv.wal.recovery import Segment
from shmkv.wal.replay import Apply, Replay, replay_segment, size_of

NO_LIMIT = (1 << 64) - 1


class OutOfReach(ValueError, ShmkvError):
    """The goal of a restore is before the base's end: no log leads back."""


@dataclass(frozen=True, slots=True)
class Goal:
    """How far to go on from the base: to the record of that LSN, or to that wall clock in ms; neither = not at all."""

    to_lsn: int | None = None
    to_wall_ms: int | None = None

    @property
    def is_none(self) -> bool:
        return self.to_lsn is None and self.to_wall_ms is None


@dataclass(frozen=True, slots=True)
class Base:
    """A backup or snapshot: its entries need the log from start_lsn to end_lsn; wall_ms: when that was the state.

    log_end_lsn: how much of that log the file brings along (start_lsn = nothing).
    """

    path: str
    store_id: bytes
    incarnation: int
    start_lsn: int
    end_lsn: int
    log_end_lsn: int
    wall_ms: int


@dataclass(slots=True)
class Reach:
    """How far the log was applied: end = where the last record that counts ends, mark_wall_ms = of the last mark."""

    end: Point
    records: int = 0
    mark_wall_ms: int = 0
    warnings: list[str] = field(default_factory=list)


class LogToGo:
    """The parts of the log behind a base, up to a goal. Making one reads headers only, but all records for a time."""

    def __init__(
        self, files: Files, keys: Keyring, base: Base, goal: Goal, folders: Sequence[str], disowned: Disowned
    ) -> None:
        """Raises OutOfReach, CorruptData (log is missing), WrongKey, OSError."""
        check_goal(base, goal)
        self._files = files
        self._keys = keys
        self._base = base
        self._goal = goal
        self._folders = folders
        self.warnings: list[str] = []
        self.segments: tuple[Segment, ...] = ()
        # Records with a larger LSN do not count.
        self.limit_lsn = base.end_lsn - 1
        if goal.is_none and base.log_end_lsn >= base.end_lsn:
            return
        lives = lives_of(gather(files, folders, base.store_id, disowned), base.store_id)
        start, whole = Point(base.incarnation, base.log_end_lsn), Point(base.incarnation, base.end_lsn)
        life = base.incarnation
        if goal.to_lsn is not None:
            life = life_at_lsn(lives, whole, goal.to_lsn)
            self.limit_lsn = goal.to_lsn
        elif goal.to_wall_ms is not None:
            life = life_at_time(lives, whole, goal.to_wall_ms)
        self.segments = segments_to(lives, start, whole, life)
        self._goes_on = any(each > life for each in lives)
        if goal.to_wall_ms is not None:
            self.limit_lsn = max(self.limit_lsn, self._last_lsn_before(goal.to_wall_ms))

    @property
    def size_bytes(self) -> int:
        """About how much there is to read."""
        return sum(size_of(segment) for segment in self.segments)

    def apply_to(self, apply: Apply, tell: Callable[[int], None]) -> Reach:
        """Apply all records that count; tell(bytes) after each chunk. Raises CorruptData, WrongKey, OSError."""
        reach = self._walk(lambda data, **place: apply(data, **place, limit_lsn=self.limit_lsn), tell)  # type: ignore[call-arg]
        if reach.end.lsn < self._base.end_lsn:
            raise hole(reach.end.lsn, self._base.end_lsn, self._base.incarnation)
        if self._goal.to_lsn is not None and reach.end.lsn <= self._goal.to_lsn:
            raise CorruptData(
                f"the log in {self._where()} ends at LSN {reach.end.lsn} (life {reach.end.incarnation}), LSN "
                f"{self._goal.to_lsn} was asked for: name the folder that goes on with --log-dir, or a smaller LSN"
            )
        reach.warnings = self.warnings
        return reach

    def _last_lsn_before(self, wall_ms: int) -> int:
        """LSN of the last mark at or before that moment; all records, if the log ends before it."""
        was_later = False

        def look(data: Any, **place: Any) -> dict[str, Any]:
            nonlocal was_later
            found = _core.verify(data, **place, limit_wall_ms=wall_ms)
            was_later = was_later or found["stopped"] == "limit"
            return found

        marks = Marks(look)
        reach = self._walk(marks, lambda _: None)
        if was_later:
            return marks.lsn
        if self._goes_on:
            # What follows the last mark of a life that was killed may be later than that moment.
            if reach.end.lsn > marks.lsn + MARK_RECORD_BYTES:
                self.warnings.append(
                    f"life {reach.end.incarnation} of the log ended at LSN {reach.end.lsn}, its last mark is of "
                    f"{marks.wall_ms / 1000:.3f}: what was written behind that is left out; "
                    f"--to-lsn {reach.end.lsn - 1} takes it"
                )
            return marks.lsn
        if wall_ms < time.time_ns() // 1_000_000:
            last_ms = marks.wall_ms or self._base.wall_ms
            self.warnings.append(
                f"the log in {self._where()} ends at LSN {reach.end.lsn}, its last mark is of {last_ms / 1000:.3f}, "
                f"{wall_ms / 1000:.3f} was asked for: what was written between, if anything, is not in it"
            )
        return NO_LIMIT

    def _walk(self, apply: Apply, tell: Callable[[int], None]) -> Reach:
        """Read the segments until the limit stops it, or the last one ends."""
        marks = Marks(apply)
        base = self._base
        reach = Reach(Point(base.incarnation, base.log_end_lsn))
        state = Replay(bytes_all=self.size_bytes)
        for index, segment in enumerate(self.segments):
            # With a known end nobody searches behind a bad record for proofs that it was good once.
            bounded = replace(segment, end_lsn=segment.file.limit_lsn if segment.end_lsn is None else segment.end_lsn)
            ending = replay_segment(
                self._files, bounded, base.store_id, marks, state, lambda _, done, of: tell(done), keys=self._keys
            )
            reach.end = Point(segment.incarnation, ending.lsn)
            if ending.stopped == "limit":
                break
            if segment.end_lsn is not None and ending.lsn < segment.end_lsn:
                following = self.segments[index + 1].file.path if index + 1 < len(self.segments) else "the next life"
                why = f"{segment.file.path} ends there ({ending.stopped or 'the file ends'}), {following} begins later"
                raise hole(ending.lsn, segment.end_lsn, segment.incarnation, why)
        reach.records, reach.mark_wall_ms = state.records, marks.wall_ms
        return reach

    def _where(self) -> str:
        return ", ".join(self._folders) or "no folder"


Disowned = Sequence[tuple[int, int]]


class Marks:
    """An apply that remembers the last mark that went through it."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self.lsn = 0
        self.wall_ms = 0

    def __call__(self, data: Any, *, store_id: bytes, incarnation: int, first_lsn: int) -> dict[str, Any]:
        found = self._apply(data, store_id=store_id, incarnation=incarnation, first_lsn=first_lsn)
        if found["mark_lsn"]:
            self.lsn, self.wall_ms = found["mark_lsn"], found["wall_ms"]
        return found


def check_goal(base: Base, goal: Goal) -> None:
    """A backup can't go back behind its own end. Raises OutOfReach, with both numbers."""
    if goal.to_lsn is not None and goal.to_wall_ms is not None:
        raise OutOfReach("give an LSN or a time to restore to, not both")
    if goal.to_lsn is not None and goal.to_lsn < base.end_lsn:
        raise OutOfReach(
            f"LSN {goal.to_lsn} is before the end of {base.path}, LSN {base.end_lsn}: restore an older backup, or "
            f"leave the LSN out to get the state at that end"
        )
    if goal.to_wall_ms is not None and goal.to_wall_ms < base.wall_ms:
        raise OutOfReach(
            f"time {goal.to_wall_ms / 1000:.3f} is before the end of {base.path}, {base.wall_ms / 1000:.3f} (Unix "
            f"seconds): restore an older backup, or leave the time out to get the state at that end"
        )


def gather(files: Files, folders: Sequence[str], store_id: bytes, disowned: Disowned) -> list[LogFile]:
    """The log files in these folders: in each, in its folder `log` (a data directory), in its folder named by the store
    id (an archive). disowned: of the first folder. Raises FileNotFoundError for a folder that is not there.
    """
    found: list[LogFile] = []
    for position, folder in enumerate(folders):
        names = files.names(folder)
        places = [folder, *(os.path.join(folder, name) for name in (LOG_DIR, store_id.hex()) if name in names)]
        for place in places:
            if any(file_number(name) is not None for name in files.names(place)):
                found += [
                    file
                    for file in LogDirectory(files, place).log_files()
                    if position or not any(first <= file.number <= last for first, last in disowned)
                ]
    return found
