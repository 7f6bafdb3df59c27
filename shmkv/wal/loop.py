"""The persister's loop: carries out what pace.py says, on one arena and one log.

Why here: one process owns the disk, so that no writer ever waits in a system call with a lock held. This file is the
edge: each step is a few calls, and no decision but "does it fit into the file" is made here.

Invariants:
  I1  durable_lsn is published only after a sync that succeeded, and only at ends of records.
  I2  One cycle is one wait, one write, one sync, one publication; nothing else is called while writes come. A writer
      that waits pays for every call between wait and publication: what can be done before or after is done there.
  I3  The arena's name is removed only when its ring is on disk.
  I4  Jobs (snapshots ...) are begun and looked after in heartbeats, and at the end, when nothing is left to write.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from shmkv.errors import CorruptData, LogStalled, ShmkvError
from shmkv.segment import _core
from shmkv.wal.channel import RETIRE, Events, Orders
from shmkv.wal.jobs import SyncWish
from shmkv.wal.pace import MARK_RECORD_BYTES, SLICE_MS, LogState, Pace, Step
from shmkv.wal.schedule import Schedule
from shmkv.wal.spares import SpareMaker
from shmkv.wal.writer import LogWriter, record_bytes

CLEAN, RETRY = 0, 1
# Up to here a copy is cheaper than a view of the ring.
COLLECT_BYTES = 64 << 10
WAIT, COMMIT = Step.WAIT, Step.COMMIT

Words = dict[str, int]


class Persister:
    """The loop over one arena; everything that it touches is passed in.

    unlink removes the arena's name; switch(generation) makes that snapshot the whole store, after a retirement.
    """

    def __init__(
        self,
        arena: _core.Arena,
        writer: LogWriter,
        pace: Pace,
        spares: SpareMaker,
        *,
        events: Events,
        orders: Orders,
        wall_ms: Callable[[], int],
        unlink: Callable[[], None],
        switch: Callable[[int], None],
        keeps_ring: bool,
        schedule: Schedule,
        wish: SyncWish,
    ) -> None:
        self._arena = arena
        self._writer = writer
        self._pace = pace
        self._spares = spares
        self._events = events
        self._orders = orders
        self._wall_ms = wall_ms
        self._unlink = unlink
        self._switch = switch
        self._schedule = schedule
        self._wish = wish
        # Level none gives ring space back when it is written, not when it is synced.
        self._keeps_ring = keeps_ring
        self._least_bytes = 0
        self._said = LogState.OK
        self._order: str | None = None
        self.exit_code: int | None = None
        self._others: dict[Step, Callable[[Words], None]] = {
            Step.REST: self._rest,
            Step.WRITE: self._write,
            Step.OPEN: self._open,
            Step.MARK: self._mark,
            Step.BEAT: self._beat,
            Step.FINISH: self._finish,
        }
        if writer.is_open:
            pace.opened()

    def run(self) -> int:
        """Turn until an order ends it; the exit code. Blocks."""
        while self.exit_code is None:
            self.turn()
        return self.exit_code

    def turn(self) -> None:
        """One step."""
        orders = self._orders
        if orders.requests:
            self._take_requests()
        if orders.pending is not self._order:
            self._obey()
        words = self._arena.ring()
        if self._wish.wanted_lsn:
            self._hear_wish(words)
        writer = self._writer
        step = self._pace.next(
            words["now_ms"],
            words["tail"],
            words["head"],
            writer.written_lsn,
            writer.synced_lsn,
            words["sync_wanted_lsn"],
        )
        try:
            # The two that every write goes through come first, without a look into the table.
            if step is COMMIT:
                self._commit(words)
            elif step is WAIT:
                self._wait(words)
            else:
                self._others[step](words)
        except OSError as error:
            if isinstance(error, ShmkvError) or step not in (Step.WAIT, Step.WRITE, Step.COMMIT, Step.OPEN):
                # Not the disk: the next persister starts from the same state.
                raise
            self._failed(words, error)
        except CorruptData as error:
            self._condemn(error)
        if self._pace.state is not self._said:
            self._say()

    def open_first(self) -> None:
        """Open the first file if there is none yet; a full disk shows in the log state, not as an exception."""
        if not self._writer.is_open:
            words = self._arena.ring()
            try:
                self._open(words)
            except OSError as error:
                self._failed(words, error)
            if self._pace.state is not self._said:
                self._say()

    # ---- steps ----------------------------------------------------------------------------------------------

    def _wait(self, words: Words) -> None:
        writer, timeout_s = self._writer, self._pace.wait_ms / 1000
        if not self._keeps_ring:
            self._arena.ring_wait(writer.written_lsn, timeout_s)
            return
        tail, now_ms, records = self._arena.ring_collect(writer.synced_lsn, timeout_s, COLLECT_BYTES)
        if records is None or len(records) > writer.room_bytes or writer.written_lsn != writer.synced_lsn:
            return
        # Somebody waits for these: the commit that next() would say, without the way there.
        words["now_ms"], words["tail"] = now_ms, tail
        writer.write((records,), tail)
        writer.sync()
        self._arena.publish_durable(tail, now_ms)
        self._pace.synced()
        self._wrote(words)

    def _rest(self, _words: Words) -> None:
        if self._order is None:
            self._orders.wait(self._pace.wait_ms / 1000)

    def _write(self, words: Words) -> None:
        if self._copy(words):
            # The lag clock: what was written counts as kept, at a level that never syncs.
            self._arena.publish_durable(self._writer.synced_lsn, words["now_ms"])
            self._wrote(words)

    def _commit(self, words: Words) -> None:
        if self._copy(words):
            self._writer.sync()
            self._arena.publish_durable(self._writer.synced_lsn, words["now_ms"])
            self._pace.synced()
            self._wrote(words)

    def _wrote(self, words: Words) -> None:
        if self._spares.error:
            # Not at the next heartbeat: a second's writes may be more than what the file still holds.
            self._pace.room(self._spares.enough, self._spares.error)
        if self._writer.written_lsn == words["tail"]:
            # Else the file was full, and the rest is due at once.
            self._pace.wrote(words["now_ms"])

    def _copy(self, words: Words) -> bool:
        """Write what the ring holds, as far as the file has room; False if it has none and a new one is needed."""
        writer = self._writer
        start, tail = writer.written_lsn, words["tail"]
        if tail <= start:
            return True
        pieces = self._arena.ring_pieces(start, tail)
        end = tail
        if tail - start > writer.room_bytes:
            end = start + writer.boundary(pieces)
            if end == start:
                return self._rotate(record_bytes(pieces))
            pieces = self._arena.ring_pieces(start, end)
        writer.write(pieces, end)
        if end > words["written_lsn"]:
            # Not so while a new file repeats what an older one was given, but not synced.
            self._arena.publish_written(end)
        return True

    def _rotate(self, least_bytes: int) -> bool:
        words = self._arena.ring()
        self._writer.finish_file()
        self._arena.publish_durable(self._writer.synced_lsn, words["now_ms"])
        self._pace.synced()
        self._pace.need_file(words["now_ms"])
        self._least_bytes = least_bytes
        return False

    def _open(self, words: Words) -> None:
        self._writer.open_file(self._least_bytes)
        self._least_bytes = 0
        self._pace.opened()
        self._spares.care(words["now_ms"])

    def _mark(self, words: Words) -> None:
        try:
            lsn = self._arena.mark(self._wall_ms())
        except LogStalled:
            # A writer with a large record has claimed the room: the mark has time.
            lsn = words["tail"]
            self._pace.marked(words["now_ms"], words["durable_lsn"], lsn, lsn)
            return
        self._pace.marked(words["now_ms"], self._writer.synced_lsn, lsn, lsn + MARK_RECORD_BYTES)

    def _beat(self, words: Words) -> None:
        synced, tail, now_ms = self._writer.synced_lsn, words["tail"], words["now_ms"]
        if synced == tail or not self._keeps_ring:
            # Nothing is late: the lag clock starts now.
            self._arena.publish_durable(synced, now_ms)
        self._spares.care(now_ms)
        self._pace.room(self._spares.enough, self._spares.error)
        self._events.emit("progress", droppable=True, durable_lsn=synced, lag_bytes=tail - synced)
        if self._order is None:
            healthy = self._pace.state is LogState.OK
            self._schedule.care(now_ms, tail, self._pace.data_end, healthy=healthy)
        self._pace.beat(now_ms)

    def _take_requests(self) -> None:
        while self._orders.requests:
            self._schedule.request(self._orders.requests.popleft())

    def _hear_wish(self, words: Words) -> None:
        """A job waits for the log: as if a writer did."""
        wanted_lsn = self._wish.wanted_lsn
        if self._writer.synced_lsn >= wanted_lsn:
            self._wish.answer()
        else:
            words["sync_wanted_lsn"] = max(words["sync_wanted_lsn"], wanted_lsn)

    # ---- ends and troubles ----------------------------------------------------------------------------------

    def _obey(self) -> None:
        self._order = self._orders.pending
        self._take_requests()
        self._schedule.close()
        self._spares.cancel()
        if self._order == RETIRE:
            words = self._arena.ring()
            if self._pace.state is LogState.OK and not self._pace.ends_in_mark(words["tail"]):
                # Its time is the end of this life: what a restore to a later moment goes by.
                self._mark(words)
            self._arena.retire()
        self._pace.stop(self._arena.ring()["tail"])

    def _finish(self, words: Words) -> None:
        complete = self._writer.synced_lsn >= self._pace.target_lsn
        if not complete:
            self._wish.refuse("the store stops, and the log could not be written")
        if not self._schedule.finished(words["now_ms"], self._pace.data_end, wanted=complete and self._may_snapshot()):
            # Heartbeats go on meanwhile: they say that a long end is no hang.
            self._schedule.wait(SLICE_MS / 1000)
            return
        if complete:
            self._end()
        else:
            self._events.emit(
                "failed",
                error=f"{words['tail'] - self._writer.synced_lsn} bytes of the ring could not be written to the log "
                f"({self._pace.error}); the arena keeps them: start again when the disk is well",
                exit=RETRY,
            )
        self.exit_code = CLEAN if complete else RETRY

    def _may_snapshot(self) -> bool:
        """Whether the end of this arena is to be a snapshot: not of one that goes on, is damaged, or is replaced."""
        return self._order == RETIRE and self._orders.switch is None and not self._arena.info()["condemned"]

    def _end(self) -> None:
        retired = self._order == RETIRE
        self._writer.publish_watermark(clean=retired)
        if retired and self._orders.switch is not None:
            self._switch(self._orders.switch)
        if retired:
            self._unlink()

    def _failed(self, words: Words, error: OSError) -> None:
        name = self._writer.name or "a new log file"
        self._writer.abandon_file()
        curable = self._keeps_ring or words["head"] <= self._writer.synced_lsn
        self._pace.failed(words["now_ms"], error, curable=curable)
        print(f"persister: {name}: {error}; log state {self._pace.state.value}", file=sys.stderr, flush=True)

    def _condemn(self, error: CorruptData) -> None:
        self._arena.set_state(condemned=True)
        self._pace.condemn(str(error))
        print(f"persister: {error}", file=sys.stderr, flush=True)

    def _say(self) -> None:
        self._said = self._pace.state
        if self._said is LogState.FAILED:
            self._wish.refuse(f"the log has failed ({self._pace.error})")
        self._arena.set_state(log_state=self._said.value)
        self._events.emit("log_state", state=self._said.value, error=self._pace.error or None)
