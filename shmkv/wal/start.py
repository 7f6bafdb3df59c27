"""Starts: from what lies on disk, and from an arena that is still alive, to a log that can be written.

Why here: the order of reading, sealing, syncing and serving is the one that models/publish.pml proves; it stands in
`start_cold` and `start_warm`, top to bottom. What is decided on the way is in recovery.py.

Invariants:
  I1  Nothing is served before log, names and manifest that recovery accepted are on disk, the seal among them.
  I2  A new incarnation is in the manifest before any file of it exists.
  I3  A kill anywhere leaves a directory from which the same start gives the same records.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from shmkv.errors import CorruptData
from shmkv.wal.files import Files
from shmkv.wal.log import LogDirectory, LogFile, file_name
from shmkv.wal.manifest import Manifest, ManifestSlots, read_manifest
from shmkv.wal.recovery import (
    ColdPlan,
    Segment,
    damage,
    disowned_after,
    judge,
    next_first_lsn,
    plan_cold,
    seals_after,
)
from shmkv.wal.replay import Apply, Replay, replay_segment, size_of
from shmkv.wal.writer import LogShape, LogWriter

LOG_DIR = "log"


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how: the injected parts of a start; file_bytes = limit of one log file."""

    files: Files
    data_dir: str
    file_bytes: int
    wall_ms: Callable[[], int]
    new_store_id: Callable[[], bytes] = lambda: os.urandom(16)
    shape: LogShape | None = None

    def log_directory(self) -> LogDirectory:
        return LogDirectory(self.files, os.path.join(self.data_dir, LOG_DIR))

    def shape_for(self, ring_bytes: int) -> LogShape:
        return self.shape or LogShape.of(ring_bytes, self.file_bytes)


@dataclass(frozen=True, slots=True)
class Started:
    """What a start gave: the writer, open after a cold start, and what to report."""

    writer: LogWriter
    directory: LogDirectory
    slots: ManifestSlots
    records: int = 0
    cut_lsn: int | None = None
    warnings: tuple[str, ...] = ()


# ---- cold --------------------------------------------------------------------------------------------------------


def start_cold(
    place: Place,
    *,
    ring_bytes: int,
    accept_loss: bool,
    make_arena: Callable[[Manifest], Apply],
    progress: Callable[[int, int, int], None],
) -> Started:
    """Recover the data directory into a new arena; the log goes on in a new file of a new incarnation.

    make_arena: formats an arena for that manifest and returns its apply. progress(records, bytes, of_bytes) is called
    after every chunk. Raises CorruptData, which says where; OSError. Blocks for as long as the log takes.
    """
    directory = place.log_directory()
    directory.prepare()
    read = read_manifest(place.files, place.data_dir)
    found = directory.log_files()
    plan = plan_cold(found, read, accept_loss=accept_loss)
    manifest = _next_incarnation(plan, found, ring_bytes, place.new_store_id)
    replay = _replay(place, plan, make_arena(manifest), accept_loss=accept_loss, progress=progress)
    end = replay.end
    manifest = replace(
        manifest,
        watermark=end[1] if end else 0,
        seals=seals_after(plan, end),
        disowned=disowned_after(plan, replay.cut_in),
    )
    _sync_accepted(place.files, directory, plan)
    slots = ManifestSlots(place.files, place.data_dir, read)
    slots.publish(manifest)
    writer = LogWriter(
        directory,
        slots,
        place.shape_for(ring_bytes),
        next_number=plan.next_number,
        start_lsn=manifest.first_lsn,
        previous=end or (0, 0),
        wall_ms=place.wall_ms,
    )
    writer.open_file()
    warnings = plan.warnings + tuple(_cut_warning(replay))
    return Started(writer, directory, slots, replay.records, replay.cut_lsn, warnings)


def _next_incarnation(
    plan: ColdPlan, found: tuple[LogFile, ...], ring_bytes: int, new_store_id: Callable[[], bytes]
) -> Manifest:
    first_lsn = next_first_lsn(plan.highest_lsn, ring_bytes)
    if plan.manifest is None:
        return Manifest(new_store_id(), 1, first_lsn, highest_lsn=first_lsn)
    used = max([plan.manifest.incarnation, *(file.header.incarnation for file in found if file.header is not None)])
    return replace(plan.manifest, incarnation=used + 1, first_lsn=first_lsn, highest_lsn=first_lsn, clean=False)


def _replay(
    place: Place,
    plan: ColdPlan,
    apply: Apply,
    *,
    accept_loss: bool,
    progress: Callable[[int, int, int], None],
) -> Replay:
    state = Replay(bytes_all=sum(size_of(segment) for segment in plan.segments))
    manifest = plan.manifest
    for segment in plan.segments:
        assert manifest is not None
        ending = replay_segment(place.files, segment, manifest.store_id, apply, state, progress)
        state.end = (segment.incarnation, ending.lsn)
        problem = judge(segment, ending, max(manifest.watermark, state.durable_before))
        if problem and not accept_loss:
            raise damage(problem)
        if problem:
            state.cut_in, state.cut_lsn = segment.file.number, ending.lsn
            return state
        if segment.end_lsn is None and not ending.tail_is_zero:
            state.cut_lsn = ending.lsn
    return state


def _sync_accepted(files: Files, directory: LogDirectory, plan: ColdPlan) -> None:
    """A process that was killed may have left what was read in the page cache only."""
    newest = plan.segments[-1].incarnation if plan.segments else 0
    for segment in plan.segments:
        if segment.incarnation == newest:
            _sync_file(files, segment.file.path)
    files.fsync_dir(directory.path)


def _sync_file(files: Files, path: str) -> None:
    fd = files.open(path)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def _cut_warning(replay: Replay) -> list[str]:
    if replay.cut_in is not None:
        return [f"loss accepted: the log was cut at LSN {replay.cut_lsn} in {file_name(replay.cut_in)}"]
    if replay.cut_lsn is not None:
        return [f"the log ended in a torn record and was cut at LSN {replay.cut_lsn}; nothing behind it was durable"]
    return []


# ---- warm --------------------------------------------------------------------------------------------------------


def start_warm(place: Place, *, ring_bytes: int, start_lsn: int, manifest: Manifest, verify: Apply) -> Started:
    """Go on behind a living arena, in a new file at start_lsn: its ring's head, or its durable LSN if that is further.

    The manifest was checked to be the arena's. Only the last files are read, as far back as start_lsn. The writer is
    not open yet: a full disk must not keep the store from serving. Raises CorruptData if the log ends before start_lsn.
    """
    directory = place.log_directory()
    directory.prepare()
    last = _last_files(directory, manifest, start_lsn)
    _check_reaches(place.files, last, manifest, start_lsn, verify)
    for file in last:
        # One that gives nothing may be one whose sync failed: it is not asked again.
        if file.header is not None and file.header.first_lsn < start_lsn:
            _sync_file(place.files, file.path)
    place.files.fsync_dir(directory.path)
    read = read_manifest(place.files, place.data_dir)
    slots = ManifestSlots(place.files, place.data_dir, read)
    writer = LogWriter(
        directory,
        slots,
        place.shape_for(ring_bytes),
        next_number=max([manifest.newest_file, *directory.numbers()]) + 1,
        start_lsn=start_lsn,
        previous=(manifest.incarnation, start_lsn),
        wall_ms=place.wall_ms,
    )
    return Started(writer, directory, slots, warnings=read.problems)


def _last_files(directory: LogDirectory, manifest: Manifest, head_lsn: int) -> list[LogFile]:
    """The files of this incarnation from the one that holds the head on; usually only the last."""
    last: list[LogFile] = []
    for number in reversed(directory.numbers()):
        file = directory.inspect(number)
        if file.header is None:
            raise _unfit(f"{file.path} is damaged at offset 0: {file.problem}")
        if file.header.store_id != manifest.store_id or file.header.incarnation != manifest.incarnation:
            break
        last.insert(0, file)
        if file.header.first_lsn <= head_lsn:
            break
    if not last and head_lsn != manifest.first_lsn:
        raise _unfit(f"there is no log file of incarnation {manifest.incarnation}")
    if last and last[-1].number < manifest.newest_file:
        raise _unfit(f"{file_name(manifest.newest_file)} is missing")
    return last


def _check_reaches(files: Files, last: list[LogFile], manifest: Manifest, head_lsn: int, verify: Apply) -> None:
    """Read the log from the start of these files up to the head."""
    reached = last[0].header.first_lsn if last and last[0].header is not None else head_lsn
    for index, file in enumerate(last):
        header = file.header
        following = last[index + 1].header if index + 1 < len(last) else None
        assert header is not None
        end_lsn = head_lsn if following is None else min(head_lsn, following.first_lsn)
        segment = Segment(file, header.first_lsn, max(header.first_lsn, end_lsn), header.incarnation)
        ending = replay_segment(files, segment, manifest.store_id, verify, Replay())
        reached = max(reached, ending.lsn)
        if ending.lsn != segment.end_lsn:
            raise _unfit(
                f"{file.path} is damaged at offset {segment.offset_of(ending.lsn)}, LSN {ending.lsn} "
                f"({ending.stopped or 'the file ends'})"
            )
    if reached < head_lsn:
        raise _unfit(f"the log ends at LSN {reached}")


def _unfit(problem: str) -> CorruptData:
    return CorruptData(
        f"{problem}, but the living arena has given everything below its ring's head to the log. The arena still holds "
        "all data: attach to it and export, or copy the data directory back, before you remove the arena"
    )
