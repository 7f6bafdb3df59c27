"""The writing end of the log: the current file, its rotation, and a new file after a failure.

Why here: the order of write, sync, name and manifest is decided once, in this file; the loop above it (persister.py)
only says when.

Invariants:
  I1  synced_lsn <= written_lsn; both are ends of records. synced_lsn moves only after a sync that succeeded.
  I2  A file whose write or sync failed is never written or synced again (fsync reports an error once and then lies):
      the log goes on in a new file whose first LSN is synced_lsn.
  I3  With keys, each file is sealed with its own key, and a file whose key is not the current one any more has no room:
      so the loop goes on in a new one. Offsets in it count frames, LSNs do not (frame.py).
  I4  A new file is opened only when everything below its first LSN is synced (log.py I3), and the manifest names it
      before anything in it is acknowledged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shmkv.dataclass import dataclass, replace
from shmkv.errors import CorruptData
from shmkv.segment import _core
from shmkv.wal.cipher import NO_KEY_ID, Keyring
from shmkv.wal.files import Buffer
from shmkv.wal.log import HEADER_BLOCK_BYTES, FileHeader, LogDirectory, file_name
from shmkv.wal.manifest import ManifestSlots

if TYPE_CHECKING:
    from shmkv.wal.frame import FrameSealer

# A file made while somebody waits for it is small: zero-filling 64 MiB takes some 200 ms.
FIRST_FILE_BYTES = 4 << 20
LEAST_FILE_BYTES = 1 << 20
FILE_RINGS = 4
# More than frame.py adds to a ring-full: 56 bytes for each MiB, and some more for the ends of files.
FRAMES_FRACTION = 1 << 14
FRAMES_BYTES = 4096
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class LogShape:
    """Sizes that follow from the ring and the limit of a file, in bytes."""

    file_bytes: int
    spare_count: int

    @staticmethod
    def of(ring_bytes: int, file_bytes_limit: int) -> LogShape:
        """Files of a few rings, so that a small store makes small files; spares for a ring-full.

        A record is at most a quarter of the ring and may leave that much of a file unused: so a file is never
        smaller than half a ring, whatever the limit says.
        """
        file_bytes = min(file_bytes_limit, max(LEAST_FILE_BYTES, FILE_RINGS * ring_bytes))
        # Frames of an encrypted file need some room too, whether it is encrypted now or later.
        outer_bytes = HEADER_BLOCK_BYTES + FRAMES_BYTES + ring_bytes // FRAMES_FRACTION
        file_bytes = max(file_bytes, outer_bytes + ring_bytes // 2)
        usable = file_bytes - outer_bytes - ring_bytes // 4
        return LogShape(file_bytes, -(-ring_bytes // usable))


class LogWriter:
    """Appends what the ring holds to the log; every method raises OSError and says nothing about health."""

    def __init__(
        self,
        directory: LogDirectory,
        slots: ManifestSlots,
        shape: LogShape,
        *,
        next_number: int,
        start_lsn: int,
        previous: tuple[int, int],
        wall_ms: Callable[[], int],
        keys: Keyring | None = None,
    ) -> None:
        assert slots.manifest is not None, "a log is written only under a manifest"
        self._directory = directory
        self._files = directory.files
        self._slots = slots
        self.shape = shape
        self._store_id = slots.manifest.store_id
        self._incarnation = slots.manifest.incarnation
        self._next_number = next_number
        self._previous = previous
        self._wall_ms = wall_ms
        self._keys = keys or Keyring.none()
        self._key_id = NO_KEY_ID
        self._sealer: FrameSealer | None = None
        self._fd = -1
        self._offset = 0
        self._size_bytes = 0
        self.written_lsn = start_lsn
        self.synced_lsn = start_lsn

    @property
    def is_open(self) -> bool:
        """Whether there is a file to write to."""
        return self._fd >= 0

    @property
    def name(self) -> str:
        """Of the current file; empty when there is none."""
        return file_name(self._next_number - 1) if self.is_open else ""

    @property
    def room_bytes(self) -> int:
        """How much of the log still fits into the current file; 0 when it must end because its key was changed."""
        if self._key_id != self._keys.current_id:
            return 0
        room_bytes = self._size_bytes - self._offset
        if self._sealer is None:
            return room_bytes
        from shmkv.wal.frame import raw_room

        return raw_room(room_bytes)

    def open_file(self, least_bytes: int = 0) -> None:
        """Go on in a new file at synced_lsn; least_bytes of records will fit.

        Blocks for a few syncs. On return file, name and manifest are on disk.
        """
        assert not self.is_open, "close or abandon the current file first"
        first_lsn = self.synced_lsn
        cipher, key_id, salt, file_cipher = self._keys.for_new_file(file_name(self._next_number))
        header = FileHeader(
            store_id=self._store_id,
            incarnation=self._incarnation,
            first_lsn=first_lsn,
            number=self._next_number,
            previous_incarnation=self._previous[0],
            previous_end_lsn=self._previous[1],
            created_wall_ms=self._wall_ms(),
            size_bytes=0,
            cipher=cipher,
            key_id=key_id,
            salt=salt,
        )
        sealer = None
        if file_cipher is not None:
            from shmkv.wal.frame import FrameSealer, sealed_bytes

            sealer = FrameSealer(file_cipher, header)
            least_bytes = sealed_bytes(least_bytes)
        fallback = min(self.shape.file_bytes, FIRST_FILE_BYTES)
        fd, size_bytes = self._directory.start_file(header, least_bytes=least_bytes, fallback_bytes=fallback)
        try:
            self._note(header.number, first_lsn)
        except OSError:
            self._files.close(fd)
            raise
        self._fd = fd
        self._next_number += 1
        self._key_id = key_id
        self._sealer = sealer
        self._offset = HEADER_BLOCK_BYTES
        self._size_bytes = size_bytes
        self.written_lsn = first_lsn

    def write(self, pieces: Sequence[Buffer], end_lsn: int) -> None:
        """Write the records [written_lsn, end_lsn) into the current file; they must fit. Not synced yet."""
        if self._sealer is None:
            assert end_lsn - self.written_lsn <= self._size_bytes - self._offset, "more records than fit into the file"
            self._offset += self._files.write_all(self._fd, pieces, self._offset)
        else:
            for frame in self._sealer.seal(pieces, self.written_lsn, self.synced_lsn):
                assert len(frame) <= self._size_bytes - self._offset, "more records than fit into the file"
                self._offset += self._files.write_all(self._fd, [frame], self._offset)
        self.written_lsn = end_lsn

    def sync(self) -> None:
        """Make everything written durable. Blocks as long as the disk does."""
        self._files.fdatasync(self._fd)
        self.synced_lsn = self.written_lsn

    def finish_file(self) -> None:
        """Sync and close the current file: the next records go into a new one."""
        if self.synced_lsn != self.written_lsn:
            self.sync()
        self._previous = (self._incarnation, self.synced_lsn)
        fd, self._fd = self._fd, -1
        self._files.close(fd)

    def abandon_file(self) -> None:
        """Give up the current file after an error: what was not synced has to be written again."""
        self.written_lsn = self.synced_lsn
        self._size_bytes = self._offset = 0
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # Not where none could be opened: the first file of a life says where the life before it ended.
            self._previous = (self._incarnation, self.synced_lsn)
            # Its error was already reported, and closing tells nothing new about it.
            with contextlib.suppress(OSError):
                self._files.close(fd)

    def boundary(self, pieces: Sequence[Buffer]) -> int:
        """How many bytes of these records fit whole into the current file. Raises CorruptData on a bad record."""
        data = b"".join(pieces)[: self.room_bytes]
        found = _core.verify(data, store_id=self._store_id, incarnation=self._incarnation, first_lsn=self.written_lsn)
        if found["stopped"] not in (None, "short"):
            raise CorruptData(
                f"the ring holds no valid record at LSN {found['next_lsn']} ({found['stopped']}): the shared memory is "
                "damaged; stop the store and start it again from the log"
            )
        consumed: int = found["consumed_bytes"]
        return consumed

    def publish_watermark(self, *, clean: bool) -> None:
        """Tell the manifest how far the log is certainly on disk; clean = the arena has ended with it."""
        self._slots.update(
            lambda manifest: replace(
                manifest,
                watermark=self.synced_lsn,
                highest_lsn=max(manifest.highest_lsn, self.synced_lsn),
                clean=clean,
            )
        )

    def _note(self, number: int, first_lsn: int) -> None:
        self._slots.update(
            lambda manifest: replace(
                manifest,
                watermark=first_lsn,
                newest_file=number,
                highest_lsn=max(manifest.highest_lsn, first_lsn),
                clean=False,
            )
        )


def record_bytes(pieces: Sequence[Buffer]) -> int:
    """Length in bytes of the first record of these pieces (which may be split between two of them)."""
    head = bytes(pieces[0][:_LENGTH_BYTES])
    if len(head) < _LENGTH_BYTES:
        head += bytes(pieces[1][: _LENGTH_BYTES - len(head)])
    return int.from_bytes(head, "little")
