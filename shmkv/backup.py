"""Snapshots, backups and restores of a running store, from the user's process: asks its supervisor, moves the file.

Why here: the persister writes and reads only inside of the data directory; where the user wants a file, and with whose
rights, is this process's business. A stopped store is restored by shmkv.wal.restore, without any of this.

Invariants:
  I1  A backup appears under its name whole and verified, or not at all; what had the name before is replaced only then,
      and only if it was a backup too (or empty).
  I2  What is staged in the data directory carries this process's name, so that others can sweep it when we are dead.
  I3  A restore over a running store replaces everything or nothing.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from shmkv import errors, remote
from shmkv.processes import own_file_name

Progress = Callable[[int, int], None]
BACKUP_DIR, RESTORE_DIR = "backup", "restore"
MAGIC = b"SHMKVBAK"
# Beside a staged backup: the one who asked for it was interrupted. See shmkv/wal/backup.py.
ABANDONED_SUFFIX = ".abandoned"


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot in the data directory: what the next start begins with."""

    generation: int
    start_lsn: int
    end_lsn: int
    entries: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """A backup that was written and verified; it is the state of the store just before `end_lsn`."""

    path: str
    """Absolute, or the address that was given."""
    name: str
    store_id: str
    incarnation: int
    start_lsn: int
    end_lsn: int
    """Every write with a smaller LSN is in it, none with this or a larger one: where point-in-time restore begins."""
    entries: int
    """Entries in its walk; keys that changed during it may count too."""
    size_bytes: int
    time: datetime
    """When the walk was over, by the wall clock."""
    compression: str
    encrypted: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class RestoreInfo:
    """What a store holds now."""

    path: str
    entries: int
    lsn: int
    """All that was written below it in the log of the backup is there."""
    time: datetime
    """The state is at least as new as that: the last mark in the log that was read, or the end of the backup."""
    records: int
    """Read from the log on top of the backup's entries."""
    generation: int
    warnings: tuple[str, ...]
    seconds: float


def no_progress(done_bytes: int, of_bytes: int) -> None:
    """Nobody looks."""


# ---- a running store ---------------------------------------------------------------------------------------------


def snapshot_store(name: str, *, timeout_s: float | None = None, progress: Progress = no_progress) -> SnapshotInfo:
    """See `Store.snapshot`."""
    result = run_job(control_of(name), {"kind": "snapshot"}, timeout_s, progress)
    return SnapshotInfo(**{field: result[field] for field in SnapshotInfo.__slots__})


def back_up_store(
    name: str,
    target: str | os.PathLike[str],
    *,
    compression: str | None = None,
    timeout_s: float | None = None,
    progress: Progress = no_progress,
) -> BackupInfo:
    """See `Store.backup`."""
    local = remote.local_path(target)
    if local is None:
        remote.check_address(os.fspath(target))
    else:
        check_target(local)
    control = control_of(name)
    staged = os.path.join(_data_dir_of(control), BACKUP_DIR, own_file_name(".backup"))
    request = {"kind": "backup", "path": staged, **({"compression": compression} if compression is not None else {})}
    try:
        result = run_job(control, request, timeout_s, progress)
        if local is None:
            remote.upload(staged, os.fspath(target), progress)
        else:
            move_into_place(staged, local, progress)
    except BaseException as error:
        # Interrupted, or out of patience: the job goes on. Any other error is its end, or the store's.
        if not isinstance(error, Exception) or timeout_s is not None:
            abandon(staged)
        raise
    finally:
        remove_if_there(staged)
    fields = {field: result[field] for field in BackupInfo.__slots__ if field not in ("path", "time")}
    path = local if local is not None else os.fspath(target)
    return BackupInfo(path=path, time=time_of(result["wall_ms"]), **fields)


def restore_store(
    name: str,
    source: str | os.PathLike[str],
    *,
    to_lsn: int | None = None,
    to_time: Any = None,
    log_dirs: Sequence[str | os.PathLike[str]] = (),
    timeout_s: float | None = None,
    progress: Progress = no_progress,
) -> RestoreInfo:
    """See `Store.restore`."""
    to_wall_ms = None if to_time is None else wall_ms_of(to_time)
    folders = [os.path.abspath(os.fspath(folder)) for folder in log_dirs]
    control = control_of(name)
    with fetched(source, os.path.join(_data_dir_of(control), RESTORE_DIR), progress) as path:
        request = {"kind": "restore", "path": path, "to_lsn": to_lsn, "to_wall_ms": to_wall_ms, "log_dirs": folders}
        result = run_job(control, request, timeout_s, progress)
    return restore_info(os.fspath(source), result)


def restore_info(path: str, result: dict[str, Any]) -> RestoreInfo:
    """What the persister, or an offline restore, reports."""
    return RestoreInfo(
        path=path, entries=result["entries"], lsn=result["lsn"], time=time_of(result["wall_ms"]),
        records=result["records"], generation=result["generation"], warnings=tuple(result["warnings"]),
        seconds=result["seconds"],
    )  # fmt: skip


def control_of(name: str) -> str:
    """The control socket of the store's supervisor; StoreUnavailable if none answers."""
    from shmkv import paths
    from shmkv.supervisor.control import MEMORY_ONLY, find_control

    found = find_control(name)
    if found is None and is_memory_only(name):
        raise errors.IncompatibleStore(MEMORY_ONLY)
    if found is None:
        looked = ", ".join(paths.control_path(runtime) for runtime in paths.runtime_dirs(name))
        raise errors.StoreUnavailable(
            f"no supervisor of store {name!r} answers (looked at {looked}): start it with shmkv-supervisor {name}, and "
            f"ask as the user that runs it"
        )
    return found


def is_memory_only(name: str) -> bool:
    """Whether the arena of that name has no log; False if there is none."""
    import posix_ipc

    from shmkv import paths
    from shmkv.segment import _core

    try:
        fd = posix_ipc.SharedMemory(paths.object_name(name), read_only=True).fd
    except posix_ipc.Error:
        return False
    try:
        arena = _core.Arena(fd, read_only=True, prefault=False)
        has_log = bool(arena.info()["has_log"])
        arena.close()
        return not has_log
    except (errors.CorruptData, errors.IncompatibleStore):
        return False
    finally:
        os.close(fd)


def _data_dir_of(control: str) -> str:
    from shmkv.supervisor.control import MEMORY_ONLY, ask

    data_dir = ask(control, {"do": "status"})["data_dir"]
    if data_dir is None:
        raise errors.IncompatibleStore(MEMORY_ONLY)
    return str(data_dir)


def run_job(
    control: str, request: dict[str, Any], timeout_s: float | None, progress: Progress, *, failed: str = ""
) -> dict[str, Any]:
    """Run one job to its end and return its result; raises what the job failed with, behind `failed` in words."""
    from shmkv.supervisor.control import error_of, follow

    for event in follow(control, request, timeout_s):
        if event.get("state") == "failed":
            what = failed or f"{request['kind']} failed"
            raise error_of(str(event.get("error_kind")), f"{what}: {event.get('error')}")
        if event.get("state") == "done":
            return dict(event["result"])
        progress(int(event.get("done_bytes") or 0), int(event.get("of_bytes") or 0))
    raise AssertionError("follow ends with the last event or an exception")


# ---- times -------------------------------------------------------------------------------------------------------


def time_of(wall_ms: int) -> datetime:
    """Wall clock in ms as an aware time, UTC."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC)


def wall_ms_of(time: Any) -> int:
    """Wall clock in ms of an aware datetime, Unix seconds, or text of either (ISO 8601; with its zone).

    Raises ValueError, TypeError.
    """
    if isinstance(time, str):
        try:
            time = float(time) if _is_number(time) else datetime.fromisoformat(time)
        except ValueError as error:
            raise ValueError(f"{time!r} is neither ISO 8601 nor Unix seconds: {error}") from None
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise ValueError(f"{time.isoformat()} has no time zone: add one (Z, +02:00), or give Unix seconds")
        time = time.timestamp()
    if isinstance(time, bool) or not isinstance(time, int | float):
        raise TypeError(f"a time is an aware datetime, Unix seconds or text, not {type(time).__name__}")
    if not 0 <= time < 1e11:
        raise ValueError(f"{time:g} is no time in Unix seconds (0 to 1e11)")
    return int(time * 1000)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal() and not (text.isdecimal() and len(text) == 8)


# ---- files -------------------------------------------------------------------------------------------------------


def check_target(path: str) -> None:
    """Refuse, before the long work, a place where no backup may go. Raises OSError."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder for the backup does not exist; make it first", folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "no permission to make a file in the folder for the backup", folder)
    if os.path.lexists(path):
        with open(path, "rb") as file:
            start = file.read(len(MAGIC))
        if start not in (b"", MAGIC):
            problem = "there is a file of that name, and it is no backup of shmkv: nothing was overwritten"
            raise FileExistsError(errno.EEXIST, problem, path)


def move_into_place(staged: str, target: str, progress: Progress) -> None:
    """Give a verified file its name, by a rename where that can be, else by a copy that is verified again."""
    folder = os.path.dirname(target)
    try:
        os.replace(staged, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES):
            raise
        _copy_into_place(staged, target, progress)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy_into_place(staged: str, target: str, progress: Progress) -> None:
    from shmkv.wal.block import BlockReader
    from shmkv.wal.files import Files

    partial = f"{target}.{own_file_name('.partial')}"
    try:
        with open(staged, "rb") as source, open(partial, "xb") as copy:
            os.fchmod(copy.fileno(), 0o600)
            shutil.copyfileobj(source, copy, 4 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        with BlockReader(Files(), partial) as reader:
            reader.drop_cache()
            reader.verify(progress)
        os.replace(partial, target)
    finally:
        remove_if_there(partial)


@contextmanager
def fetched(source: str | os.PathLike[str], folder: str, progress: Progress) -> Iterator[str]:
    """The absolute path of a local file, or of a copy in `folder` that is gone afterwards. Raises OSError."""
    local = remote.local_path(source)
    if local is not None:
        if not os.path.isfile(local):
            raise FileNotFoundError(errno.ENOENT, "there is no such backup", local)
        yield local
        return
    copy = os.path.join(folder, own_file_name(".backup"))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        remote.download(os.fspath(source), copy, progress)
        yield copy
    finally:
        remove_if_there(copy)


def abandon(staged: str) -> None:
    """Tell the job, which may go on without us, that nobody will take its file."""
    os.makedirs(os.path.dirname(staged), mode=0o700, exist_ok=True)
    with open(staged + ABANDONED_SUFFIX, "xb"):
        pass


def remove_if_there(path: str) -> None:
    """Unlink it, unless it is gone or never was."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
