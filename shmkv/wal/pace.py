"""When the persister writes, syncs, marks, opens a file, reports and ends: a state machine without I/O or clock.

Why here: durability levels, group commit, the lag clock, a full disk and a failing one meet in these few rules; as a
function from numbers to the next step every case of them is a test without a disk. The thin loop is persister.py.

Invariants:
  I1  A sync is due at once when somebody waits for it, when a quarter of the ring is used, or (level always) when
      anything is not durable; else when sync_interval has passed. Level none writes then, and syncs only if asked.
  I2  WAIT is said only when nothing is due for which the ring would wake its sleeper: no step is a busy loop.
  I3  An error of write or sync leads to one new file; a second error before a sync succeeded leads to FAILED, which
      nothing leaves. A full disk leads to DISK_FULL, which ends by itself.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum, auto

NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))
# A command is noticed after at most this long; waits in the C core are cut into such slices anyway.
SLICE_MS = 50
MARK_MS = 1000
BEAT_MS = 1000
RETRY_MS = 1000
LAG_FRACTION = 4
RING_FRACTION = 4
FAILURE_LIMIT = 2
MARK_RECORD_BYTES = 48


class Step(Enum):
    """What the loop does next."""

    WAIT = auto()  # for work in the ring, up to wait_ms
    REST = auto()  # for a command, up to wait_ms: there is no file to write to
    WRITE = auto()  # what the ring holds, without sync
    COMMIT = auto()  # write, sync, publish
    OPEN = auto()  # a new log file
    MARK = auto()  # append a mark record to the ring
    BEAT = auto()  # heartbeat and care for spare files
    FINISH = auto()  # all that was to be written is on disk, or can't be


class LogState(Enum):
    """As the arena's header says it to writers."""

    OK = "OK"
    DISK_FULL = "DISK_FULL"
    FAILED = "FAILED"


WAIT, COMMIT, FAILED = Step.WAIT, Step.COMMIT, LogState.FAILED


@dataclass(frozen=True, slots=True)
class Settings:
    """durability: always | interval | none."""

    durability: str
    sync_interval_ms: int
    lag_limit_ms: int
    ring_bytes: int


class Pace:
    """Feed it the words of the ring and what came of the last step; next() says the next one."""

    def __init__(self, settings: Settings, now_ms: int, start_lsn: int) -> None:
        self._always = settings.durability == "always"
        self._never = settings.durability == "none"
        self._interval_ms = settings.sync_interval_ms
        self._quarter_bytes = settings.ring_bytes // RING_FRACTION
        self._beat_ms = max(1, min(BEAT_MS, settings.lag_limit_ms // LAG_FRACTION or BEAT_MS))
        self._tick_at = now_ms + self._interval_ms
        self._beat_at = now_ms
        self._mark_at = now_ms + MARK_MS
        self._data_end = start_lsn  # where the last record lies that is no mark of ours
        self._mark_end = start_lsn
        self._covered = start_lsn  # durable LSN that the last mark spoke of
        self._open_at = now_ms
        self._need_file = True
        self._need_room = False
        self._failures = 0
        self._target: int | None = None
        self.state = LogState.OK
        self.error = ""
        self.wait_ms = 0

    # ---- what next ------------------------------------------------------------------------------------------

    def next(self, now_ms: int, tail: int, head: int, written: int, durable: int, wanted: int) -> Step:
        """The next step; wait_ms is set for WAIT and REST. LSNs as in the ring; written = in the current file."""
        if tail != self._mark_end:
            self._data_end = tail
        if self.state is FAILED:
            return self._step_when_failed(now_ms)
        if now_ms >= self._beat_at:
            return Step.BEAT
        if self._need_file:
            if now_ms >= self._open_at:
                return Step.OPEN
            return Step.FINISH if self._target is not None else self._rest(now_ms, self._open_at)
        if self._target is not None:
            return COMMIT if durable < self._target else Step.FINISH
        if tail > durable and (wanted > durable or self._always):
            return COMMIT
        pending = tail > (written if self._never else durable)
        if pending and (now_ms >= self._tick_at or tail - head >= self._quarter_bytes):
            return Step.WRITE if self._never else COMMIT
        if self._mark_due(now_ms, durable) and tail - head < 2 * self._quarter_bytes:
            return Step.MARK
        if now_ms >= self._tick_at:
            self._tick_at = now_ms + self._interval_ms
        self.wait_ms = min(SLICE_MS, max(1, min(self._tick_at, self._beat_at) - now_ms))
        return WAIT

    def _step_when_failed(self, now_ms: int) -> Step:
        if self._target is not None:
            return Step.FINISH
        return Step.BEAT if now_ms >= self._beat_at else self._rest(now_ms, self._beat_at)

    def _rest(self, now_ms: int, until_ms: int) -> Step:
        self.wait_ms = max(1, min(until_ms, self._beat_at) - now_ms)
        return Step.REST

    def _mark_due(self, now_ms: int, durable: int) -> bool:
        if self.state is not LogState.OK or now_ms < self._mark_at or self._covered >= self._data_end:
            return False
        # Level none has no durable LSN to speak of: its marks only carry the time.
        return self._never or durable > self._covered

    # ---- what came of it ------------------------------------------------------------------------------------

    def wrote(self, now_ms: int) -> None:
        """A WRITE or COMMIT is done with all that the ring held."""
        self._tick_at = now_ms + self._interval_ms

    def synced(self) -> None:
        """A sync succeeded."""
        self._failures = 0

    def marked(self, now_ms: int, durable: int, tail_before: int, tail_after: int) -> None:
        """A mark was appended; records of others may lie on either side of it."""
        self._mark_at = now_ms + MARK_MS
        self._covered = self._data_end if self._never else durable
        self._mark_end = tail_after
        self._data_end = max(self._data_end, tail_before)

    def beat(self, now_ms: int) -> None:
        """A heartbeat was sent."""
        self._beat_at = now_ms + self._beat_ms

    def need_file(self, now_ms: int) -> None:
        """The current file is full and closed."""
        self._need_file = True
        self._open_at = now_ms

    def opened(self) -> None:
        """There is a file to write to."""
        self._need_file = False
        self._settle()

    def room(self, enough: bool, error: str = "") -> None:
        """Whether files for a ring-full are ready; error = why no more can be made just now."""
        self._need_room = bool(error) and not enough
        if self._need_room:
            self.error = error
        self._settle()

    def failed(self, now_ms: int, error: OSError, *, curable: bool = True) -> None:
        """Write, sync or open failed. curable: the ring still holds everything that is not durable."""
        self.error = str(error)
        full = error.errno in NO_SPACE and self._need_file
        if not full:
            self._failures += 1
        if not curable or self._failures >= FAILURE_LIMIT:
            self.state = LogState.FAILED
        self._open_at = now_ms + (RETRY_MS if full else 0)
        self._need_file = True
        self._settle(full)

    def condemn(self, error: str) -> None:
        """The ring itself is damaged: nothing more can be written."""
        self.state = LogState.FAILED
        self.error = error

    @property
    def target_lsn(self) -> int:
        """Where a stop ends; 0 while there is none."""
        return self._target or 0

    def stop(self, target_lsn: int) -> None:
        """Write and sync everything below target_lsn, then FINISH; one try if the disk is full."""
        self._target = target_lsn
        self._open_at = 0

    def _settle(self, full: bool = False) -> None:
        if self.state is not LogState.FAILED:
            waiting = self._need_room or full
            self.state = LogState.DISK_FULL if waiting else LogState.OK
            if not waiting and not self._need_file:
                self.error = ""
