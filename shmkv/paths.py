"""Where the things of one store lie: shared object, runtime directory, data directory; and the rule for names.

Why here: supervisor, clients and administration must agree on these places without asking each other.

Invariants:
  I1  Nothing here creates or deletes a file, except `make_private_dir` and `remove_if_empty`.
  I2  A name that passed `check_name` is safe in a path, in a shared memory name and on a terminal.
  I3  No default is the current directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping

from shmkv import errors

SHM_DIR = "/dev/shm"
OBJECT_PREFIX = "shmkv."
TEMPORARY_PREFIX = "tmp-"
NAME_LIMIT = 64
SOCKET_PATH_LIMIT = 107  # sun_path of Linux without its final NUL

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME_CHARACTERS = _LETTERS | frozenset("._-")


def check_name(name: str) -> str:
    """Return the name of a store if it follows the rule.

    Raises InvalidName, which says the rule.
    """
    problem = ""
    # Typed callers never get here; names come from programs that are not checked, too.
    if type(name) is not str:
        problem = f"a {type(name).__name__}, not a str"
    elif not name:
        problem = "empty"
    elif len(name) > NAME_LIMIT:
        problem = f"{len(name)} characters long"
    elif name[0] not in _LETTERS:
        problem = f"starting with {name[0]!r}"
    else:
        strange = [character for character in name if character not in _NAME_CHARACTERS]
        if strange:
            problem = f"holding {strange[0]!r}"
    if problem:
        shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:77] + "..."
        raise errors.InvalidName(
            f"store name {shown} is {problem}; use 1 to {NAME_LIMIT} of A-Z a-z 0-9 . _ -, starting with a letter or "
            f"a digit"
        )
    return name


def object_name(name: str) -> str:
    """Name of the arena's shared memory object, with the leading slash that POSIX asks for."""
    return "/" + OBJECT_PREFIX + check_name(name)


def object_path(name: str) -> str:
    """Where Linux shows that object as a file."""
    return SHM_DIR + object_name(name)


def object_inode(name: str) -> int | None:
    """Inode number that the name leads to now; None when there is no such object."""
    try:
        return os.stat(object_path(name)).st_ino
    except FileNotFoundError:
        return None


def store_names() -> list[str]:
    """Names of all arenas on this machine (in this view of the shared memory file system), sorted."""
    try:
        entries = os.listdir(SHM_DIR)
    except FileNotFoundError:
        return []
    names = (entry[len(OBJECT_PREFIX) :] for entry in entries if entry.startswith(OBJECT_PREFIX))
    return sorted(name for name in names if _is_name(name))


def temporary_name(pid: int, start_time: int, number: int) -> str:
    """Name of a throw-away store: says who made it, so that what a mass kill leaves can be swept."""
    return f"{TEMPORARY_PREFIX}{pid}-{start_time}-{number}"


def temporary_owner(name: str) -> tuple[int, int] | None:
    """(pid, start time) of the maker of a throw-away store; None for every other name."""
    parts = name[len(TEMPORARY_PREFIX) :].split("-")
    if not name.startswith(TEMPORARY_PREFIX) or len(parts) != 3 or not all(part.isdecimal() for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def runtime_dirs(name: str, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Every place where the runtime files of a store may lie, the likeliest first."""
    check_name(name)
    given = environ.get("RUNTIME_DIRECTORY", "")
    if given:
        yield given.split(":")[0]
    if environ.get("XDG_RUNTIME_DIR"):
        yield f"{environ['XDG_RUNTIME_DIR']}/shmkv/{name}"
    yield f"{_private_base(environ)}/{name}"
    yield f"/run/shmkv/{name}"


def runtime_dir(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where a supervisor puts its runtime files: systemd's, else the session's, else a private one in the temp dir."""
    return next(runtime_dirs(name, environ))


def control_path(runtime: str) -> str:
    """The control socket in a runtime directory."""
    return f"{runtime}/control"


def data_dir(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Where a store keeps its log when nobody says another place: systemd's state directory, else XDG's."""
    check_name(name)
    given = environ.get("STATE_DIRECTORY", "")
    if given:
        return given.split(":")[0]
    home = environ.get("HOME") or os.path.expanduser("~")
    return f"{environ.get('XDG_STATE_HOME') or home + '/.local/state'}/shmkv/{name}"


def config_path(name: str) -> str:
    """The settings file that is read when no other is named."""
    return f"/etc/shmkv/{check_name(name)}.toml"


def make_private_dir(path: str) -> str:
    """Make a directory, and its parent, that only this user may change; check those that exist.

    Raises PermissionError when one belongs to another user or lets others write: a socket or a lock in
    such a place could be replaced.
    """
    os.makedirs(os.path.dirname(os.path.dirname(path)), exist_ok=True)
    for directory in (os.path.dirname(path), path):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            _check_private(directory)
    return path


def remove_if_empty(path: str) -> bool:
    """Remove a directory unless somebody put something into it, or has it from systemd."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EBUSY):
            raise
        return False
    return True


def _check_private(directory: str) -> None:
    status = os.stat(directory)
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(
            f"{directory} belongs to user {status.st_uid}, not to {os.geteuid()}; remove it, or set XDG_RUNTIME_DIR"
        )
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise PermissionError(
            f"{directory} may be written by others (mode {status.st_mode & 0o7777:o}); run: chmod 700 {directory}"
        )


def _private_base(environ: Mapping[str, str]) -> str:
    return f"{environ.get('TMPDIR') or '/tmp'}/shmkv-{os.geteuid()}"


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except errors.InvalidName:
        return False
    return True

def make_durable_dir(path: str) -> None:
    """Make a directory, mode 0700, and its parents, so that their names outlive a power cut; nothing if it is there."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    make_durable_dir(parent)
    os.makedirs(path, mode=0o700, exist_ok=True)
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
