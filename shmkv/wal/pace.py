"""When the persister writes, syncs, marks, opens a file, reports, ends, takes snapshots: state machines without I/O.

Why here: durability levels, group commit, the lag clock, a full disk and a failing one meet in these few rules; as a
function from numbers to the next step every case of them is a test without a disk. The thin loop is persister.py.

Invariants:
  I1  A sync is due at once when somebody waits for it, when a quarter of the ring is used, or (level always) when
      anything is not durable; else when sync_interval has passed. Level none writes then, and syncs only if asked.
  I2  WAIT is said only when nothing is due for which the ring would wake its sleeper: no step is a busy loop.
  I3  An error of write or sync leads to one new file; a second error before a sync succeeded leads to FAILED, which
      nothing leaves. A full disk leads to DISK_FULL, which ends by itself: when there is room for a file, and what
      found no room is written.
"""

from __future__ import annotations

import errno
from enum import Enum, auto

from shmkv.dataclass import dataclass

# The last one is a limit of this process (ulimit -f), which can be raised as a quota can.
NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# A command is noticed after at most this long; waits in the C core are cut into such slices anyway.
SLICE_MS = 50
MARK_MS = 1000
BEAT_MS = 1000
RETRY_MS = 1000
LAG_FRACTION = 4
RING_FRACTION = 4
FAILURE_LIMIT = 2
MARK_RECORD_BYTES = 48
# A snapshot that failed wrote much for nothing: the next one waits, longer each time.
BACKOFF_FIRST_MS = 10_000
BACKOFF_LIMIT_MS = 900_000


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
        self._full = False  # the last try to go on found no space
        self._unwritten = False  # so did a write or a sync: there is a file, but not yet a proof that it helps
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
        self._proved()

    def synced(self) -> None:
        """A sync succeeded."""
        self._failures = 0
        self._proved()

    def _proved(self) -> None:
        if self._unwritten:
            self._unwritten = self._full = False
            self._settle()

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
        self._full = self._unwritten
        self._settle()

    def room(self, enough: bool, error: str = "") -> None:
        """Whether files for a ring-full are ready; error = why no more can be made just now."""
        self._need_room = bool(error) and not enough
        if self._need_room:
            self.error = error
        self._settle()

    def failed(self, now_ms: int, error: OSError, *, curable: bool = True) -> None:
        """Write, sync or open failed. curable: the ring still holds everything that is not durable.

        No space at a write or a sync, where the file was made ahead: a disk that promises more than it has. It is
        waited for, but not at a stop: then it is an error like others.
        """
        self.error = str(error)
        self._full = error.errno in NO_SPACE and (self._need_file or self._target is None)
        if not self._full:
            self._failures += 1
        elif not self._need_file:
            self._unwritten = True
        if not curable or self._failures >= FAILURE_LIMIT:
            self.state = LogState.FAILED
        self._open_at = now_ms + (RETRY_MS if self._full else 0)
        self._need_file = True
        self._settle()

    def condemn(self, error: str) -> None:
        """The ring itself is damaged: nothing more can be written."""
        self.state = LogState.FAILED
        self.error = error

    @property
    def data_end(self) -> int:
        """Where the last record lies that is no mark of ours, as far as next() has seen."""
        return self._data_end

    def ends_in_mark(self, tail: int) -> bool:
        """Whether the last record is a mark of ours, or nothing was written at all."""
        return tail == self._mark_end

    @property
    def target_lsn(self) -> int:
        """Where a stop ends; 0 while there is none."""
        return self._target or 0

    def stop(self, target_lsn: int) -> None:
        """Write and sync everything below target_lsn, then FINISH; one try if the disk is full."""
        self._target = target_lsn
        self._open_at = 0

    def _settle(self) -> None:
        if self.state is not LogState.FAILED:
            waiting = self._need_room or self._full
            self.state = LogState.DISK_FULL if waiting else LogState.OK
            if not waiting and not self._need_file:
                self.error = ""


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """Longest time with unsnapshotted data, and least log between two snapshots; 0 = no limit."""

    interval_ms: int
    log_bytes: int


class SnapshotPace:
    """When a snapshot is due: while something but marks was written since the newest one, and

    - snapshot_interval has passed since the first of that was seen,
    - or the log since the newest one's start is as long as snapshot_log and as the newest one itself: so snapshots
      write at most as much as the log does, and a start reads at most about two of them.
    """

    def __init__(
        self,
        settings: SnapshotSettings,
        now_ms: int,
        *,
        begin_lsn: int,
        behind_bytes: int = 0,
        changed: bool = False,
        newest_bytes: int = 0,
        age_ms: int = 0,
    ) -> None:
        """begin_lsn: where counting begins, the newest one's start or this life's; behind_bytes: log before that.

        changed: there is something behind begin_lsn that no snapshot holds, for age_ms by now.
        """
        self._settings = settings
        self._begin_lsn = begin_lsn
        self._behind_bytes = behind_bytes
        self._behind_changed = changed
        self._newest_bytes = newest_bytes
        self._changed_at: int | None = now_ms - min(max(0, age_ms), settings.interval_ms) if changed else None
        self._not_before = now_ms
        self._failures = 0
        self._running = False

    def changed(self, data_end: int) -> bool:
        """Whether there is something that the newest snapshot does not hold."""
        return self._behind_changed or data_end > self._begin_lsn

    def due(self, now_ms: int, tail: int, data_end: int) -> bool:
        """Whether to begin one now; ask about once a second. data_end: end of the last record that is no mark."""
        if not self.changed(data_end):
            self._changed_at = None
            return False
        if self._changed_at is None:
            self._changed_at = now_ms
        if self._running or now_ms < self._not_before:
            return False
        settings = self._settings
        log_bytes = self._behind_bytes + tail - self._begin_lsn
        return bool(
            (settings.interval_ms and now_ms - self._changed_at >= settings.interval_ms)
            or (settings.log_bytes and log_bytes >= max(settings.log_bytes, self._newest_bytes))
        )

    def began(self) -> None:
        """One that was due is under way."""
        self._running = True

    def failed(self, now_ms: int) -> None:
        """It gave none."""
        self._running = False
        self._not_before = now_ms + min(BACKOFF_LIMIT_MS, BACKOFF_FIRST_MS << min(self._failures, 16))
        self._failures += 1

    def ended(self) -> None:
        """It is over; what came of it is said by `published`."""
        self._running = False

    def published(self, start_lsn: int, size_bytes: int) -> None:
        """There is a new newest snapshot, whoever asked for it."""
        self._begin_lsn = start_lsn
        self._behind_bytes = 0
        self._behind_changed = False
        self._newest_bytes = size_bytes
        self._changed_at = None
        self._failures = 0
