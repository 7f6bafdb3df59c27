"""Files of checked blocks: writing one from its start, reading one in any number of threads.

Why here: snapshots, backups, restore and verify must agree on every byte, and none of them may ever take damage for
data. This file knows blocks, not what an entry or a record is; the bytes are described in block_format.py.

Invariants:
  I1  A block is given out only after its checks; a walk that ends without an error has met every block and the footer.
  I2  Memory is that of one block for each walk, whatever the size of the file.
  I3  Reading is done by pread, never through a mapping: a disk that fails or a file that is cut meanwhile is an
      exception, not a signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

from shmkv.dataclass import dataclass, field, replace
from shmkv.errors import CorruptData, WrongKey
from shmkv.segment import _core
from shmkv.wal.block_format import (
    BACKUP_MAGIC,
    BLOCK_HEADER_BYTES,
    COMPRESSED,
    ENTRIES,
    FOOTER,
    HEADER_BLOCK_BYTES,
    INFO,
    LOG,
    SNAPSHOT_MAGIC,
    TAG_BYTES,
    BlockFileHeader,
    BlockHeader,
    Footer,
    Info,
    Map,
    add_to_digest,
    damaged,
    pack_header,
    pack_map,
    padded,
    unpack_block_header,
    unpack_header,
    unpack_map,
)
from shmkv.wal.compression import NO_COMPRESSION, Packer, packer_of
from shmkv.wal.files import Buffer, Files
from shmkv.wal.syncing import Syncing

__all__ = [
    "BACKUP_MAGIC", "ENTRIES", "FOOTER", "INFO", "LOG", "SNAPSHOT_MAGIC", "Block", "BlockFileHeader", "BlockHeader",
    "BlockReader", "BlockWriter", "Cipher", "Footer", "Info", "Keys",
]  # fmt: skip


class Cipher(Protocol):
    """The part of cipher.FileCipher that a file of blocks needs."""

    def seal(self, nonce: int, data: Buffer, associated: bytes) -> bytes: ...
    def open(self, nonce: int, data: Buffer, associated: bytes) -> bytes: ...


class Keys(Protocol):
    """The part of cipher.Keyring that a reader needs."""

    def for_file(self, cipher: int, key_id: bytes, salt: bytes, path: str) -> Cipher | None: ...


@dataclass(frozen=True, slots=True)
class Block:
    """A block that was checked and decoded; `data` may be a view that is good until the next block is asked for."""

    header: BlockHeader
    data: Buffer

    @property
    def kind(self) -> int:
        return self.header.kind


class BlockWriter:
    """Writes one file from its start; the descriptor stays the caller's. Every method raises OSError.

    A kill in the middle leaves a file without a footer, which no reader accepts.
    """

    def __init__(
        self,
        files: Files,
        fd: int,
        header: BlockFileHeader,
        *,
        cipher: Cipher | None = None,
        syncing: Syncing | None = None,
    ) -> None:
        """`header` says how blocks are compressed (IncompatibleStore if that can't be) and which key `cipher` is of.

        syncing: of this file, if a thread beside is to do it.
        """
        self._files = files
        self._fd = fd
        self._syncing = syncing or Syncing(files, fd)
        self._cipher = cipher
        self._packer = packer_of(header.compression)
        self._seed = header.seed
        self._totals = _Totals()
        self.size_bytes = files.write_all(fd, [pack_header(header)], 0)

    def add(self, kind: int, data: Buffer, *, stripe: int = 0, count: int = 0, first_lsn: int = 0) -> None:
        """Append one block. Blocks for a sync now and then."""
        stored, flags = data, 0
        if self._packer is not None:
            packed = self._packer.pack(data)
            if len(packed) < len(data):
                stored, flags = packed, COMPRESSED
        header = BlockHeader(self._totals.blocks, kind, len(data), flags, stripe, count, first_lsn)
        if self._cipher is not None:
            stored = self._cipher.seal(header.index, stored, header.associated)
        self._append(header, stored)
        self._syncing.wrote(self.size_bytes)

    def finish(self, *, end_lsn: int, highest_version: int, wall_ms: int, log_end_lsn: int = 0) -> Footer:
        """Append the footer and sync: on return the content is on disk (the name is the caller's)."""
        totals = self._totals
        footer = Footer(
            end_lsn, totals.entries, totals.blocks, totals.raw_bytes, highest_version, log_end_lsn, wall_ms,
            totals.digest,
        )  # fmt: skip
        body = pack_map(footer)
        header = BlockHeader(totals.blocks, FOOTER, len(body))
        tag = b"" if self._cipher is None else self._cipher.seal(header.index, b"", header.associated + body)
        self._append(header, body + tag)
        self._syncing.finish()
        return footer

    def _append(self, header: BlockHeader, stored: Buffer) -> None:
        header = replace(header, stored_bytes=len(stored), payload_crc=_core.crc32c(stored))
        head, crc = header.pack(self._seed)
        padding = bytes(padded(len(stored)) - len(stored))
        # Counted before it is written: its index is a nonce, which must not come again after an error.
        self._totals.add(header, crc)
        self.size_bytes += self._files.write_all(self._fd, [head, stored, padding], self.size_bytes)


class BlockReader:
    """Reads one file; several threads may walk it at once. Raises CorruptData, which says where; WrongKey; OSError.

    keys is asked for the key of an encrypted file when the first payload is decoded. Close it when done.
    """

    def __init__(self, files: Files, path: str, keys: Keys | None = None) -> None:
        self.path = path
        self._files = files
        self._keys = keys
        self._cipher: Cipher | None = None
        self.size_bytes = files.size_bytes(path)
        self._fd = files.open_to_read(path)
        try:
            first = bytearray(min(self.size_bytes, HEADER_BLOCK_BYTES))
            self._fill(memoryview(first), 0)
            self.header = unpack_header(first, path)
        except BaseException:
            self.close()
            raise
        self._seed = self.header.seed

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.close(fd)

    # ---- what is in it --------------------------------------------------------------------------------------

    @property
    def info(self) -> Info:
        """The first block; needs the key of an encrypted file."""
        for offset, header, _crc in self._headers():
            raw = self._decode(
                offset, header, self._payload(offset, header, _Scratch()), packer_of(self.header.compression)
            )
            return self._map(Info, offset, header, bytes(raw))
        raise AssertionError("a walk gives a header or an error")

    @property
    def footer(self) -> Footer:
        """The last block, found from the headers of all, with which it is compared; needs no key."""
        totals = _Totals()
        for offset, header, crc in self._headers():
            if header.kind == FOOTER:
                return self._end(totals, offset, header, with_key=False)
            totals.add(header, crc)
        raise AssertionError("a walk ends with a footer or an error")

    def blocks(self, wanted: Callable[[BlockHeader], bool] = lambda _: True) -> Iterator[Block]:
        """The wanted blocks but the footer, in order, checked and decoded; then the footer is checked.

        Of those that are not wanted only the headers are read and checked.
        """
        scratch, totals, packer = _Scratch(), _Totals(), packer_of(self.header.compression)
        for offset, header, crc in self._headers():
            if header.kind == FOOTER:
                self._end(totals, offset, header, with_key=True)
                return
            totals.add(header, crc)
            if wanted(header):
                yield Block(header, self._decode(offset, header, self._payload(offset, header, scratch), packer))

    def verify(self, progress: Callable[[int, int], None] = lambda *_: None) -> Footer:
        """Read everything and check all that can be checked without a key; progress(done, of) in bytes.

        Blocks as long as the disk takes. The footer is the one that the file has.
        """
        scratch, totals = _Scratch(), _Totals()
        for offset, header, crc in self._headers():
            if header.kind == FOOTER:
                progress(self.size_bytes, self.size_bytes)
                return self._end(totals, offset, header, with_key=False)
            totals.add(header, crc)
            self._payload(offset, header, scratch)
            progress(offset + header.total_bytes, self.size_bytes)
        raise AssertionError("a walk ends with a footer or an error")

    def drop_cache(self) -> None:
        """Make the next reads ask the disk itself, as far as the system lets go of what it holds in memory."""
        self._files.drop_cache(self._fd)

    # ---- headers --------------------------------------------------------------------------------------------

    def _headers(self) -> Iterator[tuple[int, BlockHeader, int]]:
        """(offset, header, its CRC) of all blocks up to the footer, which must end the file."""
        offset, index, kind = HEADER_BLOCK_BYTES, 0, INFO
        head = memoryview(bytearray(BLOCK_HEADER_BYTES))
        while kind != FOOTER:
            if offset + BLOCK_HEADER_BYTES > self.size_bytes:
                raise damaged(self.path, offset, "the file ends before its footer", index)
            self._fill(head, offset)
            try:
                header, crc = unpack_block_header(head, self._seed)
            except ValueError as problem:
                raise damaged(self.path, offset, str(problem), index) from problem
            self._check_place(offset, index, header)
            yield offset, header, crc
            offset, index, kind = offset + header.total_bytes, index + 1, header.kind

    def _check_place(self, offset: int, index: int, header: BlockHeader) -> None:
        if header.index != index or (header.kind == INFO) != (index == 0):
            problem = f"it says that it is block {header.index}, of kind {header.kind}"
        elif header.flags & COMPRESSED and self.header.compression == NO_COMPRESSION:
            problem = "it says that it is compressed, the file that it is not"
        elif offset + header.total_bytes > self.size_bytes:
            problem = f"it reaches to offset {offset + header.total_bytes}, the file to {self.size_bytes}"
        elif header.kind == FOOTER and offset + header.total_bytes != self.size_bytes:
            problem = f"{self.size_bytes - offset - header.total_bytes} bytes follow the footer"
        else:
            return
        raise damaged(self.path, offset, problem, index)

    # ---- payloads -------------------------------------------------------------------------------------------

    def _payload(self, offset: int, header: BlockHeader, scratch: _Scratch) -> memoryview:
        """The stored bytes, checked; a view that is good until the next call with this scratch."""
        whole = scratch.view(padded(header.stored_bytes))
        self._fill(whole, offset + BLOCK_HEADER_BYTES)
        stored = whole[: header.stored_bytes]
        if _core.crc32c(stored) != header.payload_crc:
            raise damaged(self.path, offset, "the checksum of its content does not match", header.index)
        if any(whole[header.stored_bytes :]):
            raise damaged(self.path, offset, "what fills it up is not zero", header.index)
        return stored

    def _decode(self, offset: int, header: BlockHeader, stored: Buffer, packer: Packer | None) -> Buffer:
        cipher = self._key()
        raw = stored if cipher is None else cipher.open(header.index, stored, header.associated)
        if header.flags & COMPRESSED and packer is not None:
            try:
                raw = packer.unpack(raw, header.raw_bytes)
            except ValueError as problem:
                raise damaged(self.path, offset, f"it cannot be decompressed: {problem}", header.index) from problem
        if len(raw) != header.raw_bytes:
            raise damaged(self.path, offset, f"it has {len(raw)} bytes instead of {header.raw_bytes}", header.index)
        return raw

    def _end(self, totals: _Totals, offset: int, header: BlockHeader, *, with_key: bool) -> Footer:
        """The footer, compared with what came before it."""
        stored = bytes(self._payload(offset, header, _Scratch()))
        body, tag = stored[: header.raw_bytes], stored[header.raw_bytes :]
        if len(body) != header.raw_bytes or len(tag) != (TAG_BYTES if self.header.cipher else 0):
            raise damaged(self.path, offset, f"it has {len(stored)} bytes, its map {header.raw_bytes}", header.index)
        cipher = self._key() if with_key else None
        if cipher is not None:
            cipher.open(header.index, tag, header.associated + body)
        footer = self._map(Footer, offset, header, body)
        found = (totals.entries, totals.blocks, totals.raw_bytes, totals.digest)
        if found != (footer.entries, footer.blocks, footer.raw_bytes, footer.digest):
            problem = f"(entries, blocks, bytes, digest) of the blocks are {found}, not those of {footer}"
            raise damaged(self.path, offset, problem, header.index)
        return footer

    def _key(self) -> Cipher | None:
        header = self.header
        if header.cipher and self._cipher is None:
            if self._keys is None:
                raise WrongKey(f"{self.path} is encrypted with key {header.key_id.hex()}, and no key was given")
            self._cipher = self._keys.for_file(header.cipher, header.key_id, header.salt, self.path)
        return self._cipher

    def _map(self, shape: type[Map], offset: int, header: BlockHeader, body: bytes) -> Map:
        try:
            return unpack_map(shape, body)
        except ValueError as problem:
            raise damaged(self.path, offset, str(problem), header.index) from problem

    def _fill(self, view: memoryview, offset: int) -> None:
        done = self._files.read_into(self._fd, view, offset)
        if done != len(view):
            raise CorruptData(f"{self.path} was cut while it was read: it ends at offset {offset + done}")


@dataclass(slots=True)
class _Totals:
    """What a walk has seen, or a writer written: to be compared with the footer."""

    blocks: int = 0
    entries: int = 0
    raw_bytes: int = 0
    digest: int = 0

    def add(self, header: BlockHeader, header_crc: int) -> None:
        self.blocks += 1
        self.entries += header.count if header.kind == ENTRIES else 0
        self.raw_bytes += header.raw_bytes
        self.digest = add_to_digest(self.digest, header_crc, header.payload_crc)


@dataclass(slots=True)
class _Scratch:
    """Memory of one walk, as large as its largest block."""

    memory: bytearray = field(default_factory=bytearray)

    def view(self, size_bytes: int) -> memoryview:
        if len(self.memory) < size_bytes:
            # A new one: views of the old one may still be held.
            self.memory = bytearray(size_bytes)
        return memoryview(self.memory)[:size_bytes]
