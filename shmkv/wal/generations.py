"""The folder of snapshots: which count, how a new one is published, and what may go then.

Why here: publication, trimming and archiving are one order of steps, the one that models/publish.pml proves; it stands
in `publish` and `_remove_behind`, top to bottom. What is in a snapshot file, and its log, are none of its business.

    DATA_DIR/snapshot/0000000007.snapshot     generation 7; counts if the manifest names it
    DATA_DIR/snapshot/0000000008.snapshot.tmp unfinished
    DATA_DIR/snapshot/0000000006.snapshot.damaged   left the manifest at a start; kept for who wants to look
    ARCHIVE_DIR/STORE_ID_HEX/0000000003.log   log files, as they were when no snapshot needed them any more

Invariants:
  I1  The manifest names a generation only when its content, its name and the log up to its end are on disk.
  I2  Nothing is removed before a manifest is on disk that does not need it: the newest two generations stay, and the
      log from the start of the older one.
  I3  With an archive, a log file is removed only after its copy there is on disk with its name.
  I4  A kill anywhere leaves names that the manifest does not name; the next start or publication removes them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from shmkv.dataclass import replace
from shmkv.wal.cold import KEPT_SNAPSHOTS, counted_files, oldest_needed
from shmkv.wal.files import Files
from shmkv.wal.log import HEADER_BLOCK_BYTES, LOG_DIR, UNFINISHED_SUFFIX, LogDirectory, LogFile, file_name
from shmkv.wal.manifest import Manifest, ManifestSlots, SnapshotFacts
from shmkv.wal.syncing import Spawn

SNAPSHOT_DIR = "snapshot"
# Files for a moment: a backup or a restore that is under way.
PASSING_DIRS = ("backup", "restore")
SNAPSHOT_SUFFIX = ".snapshot"
DAMAGED_SUFFIX = ".damaged"
COPY_BYTES = 8 << 20
# Removed files that are held open at once; a process has not many descriptors.
HELD_FILES = 64


def snapshot_name(generation: int) -> str:
    return f"{generation:010d}{SNAPSHOT_SUFFIX}"


def generation_of(name: str) -> int | None:
    """The generation in the name of a published snapshot, None for every other name."""
    stem = name.removesuffix(SNAPSHOT_SUFFIX)
    if stem == name or not (stem.isascii() and stem.isdigit()) or snapshot_name(int(stem)) != name:
        return None
    return int(stem)


def snapshot_path(data_dir: str, generation: int) -> str:
    return os.path.join(data_dir, SNAPSHOT_DIR, snapshot_name(generation))


class Generations:
    """The snapshots of one data directory; methods raise OSError. Used by one thread at a time."""

    def __init__(self, files: Files, data_dir: str, slots: ManifestSlots, archive_dir: str = "") -> None:
        self._files = files
        self._data_dir = data_dir
        self._path = os.path.join(data_dir, SNAPSHOT_DIR)
        self._slots = slots
        self._archive_dir = archive_dir
        self._last_given = 0
        # Why log files that nothing needs are still there, "" = they are not; for reports.
        self.trouble = ""

    # ---- what there is --------------------------------------------------------------------------------------

    @property
    def named(self) -> tuple[SnapshotFacts, ...]:
        """Those that count, oldest first."""
        return () if self._slots.manifest is None else self._slots.manifest.snapshots

    def newest(self) -> SnapshotFacts | None:
        """The newest that counts."""
        return self.named[-1] if self.named else None

    def path(self, generation: int) -> str:
        """Of a published snapshot."""
        return os.path.join(self._path, snapshot_name(generation))

    # ---- a new one ------------------------------------------------------------------------------------------

    def next_generation(self) -> int:
        """A number that no snapshot has or had; makes the folder."""
        self._prepare()
        numbers = [_number_in(name) for name in self._files.names(self._path)]
        used = max([self._last_given, *numbers, *(facts.generation for facts in self.named)])
        self._last_given = used + 1
        return self._last_given

    def unfinished_path(self, generation: int) -> str:
        """Where to write it; a kill leaves that name, which the next start removes."""
        return self.path(generation) + UNFINISHED_SUFFIX

    def publish(self, facts: SnapshotFacts, spawn: Spawn | None = None) -> None:
        """Make the snapshot at unfinished_path count; on return it does, and the names of what is behind are gone.

        The caller has written, synced and verified it, and the log is durable past its end: the first steps of the
        model's `publish`. Blocks for a few syncs, and for copies of log files if there is an archive. Raises OSError;
        then, as after a kill, it counts or it does not, and nothing that is needed is gone. `trouble` says afterwards
        whether log files could not be archived: they stay, and are tried again with the next snapshot. spawn: of the
        thread in which the disk gets its room back, which takes it a while; None = before the return.
        """
        self._name(facts.generation)  # model: entry of the file, fsync_dir
        headers = self._log().log_files()
        self._slots.update(lambda manifest: _with_snapshot(manifest, facts, headers))  # model: man_v, man_d
        held: list[int] = []
        try:
            self._remove_behind(None if spawn is None else held)  # model: trim
        finally:
            if spawn is not None and held:
                _close_beside(self._files, held, spawn)

    def switch(self, facts: SnapshotFacts, *, highest_lsn: int) -> None:
        """Make the snapshot at unfinished_path the whole store: a restore's last step.

        No log before it counts any more. The arena must have ended; the next start is cold, removes what is behind,
        and begins past highest_lsn.
        """
        self._name(facts.generation)
        numbers = self._log().numbers()
        self._slots.update(lambda manifest: switched(manifest, facts, highest_lsn=highest_lsn, numbers=numbers))

    def _name(self, generation: int) -> None:
        self._files.rename(self.unfinished_path(generation), self.path(generation))
        self._files.fsync_dir(self._path)

    # ---- one that is damaged --------------------------------------------------------------------------------

    def discard(self, generation: int) -> bool:
        """Take a damaged snapshot out of the manifest, and put its file aside; False = it is the last that is left.

        Then it stays named, because a store whose log is trimmed and which names no snapshot can't say what is
        missing; take a new one.
        """
        rest = tuple(facts for facts in self.named if facts.generation != generation)
        if not rest:
            return False
        self._slots.update(
            lambda manifest: replace(
                manifest, snapshots=tuple(facts for facts in manifest.snapshots if facts.generation != generation)
            )
        )
        self.put_aside(generation)
        return True

    def put_aside(self, generation: int) -> None:
        """Rename the file of a snapshot that the manifest does not name any more."""
        if self._files_has(snapshot_name(generation)):
            self._files.rename(self.path(generation), self.path(generation) + DAMAGED_SUFFIX)
            self._files.fsync_dir(self._path)

    # ---- what goes ------------------------------------------------------------------------------------------

    def clean_leftovers(self) -> None:
        """At a start: remove what a killed process left. The manifest that was read, or its successor, is on disk then.

        Log files behind the oldest one that counts go too, unless they have to be archived: that takes long, and the
        next publication does it.
        """
        self._slots.settle()
        self._prepare()
        named = {facts.generation for facts in self.named}
        for name in self._files.names(self._path):
            generation = generation_of(name)
            self._last_given = max(self._last_given, _number_in(name))
            if name.endswith(UNFINISHED_SUFFIX) or (generation is not None and generation not in named):
                self._files.unlink(os.path.join(self._path, name))
        for folder in PASSING_DIRS:
            path = os.path.join(self._data_dir, folder)
            if folder in self._files.names(self._data_dir):
                for name in self._files.names(path):
                    # A folder is none of ours.
                    if self._files.is_file(os.path.join(path, name)):
                        self._files.unlink(os.path.join(path, name))
        if not self._archive_dir:
            self._trim_log()

    def _remove_behind(self, held: list[int] | None) -> None:
        oldest = self.named[0].generation
        for name in self._files.names(self._path):
            generation = generation_of(name)
            # Only what is older than all that count: a newer one may be a restore that waits for its switch.
            if generation is not None and generation < oldest:
                self._unlink(os.path.join(self._path, name), held)
        self._trim_log(held)

    def _unlink(self, path: str, held: list[int] | None) -> None:
        """Remove the name; a descriptor that goes to `held` keeps the room taken until it is closed."""
        if held is not None and len(held) < HELD_FILES:
            held.append(self._files.open_to_read(path))
        self._files.unlink(path)

    def _trim_log(self, held: list[int] | None = None) -> None:
        manifest = self._slots.manifest
        assert manifest is not None
        directory = self._log()
        self.trouble = ""
        for number in directory.numbers():
            if number >= manifest.oldest_file:
                break
            path = os.path.join(directory.path, file_name(number))
            if self._archive_dir and not _is_disowned(number, manifest):
                try:
                    self._archive(path, manifest.store_id)
                except OSError as error:
                    self.trouble = (
                        f"{path} could not be copied to the archive {self._archive_dir}: {error}. It stays, and the "
                        "next snapshot tries again: make room there, or set another archive_dir"
                    )
                    return
            self._unlink(path, held)

    def _archive(self, path: str, store_id: bytes) -> None:
        folder = os.path.join(self._archive_dir, store_id.hex())
        self._files.make_dir(folder)
        self._files.fsync_dir(os.path.dirname(folder))
        target = os.path.join(folder, os.path.basename(path))
        there = os.path.basename(path) in self._files.names(folder)
        if there and self._files.read_some(target, HEADER_BLOCK_BYTES) != self._files.read_some(
            path, HEADER_BLOCK_BYTES
        ):
            # A data directory that was put back counts its files anew; what it once archived is not to be lost.
            raise FileExistsError(
                errno.EEXIST, "another file of that number is there: move it, or the archive, away", target
            )
        if not there or self._files.size_bytes(target) != self._files.size_bytes(path):
            unfinished = target + UNFINISHED_SUFFIX
            if os.path.basename(unfinished) in self._files.names(folder):
                self._files.unlink(unfinished)
            self._copy(path, unfinished)
            self._files.rename(unfinished, target)
        self._files.fsync_dir(folder)

    def _copy(self, source: str, target: str) -> None:
        view = memoryview(bytearray(COPY_BYTES))
        from_fd = self._files.open_to_read(source)
        try:
            to_fd = self._files.create(target)
            try:
                offset = 0
                while size_bytes := self._files.read_into(from_fd, view, offset):
                    self._files.write_all(to_fd, [view[:size_bytes]], offset)
                    self._files.fdatasync(to_fd)
                    offset += size_bytes
                self._files.fsync(to_fd)
            finally:
                self._files.close(to_fd)
        finally:
            self._files.close(from_fd)

    # ---- small things ---------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if SNAPSHOT_DIR not in self._files.names(self._data_dir):
            self._files.make_dir(self._path)
            self._files.fsync_dir(self._data_dir)

    def _log(self) -> LogDirectory:
        return LogDirectory(self._files, os.path.join(self._data_dir, LOG_DIR))

    def _files_has(self, name: str) -> bool:
        return name in self._files.names(self._path)


def _close_beside(files: Files, held: Sequence[int], spawn: Spawn) -> None:
    def close() -> None:
        for fd in held:
            files.close(fd)

    try:
        spawn(close)
    except RuntimeError:
        # The machine gives no thread: the caller waits.
        close()


def _with_snapshot(manifest: Manifest, facts: SnapshotFacts, headers: Sequence[LogFile]) -> Manifest:
    """The manifest that names it: the older one that stays decides what of the log is needed."""
    snapshots = (*manifest.snapshots, facts)[-KEPT_SNAPSHOTS:]
    # The first snapshot has the whole log as its spare: nothing of that goes yet.
    oldest_file = manifest.oldest_file
    if len(snapshots) == KEPT_SNAPSHOTS:
        oldest_file = max(oldest_file, oldest_needed(counted_files(headers, manifest), snapshots[0], oldest_file))
    return trimmed(
        replace(
            manifest,
            snapshots=snapshots,
            oldest_file=oldest_file,
            highest_lsn=max(manifest.highest_lsn, facts.end_lsn),
        ),
        headers,
    )


def trimmed(manifest: Manifest, headers: Sequence[LogFile]) -> Manifest:
    """Without seals and disowned numbers of files that are gone or count no more."""
    there = {file.number for file in headers}
    incarnations = [
        file.header.incarnation for file in headers if file.header is not None and file.number >= manifest.oldest_file
    ]
    unknown = any(file.header is None and file.number >= manifest.oldest_file for file in headers)
    oldest_life = 0 if unknown or not incarnations else min(incarnations)
    return replace(
        manifest,
        seals=tuple(seal for seal in manifest.seals if seal[0] >= oldest_life),
        disowned=tuple(
            (first, last)
            for first, last in manifest.disowned
            if last >= manifest.oldest_file or any(first <= number <= last for number in there)
        ),
    )


def switched(manifest: Manifest, facts: SnapshotFacts, *, highest_lsn: int, numbers: Sequence[int]) -> Manifest:
    """The manifest of a store that is that snapshot and nothing else; numbers = of the log files that are there."""
    next_number = max([manifest.newest_file, *numbers, *(last for _, last in manifest.disowned)]) + 1
    return replace(
        manifest,
        incarnation=max(manifest.incarnation, facts.incarnation) + 1,
        highest_lsn=max(manifest.highest_lsn, manifest.watermark, facts.end_lsn, highest_lsn),
        oldest_file=next_number,
        seals=(),
        snapshots=(facts,),
        clean=True,
    )


def _is_disowned(number: int, manifest: Manifest) -> bool:
    return any(first <= number <= last for first, last in manifest.disowned)


def _number_in(name: str) -> int:
    head = name.partition(".")[0]
    return int(head) if head.isascii() and head.isdigit() else 0
