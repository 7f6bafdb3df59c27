"""Restore: from a backup or a snapshot file, and perhaps the log behind it, to a snapshot that is the whole store.

Why here: the same steps for a store that runs (the job "restore"; the supervisor then ends the arena and opens anew)
and for one that is stopped, or does not exist yet (offline.py).

    file + log -> scratch arena -> DATA_DIR/snapshot/N.snapshot.tmp -> `switch`: a manifest that names nothing else

Invariants:
  I1  Nothing of the store changes before the switch: one manifest slot, after which the store is that snapshot. A kill
      anywhere leaves all of the old data or all of the new.
  I2  What is restored is a state that the store had: all records up to one LSN and none behind it. Else it is refused.
  I3  It is known to fit into the arena that the settings ask for, before the switch.
  I4  LSNs of the next life go past all that the store or the file ever named.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from shmkv.dataclass import asdict, dataclass
from shmkv.errors import CorruptData, MemoryLimitExceeded
from shmkv.segment import _core
from shmkv.wal.block import LOG, BlockReader
from shmkv.wal.cipher import Keyring
from shmkv.wal.files import Files
from shmkv.wal.generations import Generations
from shmkv.wal.jobs import DURABLE_TIMEOUT_S, Cancelled, Context
from shmkv.wal.manifest import SnapshotFacts
from shmkv.wal.restore_log import Base, Disowned, Goal, LogToGo, Reach
from shmkv.wal.scratch import Scratch, capacity_bytes, check_machine, larger
from shmkv.wal.snapshot import Identity, load_snapshot, open_snapshot, write_snapshot

LARGER_TRIES = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to restore: a file, how far to go on from it, and the folders that have the log for that."""

    path: str
    goal: Goal
    log_dirs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """The store that it is for; plan as for _core.plan, disowned = log files of the first folder that don't count.

    reserve_bytes: of the disk, which the log needs meanwhile.
    """

    files: Files
    keys: Keyring
    store_id: bytes
    incarnation: int
    plan: Mapping[str, int]
    compression: str
    wall_ms: Callable[[], int]
    progress: Callable[[int, int], None] = lambda *_: None
    cancelled: Callable[[], bool] = lambda: False
    disowned: Disowned = ()
    reserve_bytes: int = 0


def run_job(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """`path`, `to_lsn`, `to_wall_ms`, `log_dirs`. Result: the facts of a snapshot that waits for its switch, and more.

    Blocks for as long as memory and disk take, the store goes on. Raises CorruptData, MemoryLimitExceeded, WrongKey,
    ValueError, OSError, Cancelled: nothing has changed then.
    """
    manifest = context.slots.manifest
    assert manifest is not None
    folders = tuple(arguments.get("log_dirs") or ())
    wanted = Wanted(
        str(arguments["path"]),
        Goal(arguments.get("to_lsn"), arguments.get("to_wall_ms")),
        folders or default_log_dirs(context.files, context.data_dir, context.settings.archive_dir),
    )
    target = Target(
        context.files, context.keys, manifest.store_id, manifest.incarnation, context.settings.plan,
        context.settings.compression, context.wall_ms, context.progress, context.cancelled,
        () if folders else manifest.disowned, context.settings.file_bytes,
    )  # fmt: skip
    if not wanted.goal.is_none:
        # What was written before the call is a part of the log that it means.
        context.wait_durable(context.arena.ring()["tail"], DURABLE_TIMEOUT_S)
    return restore(target, wanted, context.generations)[1]


def default_log_dirs(files: Files, data_dir: str, archive_dir: str) -> tuple[str, ...]:
    """Where the log of a store lies: in its data directory, and what was trimmed in the archive."""
    if not archive_dir:
        return (data_dir,)
    try:
        files.names(archive_dir)
    except FileNotFoundError:
        # It is made when the first file goes there: all of the log is in the data directory yet.
        return (data_dir,)
    return (data_dir, archive_dir)


def restore(target: Target, wanted: Wanted, generations: Generations) -> tuple[SnapshotFacts, dict[str, Any]]:
    """Write the snapshot that a switch makes the store, under its unfinished name; its facts, and what users are told.

    Raises as run_job; no file stays then.
    """
    started_s = time.monotonic()
    with BlockReader(target.files, wanted.path, target.keys) as reader:
        work = _Work(target, wanted, reader)
        generation = generations.next_generation()
        path = generations.unfinished_path(generation)
        work.check_sizes(os.path.dirname(path))
        facts, reach = work.write(path, generation)
        wall_ms = max(reach.mark_wall_ms, reader.footer.wall_ms)
    return facts, {
        **asdict(facts), "lsn": reach.end.lsn, "records": reach.records, "wall_ms": wall_ms,
        "warnings": reach.warnings, "seconds": round(time.monotonic() - started_s, 3),
    }  # fmt: skip


class _Work:
    """One restore."""

    def __init__(self, target: Target, wanted: Wanted, reader: BlockReader) -> None:
        self._target = target
        self._reader = reader
        self._info = reader.info
        header, footer = reader.header, reader.footer
        log_end_lsn = footer.log_end_lsn or header.start_lsn
        self._base = Base(
            wanted.path, header.store_id, header.incarnation, header.start_lsn, footer.end_lsn, log_end_lsn,
            footer.wall_ms,
        )  # fmt: skip
        self._log = LogToGo(
            target.files, target.keys, self._base, wanted.goal, wanted.log_dirs,
            target.disowned if header.store_id == target.store_id else (),
        )  # fmt: skip
        self._goes_on = not wanted.goal.is_none
        self._entry_bytes = footer.raw_bytes - (log_end_lsn - header.start_lsn)
        # Reading the file, applying the log, writing and reading back the snapshot.
        self._of_bytes = reader.size_bytes + self._log.size_bytes + 2 * self._entry_bytes
        self._before_bytes = 0

    def check_sizes(self, folder: str) -> None:
        """Refuse early what can't work. Raises MemoryLimitExceeded, OSError (the disk is full)."""
        need_bytes = min(self._entry_bytes, self._reader.size_bytes) + self._target.reserve_bytes
        free_bytes = self._target.files.free_bytes(folder)
        if free_bytes < need_bytes:
            problem = f"the restore needs about {need_bytes} bytes, {free_bytes} are free; make room"
            raise OSError(errno.ENOSPC, problem, folder)
        check_machine(self._entry_bytes)
        room_bytes = capacity_bytes(self._target.plan)
        if self._entry_bytes > room_bytes and not self._goes_on:
            raise self._too_small(self._entry_bytes)

    def write(self, path: str, generation: int) -> tuple[SnapshotFacts, Reach]:
        """Put the state together and write it at that path; the file is gone when that fails."""
        scratch, reach = self._fill()
        target, base = self._target, self._base
        with scratch:
            # A state of another store continues none of the lives of this one.
            life = reach.end.incarnation if base.store_id == target.store_id else target.incarnation + 1
            self._before_bytes = self._of_bytes - 2 * self._entry_bytes
            facts = write_snapshot(
                scratch.arena, target.files, path, generation=generation, keys=target.keys,
                compression=target.compression, wall_ms=target.wall_ms, cancelled=target.cancelled,
                progress=lambda done, of: self._tell(2 * self._entry_bytes * done // max(1, of)),
                identity=Identity(target.store_id, life, reach.end.lsn),
            )  # fmt: skip
            used_bytes = scratch.arena.stats()["used_bytes"]
        if scratch.plan != dict(target.plan):
            self._check_fits(path, used_bytes)
        return facts, reach

    def _fill(self) -> tuple[Scratch, Reach]:
        """The state in an arena as the settings ask for it, or a larger one: on the way it may need more."""
        plan = dict(self._target.plan)
        for attempt in range(LARGER_TRIES + 1):
            scratch = Scratch(plan, self._info.hash_key)
            try:
                return scratch, self._fill_one(scratch.arena)
            except MemoryLimitExceeded:
                scratch.close()
                if attempt == LARGER_TRIES:
                    raise
                plan = larger(plan)
                check_machine(plan["size_bytes"] // 2)
            except BaseException:
                scratch.close()
                raise
        raise AssertionError("the last try returns or raises")

    def _fill_one(self, arena: _core.Arena) -> Reach:
        self._before_bytes = 0
        load_snapshot(self._reader, arena, progress=lambda _, done, of: self._tell(done))
        self._before_bytes = self._reader.size_bytes
        records = self._apply_own_log(arena)
        reach = self._log.apply_to(arena.apply, self._tell)
        reach.records += records
        return reach

    def _apply_own_log(self, arena: _core.Arena) -> int:
        """The LOG blocks of a backup; how many records."""
        base, lsn, records = self._base, self._base.start_lsn, 0
        for block in self._reader.blocks(lambda header: header.kind == LOG):
            found = arena.apply(
                block.data, store_id=base.store_id, incarnation=base.incarnation, first_lsn=block.header.first_lsn
            )
            if block.header.first_lsn != lsn or found["consumed_bytes"] != len(block.data):
                raise CorruptData(
                    f"{base.path}, block {block.header.index}: its log does not go on from LSN {lsn} "
                    f"({found['stopped'] or 'it begins elsewhere'}), though its checksum is right"
                )
            lsn += len(block.data)
            records += found["records"]
        if lsn != base.log_end_lsn:
            raise CorruptData(f"{base.path}: its log ends at LSN {lsn}, its footer says {base.log_end_lsn}")
        return records

    def _check_fits(self, path: str, used_bytes: int) -> None:
        """The state did not fit on the way; whether it does now."""
        target = self._target
        try:
            with (
                open_snapshot(target.files, path, target.keys) as reader,
                Scratch(target.plan, self._info.hash_key) as scratch,
            ):
                load_snapshot(reader, scratch.arena)
        except BaseException as error:
            target.files.unlink(path)
            if isinstance(error, MemoryLimitExceeded):
                raise self._too_small(used_bytes) from None
            raise

    def _too_small(self, need_bytes: int) -> MemoryLimitExceeded:
        size_bytes, room_bytes = self._target.plan["size_bytes"], capacity_bytes(self._target.plan)
        return MemoryLimitExceeded(
            f"{self._base.path} holds about {need_bytes} bytes of entries, and memory = {size_bytes} bytes leaves room "
            f"for {room_bytes}; start the store with more memory, then restore (the backup is of a store with memory = "
            f"{self._info.memory}). Nothing was changed"
        )

    def _tell(self, done_bytes: int) -> None:
        if self._target.cancelled():
            raise Cancelled
        self._target.progress(min(self._before_bytes + done_bytes, self._of_bytes), self._of_bytes)
