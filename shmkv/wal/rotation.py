"""The job "rotate_key": everything on disk goes over to the key that is now the first one of its source.

Why here: which files use which key is known from their headers alone; the log's writer and snapshots take the current
key by themselves (cipher.py), so that a rotation is: read the keys again, begin a log file, take snapshots until the
last file with an old key was trimmed.

Invariants:
  I1  A key that a file still needs is never given up: a source that lost one is refused, and the old keys stay.
  I2  The key file is replaced in one step, and the new one is on disk before any file uses its key.
  I3  A kill anywhere leaves files of several keys, all of which are in the source: run it again.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from shmkv.wal.cipher import KEY_BYTES, NO_KEY_ID, UnusableKey, read_keys_of_file
from shmkv.wal.cold import counted_files
from shmkv.wal.jobs import DURABLE_TIMEOUT_S, Context
from shmkv.wal.pace import MARK_RECORD_BYTES

# The newest snapshot and the one before it, and one more if another one came between.
SNAPSHOT_LIMIT = 3
NEW_SUFFIX = ".shmkv-new"
IN_CLEAR = "none (in clear)"


def run_job(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """Rotate; {"new": true} makes a key first. Result: key_id, old_key_ids_in_use, snapshots taken, warning.

    Blocks for up to SNAPSHOT_LIMIT snapshots. Raises UnusableKey, LogStalled, OSError, Cancelled; what was begun then
    goes on with the next rotation.
    """
    keys = context.keys
    keys.reload(_encrypted(keys_in_use(context)))
    if arguments.get("new"):
        add_new_key(keys.file)
        keys.reload(_encrypted(keys_in_use(context)))
    _begin_file(context)
    snapshots = 0
    while keys_in_use(context) - {keys.current_id} and snapshots < SNAPSHOT_LIMIT:
        from shmkv.wal.snapshot import take_snapshot

        take_snapshot(context)
        snapshots += 1
    old = sorted(keys_in_use(context) - {keys.current_id})
    return {
        "key_id": keys.current_id.hex(),
        "old_key_ids_in_use": [IN_CLEAR if key_id == NO_KEY_ID else key_id.hex() for key_id in old],
        "snapshots": snapshots,
        "warning": context.generations.trouble,
    }


def keys_in_use(context: Context) -> set[bytes]:
    """Ids of the keys of all files that count: the log from the oldest one on, the snapshots; zeros = in clear."""
    from shmkv.wal.snapshot import open_snapshot

    manifest = context.slots.manifest
    assert manifest is not None
    counted = counted_files(context.directory.log_files(), manifest)
    found = {file.header.key_id for file in counted if file.header is not None}
    for facts in manifest.snapshots:
        with open_snapshot(context.files, context.generations.path(facts.generation)) as reader:
            found.add(reader.header.key_id)
    return found


def _encrypted(key_ids: set[bytes]) -> set[bytes]:
    return key_ids - {NO_KEY_ID}


def _begin_file(context: Context) -> None:
    """The log's current file has no room any more (writer.py): one record more, and it ends."""
    lsn = context.arena.mark(context.wall_ms())
    context.wait_durable(lsn + MARK_RECORD_BYTES, DURABLE_TIMEOUT_S)


def add_new_key(path: str) -> None:
    """Put a fresh key in front of those in the key file; on return it is on disk.

    The file is replaced as a whole, with mode 0600 and the owner that it had. Raises UnusableKey, OSError; the file is
    then as it was.
    """
    if not path:
        raise UnusableKey(
            "a new key can only be made in a key_file; add one to the source of your keys, as its first line, and "
            "rotate without --new"
        )
    path = os.path.realpath(path)
    before = read_keys_of_file(path)
    # Left by a kill; nothing but this function uses that name.
    unfinished = path + NEW_SUFFIX
    if os.path.exists(unfinished):
        os.unlink(unfinished)
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(secrets.token_hex(KEY_BYTES).encode() + b"\n" + before)
            owner = os.stat(path)
            if owner.st_uid != os.geteuid():
                os.fchown(fd, owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(fd)
        os.rename(unfinished, path)
    except OSError:
        os.unlink(unfinished)
        raise
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
