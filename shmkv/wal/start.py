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
from typing import TYPE_CHECKING

from shmkv.dataclass import dataclass, field, replace
from shmkv.errors import CorruptData
from shmkv.wal.cipher import Keyring
from shmkv.wal.cold import (
    ColdPlan,
    Stored,
    disowned_after,
    highest_lsn_of,
    manifest_of,
    plan_cold,
    seals_after,
)
from shmkv.wal.files import Files
from shmkv.wal.generations import Generations
from shmkv.wal.log import LOG_DIR as LOG_DIR
from shmkv.wal.log import LogDirectory, LogFile, file_name
from shmkv.wal.manifest import Manifest, ManifestSlots, read_manifest
from shmkv.wal.pace import NO_SPACE
from shmkv.wal.recovery import Ending, Segment, next_first_lsn
from shmkv.wal.replay import Apply, Replay, check_frames, replay_segment
from shmkv.wal.tail import tail_start
from shmkv.wal.writer import LogShape, LogWriter

if TYPE_CHECKING:
    from shmkv.wal.rebuild import NewArena, Progress, Rebuilt


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how: the injected parts of a start.

    file_bytes: limit of one log file; keys open and seal files; archive_dir: where log files go before they are
    trimmed, "" = nowhere; load_threads: that load a snapshot.
    """

    files: Files
    data_dir: str
    file_bytes: int
    wall_ms: Callable[[], int]
    new_store_id: Callable[[], bytes] = lambda: os.urandom(16)
    shape: LogShape | None = None
    keys: Keyring = field(default_factory=Keyring.none)
    archive_dir: str = ""
    load_threads: int = 2

    def log_directory(self) -> LogDirectory:
        return LogDirectory(self.files, os.path.join(self.data_dir, LOG_DIR))

    def generations(self, slots: ManifestSlots) -> Generations:
        return Generations(self.files, self.data_dir, slots, self.archive_dir)

    def shape_for(self, ring_bytes: int) -> LogShape:
        return self.shape or LogShape.of(ring_bytes, self.file_bytes)


@dataclass(frozen=True, slots=True)
class Started:
    """What a start gave: the writer, open after a cold start unless the disk is full, and what to report.

    entries: loaded from the snapshot of that generation, None = from none; records: of the log that were applied,
    from log_bytes of it at most.
    """

    writer: LogWriter
    directory: LogDirectory
    slots: ManifestSlots
    generations: Generations
    records: int = 0
    log_bytes: int = 0
    entries: int = 0
    generation: int | None = None
    cut_lsn: int | None = None
    warnings: tuple[str, ...] = ()


# ---- cold --------------------------------------------------------------------------------------------------------


def start_cold(
    place: Place,
    *,
    ring_bytes: int,
    accept_loss: bool,
    make_arena: Callable[[Manifest, bytes | None], NewArena],
    progress: Progress,
) -> Started:
    """Recover the data directory into a new arena; the log goes on in a new file of a new incarnation.

    make_arena(manifest, hash_key) formats an arena for that manifest; hash_key is that of the snapshot which is loaded
    first, None = any. It is called again, and must format anew, when a snapshot turns out to be damaged.
    progress(phase, records, bytes, of_bytes) is called on the way; phase = "snapshot" | "log". Raises CorruptData,
    which says where; WrongKey; MemoryLimitExceeded; OSError. Blocks for as long as snapshot and log take.
    """
    # A warm start needs nothing of it.
    from shmkv.wal.rebuild import stored_snapshots

    files = place.files
    directory = place.log_directory()
    directory.prepare()
    read = read_manifest(files, place.data_dir)
    found = directory.log_files()
    stored = Stored() if read.manifest is not None else stored_snapshots(files, place.data_dir, place.keys)
    old, warnings = manifest_of(found, read, stored, accept_loss=accept_loss)
    manifest = _next_incarnation(old, found, ring_bytes, place.new_store_id)
    rebuilt = _rebuild(place, found, old, manifest, accept_loss, make_arena, progress)
    plan, end = rebuilt.plan, rebuilt.replay.end
    _sync_accepted(files, directory, plan)
    slots = ManifestSlots(files, place.data_dir, read)
    slots.publish(_sealed(manifest, rebuilt))
    writer = LogWriter(
        directory,
        slots,
        place.shape_for(ring_bytes),
        next_number=plan.next_number,
        start_lsn=manifest.first_lsn,
        previous=end or (0, 0),
        wall_ms=place.wall_ms,
        keys=place.keys,
    )
    generations = place.generations(slots)
    _put_aside(generations, old, rebuilt)
    # First, because it makes room.
    generations.clean_leftovers()
    _open_if_room(writer)
    return _started(writer, directory, slots, generations, rebuilt, warnings)


def _sealed(manifest: Manifest, rebuilt: Rebuilt) -> Manifest:
    """The manifest of the new incarnation with the end of what was accepted."""
    end = rebuilt.replay.end
    return replace(
        manifest,
        watermark=end[1] if end else 0,
        seals=seals_after(rebuilt.plan, end),
        disowned=disowned_after(rebuilt.plan, rebuilt.replay.cut_in),
        snapshots=rebuilt.snapshots,
    )


def _put_aside(generations: Generations, old: Manifest | None, rebuilt: Rebuilt) -> None:
    """Snapshots that were named, and are not any more: damaged, or from behind an accepted cut."""
    kept = {facts.generation for facts in rebuilt.snapshots}
    for facts in () if old is None else old.snapshots:
        if facts.generation not in kept:
            generations.put_aside(facts.generation)


def _started(
    writer: LogWriter,
    directory: LogDirectory,
    slots: ManifestSlots,
    generations: Generations,
    rebuilt: Rebuilt,
    warnings: tuple[str, ...],
) -> Started:
    return Started(
        writer,
        directory,
        slots,
        generations,
        records=rebuilt.replay.records,
        log_bytes=rebuilt.replay.bytes_done,
        entries=rebuilt.entries,
        generation=rebuilt.base.generation if rebuilt.base is not None else None,
        cut_lsn=rebuilt.replay.cut_lsn,
        warnings=(*warnings, *rebuilt.warnings),
    )


def _next_incarnation(
    old: Manifest | None, found: tuple[LogFile, ...], ring_bytes: int, new_store_id: Callable[[], bytes]
) -> Manifest:
    if old is None:
        first_lsn = next_first_lsn(0, ring_bytes)
        return Manifest(new_store_id(), 1, first_lsn, highest_lsn=first_lsn)
    first_lsn = next_first_lsn(highest_lsn_of(found, old), ring_bytes)
    lives = [file.header.incarnation for file in found if file.header is not None]
    used = max([old.incarnation, *lives, *(facts.incarnation for facts in old.snapshots)])
    return replace(old, incarnation=used + 1, first_lsn=first_lsn, highest_lsn=first_lsn, clean=False)


def _rebuild(
    place: Place,
    found: tuple[LogFile, ...],
    old: Manifest | None,
    manifest: Manifest,
    accept_loss: bool,
    make_arena: Callable[[Manifest, bytes | None], NewArena],
    progress: Progress,
) -> Rebuilt:
    from shmkv.wal.rebuild import Rebuild, Rebuilt

    if old is None:
        make_arena(manifest, None)
        return Rebuilt(plan_cold(found, None, accept_loss=accept_loss), Replay(), None, (), 0, ())
    return Rebuild(
        place.files,
        place.data_dir,
        place.keys,
        load_threads=place.load_threads,
        found=found,
        manifest=old,
        accept_loss=accept_loss,
        make_arena=lambda hash_key: make_arena(manifest, hash_key),
        progress=progress,
    ).run()


def _open_if_room(writer: LogWriter) -> None:
    """A full disk must not keep the store from serving: the loop tries again, and says so until it works."""
    try:
        writer.open_file()
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise


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


# ---- warm --------------------------------------------------------------------------------------------------------


def start_warm(place: Place, *, ring_bytes: int, start_lsn: int, manifest: Manifest, verify: Apply) -> Started:
    """Go on behind a living arena, in a new file at start_lsn: its ring's head, or its durable LSN if that is further.

    The manifest was checked to be the arena's. Only the last files are read, as far back as start_lsn. The writer is
    not open yet: a full disk must not keep the store from serving. Raises CorruptData if the log ends before start_lsn.
    """
    directory = place.log_directory()
    directory.prepare()
    last = _last_files(directory, manifest, start_lsn)
    _check_reaches(place, last, manifest, start_lsn, verify)
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
        previous=(manifest.incarnation, start_lsn) if last else _end_before(manifest),
        wall_ms=place.wall_ms,
        keys=place.keys,
    )
    generations = place.generations(slots)
    generations.clean_leftovers()
    return Started(writer, directory, slots, generations, warnings=read.problems)


def _end_before(manifest: Manifest) -> tuple[int, int]:
    """Where the log of the life before this one ends, which has no file yet; (0, 0) = no log was before it."""
    return max((seal for seal in manifest.seals if seal[0] < manifest.incarnation), default=(0, 0))


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


def _check_reaches(place: Place, last: list[LogFile], manifest: Manifest, head_lsn: int, verify: Apply) -> None:
    """Whether the log reaches the head without a gap; what is far behind it is a matter of cold starts and scrubs."""
    reached = last[0].header.first_lsn if last and last[0].header is not None else head_lsn
    for index, file in enumerate(last):
        header = file.header
        following = last[index + 1].header if index + 1 < len(last) else None
        assert header is not None
        end_lsn = head_lsn if following is None else min(head_lsn, following.first_lsn)
        segment = Segment(file, header.first_lsn, max(header.first_lsn, end_lsn), header.incarnation)
        ending = _check_file(place, segment, manifest.store_id, verify)
        reached = max(reached, ending.lsn)
        if ending.lsn != segment.end_lsn:
            raise _unfit(
                f"{file.path} is damaged at offset {ending.offset}, LSN {ending.lsn} "
                f"({ending.stopped or 'the file ends'})"
            )
    if reached < head_lsn:
        raise _unfit(f"the log ends at LSN {reached}")


def _check_file(place: Place, segment: Segment, store_id: bytes, verify: Apply) -> Ending:
    """How far a file is whole, by its tail. Raises WrongKey for an encrypted one whose key is not there."""
    header = segment.file.header
    assert header is not None
    if not header.cipher:
        tail = replace(segment, start_lsn=tail_start(place.files, segment, store_id, verify))
        ending = replay_segment(place.files, tail, store_id, verify, Replay())
        if ending.lsn == segment.end_lsn or tail.start_lsn == segment.start_lsn:
            return ending
        return replay_segment(place.files, segment, store_id, verify, Replay())
    place.keys.for_file(header.cipher, header.key_id, header.salt, segment.file.path)
    # What it says is in the arena: whether it is whole is all that counts, and that needs no deciphering.
    return check_frames(place.files, segment)


def _unfit(problem: str) -> CorruptData:
    return CorruptData(
        f"{problem}, but the living arena has given everything below its ring's head to the log. The arena still holds "
        "all data: attach to it and export, or copy the data directory back, before you remove the arena"
    )
