"""The golden files: one of each format on disk, and what is in them; `python tests/golden/make.py FOLDER` makes them.

They are made once for each version of a format, by this script, which gives the same bytes each time (but for what a
version of zstd compresses to), and are never changed. Every later version must read them; test_golden.py checks that.
The keys and salts in them are no secret of anybody: see key.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shmkv.admin.export_file import entry_line, first_line, last_line
from shmkv.dataclass import replace
from shmkv.encryption import AES_256_GCM, AES_256_GCM_SIV
from shmkv.segment import _core
from shmkv.values import encode
from shmkv.wal import record
from shmkv.wal.block import (
    BACKUP_MAGIC,
    ENTRIES,
    INFO,
    LOG,
    SNAPSHOT_MAGIC,
    BlockFileHeader,
    BlockWriter,
    Footer,
    Info,
)
from shmkv.wal.block_format import pack_map
from shmkv.wal.cipher import Keyring
from shmkv.wal.compression import NO_COMPRESSION, ZSTD
from shmkv.wal.files import Files
from shmkv.wal.frame import FrameSealer
from shmkv.wal.log import FileHeader, pack_file_header
from shmkv.wal.manifest import Manifest, SnapshotFacts, pack_slot
from shmkv.wal.record import Entry, Mark

FOLDER = Path(__file__).parent
STORE_ID = bytes(range(0xA0, 0xB0))
KEY = bytes(range(0x40, 0x60))
FIRST_LSN = 0x123_4567_8000
WALL_MS = 1_700_000_000_123

# ---- the log -----------------------------------------------------------------------------------------------------

LOG_HEADER = FileHeader(
    store_id=STORE_ID,
    incarnation=3,
    first_lsn=FIRST_LSN,
    number=17,
    previous_incarnation=2,
    previous_end_lsn=0x23_4567_89A8,
    created_wall_ms=WALL_MS,
    size_bytes=5120,
)
ENTRIES_OF_LOG = (
    Entry(record.PUT, b"greeting", "grüß Gott".encode(), type=6),
    Entry(record.PUT, b"session:42", b"\x00\x01\x02", type=5, namespace=3, expires_ms=1_900_000_000_000, pinned=True),
    Entry(record.PUT, b"", (7).to_bytes(8, "little"), type=3),
    Entry(record.DELETE, b"gone", type=1),
)
# What each record of the log holds; then follow a clear of namespace 3 and a mark.
RECORDS = ((ENTRIES_OF_LOG[0],), (ENTRIES_OF_LOG[1],), ENTRIES_OF_LOG, (ENTRIES_OF_LOG[3],))
MARK = Mark(1_700_000_000_456, FIRST_LSN + 64)


def plain_log(first_lsn: int = FIRST_LSN) -> bytes:
    """Records of each kind, as they are in the ring."""
    seed = record.record_seed(STORE_ID, LOG_HEADER.incarnation)
    data = b""
    for entries in RECORDS:
        data += record.pack_entries(entries, lsn=first_lsn + len(data), durable_before=first_lsn, seed=seed)
    data += record.pack_clear(3, lsn=first_lsn + len(data), durable_before=first_lsn + 64, seed=seed)
    data += record.pack_mark(MARK, lsn=first_lsn + len(data), durable_before=first_lsn + 64, seed=seed)
    return data


def log_file() -> bytes:
    """A log file in clear."""
    return (pack_file_header(LOG_HEADER) + plain_log()).ljust(LOG_HEADER.size_bytes, b"\0")


def keyring() -> Keyring:
    """The key of the encrypted files; new files get a salt that counts up."""
    return Keyring((KEY,), random=lambda size_bytes: bytes(range(size_bytes)))


def encrypted_log_file() -> bytes:
    """A log file with the same records in two frames; a record goes on from the one to the other."""
    cipher, key_id, salt, sealer = keyring().for_new_file()
    assert sealer is not None
    header = replace(LOG_HEADER, cipher=cipher, key_id=key_id, salt=salt)
    data, frames = plain_log(), FrameSealer(sealer, header)
    body = bytearray()
    for start, end, durable_lsn in ((0, 200, FIRST_LSN), (200, len(data), FIRST_LSN + 64)):
        for frame in frames.seal([data[start:end]], FIRST_LSN + start, durable_lsn):
            body += frame
    return (pack_file_header(header) + body).ljust(header.size_bytes, b"\0")


# ---- the manifest ------------------------------------------------------------------------------------------------

MANIFEST = Manifest(
    store_id=STORE_ID,
    incarnation=3,
    first_lsn=FIRST_LSN,
    highest_lsn=FIRST_LSN + 600,
    watermark=FIRST_LSN + 500,
    oldest_file=2,
    newest_file=17,
    seals=((1, 0x1234_5678), (2, 0x23_4567_89A8)),
    disowned=((9, 11),),
    clean=False,
)
MANIFEST_WITH_SNAPSHOTS = replace(
    MANIFEST,
    clean=True,
    snapshots=(
        SnapshotFacts(4, FIRST_LSN, FIRST_LSN, 3, 2, 5000, WALL_MS, True),
        SnapshotFacts(5, FIRST_LSN + 64, FIRST_LSN + 128, 3, 3, 6000, WALL_MS + 1000, False),
    ),
)

# ---- files of blocks ---------------------------------------------------------------------------------------------

HASH_KEY = bytes(range(16))
ARENA_INFO = Info("golden", HASH_KEY, 16, 8 << 20, 1 << 20, 0, "0.1.0", WALL_MS)
# (version, entry): what the snapshots and the backup hold.
IMAGES = (
    (FIRST_LSN - 4096, Entry(record.PUT, b"greeting", "grüß Gott".encode(), type=6)),
    (FIRST_LSN - 2048, Entry(record.PUT, b"", b"", type=2)),
    (FIRST_LSN - 1024, Entry(record.PUT, b"\xff" * 9, bytes(1000), type=5, pinned=True)),
    (FIRST_LSN, Entry(record.PUT, b"session:42", b"\x00\x01", type=5, namespace=3, expires_ms=1_900_000_000_000)),
    (FIRST_LSN + 8, Entry(record.PUT, b"nested", encode({"a": [1, (2.5, None)]})[1], type=8)),
)
END_LSN = FIRST_LSN + len(plain_log())


def pack_image(version: int, entry: Entry) -> bytes:
    """An entry as it lies in an arena."""
    body = record.pack_entry(entry)
    whole = version.to_bytes(8, "little") + _core.crc32c(body).to_bytes(4, "little") + body
    return whole.ljust(record.padded(len(whole)), b"\0")


def unpack_images(data: bytes | memoryview) -> Iterator[tuple[int, Entry]]:
    """(version, entry) of each image, read without the C core."""
    rest = bytes(data)
    while rest:
        value_bytes, key_bytes = int.from_bytes(rest[12:16], "little"), int.from_bytes(rest[16:18], "little")
        flags, at, expires_ms = rest[21], 24, 0
        if flags & record.ENTRY_EXPIRES:
            expires_ms, at = int.from_bytes(rest[24:32], "little"), 32
        value_at = at + record.padded(key_bytes)
        key, value = rest[at : at + key_bytes], rest[value_at : value_at + value_bytes]
        pinned = bool(flags & record.ENTRY_PINNED)
        namespace = int.from_bytes(rest[18:20], "little")
        entry = Entry(record.PUT, key, value, rest[20], namespace, expires_ms, pinned)
        assert pack_image(int.from_bytes(rest[:8], "little"), entry) == rest[: record.padded(value_at + value_bytes)]
        yield int.from_bytes(rest[:8], "little"), entry
        rest = rest[record.padded(value_at + value_bytes) :]


def new_arena() -> tuple[int, _core.Arena]:
    """An empty arena that hashes as the one of the snapshots did."""
    fd = os.memfd_create("golden")
    os.ftruncate(fd, ARENA_INFO.memory)
    _core.format_arena(
        fd, size_bytes=ARENA_INFO.memory, name="golden", store_id=STORE_ID, incarnation=4,
        first_lsn=1 << 42, has_log=True, hash_key=HASH_KEY, stripes=ARENA_INFO.stripes,
    )  # fmt: skip
    return fd, _core.Arena(fd)


def blocks_of_arena(arena: _core.Arena) -> Iterator[tuple[int, int, bytes]]:
    """(stripe, entries, images) of each part of an arena that holds something."""
    cursor, buffer = 0, bytearray(1 << 16)
    while cursor != _core.CURSOR_END:
        cursor, used, entries, stripe, needed = arena.fill(cursor, buffer)
        assert not needed
        if used:
            yield stripe, entries, bytes(buffer[:used])


def file_of_blocks(magic: bytes, *, compression: int = NO_COMPRESSION, keys: Keyring | None = None) -> bytes:
    """A snapshot, or a backup, whose log goes from the first LSN to the end."""
    cipher, key_id, salt, sealer = (keys or Keyring.none()).for_new_file()
    generation = 0 if magic == BACKUP_MAGIC else 5
    header = BlockFileHeader(
        magic, STORE_ID, LOG_HEADER.incarnation, generation, FIRST_LSN, WALL_MS, cipher, compression, key_id, salt
    )
    fd, arena = new_arena()
    arena.load(b"".join(pack_image(version, entry) for version, entry in IMAGES))
    with tempfile.TemporaryFile() as target:
        writer = BlockWriter(Files(), target.fileno(), header, cipher=sealer)
        writer.add(INFO, pack_map(ARENA_INFO))
        for stripe, entries, images in blocks_of_arena(arena):
            writer.add(ENTRIES, images, stripe=stripe, count=entries)
        if magic == BACKUP_MAGIC:
            writer.add(LOG, plain_log(), count=len(RECORDS) + 2, first_lsn=FIRST_LSN)
        writer.finish(
            end_lsn=END_LSN, highest_version=FIRST_LSN + 8, wall_ms=WALL_MS + 5,
            log_end_lsn=END_LSN if magic == BACKUP_MAGIC else 0,
        )  # fmt: skip
        arena.close()
        os.close(fd)
        target.seek(0)
        return target.read()


def footer_of(found: Footer) -> Footer:
    """The footer that the golden file with this one should have: digest and counts depend on how it is stored."""
    return replace(found, end_lsn=END_LSN, entries=len(IMAGES), highest_version=FIRST_LSN + 8, wall_ms=WALL_MS + 5)


# ---- values --------------------------------------------------------------------------------------------------------

SEALED = {"number": "4929", "until": (2030, 1)}
NONCE = bytes(range(12))


def sealed_value(cipher: int) -> bytes:
    """What the codec of sealed values stores, with a nonce that is not random."""
    aead, info = (AESGCM, b"shmkv value aes-256") if cipher == AES_256_GCM else (AESGCMSIV, b"shmkv value aes-256 siv")
    prefix = bytes((cipher,)) + HKDF(SHA256(), 16, None, b"key id").derive(KEY) + NONCE
    kind, data = encode(SEALED)
    return prefix + aead(HKDF(SHA256(), 32, None, info).derive(KEY)).encrypt(NONCE, bytes((kind,)) + data, prefix)


# ---- the export --------------------------------------------------------------------------------------------------

# key, value, expires_ms, pinned
EXPORTED: tuple[tuple[str | bytes, Any, int, bool], ...] = (
    ("text", "grüß Gott\n", 0, False),
    ("numbers", [1, -(2**53), 2**64, 1.5, -0.0, float("inf"), True, None], 1_900_000_000_000, False),
    (b"\xff\x00", b"\x00\x01\xfe", 0, True),
    ("nested", {"a": (1, [2, ()]), "$b": {"$c": {}}}, 0, False),
    ("keys", {1: "one", (2, b"3"): None, None: 4.25}, 0, False),
    ("times", [datetime(2024, 1, 2, 3, 4, 5, 678), datetime(2024, 1, 2, tzinfo=UTC)], 1, True),
    ("exact", (Decimal("1.50"), UUID(int=7)), 0, False),
    ("", "", 0, False),
)


def export() -> bytes:
    """An export with values of each form."""
    lines = [entry_line(key, value, expires_ms=expires, pinned=pinned) for key, value, expires, pinned in EXPORTED]
    return b"".join((first_line("golden", WALL_MS), *lines, last_line(len(lines))))


# Name to content; `key` holds the key of the encrypted ones.
FILES = {
    "log.v1": log_file,
    "log-encrypted.v1": encrypted_log_file,
    "manifest.v1": lambda: pack_slot(MANIFEST, 41),
    "manifest-snapshots.v1": lambda: pack_slot(MANIFEST_WITH_SNAPSHOTS, 42),
    "snapshot.v1": lambda: file_of_blocks(SNAPSHOT_MAGIC),
    "snapshot-zstd.v1": lambda: file_of_blocks(SNAPSHOT_MAGIC, compression=ZSTD),
    "snapshot-encrypted.v1": lambda: file_of_blocks(SNAPSHOT_MAGIC, keys=keyring()),
    "backup.v1": lambda: file_of_blocks(BACKUP_MAGIC),
    "backup-zstd-encrypted.v1": lambda: file_of_blocks(BACKUP_MAGIC, compression=ZSTD, keys=keyring()),
    "export.v1": export,
    "value-gcm.v1": lambda: sealed_value(AES_256_GCM),
    "value-gcm-siv.v1": lambda: sealed_value(AES_256_GCM_SIV),
    "key": lambda: KEY.hex().encode() + b"\n",
}


def main(folder: str) -> None:
    """Write those that are not there yet."""
    for name, make in FILES.items():
        path = Path(folder, name)
        if path.exists():
            print(f"{path} is there and stays as it is")
        else:
            path.write_bytes(make())
            print(f"made {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
