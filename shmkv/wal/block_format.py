"""The bytes of a file of blocks: what a snapshot and a backup are on disk.

Why here: pure packing and unpacking, so that every byte of the format stands on one page. block.py reads and writes it.

Little-endian; CRC = CRC-32C. A file is one header block and then blocks back to back, the footer last; nothing follows.

    header block, 4096 bytes:
        0 magic 8 (SHMKVSNP snapshot, SHMKVBAK backup) | 8 format version u32 = 1 | 12 u32 = 4096 | 16 store id 16
        32 incarnation u64 | 40 generation u64 (backup: 0) | 48 start LSN u64: the tail when the walk began
        56 created, wall clock in ms u64 | 64 cipher u32 (0 none) | 68 compression u32 (0 none, 1 zstd)
        72 key id 16 | 88 salt 32 | 120 zeros | 4092 CRC u32 of bytes 0 to 4091
    block header, 48 bytes:
        0 stored bytes u32: of the payload on disk, without padding | 4 raw bytes u32 | 8 index u64: 0, 1, 2 ...
        16 first LSN u64 (LOG, else 0) | 24 kind u8 | 25 flags u8 (1 compressed) | 26 stripe u16 | 28 count u32
        32 zeros 8 | 40 CRC u32 of the stored bytes | 44 CRC u32 of bytes 0 to 43, starting at the seed
        seed = CRC of bytes 16-39, 48-63 of the header block (store id, incarnation, start LSN, created)
    payload: the stored bytes, zero-padded to 8. stored = encrypt(compress(raw)); a block that does not shrink is kept
        as it is (flag 0). Nonce = index, associated data = bytes 4 to 39 of the block header.
    kinds:
        1 INFO     msgpack map: name, hash_key 16, stripes, memory, ring, expected_items, version, wall_ms; always first
        2 ENTRIES  entry images of one stripe, as Arena.fill gives them; count = entries
        3 LOG      records as in the ring; first LSN = that of the first record
        4 FOOTER   msgpack map: end_lsn, entries, blocks, raw_bytes, highest_version, log_end_lsn (0 without LOG),
                   wall_ms, digest = CRC over (header CRC u32, payload CRC u32) of every block before it
                   Never compressed. In an encrypted file it stands in clear too, followed by the 16-byte tag of an
                   empty message with associated data = bytes 4 to 39 of its block header + the map: so that a file is
                   verified without its key, and its end can't be forged without it.

Invariants:
  I1  Every byte is under a check: header CRC, block header CRC, payload CRC, or "must be zero".
  I2  That a block is the right one at this place is said by index and seed, that none is missing by the footer.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgpack

from shmkv.dataclass import asdict, dataclass
from shmkv.errors import CorruptData, IncompatibleStore
from shmkv.segment import _core
from shmkv.wal.compression import COMPRESSIONS, NO_COMPRESSION
from shmkv.wal.files import Buffer

SNAPSHOT_MAGIC, BACKUP_MAGIC = b"SHMKVSNP", b"SHMKVBAK"
FORMAT_VERSION = 1
HEADER_BLOCK_BYTES = 4096
BLOCK_HEADER_BYTES = 48
INFO, ENTRIES, LOG, FOOTER = 1, 2, 3, 4
KIND_NAMES = {INFO: "INFO", ENTRIES: "ENTRIES", LOG: "LOG", FOOTER: "FOOTER"}
COMPRESSED = 1
TAG_BYTES = 16

_FILE = struct.Struct("<8sII16sQQQQII16s32s")
_BLOCK = struct.Struct("<IIQQBBHI8sI")
_CRC = struct.Struct("<I")
_CRC_PAIR = struct.Struct("<II")
_SEED = struct.Struct("<16sQQQ")
_CRC_OFFSET = HEADER_BLOCK_BYTES - _CRC.size
_BLOCK_CRC_OFFSET = BLOCK_HEADER_BYTES - _CRC.size


@dataclass(frozen=True, slots=True)
class BlockFileHeader:
    """The header block; generation 0 = a backup, start_lsn = tail of the log when the walk began."""

    magic: bytes
    store_id: bytes
    incarnation: int
    generation: int
    start_lsn: int
    created_wall_ms: int
    cipher: int = 0
    compression: int = NO_COMPRESSION
    key_id: bytes = bytes(16)
    salt: bytes = bytes(32)

    @property
    def seed(self) -> int:
        """Where the CRC of each block header starts: blocks of another file never validate."""
        words = _SEED.pack(self.store_id, self.incarnation, self.start_lsn, self.created_wall_ms)
        return _core.crc32c(words)


@dataclass(frozen=True, slots=True)
class Info:
    """The arena that the entries come from; sizes in bytes, hash_key of 16 bytes, version of shmkv."""

    name: str
    hash_key: bytes
    stripes: int
    memory: int
    ring: int
    expected_items: int
    version: str
    wall_ms: int


@dataclass(frozen=True, slots=True)
class Footer:
    """What the file holds: no entry has a version at or above end_lsn; log_end_lsn 0 = no LOG blocks."""

    end_lsn: int
    entries: int
    blocks: int
    raw_bytes: int
    highest_version: int
    log_end_lsn: int
    wall_ms: int
    digest: int


Map = TypeVar("Map", Info, Footer)


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """The header of one block; stored_bytes and payload_crc are those of what is on disk."""

    index: int
    kind: int
    raw_bytes: int
    flags: int = 0
    stripe: int = 0
    count: int = 0
    first_lsn: int = 0
    stored_bytes: int = 0
    payload_crc: int = 0

    @property
    def associated(self) -> bytes:
        """What is bound into the encryption of its payload."""
        return self._pack()[4:40]

    @property
    def total_bytes(self) -> int:
        """Of header, payload and padding."""
        return BLOCK_HEADER_BYTES + padded(self.stored_bytes)

    def pack(self, seed: int) -> tuple[bytes, int]:
        """Its bytes and its own CRC."""
        head = self._pack()
        crc = _core.crc32c(head, seed)
        return head + _CRC.pack(crc), crc

    def _pack(self) -> bytes:
        return _BLOCK.pack(
            self.stored_bytes, self.raw_bytes, self.index, self.first_lsn, self.kind, self.flags, self.stripe,
            self.count, bytes(8), self.payload_crc,
        )  # fmt: skip


def unpack_block_header(head: Buffer, seed: int) -> tuple[BlockHeader, int]:
    """A block header and its CRC. Raises ValueError, which says what is wrong."""
    (crc,) = _CRC.unpack_from(head, _BLOCK_CRC_OFFSET)
    if _core.crc32c(memoryview(head)[:_BLOCK_CRC_OFFSET], seed) != crc:
        raise ValueError("the checksum of the block's header does not match")
    stored_bytes, raw_bytes, index, first_lsn, kind, flags, stripe, count, spare, payload_crc = _BLOCK.unpack_from(head)
    if any(spare) or kind not in KIND_NAMES or flags & ~COMPRESSED or (flags and kind == FOOTER):
        raise ValueError(f"its header makes no sense (kind {kind}, flags {flags})")
    return BlockHeader(index, kind, raw_bytes, flags, stripe, count, first_lsn, stored_bytes, payload_crc), crc


def add_to_digest(digest: int, header_crc: int, payload_crc: int) -> int:
    """The footer's digest after one more block."""
    return _core.crc32c(_CRC_PAIR.pack(header_crc, payload_crc), digest)


def pack_map(content: Info | Footer) -> bytes:
    """The payload of an INFO or FOOTER block."""
    body: bytes = msgpack.packb(asdict(content))
    return body


def unpack_map(shape: type[Map], body: bytes) -> Map:
    """The content of an INFO or FOOTER block. Raises ValueError."""
    try:
        found = shape(**msgpack.unpackb(body))
    except (TypeError, ValueError, msgpack.UnpackException) as problem:
        raise ValueError(f"its map cannot be read: {problem!r}") from problem
    wrong = [name for name, kind in shape.__annotations__.items() if type(getattr(found, name)).__name__ != kind]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} in its map are of another type")
    return found


def pack_header(header: BlockFileHeader) -> bytes:
    """The header block, HEADER_BLOCK_BYTES long."""
    block = bytearray(HEADER_BLOCK_BYTES)
    _FILE.pack_into(
        block, 0, header.magic, FORMAT_VERSION, HEADER_BLOCK_BYTES, header.store_id, header.incarnation,
        header.generation, header.start_lsn, header.created_wall_ms, header.cipher, header.compression,
        header.key_id, header.salt,
    )  # fmt: skip
    _CRC.pack_into(block, _CRC_OFFSET, _core.crc32c(block[:_CRC_OFFSET]))
    return bytes(block)


def unpack_header(block: Buffer, path: str) -> BlockFileHeader:
    """The header in the first block of the file at path. Raises CorruptData, IncompatibleStore."""
    if len(block) < HEADER_BLOCK_BYTES:
        raise damaged(path, 0, f"only {len(block)} of the {HEADER_BLOCK_BYTES} bytes of its header are there")
    magic, version, _size, store_id, incarnation, generation, start_lsn, wall_ms, cipher, compression, key_id, salt = (
        _FILE.unpack_from(block)
    )
    if magic not in (SNAPSHOT_MAGIC, BACKUP_MAGIC):
        raise damaged(path, 0, f"it starts with {magic!r}, neither {SNAPSHOT_MAGIC!r} nor {BACKUP_MAGIC!r}")
    (crc,) = _CRC.unpack_from(block, _CRC_OFFSET)
    if _core.crc32c(memoryview(block)[:_CRC_OFFSET]) != crc:
        raise damaged(path, 0, "the checksum of its header does not match")
    if version != FORMAT_VERSION or compression not in COMPRESSIONS.values():
        raise IncompatibleStore(
            f"{path} has format version {version}, compression {compression}; this program reads version "
            f"{FORMAT_VERSION} with compression {sorted(COMPRESSIONS.values())}: use the shmkv that wrote it, or newer"
        )
    return BlockFileHeader(
        magic, store_id, incarnation, generation, start_lsn, wall_ms, cipher, compression, key_id, salt
    )


def padded(size_bytes: int) -> int:
    """Rounded up to a multiple of 8."""
    return (size_bytes + 7) & ~7


def damaged(path: str, offset: int, problem: str, index: int | None = None) -> CorruptData:
    """The refusal of a file; index = how many blocks before the offset are good, None = it ends in its header."""
    good = "nothing of it can be used" if index is None else f"the {index} blocks before it are good"
    where = "" if index is None else f", block {index}"
    error = CorruptData(f"{path} is damaged at offset {offset}{where}: {problem}; {good}")
    error.offset = offset
    return error
