"""The log directory: names, the header block of each file, what lies there, spare files made ahead.

Why here: recovery, the writer and the inspection of a log must agree on what a log file is and where a record lies
in it. Format: docs/formats.md.

Invariants:
  I1  Byte n of the log lies in file f at HEADER_BLOCK_BYTES + n - f.first_lsn, unless f is encrypted: see frame.py.
  I2  NUMBER.log appears by rename only after its header block is on disk: a name of that form with a bad header is
      damage, never a kill in the middle.
  I3  NUMBER.log exists only after everything below its first LSN was synced in the files before it. So its first LSN
      proves how far those must be whole.
  I4  A spare is zero-filled, synced and has its name on disk before it counts as room.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable

from shmkv.dataclass import dataclass, replace
from shmkv.segment import _core
from shmkv.wal.cipher import AES_256_GCM, CLEAR, KEY_ID_BYTES, NO_KEY_ID, NO_SALT, SALT_BYTES
from shmkv.wal.files import Files, fill_with_zeros
from shmkv.wal.manifest import STORE_ID_BYTES

MAGIC = b"SHMKVLOG"
FORMAT_VERSION = 1
HEADER_BLOCK_BYTES = 4096

LOG_DIR = "log"
LOG_SUFFIX = ".log"
SPARE_PREFIX = "spare."
UNFINISHED_SUFFIX = ".tmp"

_HEADER = struct.Struct(f"<8sII{STORE_ID_BYTES}sQQQQQQQII{KEY_ID_BYTES}s{SALT_BYTES}s")
_CRC = struct.Struct("<I")
_CRC_OFFSET = HEADER_BLOCK_BYTES - _CRC.size


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The header block of a log file; (previous_incarnation, previous_end_lsn) is where the log before it ends.

    size_bytes: of the whole file when it was made; it never shrinks. cipher 0 = records in clear; key_id and salt
    are zero then. With another cipher they say what the frames behind the header (frame.py) were sealed with.
    """

    store_id: bytes
    incarnation: int
    first_lsn: int
    number: int
    previous_incarnation: int
    previous_end_lsn: int
    created_wall_ms: int
    size_bytes: int
    cipher: int = CLEAR
    key_id: bytes = NO_KEY_ID
    salt: bytes = NO_SALT


class BadHeader(ValueError):
    """A block that is no valid file header; the text says why."""


def pack_file_header(header: FileHeader) -> bytes:
    """The header block, HEADER_BLOCK_BYTES long."""
    block = bytearray(HEADER_BLOCK_BYTES)
    _HEADER.pack_into(
        block, 0, MAGIC, FORMAT_VERSION, HEADER_BLOCK_BYTES, header.store_id, header.incarnation, header.first_lsn,
        header.number, header.previous_incarnation, header.previous_end_lsn, header.created_wall_ms, header.size_bytes,
        header.cipher, 0, header.key_id, header.salt,
    )  # fmt: skip
    _CRC.pack_into(block, _CRC_OFFSET, _core.crc32c(block[:_CRC_OFFSET]))
    return bytes(block)


def unpack_file_header(block: bytes) -> FileHeader:
    """The header in a file's first block. Raises BadHeader."""
    if len(block) < HEADER_BLOCK_BYTES:
        raise BadHeader(f"only {len(block)} of the {HEADER_BLOCK_BYTES} bytes of its header are there")
    (magic, version, _block_bytes, store_id, incarnation, first_lsn, number, previous_incarnation, previous_end_lsn,
     created_wall_ms, size_bytes, cipher, _spare, key_id, salt) = _HEADER.unpack_from(block)  # fmt: skip
    if magic != MAGIC:
        raise BadHeader(f"it starts with {magic!r} instead of {MAGIC!r}")
    (crc,) = _CRC.unpack_from(block, _CRC_OFFSET)
    if _core.crc32c(block[:_CRC_OFFSET]) != crc:
        raise BadHeader("the checksum of its header does not match")
    if version != FORMAT_VERSION:
        raise BadHeader(f"its format version is {version}; this program reads {FORMAT_VERSION}")
    if cipher not in (CLEAR, AES_256_GCM):
        raise BadHeader(f"it is encrypted with cipher {cipher}; this program knows {AES_256_GCM} (AES-256-GCM)")
    return FileHeader(
        store_id, incarnation, first_lsn, number, previous_incarnation, previous_end_lsn, created_wall_ms,
        size_bytes, cipher, key_id, salt,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file named NUMBER.log as it was found; header None = `problem` says what is wrong with it."""

    path: str
    number: int
    size_bytes: int
    header: FileHeader | None
    problem: str = ""

    @property
    def is_short(self) -> bool:
        """Whether bytes that were there when it was made are not there now."""
        return self.header is not None and self.size_bytes < self.header.size_bytes

    @property
    def limit_lsn(self) -> int:
        """No record of this file can reach beyond this LSN."""
        return 0 if self.header is None else self.header.first_lsn + max(0, self.size_bytes - HEADER_BLOCK_BYTES)


def file_name(number: int) -> str:
    return f"{number:010d}{LOG_SUFFIX}"


def file_number(name: str) -> int | None:
    """The number in the name of a log file, None for every other name."""
    stem = name.removesuffix(LOG_SUFFIX)
    if stem == name or not (stem.isascii() and stem.isdigit()) or file_name(int(stem)) != name:
        return None
    return int(stem)


class LogDirectory:
    """DATA_DIR/log: what is in it, and the making of files. Every method raises OSError."""

    def __init__(self, files: Files, path: str) -> None:
        self.files = files
        self.path = path
        self._spares: dict[str, int] = {}
        self._spare_serial = 0

    def prepare(self) -> None:
        """Make the folder, remove files that a kill left unfinished, find the spares."""
        self.files.make_dir(self.path)
        self.files.fsync_dir(os.path.dirname(self.path))
        for name in self.files.names(self.path):
            if name.endswith(UNFINISHED_SUFFIX):
                self.files.unlink(self._at(name))
        self._spares = {
            name: self.files.size_bytes(self._at(name))
            for name in self.files.names(self.path)
            if name.startswith(SPARE_PREFIX)
        }
        # Names are never used twice: a new spare must not replace one that start_file is just turning into a log file.
        serials = (name.rpartition(".")[2] for name in self._spares)
        self._spare_serial = max((int(serial) for serial in serials if serial.isdecimal()), default=0)

    def numbers(self) -> list[int]:
        """Numbers of the log files, ascending."""
        numbers = (file_number(name) for name in self.files.names(self.path))
        return sorted(number for number in numbers if number is not None)

    def log_files(self) -> tuple[LogFile, ...]:
        """All log files by number, with their headers read."""
        return tuple(self.inspect(number) for number in self.numbers())

    def inspect(self, number: int) -> LogFile:
        """One log file, with its header read."""
        path = self._at(file_name(number))
        size_bytes = self.files.size_bytes(path)
        try:
            header = unpack_file_header(self.files.read_some(path, HEADER_BLOCK_BYTES))
        except BadHeader as problem:
            return LogFile(path, number, size_bytes, None, str(problem))
        if header.number != number:
            return LogFile(path, number, size_bytes, None, f"its header says that it is file {header.number}")
        return LogFile(path, number, size_bytes, header)

    # ---- spares ---------------------------------------------------------------------------------------------

    @property
    def spare_sizes(self) -> tuple[int, ...]:
        """Sizes in bytes of the spares that are ready."""
        return tuple(self._spares.values())

    def make_spare(self, size_bytes: int, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Make one zero-filled file ahead of its use, or none if `cancelled` turns true meanwhile.

        Blocks while the disk writes size_bytes; may run beside the writer (in one thread at a time). A kill leaves an
        unfinished name that the next start removes.
        """
        self._spare_serial += 1
        name = f"{SPARE_PREFIX}{size_bytes:012d}.{self._spare_serial}"
        while name in self._spares:
            self._spare_serial += 1
            name = f"{SPARE_PREFIX}{size_bytes:012d}.{self._spare_serial}"
        if self._make_file(name, size_bytes, cancelled):
            self.files.fsync_dir(self.path)
            self._spares[name] = size_bytes

    def _make_file(self, name: str, size_bytes: int, cancelled: Callable[[], bool]) -> bool:
        unfinished = self._at(name + UNFINISHED_SUFFIX)
        fd = self.files.create(unfinished)
        try:
            try:
                self.files.preallocate(fd, size_bytes)
                whole = fill_with_zeros(self.files, fd, size_bytes, cancelled)
                self.files.fsync(fd)
            finally:
                self.files.close(fd)
        except OSError:
            self.files.unlink(unfinished)
            raise
        if whole:
            self.files.rename(unfinished, self._at(name))
        else:
            self.files.unlink(unfinished)
        return whole

    # ---- log files ------------------------------------------------------------------------------------------

    def start_file(self, header: FileHeader, *, least_bytes: int, fallback_bytes: int) -> tuple[int, int]:
        """Turn a spare (or, without one, a new file of fallback_bytes) into log file header.number; sets its size.

        least_bytes: what the records need that must fit. Returns descriptor and size in bytes, once content and name
        of the file are on disk. A kill leaves a spare with a header (harmless: only the name makes it a log file).
        """
        least_size = HEADER_BLOCK_BYTES + least_bytes
        name = next((name for name, size in sorted(self._spares.items()) if size >= least_size), None)
        if name is None:
            size_bytes = max(fallback_bytes, least_size)
            name = SPARE_PREFIX + "first"
            if name in self.files.names(self.path):
                self.files.unlink(self._at(name))
            self._make_file(name, size_bytes, lambda: False)
        else:
            size_bytes = self._spares.pop(name)
        try:
            return self._name_file(name, replace(header, size_bytes=size_bytes)), size_bytes
        except OSError:
            # It is no spare any more, and would only take room.
            with contextlib.suppress(OSError):
                if name in self.files.names(self.path):
                    self.files.unlink(self._at(name))
            raise

    def _name_file(self, spare: str, header: FileHeader) -> int:
        fd = self.files.open(self._at(spare))
        try:
            self.files.write_all(fd, [pack_file_header(header)], 0)
            self.files.fsync(fd)
            self.files.rename(self._at(spare), self._at(file_name(header.number)))
            self.files.fsync_dir(self.path)
        except OSError:
            self.files.close(fd)
            raise
        return fd

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)
