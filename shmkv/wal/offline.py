"""Restore into a store that does not run, or does not exist yet: the data directory without its processes.

Why here: what a directory holds, who may write to it, and what a store without a manifest begins with, is decided here
once; the work itself is restore.py's.

Invariants:
  I1  Both locks of the directory are held, the supervisor's by the caller, the persister's here: nothing runs in it.
  I2  A directory that holds data is touched only by force, and then all of it counts, or what was restored does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from shmkv.dataclass import dataclass
from shmkv.errors import StoreExists
from shmkv.wal.cipher import Keyring
from shmkv.wal.cold import Stored, manifest_of
from shmkv.wal.files import Files
from shmkv.wal.generations import SNAPSHOT_DIR, Generations, generation_of
from shmkv.wal.log import LOG_DIR, UNFINISHED_SUFFIX, LogDirectory, LogFile
from shmkv.wal.manifest import Manifest, ManifestRead, ManifestSlots, read_manifest
from shmkv.wal.restore import Target, Wanted, default_log_dirs, restore
from shmkv.wal.restore_log import Goal

LOCK_TIMEOUT_S = 2.0
STORE_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Directory:
    """A data directory and the settings that the next start will have; plan as for _core.plan."""

    path: str
    plan: Mapping[str, int]
    keys: Keyring
    compression: str = "none"
    archive_dir: str = ""


def restore_stopped(
    files: Files,
    directory: Directory,
    path: str,
    goal: Goal,
    log_dirs: tuple[str, ...] = (),
    *,
    force: bool = False,
    arena_tail_lsn: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Make the directory a store that is that backup (or snapshot) file, and perhaps the log behind it.

    arena_tail_lsn: where the log of an arena ends that is still in memory. Blocks as long as memory and disk take.
    Raises StoreExists (it holds data, no force), CorruptData, MemoryLimitExceeded, WrongKey, OSError: nothing has
    changed then. A kill leaves the old data or the new.
    """
    log_dir = os.path.join(directory.path, LOG_DIR)
    files.make_dir(log_dir)
    lock_fd = files.lock_dir(log_dir, LOCK_TIMEOUT_S)
    try:
        read = read_manifest(files, directory.path)
        found = LogDirectory(files, log_dir).log_files()
        held = contents(files, directory.path, read, found)
        if held and not force:
            raise StoreExists(f"{directory.path} holds {held}; --force replaces all of it. Nothing was changed")
        manifest, _ = manifest_of(found, read, Stored(), accept_loss=True)
        slots = ManifestSlots(files, directory.path, read)
        if manifest is None:
            manifest = Manifest(os.urandom(STORE_ID_BYTES), 0, 0, highest_lsn=0)
        slots.manifest = manifest
        generations = Generations(files, directory.path, slots, directory.archive_dir)
        _remove_unfinished(files, directory.path)
        target = Target(
            files, directory.keys, manifest.store_id, manifest.incarnation, directory.plan, directory.compression,
            lambda: time.time_ns() // 1_000_000, progress, disowned=() if log_dirs else manifest.disowned,
        )  # fmt: skip
        folders = log_dirs or default_log_dirs(files, directory.path, directory.archive_dir)
        facts, told = restore(target, Wanted(path, goal, folders), generations)
        highest_lsn = max([arena_tail_lsn, *(file.limit_lsn for file in found)])
        generations.switch(facts, highest_lsn=highest_lsn)
        return told
    finally:
        files.close(lock_fd)


def contents(files: Files, data_dir: str, read: ManifestRead, found: tuple[LogFile, ...]) -> str:
    """What the directory holds, in words; empty if that is nothing."""
    folder = os.path.join(data_dir, SNAPSHOT_DIR)
    names = files.names(folder) if SNAPSHOT_DIR in files.names(data_dir) else []
    snapshots = [name for name in names if generation_of(name) is not None]
    if read.manifest is None and not read.problems and not found and not snapshots:
        return ""
    if read.manifest is None:
        return f"{len(found)} log files and {len(snapshots)} snapshots, whose manifest is damaged or missing"
    size_bytes = sum(file.size_bytes for file in found)
    named = read.manifest.snapshots
    newest = f"{named[-1].entries} entries in its newest snapshot" if named else "no snapshot"
    return f"store {read.manifest.store_id.hex()}: {newest}, {len(found)} log files of {size_bytes} bytes"


def _remove_unfinished(files: Files, data_dir: str) -> None:
    """What a restore that was killed left behind."""
    folder = os.path.join(data_dir, SNAPSHOT_DIR)
    if SNAPSHOT_DIR in files.names(data_dir):
        for name in files.names(folder):
            if name.endswith(UNFINISHED_SUFFIX):
                files.unlink(os.path.join(folder, name))
