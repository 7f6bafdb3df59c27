"""Files of blocks: what was written comes back, and no damage of any byte gives anything else but a refusal."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import random
import threading
from collections.abc import Callable

import pytest
from memory_disk import MemoryDisk

from shmkv.dataclass import replace
from shmkv.errors import CorruptData, IncompatibleStore, WrongKey
from shmkv.segment import _core
from shmkv.wal import block, compression, syncing
from shmkv.wal.block import ENTRIES, FOOTER, INFO, LOG, BlockFileHeader, BlockReader, BlockWriter, Footer, Info
from shmkv.wal.block_format import BLOCK_HEADER_BYTES, HEADER_BLOCK_BYTES, pack_header, pack_map
from shmkv.wal.compression import NO_COMPRESSION, ZSTD
from shmkv.wal.files import Buffer

PATH = "/data/file"
KEY_ID = bytes(range(100, 116))
HEADER = BlockFileHeader(block.SNAPSHOT_MAGIC, bytes(range(50, 66)), 3, 7, 1 << 41, 1_700_000_000_000)
CONTENT = Info("orders", bytes(range(16)), 16, 8 << 20, 1 << 20, 0, "0.1.0", 1_700_000_000_000)
BLOCKS: list[tuple[int, bytes, dict[str, int]]] = [
    (INFO, pack_map(CONTENT), {}),
    (ENTRIES, b"a" * 61, {"stripe": 0, "count": 2}),
    (ENTRIES, bytes(range(200)), {"stripe": 5, "count": 4}),
    (LOG, b"record" * 20, {"first_lsn": 1 << 41}),
]


class ToyCipher:
    """A keystream and a MAC: what is sealed with other bytes, another nonce or other associated data does not open."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def _stream(self, nonce: int, length: int) -> bytes:
        return hashlib.shake_256(self._key + nonce.to_bytes(12, "big")).digest(length)

    def _tag(self, nonce: int, sealed: bytes, associated: bytes) -> bytes:
        text = nonce.to_bytes(12, "big") + len(associated).to_bytes(8, "big") + associated + sealed
        return hmac.digest(self._key, text, "sha256")[:16]

    def seal(self, nonce: int, data: Buffer, associated: bytes) -> bytes:
        sealed = bytes(a ^ b for a, b in zip(bytes(data), self._stream(nonce, len(data)), strict=True))
        return sealed + self._tag(nonce, sealed, associated)

    def open(self, nonce: int, data: Buffer, associated: bytes) -> bytes:
        sealed, tag = bytes(data[:-16]), bytes(data[-16:])
        if self._tag(nonce, sealed, associated) != tag:
            raise CorruptData("the tag does not fit")
        return bytes(a ^ b for a, b in zip(sealed, self._stream(nonce, len(sealed)), strict=True))


class ToyKeys:
    def __init__(self, key: bytes = b"secret") -> None:
        self._key = key

    def for_file(self, cipher: int, key_id: bytes, salt: bytes, path: str) -> ToyCipher | None:
        if key_id != KEY_ID:
            raise WrongKey(f"{path} needs key {key_id.hex()}")
        return ToyCipher(self._key + salt)


def write(
    disk: MemoryDisk,
    *,
    packing: int = NO_COMPRESSION,
    key: bytes | None = None,
    blocks: list[tuple[int, bytes, dict[str, int]]] = BLOCKS,
) -> Footer:
    header = replace(HEADER, compression=packing)
    cipher = None
    if key is not None:
        header = replace(header, cipher=1, key_id=KEY_ID, salt=bytes(32))
        cipher = ToyCipher(key + header.salt)
    fd = disk.create(PATH)
    writer = BlockWriter(disk, fd, header, cipher=cipher)
    for kind, data, fields in blocks:
        writer.add(kind, data, **fields)
    footer = writer.finish(end_lsn=(1 << 41) + 500, highest_version=(1 << 41) + 400, wall_ms=1_700_000_000_500)
    assert writer.size_bytes == disk.size_bytes(PATH)
    disk.close(fd)
    return footer


def content(disk: MemoryDisk) -> list[tuple[int, int, int, int, int, bytes]]:
    """All that a reader gives, blocks and footer."""
    with BlockReader(disk, PATH, ToyKeys()) as reader:
        found = [
            (
                item.kind,
                item.header.index,
                item.header.stripe,
                item.header.count,
                item.header.first_lsn,
                bytes(item.data),
            )
            for item in reader.blocks()
        ]
        assert reader.info == CONTENT
        assert reader.footer == reader.verify()
    return found


VARIANTS = pytest.mark.parametrize(
    ("packing", "key"), [(NO_COMPRESSION, None), (ZSTD, None), (NO_COMPRESSION, b"secret"), (ZSTD, b"secret")]
)


@VARIANTS
def test_what_was_written_comes_back(packing: int, key: bytes | None) -> None:
    disk = MemoryDisk()
    footer = write(disk, packing=packing, key=key)
    assert (footer.entries, footer.blocks) == (6, 4)
    assert footer.raw_bytes == sum(len(data) for _, data, _ in BLOCKS)
    found = content(disk)
    assert [(kind, data) for kind, *_, data in found] == [(kind, data) for kind, data, _ in BLOCKS]
    assert [item[2:5] for item in found] == [(0, 0, 0), (0, 2, 0), (5, 4, 0), (0, 0, 1 << 41)]
    with BlockReader(disk, PATH, ToyKeys()) as reader:
        assert reader.footer == footer
    assert disk.open_files == {}


@VARIANTS
def test_no_damage_of_any_byte_gives_other_content(packing: int, key: bytes | None) -> None:
    disk = MemoryDisk()
    write(disk, packing=packing, key=key)
    good = content(disk)
    data = bytes(disk.content(PATH))
    chance = random.Random(1)
    for at in range(len(data)):
        if 120 <= at < HEADER_BLOCK_BYTES - 8 and at % 97:
            continue
        for changed in {data[at] ^ 1 << chance.randrange(8), data[at] ^ 0xFF, 0} - {data[at]}:
            disk.content(PATH)[at] = changed
            with pytest.raises(CorruptData) as refusal:
                content(disk)
            assert PATH in str(refusal.value) or "tag" in str(refusal.value)
            disk.content(PATH)[at] = data[at]
    assert content(disk) == good


@VARIANTS
def test_a_file_that_was_cut_or_made_longer_is_refused(packing: int, key: bytes | None) -> None:
    disk = MemoryDisk()
    write(disk, packing=packing, key=key)
    data = bytes(disk.content(PATH))
    for length in [*range(0, HEADER_BLOCK_BYTES, 512), *range(HEADER_BLOCK_BYTES, len(data))]:
        disk.content(PATH)[:] = data[:length]
        with pytest.raises(CorruptData):
            content(disk)
        with pytest.raises(CorruptData):
            BlockReader(disk, PATH).verify()
    for extra in (b"\0", bytes(8), bytes(4096), data[-200:]):
        disk.content(PATH)[:] = data + extra
        with pytest.raises(CorruptData, match="follow the footer"):
            content(disk)


def test_zeroed_and_repeated_ranges_are_refused() -> None:
    disk = MemoryDisk()
    write(disk)
    data = bytes(disk.content(PATH))
    chance = random.Random(2)
    for _ in range(500):
        start, length = chance.randrange(len(data)), chance.choice((8, 48, 512, 4096))
        changed = bytearray(data)
        if chance.random() < 0.5:
            changed[start : start + length] = bytes(len(changed[start : start + length]))
        else:
            source = chance.randrange(len(data))
            changed[start : start + length] = data[source : source + length]
        disk.content(PATH)[:] = changed
        if changed == data:
            continue
        with pytest.raises(CorruptData):
            content(disk)


@pytest.mark.parametrize("key", [None, b"secret"])
def test_whole_blocks_that_are_missing_swapped_or_doubled_are_refused(key: bytes | None) -> None:
    disk = MemoryDisk()
    write(disk, key=key)
    data = bytes(disk.content(PATH))
    with BlockReader(disk, PATH) as reader:
        bounds = [offset for offset, _, _ in reader._headers()] + [len(data)]
    parts = [data[start:end] for start, end in itertools.pairwise(bounds)]
    for order in ([0, 1, 2, 4], [0, 2, 1, 3, 4], [0, 1, 1, 2, 3, 4], [1, 2, 3, 4], [0, 4], [4], [0, 1, 2, 3]):
        disk.content(PATH)[:] = data[:HEADER_BLOCK_BYTES] + b"".join(parts[number] for number in order)
        with pytest.raises(CorruptData):
            content(disk)
        with pytest.raises(CorruptData):
            BlockReader(disk, PATH).verify()


def test_blocks_of_another_file_do_not_fit() -> None:
    disk, other = MemoryDisk(), MemoryDisk()
    write(disk)
    fd = other.create(PATH)
    writer = BlockWriter(other, fd, replace(HEADER, created_wall_ms=HEADER.created_wall_ms + 1))
    for kind, data, fields in BLOCKS:
        writer.add(kind, data, **fields)
    writer.finish(end_lsn=1, highest_version=1, wall_ms=1)
    disk.content(PATH)[HEADER_BLOCK_BYTES:] = other.content(PATH)[HEADER_BLOCK_BYTES:]
    with pytest.raises(CorruptData, match="block 0"):
        content(disk)


def test_verify_needs_no_key_and_reading_does() -> None:
    disk = MemoryDisk()
    footer = write(disk, key=b"secret")
    with BlockReader(disk, PATH) as reader:
        assert reader.verify() == footer
        assert reader.footer == footer
        with pytest.raises(WrongKey, match=KEY_ID.hex()):
            list(reader.blocks())
        with pytest.raises(WrongKey):
            _ = reader.info
    with BlockReader(disk, PATH, ToyKeys(b"another")) as reader, pytest.raises(CorruptData):
        list(reader.blocks())
    assert CONTENT.hash_key not in bytes(disk.content(PATH)), "the hash key is a secret"


def test_the_end_of_an_encrypted_file_cannot_be_forged_without_the_key() -> None:
    disk, short = MemoryDisk(), MemoryDisk()
    write(disk, key=b"secret")
    write(short, key=b"secret", blocks=BLOCKS[:2])
    data = bytes(disk.content(PATH))
    with BlockReader(disk, PATH) as reader:
        cut = [offset for offset, _, _ in reader._headers()][2]
    forged = MemoryDisk()
    header = replace(HEADER, cipher=1, key_id=KEY_ID, salt=bytes(32))
    fd = forged.create(PATH)
    writer = BlockWriter(forged, fd, header)
    writer._cipher = ToyCipher(b"guess")
    writer.size_bytes = cut
    with BlockReader(disk, PATH) as reader:
        for offset, block_header, crc in reader._headers():
            if offset < cut:
                writer._totals.add(block_header, crc)
    writer.finish(end_lsn=1, highest_version=1, wall_ms=1)
    forged.content(PATH)[:cut] = data[:cut]
    with BlockReader(forged, PATH) as reader:
        reader.verify()
    with pytest.raises(CorruptData, match="tag"):
        content(forged)


def test_only_wanted_blocks_are_read() -> None:
    disk = MemoryDisk()
    write(disk)
    disk.content(PATH)[-200] ^= 1  # in the LOG block
    with BlockReader(disk, PATH) as reader:
        wanted = reader.blocks(lambda header: header.kind == ENTRIES and header.stripe == 5)
        assert [bytes(item.data) for item in wanted] == [BLOCKS[2][1]]
        with pytest.raises(CorruptData, match="block 3"):
            list(reader.blocks())


def test_several_threads_may_walk_one_reader() -> None:
    disk = MemoryDisk()
    blocks = [BLOCKS[0], *((ENTRIES, bytes([number]) * 5000, {"stripe": number, "count": 1}) for number in range(50))]
    write(disk, packing=ZSTD, blocks=blocks)
    found: dict[int, list[bytes]] = {}
    with BlockReader(disk, PATH) as reader:

        def walk(part: int) -> None:
            wanted = reader.blocks(lambda header: header.kind == ENTRIES and header.stripe % 4 == part)
            found[part] = [bytes(item.data) for item in wanted]

        threads = [threading.Thread(target=walk, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(data for part in found.values() for data in part) == [data for _, data, _ in blocks[1:]]


def test_it_is_synced_in_steps_and_whole_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "SYNC_STEP_BYTES", 1000)
    disk = MemoryDisk()
    write(disk, blocks=[BLOCKS[0], *((ENTRIES, bytes(400), {"count": 1}) for _ in range(10))])
    assert sum(operation == "sync file" for operation in disk.operations) >= 5
    assert disk.operations[-1] == "sync file"
    assert disk.inodes[disk.folders["/data"].names["file"]].pending == []


def test_what_does_not_shrink_is_kept_as_it_is() -> None:
    disk = MemoryDisk()
    noise = random.Random(3).randbytes(3000)
    write(disk, packing=ZSTD, blocks=[BLOCKS[0], (ENTRIES, noise, {"count": 1}), (ENTRIES, bytes(3000), {"count": 1})])
    with BlockReader(disk, PATH) as reader:
        flags = [header.flags for _, header, _ in reader._headers() if header.kind == ENTRIES]
        assert flags == [0, 1]
        assert [len(item.data) for item in reader.blocks(lambda header: header.kind == ENTRIES)] == [3000, 3000]


def test_a_frame_that_announces_more_than_its_block_is_refused() -> None:
    packer = compression.Packer()
    packed = packer.pack(bytes(1 << 20))
    assert packer.unpack(packed, 1 << 20) == bytes(1 << 20)
    for wrong in (packed[:-1], packed + b"x", b"", b"rubbish", packed[4:]):
        with pytest.raises(ValueError):  # noqa: PT011
            packer.unpack(wrong, 1 << 20)
    with pytest.raises(ValueError, match="1048576 bytes instead of 100"):
        packer.unpack(packed, 100)


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryDisk()
    write(disk, packing=ZSTD)
    find: Callable[..., None] = lambda *_: None  # noqa: E731
    monkeypatch.setattr(compression.importlib.util, "find_spec", find)
    with BlockReader(disk, PATH) as reader:
        reader.verify()
        with pytest.raises(IncompatibleStore, match=r"pip install shmkv\[zstd\]"):
            list(reader.blocks())


def test_a_later_version_is_not_damage() -> None:
    disk = MemoryDisk()
    write(disk)
    first = bytearray(pack_header(HEADER))
    first[8] = 2
    first[-4:] = _core.crc32c(bytes(first[:-4])).to_bytes(4, "little")
    disk.content(PATH)[:HEADER_BLOCK_BYTES] = first
    with pytest.raises(IncompatibleStore, match="format version 2"):
        BlockReader(disk, PATH)


def test_maps_with_other_fields_are_refused() -> None:
    for body in (b"\x80", b"\x93\x01\x02\x03", b"", pack_map(CONTENT)[:-1], pack_map(replace(CONTENT, stripes="16"))):  # type: ignore[arg-type]
        disk = MemoryDisk()
        write(disk, blocks=[(INFO, body, {})])
        with BlockReader(disk, PATH) as reader, pytest.raises(CorruptData, match="map"):
            _ = reader.info


def test_a_file_without_blocks_or_without_info_is_refused() -> None:
    for blocks in ([], BLOCKS[1:]):
        disk = MemoryDisk()
        write(disk, blocks=blocks)
        with BlockReader(disk, PATH) as reader, pytest.raises(CorruptData, match="block 0"):
            reader.verify()


def test_the_header_of_a_block_has_its_documented_size() -> None:
    disk = MemoryDisk()
    write(disk, blocks=[BLOCKS[0]])
    data = bytes(disk.content(PATH))
    assert data[:8] == b"SHMKVSNP"
    head = data[HEADER_BLOCK_BYTES : HEADER_BLOCK_BYTES + BLOCK_HEADER_BYTES]
    assert int.from_bytes(head[4:8], "little") == len(BLOCKS[0][1])
    assert head[24] == INFO
    seed = _core.crc32c(data[16:40] + data[48:64])
    assert int.from_bytes(head[44:], "little") == _core.crc32c(head[:44], seed)
    assert FOOTER == 4
