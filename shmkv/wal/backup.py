"""The job "backup": one file that holds a whole state, a fresh snapshot and the log between its two LSNs.

Why here: the file is put together from what is on disk already, so a backup costs the living arena one walk, as any
snapshot does, and what it copies was verified once.

    shmkv-admin backup FILE -> supervisor -> this job writes DATA_DIR/backup/NAME -> the client moves it to FILE

Invariants:
  I1  The file is on disk, and was read back and found whole, before the job is done.
  I2  Its log begins and ends where its entries do: with it they are the state just before end_lsn, to the byte.
  I3  It is written only inside of DATA_DIR/backup. A failure leaves nothing there; what a kill leaves is removed by the
      next start, and by the next backup if the client that asked is dead, too.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from shmkv import processes
from shmkv.backup import ABANDONED_SUFFIX, BACKUP_DIR
from shmkv.dataclass import asdict, replace
from shmkv.errors import CorruptData, StoreUnavailable
from shmkv.segment import _core
from shmkv.wal.block import BACKUP_MAGIC, ENTRIES, INFO, LOG, BlockFileHeader, BlockReader, BlockWriter
from shmkv.wal.block_format import pack_map
from shmkv.wal.chain import Point, lives_of, segments_to
from shmkv.wal.cipher import Keyring
from shmkv.wal.compression import COMPRESSIONS
from shmkv.wal.files import Files
from shmkv.wal.jobs import Cancelled, Context
from shmkv.wal.manifest import SnapshotFacts
from shmkv.wal.recovery import Segment
from shmkv.wal.replay import open_part
from shmkv.wal.snapshot import open_snapshot, take_snapshot, verify_written

LOG_BLOCK_BYTES = 1 << 20

Tell = Callable[[int], None]


def run_job(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """`path`: where, inside of DATA_DIR/backup; `compression`: none | zstd, default that of snapshots.

    Blocks for as long as the disk takes, writers go on. Raises ValueError, OSError, CorruptData, LogStalled, Cancelled.
    """
    started_s = time.monotonic()
    files, path = context.files, str(arguments["path"])
    compression = str(arguments.get("compression") or context.settings.compression)
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression is {compression!r}; one of {', '.join(COMPRESSIONS)}")
    folder = prepare_folder(files, context.data_dir, path)
    first_half = replace(context, progress=lambda done, of: context.progress(done, 2 * of))
    facts = take_snapshot(first_half)
    manifest = context.slots.manifest
    assert manifest is not None
    segments = log_between(context.directory.log_files(), manifest.store_id, facts)
    need_bytes = facts.size_bytes + sum((part.end_lsn or 0) - part.start_lsn for part in segments)
    check_room(files, folder, need_bytes, context.settings.file_bytes)
    backup = _Backup(context, facts, segments, need_bytes)
    fields = backup.write(path, compression)
    return {**fields, "snapshot": asdict(facts), "seconds": round(time.monotonic() - started_s, 3)}


def prepare_folder(files: Files, data_dir: str, path: str) -> str:
    """Make DATA_DIR/backup, and sweep what dead clients left there. Raises ValueError if `path` is elsewhere."""
    folder = os.path.join(data_dir, BACKUP_DIR)
    if os.path.dirname(path) != folder or os.path.basename(path) in ("", ".", ".."):
        raise ValueError(f"a backup is staged in {folder}, not at {path}")
    files.make_dir(folder)
    for name in files.names(folder):
        owner = processes.owner_of_file(name)
        if owner is not None and not processes.is_alive(*owner):
            files.unlink(os.path.join(folder, name))
    return folder


def check_room(files: Files, folder: str, need_bytes: int, reserve_bytes: int) -> None:
    """A backup that fills the disk would stop the log; better no backup."""
    free_bytes = files.free_bytes(folder)
    if free_bytes < need_bytes + reserve_bytes:
        raise OSError(
            errno.ENOSPC,
            f"no backup: up to {need_bytes} bytes, and {reserve_bytes} for the log, are needed and {free_bytes} are "
            f"free; make room, or ask for compression",
            folder,
        )


def log_between(found: Sequence[Any], store_id: bytes, facts: SnapshotFacts) -> list[Segment]:
    """The parts of the log that a snapshot needs, up to its end. Raises CorruptData if they are not there."""
    start = Point(facts.incarnation, facts.start_lsn)
    parts = segments_to(lives_of(found, store_id), start, start, facts.incarnation)
    ends = [facts.end_lsn if part.end_lsn is None else min(part.end_lsn, facts.end_lsn) for part in parts]
    return [replace(part, end_lsn=end) for part, end in zip(parts, ends, strict=True) if part.start_lsn < end]


class _Backup:
    """One file in the making."""

    def __init__(self, context: Context, facts: SnapshotFacts, segments: Sequence[Segment], of_bytes: int) -> None:
        self._context = context
        self._facts = facts
        self._segments = segments
        self._of_bytes = of_bytes
        self._done_bytes = 0

    def write(self, path: str, compression: str) -> dict[str, Any]:
        """Write and verify it; what the client is told. The file is gone when that fails."""
        context, facts, files = self._context, self._facts, self._context.files
        cipher, key_id, salt, sealer = context.keys.for_new_file(path)
        manifest = context.slots.manifest
        assert manifest is not None
        header = BlockFileHeader(
            BACKUP_MAGIC, manifest.store_id, facts.incarnation, 0, facts.start_lsn, context.wall_ms(), cipher,
            COMPRESSIONS[compression], key_id, salt,
        )  # fmt: skip
        self._check_wanted(path)
        fd = files.create(path)
        try:
            try:
                writer = BlockWriter(files, fd, header, cipher=sealer)
                with open_snapshot(files, context.generations.path(facts.generation), context.keys) as snapshot:
                    name = self._copy_entries(snapshot, writer)
                    end = snapshot.footer
                copy_log(files, self._segments, manifest.store_id, context.keys, writer, self._tell)
                footer = writer.finish(
                    end_lsn=facts.end_lsn, highest_version=end.highest_version, wall_ms=end.wall_ms,
                    log_end_lsn=facts.end_lsn,
                )  # fmt: skip
            finally:
                files.close(fd)
            verify_written(files, path, footer)
            files.fsync_dir(os.path.dirname(path))
            self._check_wanted(path)
        except BaseException:
            # The client may have removed it meanwhile.
            if files.exists(path):
                files.unlink(path)
            raise
        return {
            "name": name, "store_id": manifest.store_id.hex(), "incarnation": facts.incarnation,
            "start_lsn": facts.start_lsn, "end_lsn": facts.end_lsn, "entries": footer.entries,
            "size_bytes": writer.size_bytes, "wall_ms": footer.wall_ms, "compression": compression,
            "encrypted": bool(cipher),
        }  # fmt: skip

    def _copy_entries(self, snapshot: BlockReader, writer: BlockWriter) -> str:
        info = snapshot.info
        writer.add(INFO, pack_map(info))
        for block in snapshot.blocks(lambda header: header.kind == ENTRIES):
            writer.add(ENTRIES, block.data, stripe=block.header.stripe, count=block.header.count)
            self._tell(block.header.total_bytes)
        return info.name

    def _check_wanted(self, path: str) -> None:
        mark = path + ABANDONED_SUFFIX
        if self._context.files.exists(mark):
            self._context.files.unlink(mark)
            raise StoreUnavailable("the program that asked for this backup was interrupted, nobody would take it")

    def _tell(self, more_bytes: int) -> None:
        if self._context.cancelled():
            raise Cancelled
        self._done_bytes += more_bytes
        self._context.progress(self._of_bytes + min(self._done_bytes, self._of_bytes), 2 * self._of_bytes)


def copy_log(
    files: Files, segments: Sequence[Segment], store_id: bytes, keys: Keyring, writer: BlockWriter, tell: Tell
) -> None:
    """Append these parts of the log as LOG blocks of whole records, each checked. Raises CorruptData, WrongKey."""
    for segment in segments:
        part = open_part(files, segment, keys)
        lsn, window = segment.start_lsn, LOG_BLOCK_BYTES
        while chunk := part.peek(window):
            found = _core.verify(chunk, store_id=store_id, incarnation=segment.incarnation, first_lsn=lsn)
            consumed = found["consumed_bytes"]
            if not consumed and (found["stopped"] != "short" or len(chunk) < window):
                break
            # A record that is larger than a block gets a block of its own.
            window = LOG_BLOCK_BYTES if consumed else 2 * window
            if consumed:
                writer.add(LOG, chunk[:consumed], count=found["records"], first_lsn=lsn)
                part.advance(consumed)
                lsn += consumed
                tell(consumed)
        if lsn != segment.end_lsn:
            raise CorruptData(
                f"{segment.file.path} is damaged at offset {part.offset_of(lsn)}, LSN {lsn}: it was written and synced "
                f"up to LSN {segment.end_lsn}. No backup was made; the arena is whole: take a snapshot, try again"
            )
