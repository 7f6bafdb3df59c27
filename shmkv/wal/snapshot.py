"""Snapshots: the arena's entries as a file of blocks, and back.

Why here: the walk, its two LSNs and the order "write, sync, read back, log durable past it, publish" are decided once;
what a block is stands in block.py, what becomes of older files in generations.py.

Invariants:
  I1  Whoever notes the tail, then walks, misses nothing below it; nothing copied is at or above the tail after the
      walk. So the file and the log from start_lsn to end_lsn are a whole state, and less of the log is none.
  I2  Nothing is published that was not read back from the disk and found whole.
  I3  Private memory is a few blocks, whatever the arena's size (a larger entry needs its own size).
  I4  A failure or a kill leaves the store as it was: the file goes, or keeps a name that the next start removes.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from shmkv.dataclass import asdict, dataclass
from shmkv.errors import CorruptData, MemoryLimitExceeded
from shmkv.segment import _core
from shmkv.wal.block import (
    ENTRIES,
    INFO,
    SNAPSHOT_MAGIC,
    Block,
    BlockFileHeader,
    BlockHeader,
    BlockReader,
    BlockWriter,
    Footer,
    Info,
)
from shmkv.wal.block_format import pack_map
from shmkv.wal.cipher import Keyring
from shmkv.wal.compression import COMPRESSIONS
from shmkv.wal.files import Files
from shmkv.wal.jobs import DURABLE_TIMEOUT_S, Cancelled, Context
from shmkv.wal.manifest import SnapshotFacts
from shmkv.wal.syncing import Spawn, Syncing

BLOCK_BYTES = 1 << 20
LOAD_THREADS = 2

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose snapshot it is, if not the arena's own: a restore writes the target's; lsn = its start and its end."""

    store_id: bytes
    incarnation: int
    lsn: int


def run_job(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """The job "snapshot": a new generation. Result: the facts of it, seconds, and warning ("" = none)."""
    started_s = time.monotonic()
    facts = take_snapshot(context)
    seconds = round(time.monotonic() - started_s, 3)
    return {**asdict(facts), "seconds": seconds, "warning": context.generations.trouble}


def take_snapshot(context: Context) -> SnapshotFacts:
    """Write, verify and publish a new generation of the living (or retired) arena.

    Blocks for as long as the disk takes; writers go on. Raises OSError, CorruptData, LogStalled, Cancelled; then
    nothing has changed, and the unfinished file is gone.
    """
    generations, files = context.generations, context.files
    generation = generations.next_generation()
    path = generations.unfinished_path(generation)
    _check_room(context, os.path.dirname(path))
    facts = write_snapshot(
        context.arena,
        files,
        path,
        generation=generation,
        keys=context.keys,
        compression=context.settings.compression,
        wall_ms=context.wall_ms,
        progress=context.progress,
        cancelled=context.cancelled,
        spawn=context.spawn,
    )
    try:
        context.wait_durable(facts.end_lsn, DURABLE_TIMEOUT_S)
        generations.publish(facts, context.spawn)
    finally:
        # Published, it has another name.
        _remove(files, path)
    if generations.trouble:
        print(f"persister: {generations.trouble}", file=sys.stderr, flush=True)
    return facts


def _check_room(context: Context, folder: str) -> None:
    """A snapshot that fills the disk would stop the log; better no snapshot."""
    newest = context.generations.newest()
    used = context.arena.stats()["used_bytes"]
    need = used if context.settings.compression == "none" or newest is None else min(used, newest.size_bytes)
    free = context.files.free_bytes(folder)
    if free < need + context.settings.file_bytes:
        raise OSError(
            errno.ENOSPC,
            f"no snapshot: about {need} bytes and {context.settings.file_bytes} for the log are needed, {free} are "
            f"free; make room",
            folder,
        )


# ---- writing -----------------------------------------------------------------------------------------------------


def write_snapshot(
    arena: _core.Arena,
    files: Files,
    path: str,
    *,
    generation: int,
    keys: Keyring,
    compression: str,
    wall_ms: Callable[[], int],
    progress: Progress = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
    identity: Identity | None = None,
    spawn: Spawn | None = None,
) -> SnapshotFacts:
    """Write the arena's entries into a new file at path, sync it, read it back; the file has no lasting name yet.

    identity: of a restore; the arena is then at rest, as a retired one is. progress(done, of) in bytes, reading back
    included. spawn: of the thread that syncs while this one walks, None = this one does both. Blocks for as long as the
    disk takes. Raises OSError, CorruptData, Cancelled; the file is gone then.
    """
    info = arena.info()
    tail = arena.ring()["tail"]
    whose = identity or Identity(info["store_id"], info["incarnation"], tail)
    cipher, key_id, salt, sealer = keys.for_new_file(path)
    header = BlockFileHeader(
        SNAPSHOT_MAGIC, whose.store_id, whose.incarnation, generation, whose.lsn, wall_ms(), cipher,
        COMPRESSIONS[compression], key_id, salt,
    )  # fmt: skip
    walk = Walk(arena, 2 * arena.stats()["used_bytes"], progress, cancelled)
    fd = files.create(path)
    try:
        try:
            with Syncing(files, fd, spawn) as syncing:
                writer = BlockWriter(files, fd, header, cipher=sealer, syncing=syncing)
                writer.add(INFO, pack_map(info_of(info, header.created_wall_ms)))
                walk.copy_into(writer)
                end_lsn = whose.lsn if identity else arena.ring()["tail"]
                footer = writer.finish(end_lsn=end_lsn, highest_version=walk.highest_version, wall_ms=wall_ms())
        finally:
            files.close(fd)
        verify_written(files, path, footer, lambda done, of: walk.tell(of + done, 2 * of))
    except BaseException:
        _remove(files, path)
        raise
    return SnapshotFacts(
        generation, whose.lsn, end_lsn, whose.incarnation, footer.entries, writer.size_bytes, header.created_wall_ms,
        alone=identity is not None or bool(info["retired"]),
    )  # fmt: skip


class Walk:
    """One walk over an arena, block by block."""

    def __init__(self, arena: _core.Arena, of_bytes: int, progress: Progress, cancelled: Callable[[], bool]) -> None:
        self._arena = arena
        self._of_bytes = of_bytes
        self._progress = progress
        self._cancelled = cancelled
        self.highest_version = 0

    def copy_into(self, writer: BlockWriter) -> None:
        """Append the entries as blocks. Raises CorruptData for an entry whose checksum is wrong."""
        buffer = memoryview(bytearray(BLOCK_BYTES))
        cursor = 0
        while cursor != _core.CURSOR_END:
            cursor, used_bytes, entries, stripe, needed_bytes = self._arena.fill(cursor, buffer)
            if needed_bytes:
                # One entry that is larger than a block: it gets one of its own, whose memory goes again after it.
                large = memoryview(bytearray(needed_bytes))
                cursor, used_bytes, entries, stripe, _ = self._arena.fill(cursor, large)
                self._add(writer, large[:used_bytes], entries, stripe)
            elif used_bytes:
                self._add(writer, buffer[:used_bytes], entries, stripe)
            self.tell(writer.size_bytes, self._of_bytes)

    def _add(self, writer: BlockWriter, data: memoryview, entries: int, stripe: int) -> None:
        found = _core.check_entries(data)
        if (found["consumed_bytes"], found["entries"]) != (len(data), entries):
            raise CorruptData(
                f"{len(data)} bytes that were copied from stripe {stripe} are no {entries} entries "
                f"({found['stopped']} at {found['consumed_bytes']}): the memory of this machine is not reliable"
            )
        self.highest_version = max(self.highest_version, found["highest_version"])
        writer.add(ENTRIES, data, stripe=stripe, count=entries)

    def tell(self, done: int, of: int) -> None:
        """Report, and give up if the store stops."""
        if self._cancelled():
            raise Cancelled
        self._progress(min(done, of), of)


def info_of(info: dict[str, Any], created_wall_ms: int) -> Info:
    """The INFO block of a file with entries of this arena."""
    from shmkv import __version__

    return Info(
        info["name"], info["hash_key"], info["stripes"], info["size_bytes"], info["ring_bytes"],
        info["expected_items"], __version__, created_wall_ms,
    )  # fmt: skip


def verify_written(files: Files, path: str, footer: Footer, progress: Progress = lambda *_: None) -> None:
    """Read a file back that was just synced, from the disk as far as the system lets us, and compare it.

    Raises CorruptData if the disk gives other bytes than it was given.
    """
    with BlockReader(files, path) as reader:
        reader.drop_cache()
        found = reader.verify(progress)
        reader.drop_cache()
    if found != footer:
        raise CorruptData(f"{path} holds {found}, but {footer} was written: the disk does not keep what it is given")


# ---- reading -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Loaded:
    """What a load did: entries of the file, those that were applied, the highest version among them."""

    entries: int = 0
    applied: int = 0
    highest_version: int = 0


class Loading(Protocol):
    """The part of an arena that a load needs; _core.Arena has it."""

    def load(self, data: Any, /, *, first_stripe: int = 0, end_stripe: int | None = None) -> dict[str, Any]: ...
    def info(self) -> dict[str, Any]: ...


def open_snapshot(files: Files, path: str, keys: Keyring | None = None) -> BlockReader:
    """A reader of that snapshot file; close it. Raises FileNotFoundError, CorruptData (a backup is none), OSError."""
    reader = BlockReader(files, path, keys)
    if reader.header.magic != SNAPSHOT_MAGIC:
        reader.close()
        raise CorruptData(f"{path} is no snapshot: it starts with {reader.header.magic!r}")
    return reader


def facts_of(reader: BlockReader, *, alone: bool = False) -> SnapshotFacts:
    """What the manifest says of this file, but `alone`, which the file does not; reads the headers of its blocks."""
    header, footer = reader.header, reader.footer
    return SnapshotFacts(
        header.generation, header.start_lsn, footer.end_lsn, header.incarnation, footer.entries, reader.size_bytes,
        header.created_wall_ms, alone,
    )  # fmt: skip


def load_snapshot(
    reader: BlockReader,
    arena: Loading,
    *,
    threads: int = LOAD_THREADS,
    progress: Callable[[int, int, int], None] = lambda *_: None,
) -> Loaded:
    """Put all entries of a snapshot or backup into an arena that is CREATING and has the file's hash key.

    threads: a power of two, 16 at most; each loads the stripes of its range. progress(entries, bytes done, of) comes
    from any of them, one at a time. Blocks for as long as it takes. Raises CorruptData (what was loaded so far is in
    the arena: make it anew), MemoryLimitExceeded, WrongKey, OSError.
    """
    load = _Load(reader, arena, threads, progress)
    workers = [threading.Thread(target=load.run, args=(part,), name=f"load-{part}") for part in range(1, threads)]
    for worker in workers:
        worker.start()
    load.run(0)
    for worker in workers:
        worker.join()
    load.finish()
    return load.loaded


class _Load:
    """Shared by the threads of one load."""

    def __init__(
        self, reader: BlockReader, arena: Loading, threads: int, progress: Callable[[int, int, int], None]
    ) -> None:
        self._reader = reader
        self._arena = arena
        self._threads = threads
        self._progress = progress
        self._file_stripes = reader.info.stripes
        self._arena_stripes: int = arena.info()["stripes"]
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._error: BaseException | None = None
        # How far each part came: the blocks before this index are loaded. A part that is done has none.
        self._reached = dict.fromkeys(range(threads), 0)
        self.loaded = Loaded()

    def run(self, part: int) -> None:
        """Load the blocks of one part; an error of any part ends all."""
        try:
            for block in self._reader.blocks(lambda header: self._is_of(header, part)):
                if self._error is not None:
                    return
                self._apply(block, self._bound(part), self._bound(part + 1))
                self._reached[part] = block.header.index + 1
            del self._reached[part]
        except BaseException as error:
            # Raised again by finish, in the thread that called it.
            with self._lock:
                self._error = self._error or error

    def finish(self) -> None:
        """When all have ended: load what found no room, or raise what went wrong."""
        if not isinstance(self._error, MemoryLimitExceeded):
            if self._error is not None:
                raise self._error
            return
        # One call over all stripes moves entries together to make room, which those over a range must not.
        for block in self._reader.blocks(self._is_left):
            self._apply(block, 0, None)

    def _is_of(self, header: BlockHeader, part: int) -> bool:
        return header.kind == ENTRIES and header.stripe * self._threads // self._file_stripes == part

    def _is_left(self, header: BlockHeader) -> bool:
        if header.kind != ENTRIES:
            return False
        reached = self._reached.get(header.stripe * self._threads // self._file_stripes)
        return reached is not None and header.index >= reached

    def _bound(self, part: int) -> int:
        return part * self._arena_stripes // self._threads

    def _apply(self, block: Block, first_stripe: int, end_stripe: int | None) -> None:
        header = block.header
        found = self._arena.load(block.data, first_stripe=first_stripe, end_stripe=end_stripe)
        consumed = (found["consumed_bytes"], found["entries"])
        if found["stopped"] is not None or consumed != (len(block.data), header.count):
            raise CorruptData(
                f"{self._reader.path}, block {header.index}: after {found['entries']} of {header.count} entries there "
                f"is none at byte {found['consumed_bytes']} of it ({found['stopped']}), though its checksum is right"
            )
        with self._lock:
            self._done_bytes += header.total_bytes
            self.loaded.entries += found["entries"]
            self.loaded.applied += found["applied"]
            self.loaded.highest_version = max(self.loaded.highest_version, found["highest_version"])
            self._progress(self.loaded.entries, self._done_bytes, self._reader.size_bytes)


def _remove(files: Files, path: str) -> None:
    if files.exists(path):
        files.unlink(path)
