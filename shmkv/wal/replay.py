"""Reading one part of the log into an arena, or only checking it: chunk by chunk, as far as the records are valid.

Why here: cold start, warm start, inspection and restore must agree on how bytes of a log file, in clear or encrypted,
become records, and on where they end.

Invariants:
  I1  Nothing behind the first record that is not valid is applied, and nothing of a frame whose tag does not match.
  I2  Memory stays flat: the file is mapped, and the C core is given CHUNK_BYTES at a time.
  I3  A file in clear and an encrypted one with the same records end at the same LSN, for reasons with other names.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

from shmkv.dataclass import dataclass
from shmkv.wal.cipher import CLEAR, Keyring
from shmkv.wal.files import Files
from shmkv.wal.recovery import Ending, Segment

if TYPE_CHECKING:
    from shmkv.wal.frame import FrameReader

CHUNK_BYTES = 8 << 20
SEALED_CHUNK_BYTES = 1 << 20
ZERO_BYTES = 1 << 20
FORGED = (
    "its checksum is right and the key is the one it was written with, so nobody tore it: it was changed on purpose"
)


class Apply(Protocol):
    """_core.verify and Arena.apply: check records, and apply them."""

    def __call__(self, data: Any, *, store_id: bytes, incarnation: int, first_lsn: int) -> dict[str, Any]: ...


@dataclass(slots=True)
class Replay:
    """How far a replay is; end = (incarnation, LSN), cut_in = file number where loss was accepted."""

    records: int = 0
    bytes_done: int = 0
    bytes_all: int = 0
    durable_before: int = 0
    end: tuple[int, int] | None = None
    cut_in: int | None = None
    cut_lsn: int | None = None


def size_of(segment: Segment) -> int:
    """How many bytes of records a segment holds at most."""
    end_lsn = segment.file.limit_lsn if segment.end_lsn is None else segment.end_lsn
    return max(0, end_lsn - segment.start_lsn)


# ---- the plain log of one file -----------------------------------------------------------------------------------


class Part(Protocol):
    """The plain log of a segment, from its start on.

    chunk_bytes: how much to ask for at first.
    """

    chunk_bytes: int

    @property
    def durable_before(self) -> int:
        """The highest one that was met outside of records."""

    def peek(self, size_bytes: int) -> memoryview:
        """The next bytes, size_bytes or a little more; fewer only at the end."""

    def advance(self, size_bytes: int) -> None:
        """Go on that much further."""

    def offset_of(self, lsn: int) -> int:
        """Where in the file a byte lies that was peeked at, or the next one; if encrypted, the frame that holds it."""

    def end(self) -> tuple[str, str]:
        """Why there is no more: (reason, proof that this is damage); "" = this is where the file or segment ends."""

    def tail_is_zero(self) -> bool:
        """Whether only zeros follow."""

    def durable_behind(self, store_id: bytes) -> int:
        """Highest durable LSN that anything valid behind this place speaks of."""


class ClearPart:
    """A segment of a file in clear."""

    chunk_bytes = CHUNK_BYTES

    def __init__(self, data: memoryview, segment: Segment) -> None:
        self._data = data[segment.offset :][: size_of(segment)]
        self._segment = segment
        self._at = 0

    @property
    def durable_before(self) -> int:
        return 0

    def peek(self, size_bytes: int) -> memoryview:
        return self._data[self._at : self._at + size_bytes]

    def advance(self, size_bytes: int) -> None:
        self._at += size_bytes

    def offset_of(self, lsn: int) -> int:
        return self._segment.offset_of(lsn)

    def end(self) -> tuple[str, str]:
        return "", ""

    def tail_is_zero(self) -> bool:
        return _is_zero(self._data[self._at :])

    def durable_behind(self, store_id: bytes) -> int:
        # A start that finds nothing torn does not need it; a warm one never does.
        from shmkv.wal.record import durable_behind

        segment = self._segment
        return durable_behind(
            self._data[self._at :],
            first_lsn=segment.start_lsn + self._at,
            store_id=store_id,
            incarnation=segment.incarnation,
        )


class SealedPart:
    """A segment of an encrypted file: its frames are opened as they are asked for."""

    chunk_bytes = SEALED_CHUNK_BYTES

    def __init__(self, data: memoryview, segment: Segment, reader: FrameReader) -> None:
        self._data = data
        self._reader = reader
        self._end_lsn = segment.end_lsn
        self._lsn = segment.start_lsn
        self._open = b""  # opened, and not yet behind us
        self._frames: list[tuple[int, int]] = []  # (end LSN, offset) of the frames in it
        reader.skip_to(self._lsn)

    @property
    def durable_before(self) -> int:
        return self._reader.durable_before

    def peek(self, size_bytes: int) -> memoryview:
        pieces, have = [self._open], len(self._open)
        while have < size_bytes and not self._is_behind_end():
            offset, first_lsn = self._reader.offset, self._reader.lsn
            raw = self._reader.next()
            if raw is None:
                break
            raw = raw[max(0, self._lsn - first_lsn) :]
            self._frames.append((self._reader.lsn, offset))
            pieces.append(raw)
            have += len(raw)
        self._open = b"".join(pieces)
        view = memoryview(self._open)
        return view if self._end_lsn is None else view[: max(0, self._end_lsn - self._lsn)]

    def _is_behind_end(self) -> bool:
        return self._end_lsn is not None and self._reader.lsn >= self._end_lsn

    def advance(self, size_bytes: int) -> None:
        self._lsn += size_bytes
        self._open = self._open[size_bytes:]
        self._frames = [(end_lsn, offset) for end_lsn, offset in self._frames if end_lsn > self._lsn]

    def offset_of(self, lsn: int) -> int:
        index = bisect_right(self._frames, lsn, key=itemgetter(0))
        return self._frames[index][1] if index < len(self._frames) else self._reader.offset

    def end(self) -> tuple[str, str]:
        reason = self._reader.stopped
        return ("", "") if reason in ("", "end") else (reason, FORGED if reason == "frame tag" else "")

    def tail_is_zero(self) -> bool:
        return not self._open and _is_zero(self._data[self._reader.offset :])

    def durable_behind(self, store_id: bytes) -> int:
        return max(self._reader.durable_before, self._reader.durable_behind())


def open_part(files: Files, segment: Segment, keys: Keyring | None) -> Part:
    """The plain log of that segment. Raises WrongKey, OSError."""
    header = segment.file.header
    assert header is not None
    if header.cipher == CLEAR:
        return ClearPart(files.map(segment.file.path), segment)
    from shmkv.wal.frame import FrameReader

    keys = keys or Keyring.none()
    cipher = keys.for_file(header.cipher, header.key_id, header.salt, segment.file.path)
    data = files.map(segment.file.path)
    return SealedPart(data, segment, FrameReader(data, header, cipher))


# ---- replay ------------------------------------------------------------------------------------------------------


def replay_segment(
    files: Files,
    segment: Segment,
    store_id: bytes,
    apply: Apply,
    state: Replay,
    progress: Callable[[int, int, int], None] = lambda *_: None,
    *,
    keys: Keyring | None = None,
) -> Ending:
    """Check (and, with an arena's apply, apply) the records of one segment, chunk by chunk; where it ends.

    Raises WrongKey for an encrypted file whose key is not in `keys`.
    """
    part = open_part(files, segment, keys)
    window = part.chunk_bytes
    lsn, before = segment.start_lsn, state.bytes_done
    stopped = ""
    while not stopped and (chunk := part.peek(window)):
        found = apply(chunk, store_id=store_id, incarnation=segment.incarnation, first_lsn=lsn)
        state.records += found["records"]
        state.durable_before = max(state.durable_before, found["durable_before"])
        consumed = found["consumed_bytes"]
        if found["stopped"] == "short" and len(chunk) >= window:
            # The chunk ended inside a record.
            window = part.chunk_bytes if consumed else 2 * window
        elif found["stopped"] is not None:
            stopped = found["stopped"]
        lsn += consumed
        part.advance(consumed)
        state.bytes_done = before + lsn - segment.start_lsn
        progress(state.records, state.bytes_done, state.bytes_all)
    reason, proof = part.end() if stopped in ("", "short") else ("", "")
    stopped = reason or stopped
    state.bytes_done = before + size_of(segment)
    state.durable_before = max(state.durable_before, part.durable_before)
    tail_is_zero = part.tail_is_zero()
    durable = part.durable_behind(store_id) if segment.end_lsn is None and not tail_is_zero else 0
    return Ending(lsn, stopped, durable, tail_is_zero, part.offset_of(lsn), proof)


def check_frames(files: Files, segment: Segment) -> Ending:
    """Where a segment of an encrypted file ends by its frames' checksums, without its key; no record is looked at."""
    from shmkv.wal.frame import FrameReader

    header = segment.file.header
    assert header is not None
    data = files.map(segment.file.path)
    reader = FrameReader(data, header, None)
    reader.skip_to(segment.start_lsn)
    while not reader.stopped and (segment.end_lsn is None or reader.lsn < segment.end_lsn):
        reader.next()
    end_lsn = reader.lsn if segment.end_lsn is None else min(reader.lsn, segment.end_lsn)
    if segment.end_lsn is not None:
        return Ending(max(segment.start_lsn, end_lsn), reader.stopped, 0, True, reader.offset)
    tail_is_zero = _is_zero(data[reader.offset :])
    durable = 0 if tail_is_zero else max(reader.durable_before, reader.durable_behind())
    return Ending(max(segment.start_lsn, end_lsn), reader.stopped, durable, tail_is_zero, reader.offset)


def _is_zero(data: memoryview) -> bool:
    zeros = bytes(min(len(data), ZERO_BYTES))
    return all(data[at : at + ZERO_BYTES] == zeros[: len(data) - at] for at in range(0, len(data), ZERO_BYTES))
