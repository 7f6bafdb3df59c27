"""Damage: every flipped byte and truncation of a small log and its manifest ends in the right prefix or a refusal.

The small store has two files, some records that are proved durable (by the `durable_before` of a later one) and a last
record that is not. Right is: everything proved durable is there, in order, or the start is refused with CorruptData
that names the file, and for records offset and LSN.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from memory_disk import MemoryDisk
from small_log import SmallStore, log_path

from shmkv.errors import CorruptData
from shmkv.segment import _core
from shmkv.wal.log import HEADER_BLOCK_BYTES, BadHeader, unpack_file_header
from shmkv.wal.manifest import read_manifest

KEYS = [f"key{number}" for number in range(13)]
PROVED = len(KEYS) - 1
MANIFESTS = ("/data/manifest.0", "/data/manifest.1")


@pytest.fixture(scope="module")
def image() -> MemoryDisk:
    disk = MemoryDisk()
    store = SmallStore(disk)
    for key in KEYS[:-1]:
        store.append(key, bytes(60))
        store.sync()
    store.append(KEYS[-1])
    store.sync()
    assert disk.names("/data/log") == ["0000000001.log", "0000000002.log"]
    return disk


def start_of(disk: MemoryDisk, *, accept_loss: bool = False) -> list[str]:
    return SmallStore(disk, accept_loss=accept_loss).recovered


def check(image: MemoryDisk, path: str, change: Callable[[bytearray], None]) -> str:
    """What the damage leads to: "all", "prefix" or "refused"; asserts that it is one of the right ones."""
    disk = image.copy()
    change(disk.content(path))
    try:
        recovered = start_of(disk)
    except CorruptData as error:
        text = str(error)
        assert path in text
        assert "--accept-loss" in text
        if path not in MANIFESTS and "offset 0:" not in text:
            assert re.search(r"offset \d+, LSN \d+", text)
        return "refused"
    assert recovered == KEYS[: len(recovered)]
    assert len(recovered) >= PROVED
    return "all" if recovered == KEYS else "prefix"


def flip(offset: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset] ^= 1 << offset % 8

    return change


def cut(length: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[length:]

    return change


def test_every_flip_and_truncation_of_a_header_block_is_noticed(image: MemoryDisk) -> None:
    block = bytes(image.content(log_path(1))[:HEADER_BLOCK_BYTES])
    assert unpack_file_header(block).number == 1
    for offset in range(HEADER_BLOCK_BYTES):
        broken = bytearray(block)
        flip(offset)(broken)
        for bad in (bytes(broken), block[:offset]):
            with pytest.raises(BadHeader):
                unpack_file_header(bad)


# The header block as a whole is the test above: here only some of its bytes.
OFFSETS_IN_HEADER = range(0, HEADER_BLOCK_BYTES, 128)


@pytest.mark.parametrize("number", [1, 2])
def test_every_flipped_byte_of_a_log_file(image: MemoryDisk, number: int) -> None:
    path = log_path(number)
    assert {check(image, path, flip(offset)) for offset in OFFSETS_IN_HEADER} == {"refused"}
    results = [check(image, path, flip(offset)) for offset in range(HEADER_BLOCK_BYTES, len(image.content(path)))]
    assert "refused" in results
    # Behind the last record, or the first of the next file, nothing counts.
    assert results[-1] == "all"
    assert ("prefix" in results) == (number == 2), "only the last record may be lost"


@pytest.mark.parametrize("number", [1, 2])
def test_every_truncation_of_a_log_file(image: MemoryDisk, number: int) -> None:
    path = log_path(number)
    assert {check(image, path, cut(length)) for length in OFFSETS_IN_HEADER} == {"refused"}
    results = [check(image, path, cut(length)) for length in range(HEADER_BLOCK_BYTES, len(image.content(path)))]
    # The end of the first file is known from the second; the newest file must have the size that it was made with.
    assert set(results) == ({"refused", "all"} if number == 1 else {"refused"})


@pytest.mark.parametrize("path", MANIFESTS)
def test_every_flip_and_truncation_of_one_manifest_changes_nothing(image: MemoryDisk, path: str) -> None:
    size = len(image.content(path))
    for offset in range(size):
        assert check(image, path, flip(offset)) == "all"
        assert check(image, path, cut(offset)) == "all"


def test_both_manifests_damaged_is_refused_and_can_be_rebuilt(image: MemoryDisk) -> None:
    disk = image.copy()
    for path in MANIFESTS:
        disk.content(path)[50] ^= 1
    with pytest.raises(CorruptData, match=r"manifest\.0: checksum.*manifest\.1: checksum"):
        start_of(disk)
    assert start_of(disk, accept_loss=True) == KEYS
    assert start_of(disk) == KEYS


def test_manifests_missing_beside_a_log_is_refused_and_can_be_rebuilt(image: MemoryDisk) -> None:
    disk = image.copy()
    for path in MANIFESTS:
        disk.unlink(path)
    with pytest.raises(CorruptData, match="there is none"):
        start_of(disk)
    assert start_of(disk, accept_loss=True) == KEYS


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_log_file_is_refused(image: MemoryDisk, number: int) -> None:
    disk = image.copy()
    disk.unlink(log_path(number))
    with pytest.raises(CorruptData, match=f"{number:010d}.log is missing"):
        start_of(disk)
    recovered = start_of(disk, accept_loss=True)
    assert recovered == KEYS[: len(recovered)]
    assert bool(recovered) == (number == 2)
    assert start_of(disk) == recovered


def test_all_log_files_missing_is_refused(image: MemoryDisk) -> None:
    disk = image.copy()
    disk.unlink(log_path(1))
    disk.unlink(log_path(2))
    with pytest.raises(CorruptData, match=r"0000000001\.log is missing"):
        start_of(disk)


def test_a_log_file_of_another_store_is_refused(image: MemoryDisk) -> None:
    disk, other = image.copy(), MemoryDisk()
    stranger = SmallStore(other)
    stranger.append("stranger")
    stranger.sync()
    content = other.content(log_path(1))
    # Only the store id differs, and the checksum says that it was meant so.
    content[16:32] = b"another store id"
    content[4092:4096] = _core.crc32c(content[:4092]).to_bytes(4, "little")
    disk.content(log_path(1))[:] = content
    with pytest.raises(CorruptData, match="belongs to store"):
        start_of(disk)


def test_an_older_manifest_beside_a_newer_log_is_refused(image: MemoryDisk) -> None:
    disk = image.copy()
    old = {path: bytes(disk.content(path)) for path in MANIFESTS}
    assert start_of(disk) == KEYS
    for path, data in old.items():
        disk.content(path)[:] = data
    with pytest.raises(CorruptData, match="the manifest is older than the log"):
        start_of(disk)


def damaged_middle(image: MemoryDisk) -> MemoryDisk:
    disk = image.copy()
    disk.content(log_path(1))[HEADER_BLOCK_BYTES + 300] ^= 1
    return disk


def test_damage_is_named_with_file_offset_and_lsn(image: MemoryDisk) -> None:
    first_lsn = SmallStore(MemoryDisk()).manifest.first_lsn
    at = 2 * 112  # two records of this log
    with pytest.raises(CorruptData, match=rf"1\.log is damaged at offset {4096 + at}, LSN {first_lsn + at} "):
        start_of(damaged_middle(image))


def test_accepted_loss_keeps_what_is_before_and_never_brings_back_what_is_behind(image: MemoryDisk) -> None:
    disk = damaged_middle(image)
    store = SmallStore(disk, accept_loss=True)
    kept = store.recovered
    assert kept == KEYS[:2]
    assert any("loss accepted" in warning for warning in store.started.warnings)
    assert store.started.cut_lsn is not None
    store.append("later")
    store.sync()
    # The bytes behind the cut are whole, and would be valid: repairing the flip must not revive them.
    disk.content(log_path(1))[HEADER_BLOCK_BYTES + 300] ^= 1
    for _ in range(3):
        again = SmallStore(disk)
        assert again.recovered == [*kept, "later"]
        assert again.started.cut_lsn is None


def test_loss_can_be_accepted_more_than_once(image: MemoryDisk) -> None:
    disk = damaged_middle(image)
    kept = start_of(disk, accept_loss=True)
    store = SmallStore(disk)
    store.append("later")
    store.sync()
    store.append("proof")
    store.sync()
    newest = read_manifest(disk, "/data").manifest
    assert newest is not None
    disk.content(log_path(newest.newest_file))[HEADER_BLOCK_BYTES + 20] ^= 1
    with pytest.raises(CorruptData):
        start_of(disk)
    assert start_of(disk, accept_loss=True) == kept
    assert start_of(disk) == kept


def test_a_torn_tail_is_cut_sealed_and_reported(image: MemoryDisk) -> None:
    disk = image.copy()
    last = disk.content(log_path(2))
    # The last record's value is gone; it was never proved durable.
    size = next(at for at in range(len(last) - 1, 0, -1) if last[at]) + 1
    last[size - 1] ^= 0xFF
    torn = bytes(last[:size])
    store = SmallStore(disk)
    assert store.recovered == KEYS[:-1]
    assert store.started.cut_lsn is not None
    assert any("torn" in warning for warning in store.started.warnings)
    assert store.manifest.seals == ((1, store.started.cut_lsn),)
    store.append("later")
    store.sync()
    last[: len(torn)] = torn
    last[size - 1] ^= 0xFF
    assert SmallStore(disk).recovered == [*KEYS[:-1], "later"], "the record behind the seal came back"


def test_a_valid_record_behind_a_bad_one_proves_damage_only_if_it_says_so() -> None:
    """Two unsynced records: the power cut may keep the second and lose the first."""
    disk = MemoryDisk()
    store = SmallStore(disk)
    store.append("first")
    store.sync()
    before = store.tail
    store.append("lost")
    middle = store.tail
    store.append("kept by chance")
    store.write()
    offset = HEADER_BLOCK_BYTES + before - store.manifest.first_lsn
    content = disk.content(log_path(1))
    content[offset : offset + middle - before] = bytes(middle - before)
    torn = SmallStore(disk.copy())
    assert torn.recovered == ["first"]
    assert torn.started.cut_lsn == before
    # The same hole, but what follows it was written when it was durable.
    store.writer.sync()
    store.ring.clear()
    store.append("proof")
    store.write()
    content[offset : offset + middle - before] = bytes(middle - before)
    with pytest.raises(CorruptData, match=f"LSN {before} "):
        SmallStore(disk)


def test_a_clean_end_needs_all_that_the_manifest_saw_durable() -> None:
    disk = MemoryDisk()
    store = SmallStore(disk)
    store.append("last")
    store.sync()
    store.writer.publish_watermark(clean=True)
    offset = HEADER_BLOCK_BYTES
    disk.content(log_path(1))[offset:] = bytes(len(disk.content(log_path(1))) - offset)
    with pytest.raises(CorruptData, match="everything below LSN"):
        SmallStore(disk)


def test_a_start_can_be_refused_again_and_again_without_changing_anything(image: MemoryDisk) -> None:
    disk = damaged_middle(image)
    texts = set()
    mark = disk.fingerprint()
    for _ in range(3):
        with pytest.raises(CorruptData) as refusal:
            start_of(disk)
        texts.add(str(refusal.value))
        assert disk.fingerprint() == mark
    assert len(texts) == 1
