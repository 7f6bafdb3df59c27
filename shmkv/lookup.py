"""From the name of a store to a descriptor of its arena, waiting while that starts or restarts.

Why here: a handle looks up its store twice, when it is made and when its arena has ended, and both must wait alike.

Invariants:
  I1  A descriptor is returned only for an arena in state READY that has not ended; the caller closes it.
  I2  Nothing is mapped, and nothing is changed.
  I3  No wait outlives its deadline; a signal handler that raises ends it at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import NamedTuple

import posix_ipc

from shmkv import paths
from shmkv.errors import IncompatibleStore, StoreNotFound, StoreUnavailable
from shmkv.segment import _core

POLL_FIRST_S = 0.001
POLL_LAST_S = 0.05


class Life(NamedTuple):
    """Which arena it is: a store has one after the other under its name."""

    store_id: bytes
    incarnation: int


class Found(NamedTuple):
    """An arena that is ready, and what its handle needs to know of it."""

    fd: int
    life: Life
    owner_uid: int
    wall_minus_boot_ms: int


def find_arena(
    name: str, timeout_s: float, *, read_only: bool, ended: Life | None = None, owner_uid: int | None = None
) -> Found:
    """Open the arena of a store.

    `ended`: the arena that the caller had; then a missing name is waited for, too, and that arena is not taken again.
    `owner_uid`: refuse the object of any other user.
    Raises StoreNotFound (at once), StoreUnavailable (after timeout_s), PermissionError, InvalidName, CorruptData.
    Blocks up to timeout_s, without the GIL.
    """
    deadline_s = time.monotonic() + timeout_s
    pause_s = POLL_FIRST_S
    while True:
        fd = _open(name, read_only)
        if fd is None and ended is None and not _is_supervised(name):
            raise StoreNotFound(_not_found(name))
        seen = "it has no shared memory object" if fd is None else ""
        if fd is not None:
            try:
                found, seen = _look(fd, ended)
                if found is not None and owner_uid not in (None, found.owner_uid):
                    raise StoreUnavailable(
                        f"store {name!r} has ended, and its name is now held by user {found.owner_uid} instead of "
                        f"{owner_uid}; attach anew if you trust that one"
                    )
            except BaseException:
                os.close(fd)
                raise
            if found is not None:
                return found
            os.close(fd)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise StoreUnavailable(
                f"store {name!r} was not ready within {timeout_s:g} s: {seen}; see what its supervisor says, or give a "
                f"longer timeout"
            )
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, POLL_LAST_S)


def explain_stall(name: str, mine: Life, owner_uid: int, numbers: Mapping[str, int]) -> tuple[Found | None, str]:
    """After a write has waited for the log in vain: the arena to go on in, if there is one, and what happened.

    The text is empty if the name still leads to the caller's arena, `mine`. Somebody may have removed the name while
    none of the servers ran: then nothing is retired, nobody will ever serve the memory again, and what it holds beyond
    the log is lost to the next arena. So that is said once, even if the handle can go on. `numbers`: `Store._stats`.
    """
    path = paths.object_path(name)
    removed = f"nothing was written: {path} was removed while no server of the store ran"
    lost = "its data is in the old memory only"
    if numbers["has_log"]:
        lost = f"{numbers['lag_bytes']} bytes of earlier writes did not reach the log and are in the old memory only"
    fd = _open(name, read_only=False)
    if fd is None:
        return None, (
            f"{removed}; {lost}; reads through this handle go on: save what you need, start the store "
            f"(shmkv-supervisor {name}) and try again"
        )
    found: Found | None = None
    try:
        life = _life(fd)
        if life == mine:
            return None, ""
        if life is not None and life.store_id == mine.store_id and os.fstat(fd).st_uid == owner_uid:
            found, seen = _look(fd, mine)
        else:
            seen = "it is being made" if life is None else "it belongs to another store; attach to that one anew"
    finally:
        if found is None:
            os.close(fd)
    made = f"{removed}, and another arena has its name; {lost}"
    if found is None:
        return None, f"{made}; the new one can't be used by this handle: {seen}"
    return found, f"{made}; from now on this handle uses the new one (incarnation {found.life.incarnation}): try again"


def _life(fd: int) -> Life | None:
    """Which arena it is; None: one that is still being made."""
    if not any(os.pread(fd, 8, 0)):
        return None
    header = _core.read_header(fd)
    return Life(header["store_id"], header["incarnation"])


def _open(name: str, read_only: bool) -> int | None:
    try:
        return int(posix_ipc.SharedMemory(paths.object_name(name), read_only=read_only).fd)
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError as error:
        raise PermissionError(
            f"no permission to open {paths.object_path(name)} {'for reading' if read_only else 'for writing'} as user "
            f"{os.geteuid()}; run as the store's user or group (settings mode and group), or use its socket"
        ) from error


def _look(fd: int, ended: Life | None) -> tuple[Found | None, str]:
    """The arena behind fd if it can be used now, else what it is doing."""
    if not any(os.pread(fd, 8, 0)):
        return None, "its arena is being made"
    header = _core.read_header(fd)
    life = Life(header["store_id"], header["incarnation"])
    if life == ended or header["retired"] or header["state"] == "RETIRED":
        return None, f"its arena (incarnation {life.incarnation}) has ended and the next is not there yet"
    if header["layout_version"] != _core.LAYOUT_VERSION:
        raise IncompatibleStore(
            f"the store has layout version {header['layout_version']}, this shmkv needs {_core.LAYOUT_VERSION}; use "
            f"the version that its supervisor runs"
        )
    if header["state"] != "READY":
        return None, f"it is in state {header['state']} (recovering its data, or its supervisor died meanwhile)"
    return Found(fd, life, os.fstat(fd).st_uid, header["wall_minus_boot_ms"]), ""


def _is_supervised(name: str) -> bool:
    """Whether a supervisor of that name runs: between two arenas, as in a restore, there is none for a moment."""
    from shmkv.supervisor.control import find_control

    return find_control(name) is not None


def _not_found(name: str) -> str:
    names = paths.store_names()
    there = f"the stores that there are: {', '.join(names)}" if names else "there is no store on this machine"
    return f"no store named {name!r} runs here; {there}; start it with: shmkv-supervisor {name}"
