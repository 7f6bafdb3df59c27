"""Looking through files of any kind that shmkv writes: what is good in them, what is not, up to where.

Why here: it knows all formats by their first bytes, and reads each with the reader that a start, a restore or an import
would use, so that what is called good here is good there.

Invariants:
  I1  Nothing is written, locked or removed, and the store may run meanwhile.
  I2  Without its key an encrypted file is checked as far as checksums and structure go, and the verdict says so.
  I3  A disk that cannot read is a finding, not a crash: what is mapped (log files) was read before.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from shmkv.admin.export_file import START as EXPORT_START
from shmkv.errors import CorruptData, IncompatibleStore, WrongKey
from shmkv.segment import _core
from shmkv.wal import block, manifest
from shmkv.wal.cipher import Keyring
from shmkv.wal.cold import plan_cold
from shmkv.wal.files import Files
from shmkv.wal.generations import DAMAGED_SUFFIX, SNAPSHOT_DIR, generation_of, snapshot_path
from shmkv.wal.log import (
    HEADER_BLOCK_BYTES,
    LOG_DIR,
    MAGIC,
    BadHeader,
    LogDirectory,
    LogFile,
    file_number,
    unpack_file_header,
)
from shmkv.wal.recovery import Ending, Segment, judge
from shmkv.wal.replay import Replay, check_frames, replay_segment
from shmkv.wal.snapshot import facts_of

READ_BYTES = 1 << 20
ATTEMPTS = 5

# (bytes done, of bytes) of the file that is read now.
Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in one file.

    end_lsn: everything below it is good (log: in this file), None where there is no such thing. entries: of a snapshot,
    backup or export; records: of a log file. bad_offset: of the first bad byte, or of the block or frame that holds it.
    is_opened: encrypted content was decrypted and looked at. problems: what is bad; notes: what is worth knowing.
    """

    file: str
    kind: str
    size_bytes: int = 0
    end_lsn: int | None = None
    entries: int | None = None
    records: int | None = None
    bad_offset: int | None = None
    is_encrypted: bool = False
    is_opened: bool = False
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Verifier:
    """Looks through files; keys may be an empty ring."""

    keys: Keyring
    tell: Tell = lambda *_: None
    files: Files = field(default_factory=Files)

    def look(self, path: str) -> Iterator[Verdict]:
        """Verdicts of a file, or of all that counts in a data directory. OSError if it is not there."""
        if os.path.isdir(path):
            yield from self.data_dir(path)
            return
        start = self.files.read_some(path, 16)
        looks: dict[bytes, tuple[str, Callable[[str], Verdict]]] = {
            block.SNAPSHOT_MAGIC: ("snapshot", self.blocks),
            block.BACKUP_MAGIC: ("backup", self.blocks),
            MAGIC: ("log", self.log_file),
            manifest.MAGIC: ("manifest", self.slot),
        }
        kind, see = looks.get(start[:8], ("unknown", self.unknown))
        if start.startswith(EXPORT_START):
            kind, see = "export", self.export
        yield self._seen(path, kind, see)

    def _seen(self, path: str, kind: str, see: Callable[[str], Verdict]) -> Verdict:
        """What `see` says of a file; errors become a verdict."""
        size_bytes = 0
        try:
            size_bytes = self.files.size_bytes(path)
            if kind == "log":
                self._read_through(path, size_bytes)
            return replace(see(path), file=path, kind=kind, size_bytes=size_bytes)
        except (CorruptData, IncompatibleStore) as problem:
            offset = getattr(problem, "offset", None)
            return Verdict(path, kind, size_bytes, bad_offset=offset, problems=(str(problem),))
        except OSError as error:
            return self._unreadable(path, kind, size_bytes, error)

    def _unreadable(self, path: str, kind: str, size_bytes: int, error: OSError) -> Verdict:
        offset = getattr(error, "offset", None)
        if offset is None and error.errno == errno.EIO:
            try:
                self._read_through(path, size_bytes)
            except OSError as found:
                offset = getattr(found, "offset", None)
        where = "" if offset is None else f" at offset {offset}"
        problem = f"{path} cannot be read{where}: {error.strerror or error}"
        return Verdict(path, kind, size_bytes, bad_offset=offset, problems=(problem,))

    def _read_through(self, path: str, size_bytes: int) -> None:
        """Read all of it; an OSError then carries the offset."""
        view, done = memoryview(bytearray(min(READ_BYTES, size_bytes))), 0
        fd = self.files.open_to_read(path)
        try:
            while done < size_bytes:
                try:
                    step = self.files.read_into(fd, view, done)
                except OSError as error:
                    error.offset = done  # type: ignore[attr-defined]
                    raise
                if not step:
                    return
                done += step
                self.tell(done, 2 * size_bytes)
        finally:
            self.files.close(fd)

    def unknown(self, path: str) -> Verdict:
        """A file of none of our kinds."""
        raise CorruptData(
            f"{path} is no snapshot, backup, log file, manifest or export of shmkv, and no data directory; if it was "
            f"one, its first bytes are gone"
        )

    # ---- snapshots and backups ----------------------------------------------------------------------------------

    def blocks(self, path: str) -> Verdict:
        """A snapshot or a backup."""
        with block.BlockReader(self.files, path, self.keys) as reader:
            is_encrypted = bool(reader.header.cipher)
            try:
                footer = self._open_blocks(reader)
                notes: tuple[str, ...] = ()
            except (WrongKey, IncompatibleStore) as closed:
                footer = reader.verify(self.tell)
                return Verdict(
                    path, "", end_lsn=footer.log_end_lsn or footer.end_lsn, entries=footer.entries,
                    is_encrypted=is_encrypted, notes=(f"checksums and structure only: {closed}",),
                )  # fmt: skip
        return Verdict(
            path, "", end_lsn=footer.log_end_lsn or footer.end_lsn, entries=footer.entries, is_encrypted=is_encrypted,
            is_opened=is_encrypted, notes=notes,
        )  # fmt: skip

    def _open_blocks(self, reader: block.BlockReader) -> block.Footer:
        header, done, next_lsn = reader.header, HEADER_BLOCK_BYTES, reader.header.start_lsn
        for each in reader.blocks():
            done += each.header.total_bytes
            where = f"{reader.path}, block {each.header.index}"
            if each.kind == block.ENTRIES:
                found = _core.check_entries(each.data)
                if (found["consumed_bytes"], found["entries"]) != (len(each.data), each.header.count):
                    raise CorruptData(
                        f"{where}: after {found['entries']} of {each.header.count} entries there is none "
                        f"({found['stopped']}), though its checksum is right"
                    )
            elif each.kind == block.LOG:
                if each.header.first_lsn != next_lsn:
                    raise CorruptData(
                        f"{where} starts at LSN {each.header.first_lsn}, the one before ends at {next_lsn}"
                    )
                next_lsn = each.header.first_lsn + len(each.data)
                self._check_records(where, each, header)
            self.tell(done, reader.size_bytes)
        footer = reader.footer
        if footer.log_end_lsn and next_lsn != footer.log_end_lsn:
            raise CorruptData(f"{reader.path}: its log ends at LSN {next_lsn}, its footer says {footer.log_end_lsn}")
        return footer

    @staticmethod
    def _check_records(where: str, each: block.Block, header: block.BlockFileHeader) -> None:
        found = _core.verify(
            each.data, store_id=header.store_id, incarnation=header.incarnation, first_lsn=each.header.first_lsn
        )
        if found["consumed_bytes"] != len(each.data):
            raise CorruptData(
                f"{where}: no record at LSN {found['next_lsn']} ({found['stopped']}), though its checksum is right"
            )

    # ---- the log ------------------------------------------------------------------------------------------------

    def log_file(self, path: str, following: LogFile | None = None) -> Verdict:
        """One log file by itself, or in front of another one: what only the manifest knows is not asked."""
        try:
            header = unpack_file_header(self.files.read_some(path, HEADER_BLOCK_BYTES))
        except BadHeader as problem:
            bad = CorruptData(f"{path} is damaged at offset 0: {problem}")
            bad.offset = 0
            raise bad from problem
        file = LogFile(path, header.number, self.files.size_bytes(path), header)
        end_lsn: int | None = None
        if following is not None and following.header is not None and following.number == header.number + 1:
            after = following.header
            if after.incarnation == header.incarnation:
                end_lsn = max(header.first_lsn, after.first_lsn)
            elif after.previous_incarnation == header.incarnation:
                # The first file of a life says where the one before it ended.
                end_lsn = max(header.first_lsn, after.previous_end_lsn)
        segment = Segment(file, header.first_lsn, end_lsn, header.incarnation)
        return self.segment(segment, header.store_id, 0, Replay())

    def segment(self, segment: Segment, store_id: bytes, watermark: int, state: Replay) -> Verdict:
        """The part of a log file that counts, judged as a start judges it."""
        path, header = segment.file.path, segment.file.header
        assert header is not None
        is_opened = header.cipher != 0 and header.key_id in self.keys.ids
        notes: tuple[str, ...] = ()
        records: int | None = None
        if header.cipher and not is_opened:
            ending = check_frames(self.files, segment)
            notes = (f"checksums and structure only: its key {header.key_id.hex()} is not configured",)
        else:
            before = state.records
            ending = replay_segment(
                self.files, segment, store_id, _core.verify, state, self._tell_records, keys=self.keys
            )
            records = state.records - before
        problem = judge(segment, ending, max(watermark, state.durable_before))
        offset = segment.offset_of(ending.lsn) if ending.offset is None else ending.offset
        is_torn = segment.end_lsn is None and not ending.tail_is_zero and not problem
        if is_torn:
            notes = (*notes, self._torn(ending, offset))
        return Verdict(
            path, "log", segment.file.size_bytes, end_lsn=ending.lsn, records=records,
            bad_offset=offset if problem or is_torn else None, is_encrypted=bool(header.cipher), is_opened=is_opened,
            problems=(problem,) if problem else (), notes=notes,
        )  # fmt: skip

    def _tell_records(self, _records: int, done: int, of: int) -> None:
        self.tell(of + done, 2 * of)

    @staticmethod
    def _torn(ending: Ending, offset: int) -> str:
        return (
            f"a torn tail at offset {offset}, LSN {ending.lsn} ({ending.stopped or 'the file ends'}): nothing behind "
            f"it was ever known to be on disk, and a start cuts it off"
        )

    # ---- manifest and export ------------------------------------------------------------------------------------

    def slot(self, path: str) -> Verdict:
        """One of the two files of a manifest."""
        data = self.files.read_some(path, manifest.BODY_LIMIT_BYTES + READ_BYTES)
        try:
            counter, found = manifest.unpack_slot(data)
        except manifest.BadSlot as problem:
            raise CorruptData(f"{path} is no valid slot of a manifest: {problem}") from problem
        note = f"counter {counter}, store {found.store_id.hex()}, incarnation {found.incarnation}"
        return Verdict(path, "manifest", end_lsn=found.watermark, notes=(note,))

    def export(self, path: str) -> Verdict:
        """An export, line by line."""
        from shmkv.admin.export_file import ExportReader

        size_bytes, entries = self.files.size_bytes(path), 0
        with open(path, "rb", buffering=READ_BYTES) as stream:
            for line in ExportReader(stream, path):
                entries += 1
                if entries % 1000 == 0:
                    self.tell(line.end_offset, size_bytes)
        return Verdict(path, "export", entries=entries)

    # ---- a data directory ---------------------------------------------------------------------------------------

    def data_dir(self, path: str) -> Iterator[Verdict]:
        """All that the manifest counts. A store that trims its log meanwhile is looked at again from the start."""
        names = self.files.names(path)
        if not {*manifest.SLOT_NAMES, LOG_DIR} & set(names):
            if any(file_number(name) is not None for name in names):
                yield from self.log_folder(path)
            else:
                problem = f"{path} is no data directory and no folder of log files: it has neither manifest nor log"
                yield Verdict(path, "unknown", problems=(problem,))
            return
        for attempt in range(ATTEMPTS):
            before = manifest.read_manifest(self.files, path)
            verdicts = list(self._look_around(path, before))
            after = manifest.read_manifest(self.files, path)
            if after.counter == before.counter or attempt == ATTEMPTS - 1:
                yield from verdicts
                return

    def log_folder(self, path: str) -> Iterator[Verdict]:
        """Log files without their manifest, an archive: each must reach to the next one of its life."""
        found = LogDirectory(self.files, path).log_files()
        for file, following in zip(found, (*found[1:], None), strict=True):
            verdict = self._seen(file.path, "log", lambda each, next_=following: self.log_file(each, next_))  # type: ignore[misc]
            if following is not None and following.number != file.number + 1:
                note = f"files {file.number + 1} to {following.number - 1} are not there"
                verdict = replace(verdict, notes=(*verdict.notes, note))
            yield verdict

    def _look_around(self, path: str, read: manifest.ManifestRead) -> Iterator[Verdict]:
        for name in manifest.SLOT_NAMES:
            if name in self.files.names(path):
                yield self._seen(os.path.join(path, name), "manifest", self.slot)
        found = read.manifest
        folder = os.path.join(path, LOG_DIR)
        log_files = LogDirectory(self.files, folder).log_files() if os.path.isdir(folder) else ()
        if found is None:
            if log_files:
                problem = "no valid manifest, though there is a log; restore one of its two files"
                yield Verdict(path, "manifest", problems=(problem,))
            for file in log_files:
                yield self._seen(file.path, "log", self.log_file)
            return
        yield from self._snapshots(path, found)
        yield from self._log(folder, log_files, found)

    def _snapshots(self, path: str, found: manifest.Manifest) -> Iterator[Verdict]:
        for facts in found.snapshots:
            verdict = self._seen(snapshot_path(path, facts.generation), "snapshot", self.blocks)
            if verdict.is_good:
                with block.BlockReader(self.files, verdict.file) as reader:
                    seen = facts_of(reader, alone=facts.alone)
                if seen != facts or reader.header.store_id != found.store_id:
                    problem = f"{verdict.file} is whole, but not the one that the manifest names: {seen}, not {facts}"
                    verdict = replace(verdict, problems=(problem,))
            yield verdict
        folder = os.path.join(path, SNAPSHOT_DIR)
        known = {facts.generation for facts in found.snapshots}
        for name in self.files.names(folder) if os.path.isdir(folder) else ():
            if name.endswith(DAMAGED_SUFFIX):
                yield Verdict(
                    os.path.join(folder, name), "snapshot", notes=("put aside by a start; it does not count",)
                )
            elif (generation := generation_of(name)) is not None and generation not in known:
                yield Verdict(os.path.join(folder, name), "snapshot", notes=("the manifest does not name it",))

    def _log(self, folder: str, log_files: tuple[LogFile, ...], found: manifest.Manifest) -> Iterator[Verdict]:
        try:
            segments = plan_cold(log_files, found, accept_loss=False).segments
        except CorruptData as refusal:
            yield Verdict(folder, "log", problems=(str(refusal),), notes=self._what_is_needed(log_files, found))
            for file in log_files:
                yield self._seen(file.path, "log", self.log_file)
            return
        state = Replay()
        for segment in segments:
            yield self._seen(
                segment.file.path,
                "log",
                lambda _, part=segment: self._counted(part, found, state),  # type: ignore[misc]
            )

    @staticmethod
    def _what_is_needed(log_files: tuple[LogFile, ...], found: manifest.Manifest) -> tuple[str, ...]:
        for facts in reversed(found.snapshots):
            try:
                plan_cold(log_files, found, accept_loss=False, base=facts)
            except CorruptData:
                continue
            return (f"a start from snapshot {facts.generation} does not need what is missing or damaged there",)
        return ()

    def _counted(self, segment: Segment, found: manifest.Manifest, state: Replay) -> Verdict:
        return self.segment(segment, found.store_id, found.watermark, state)


def as_record(verdict: Verdict) -> dict[str, Any]:
    """For machines."""
    return {
        "file": verdict.file, "kind": verdict.kind, "good": verdict.is_good, "size_bytes": verdict.size_bytes,
        "end_lsn": verdict.end_lsn, "entries": verdict.entries, "records": verdict.records,
        "bad_offset": verdict.bad_offset, "encrypted": verdict.is_encrypted, "decrypted": verdict.is_opened,
        "problems": list(verdict.problems), "notes": list(verdict.notes),
    }  # fmt: skip
