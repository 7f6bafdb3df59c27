"""Which parts of which log files lead from a snapshot or backup to a later moment, across folders and lives.

Why here: pure functions over the headers of log files, so that every branch and every hole is a test without a disk.
A life (incarnation) begins where another one ended, or was left: the first file of each says where. So the way to a
moment is found backwards, from the life that holds it to the one of the backup.

Invariants:
  I1  A file counts up to the first LSN of the next one of its life, by number; the last one as far as its records go.
  I2  A life that does not descend from the backup's state is never taken for its continuation.
  I3  What is missing is named, by LSN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shmkv.dataclass import dataclass
from shmkv.errors import CorruptData
from shmkv.wal.log import FileHeader, LogFile
from shmkv.wal.recovery import Segment

NOWHERE = "no file in the folders holds it"

Lives = Mapping[int, Sequence[LogFile]]


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the log: an LSN of one life."""

    incarnation: int
    lsn: int


def lives_of(found: Sequence[LogFile], store_id: bytes) -> dict[int, list[LogFile]]:
    """The good files of that store by life, each by number; of two that say the same, the first."""
    lives: dict[int, dict[tuple[int, int], LogFile]] = {}
    for file in found:
        header = file.header
        if header is not None and header.store_id == store_id:
            lives.setdefault(header.incarnation, {}).setdefault((header.number, header.first_lsn), file)
    return {life: [files[key] for key in sorted(files)] for life, files in lives.items()}


def life_at_lsn(lives: Lives, base: Point, lsn: int) -> int:
    """The life that holds that LSN, or in whose end it is."""
    later = [life for life in lives if life > base.incarnation and _first_header(lives, life).first_lsn <= lsn]
    return max([base.incarnation, *later])


def life_at_time(lives: Lives, base: Point, wall_ms: int) -> int:
    """The life that ran at that moment, by the clock that made its first file."""
    later = [
        life for life in lives if life > base.incarnation and _first_header(lives, life).created_wall_ms <= wall_ms
    ]
    return max([base.incarnation, *later])


def segments_to(lives: Lives, start: Point, base: Point, goal: int) -> tuple[Segment, ...]:
    """The parts to read, in order, from `start` over the state at `base` into the life `goal`, as far as its files go.

    start: that of a snapshot, or the end of the log that a backup brings along; base: where the state of either is
    whole. Raises CorruptData, which names what is missing.
    """
    way, ends = _way_to(lives, base, goal)
    segments: list[Segment] = []
    for life in way:
        begin = start.lsn if life == start.incarnation else _first_header(lives, life).first_lsn
        segments += _segments_of(lives.get(life, ()), life, begin, ends.get(life))
    return tuple(segments)


def _way_to(lives: Lives, base: Point, goal: int) -> tuple[list[int], dict[int, int]]:
    """The lives from the base's to the goal, and where each but the last was left."""
    way, ends = [goal], {}
    while way[0] != base.incarnation:
        life = way[0]
        header = _first_header(lives, life)
        before, left_at = header.previous_incarnation, header.previous_end_lsn
        if before == life:
            raise CorruptData(
                f"the log of life {life} before LSN {header.first_lsn} is missing: its first file is in none of the "
                f"folders (the first one there is {lives[life][0].path})"
            )
        if before < base.incarnation or (before == base.incarnation and left_at < base.lsn):
            raise CorruptData(
                f"the backup (life {base.incarnation}, up to LSN {base.lsn}) is not on the way to life {goal}: that "
                f"descends from life {before}, left at LSN {left_at}. Take a backup from before that, or another time"
            )
        if before > base.incarnation and before not in lives:
            raise CorruptData(
                f"the log of life {before}, up to LSN {left_at}, is missing: none of its files is in the folders"
            )
        way.insert(0, before)
        ends[before] = left_at
    return way, ends


def _segments_of(files: Sequence[LogFile], life: int, begin: int, end_lsn: int | None) -> list[Segment]:
    segments: list[Segment] = []
    for index, file in enumerate(files):
        following = files[index + 1].header if index + 1 < len(files) else None
        limits = [lsn for lsn in (following.first_lsn if following else None, end_lsn) if lsn is not None]
        limit = min(limits, default=None)
        assert file.header is not None
        first = max(file.header.first_lsn, begin)
        if limit is None or first < limit:
            segments.append(Segment(file, first, limit, life))
    reached = begin
    if segments and segments[0].start_lsn > reached:
        raise hole(reached, segments[0].start_lsn, life)
    if not segments and end_lsn is not None and end_lsn > reached:
        raise hole(reached, end_lsn, life)
    return segments


def hole(from_lsn: int, to_lsn: int, life: int, why: str = "") -> CorruptData:
    """The refusal of a log that is not all there."""
    return CorruptData(
        f"the log from LSN {from_lsn} to {to_lsn} (life {life}) is missing: {why or NOWHERE}; "
        f"name the folder that has it with --log-dir, or restore to an earlier LSN"
    )


def _first_header(lives: Lives, life: int) -> FileHeader:
    header = lives[life][0].header
    assert header is not None
    return header
