"""The job "scrub": reads what a cold start would need, before it is needed.

Why here: rot is found while there is still a copy: the arena holds everything, and a new snapshot of it makes a damaged
file unnecessary.

Invariants:
  I1  Only a snapshot that was read and found damaged leaves the manifest, and only after a new one is published.
  I2  Damage of the log is told and cured the same way: two new snapshots make the old log unnecessary.
"""

from __future__ import annotations

from typing import Any

from shmkv.errors import CorruptData
from shmkv.segment import _core
from shmkv.wal.cold import KEPT_SNAPSHOTS, plan_cold
from shmkv.wal.jobs import Cancelled, Context
from shmkv.wal.manifest import SnapshotFacts
from shmkv.wal.recovery import Segment
from shmkv.wal.replay import Replay, replay_segment
from shmkv.wal.snapshot import open_snapshot, take_snapshot


def run_job(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """Verify the named snapshots and the log files that are finished; what is damaged is replaced by new snapshots.

    Result: checked_bytes, problems (in words, [] = none), snapshots (how many were taken). Blocks for as long as
    reading takes. Raises OSError, Cancelled; CorruptData if the arena itself is damaged.
    """
    scrub = _Scrub(context)
    damaged = [facts for facts in context.generations.named if not scrub.is_good(facts)]
    bad_log = scrub.log_is_bad()
    # Two, so that a spare is left whatever leaves the manifest.
    wanted = KEPT_SNAPSHOTS if bad_log or damaged else 0
    for _ in range(wanted):
        take_snapshot(context)
    for facts in damaged:
        if facts in context.generations.named:
            context.generations.discard(facts.generation)
    return {"checked_bytes": scrub.checked_bytes, "problems": scrub.problems, "snapshots": wanted}


class _Scrub:
    """What was read so far."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._of_bytes = sum(facts.size_bytes for facts in context.generations.named)
        self.checked_bytes = 0
        self.problems: list[str] = []

    def is_good(self, facts: SnapshotFacts) -> bool:
        """Whether the file of that snapshot is on the disk as it was written."""
        context, before = self._context, self.checked_bytes
        try:
            with open_snapshot(context.files, context.generations.path(facts.generation), context.keys) as reader:
                # What the system still holds in memory says nothing about the disk.
                reader.drop_cache()
                reader.verify(lambda done, _of: self._tell(before + done))
                reader.drop_cache()
        except (CorruptData, FileNotFoundError) as problem:
            self.problems.append(str(problem))
            return False
        return True

    def log_is_bad(self) -> bool:
        """Whether a file of the log that is written no more holds a bad record."""
        context = self._context
        manifest = context.slots.manifest
        assert manifest is not None
        oldest = manifest.snapshots[0] if manifest.snapshots else None
        try:
            plan = plan_cold(context.directory.log_files(), manifest, accept_loss=False, base=oldest)
            # The last one is being written: where it ends is known by the ring only.
            results = [self._segment_is_good(segment) for segment in plan.segments[:-1]]
            return not all(results)
        except CorruptData as problem:
            self.problems.append(str(problem))
            return True

    def _segment_is_good(self, segment: Segment) -> bool:
        context, before = self._context, self.checked_bytes
        manifest = context.slots.manifest
        assert manifest is not None
        ending = replay_segment(
            context.files,
            segment,
            manifest.store_id,
            _core.verify,
            Replay(),
            lambda _records, done, _of: self._tell(before + done),
            keys=context.keys,
        )
        if ending.lsn == segment.end_lsn:
            return True
        self.problems.append(
            f"{segment.file.path} is damaged at offset {ending.offset}, LSN {ending.lsn} ({ending.stopped}), though it "
            f"goes on to LSN {segment.end_lsn}"
        )
        return False

    def _tell(self, done_bytes: int) -> None:
        if self._context.cancelled():
            raise Cancelled
        self.checked_bytes = done_bytes
        self._context.progress(done_bytes, max(done_bytes, self._of_bytes))
