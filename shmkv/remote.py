"""Files that lie elsewhere: copies to and from any address that fsspec knows (s3://, sftp://, memory:// ...).

Why here: fsspec is an extra; nothing but this file needs it, and only when such an address is given.

Invariants:
  I1  A path object, and text without "://", is a local path; so is file://.
  I2  An upload gets its name only after it was read back and compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, BinaryIO

from shmkv.errors import CorruptData, IncompatibleStore
from shmkv.processes import own_file_name

COPY_BYTES = 4 << 20
Progress = Callable[[int, int], None]


def local_path(place: str | os.PathLike[str]) -> str | None:
    """The absolute local path that is meant; None for an address that needs fsspec."""
    text = os.fspath(place)
    if not isinstance(text, str):
        raise TypeError(f"a path is str or a path object of str, not of {type(text).__name__}")
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is no path")
    if isinstance(place, str) and "://" in text:
        for prefix in ("file://", "local://"):
            if text.startswith(prefix):
                return os.path.abspath(text.removeprefix(prefix))
        return None
    return os.path.abspath(text)


def check_address(url: str) -> None:
    """Raises IncompatibleStore if the package for this kind of address is missing, ValueError if there is no such."""
    _filesystem(url)


def upload(source: str, url: str, progress: Progress) -> None:
    """Copy a local file to the address: under another name first, which is read back and compared before it is moved.

    Blocks for the transfer, twice. A kill in the middle leaves at most that other name, PATH.PID-....partial.
    Raises OSError and what the file system of that address raises; CorruptData if it gives back something else.
    """
    filesystem, path = _filesystem(url)
    partial = f"{path}.{own_file_name('.partial')}"
    size_bytes = os.stat(source).st_size
    try:
        with open(source, "rb") as file, filesystem.open(partial, "wb") as target:
            sent = _copy(file, target.write, lambda done: progress(done, 2 * size_bytes))
        with filesystem.open(partial, "rb") as file:
            found = _copy(file, len, lambda done: progress(size_bytes + done, 2 * size_bytes))
        if sent != found:
            raise CorruptData(
                f"{url} gives back {found[0]} bytes with checksum {found[1]:08x} instead of {sent[0]} bytes with "
                f"{sent[1]:08x}; nothing was left there, try again"
            )
        filesystem.mv(partial, path)
    except BaseException:
        if filesystem.exists(partial):
            filesystem.rm(partial)
        raise


def download(url: str, target: str, progress: Progress) -> None:
    """Copy what lies at the address into a new local file, and sync it. Raises FileNotFoundError, OSError."""
    filesystem, path = _filesystem(url)
    with filesystem.open(path, "rb") as file, open(target, "xb") as local:
        size_bytes = int(getattr(file, "size", 0) or 0)
        _copy(file, local.write, lambda done: progress(done, max(done, size_bytes)))
        local.flush()
        os.fsync(local.fileno())


def _copy(source: BinaryIO, write: Callable[[bytes], Any], progress: Callable[[int], None]) -> tuple[int, int]:
    """(bytes, CRC-32C) of all that was copied."""
    from shmkv.segment import _core

    done, crc = 0, 0
    while data := source.read(COPY_BYTES):
        write(data)
        done, crc = done + len(data), _core.crc32c(data, crc)
        progress(done)
    return done, crc


def _filesystem(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        import fsspec
    except ModuleNotFoundError:
        raise IncompatibleStore(
            f"{url} is not a local path, and addresses need the package fsspec: pip install 'shmkv[remote]'"
        ) from None
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise IncompatibleStore(f"{url} needs another package: {error}") from error
    return filesystem, str(path)
