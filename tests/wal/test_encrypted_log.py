"""An encrypted log: it gives back what was written, under the keys that wrote it and no others; every flipped byte and
truncation ends in the right prefix or a named refusal.

The small store is that of test_damage.py, encrypted: two files, all but the last record proved durable.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from memory_disk import MemoryDisk, none_kept
from small_log import SmallStore, log_path, place_on

from shmkv.errors import CorruptData, WrongKey
from shmkv.segment import _core
from shmkv.wal import frame, record
from shmkv.wal.cipher import Keyring, key_id_of
from shmkv.wal.drain import drain
from shmkv.wal.inspection import log_problems, log_records, missing_keys
from shmkv.wal.log import HEADER_BLOCK_BYTES, FileHeader, unpack_file_header
from shmkv.wal.manifest import read_manifest
from shmkv.wal.record import Record, Stop
from shmkv.wal.writer import LogShape

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
KEYS = Keyring((OLD,))
NAMES = [f"name{number}" for number in range(13)]
PROVED = len(NAMES) - 1
SHAPE = LogShape(file_bytes=HEADER_BLOCK_BYTES + 1440, spare_count=1)
SECRET = b"a value that must not be read"


def put(store: SmallStore, names: list[str], value: bytes = SECRET) -> None:
    for name in names:
        store.append(name, value.ljust(60, b"."))
        store.sync()


@pytest.fixture(scope="module")
def image() -> MemoryDisk:
    disk = MemoryDisk()
    put(SmallStore(disk, keys=KEYS, shape=SHAPE), NAMES)
    assert disk.names("/data/log") == ["0000000001.log", "0000000002.log"]
    return disk


def recovered(disk: MemoryDisk, keys: Keyring = KEYS, *, accept_loss: bool = False) -> list[str]:
    return SmallStore(disk, keys=keys, accept_loss=accept_loss).recovered


def header_of(disk: MemoryDisk, number: int) -> FileHeader:
    return unpack_file_header(bytes(disk.content(log_path(number))))


def frames_of(disk: MemoryDisk, number: int) -> list[int]:
    """Offsets of the frames of a file."""
    data = bytes(disk.content(log_path(number)))
    offsets, at = [], HEADER_BLOCK_BYTES
    while (found := frame.read_frame_header(data, at, frame.frame_seed(header_of(disk, number)))) is not None:
        offsets.append(at)
        at += found.length_bytes
    return offsets


# ---- whole -------------------------------------------------------------------------------------------------------


def test_what_was_written_comes_back_and_lies_nowhere_in_clear(image: MemoryDisk) -> None:
    disk = image.copy()
    assert recovered(disk) == NAMES
    assert recovered(disk) == NAMES
    for inode in disk.inodes.values():
        assert SECRET not in inode.data
        assert NAMES[0].encode() not in inode.data


def test_each_file_has_its_own_salt(image: MemoryDisk) -> None:
    headers = [header_of(image, number) for number in (1, 2)]
    assert {header.key_id for header in headers} == {key_id_of(OLD)}
    assert len({header.salt for header in headers}) == 2


def test_a_record_larger_than_a_file_and_one_larger_than_a_frame_come_back() -> None:
    disk = MemoryDisk()
    store = SmallStore(disk, keys=KEYS)
    put(store, ["small"])
    for number, size in enumerate((5000, (1 << 20) + 5000, 3 << 20)):
        store.append(f"large{number}", bytes(size))
        store.sync()
    put(store, ["end"])
    assert recovered(disk.after_power_cut(none_kept)) == ["small", "large0", "large1", "large2", "end"]


def test_a_living_arena_is_adopted_and_drained(image: MemoryDisk) -> None:
    disk = image.copy()
    store = SmallStore(disk, keys=KEYS)
    put(store, ["before"])
    store.append("not durable")
    store.write()
    store.restart_warm()
    put(store, ["after"])
    assert recovered(disk.after_power_cut(none_kept)) == [*NAMES, "before", "not durable", "after"]

    store.append("in the ring")

    class Ring:
        def ring(self) -> dict[str, int]:
            head, tail = store.writer.synced_lsn, store.tail
            return {"head": head, "durable_lsn": head, "tail": tail, "ring_bytes": 4096}

        def ring_pieces(self, start_lsn: int, end_lsn: int) -> tuple[memoryview, ...]:
            data = b"".join(data for _, data in store.ring)
            at = start_lsn - store.ring[0][0]
            return (memoryview(data)[at : at + end_lsn - start_lsn],)

    manifest = read_manifest(disk, "/data").manifest
    assert manifest is not None
    assert drain(place_on(disk, keys=KEYS), Ring(), manifest) == store.tail
    assert recovered(disk.after_power_cut(none_kept))[-1] == "in the ring"


def test_a_warm_start_needs_the_key(image: MemoryDisk) -> None:
    store = SmallStore(image.copy(), keys=KEYS)
    put(store, ["last"])
    store.keys = Keyring((NEW,))
    with pytest.raises(WrongKey):
        store.restart_warm()


def test_a_warm_start_refuses_a_log_that_is_damaged_below_the_ring(image: MemoryDisk) -> None:
    store = SmallStore(image.copy(), keys=KEYS)
    put(store, ["one", "two", "three"])
    content = store.disk.content(log_path(3))
    for at in range(HEADER_BLOCK_BYTES, HEADER_BLOCK_BYTES + 3 * frame.frame_bytes(112), 7):
        content[at] ^= 1
        with pytest.raises(CorruptData, match="The arena still holds"):
            store.restart_warm()
        content[at] ^= 1
    store.restart_warm()


# ---- switching ---------------------------------------------------------------------------------------------------


def test_switching_on_keeps_old_files_and_encrypts_new_ones() -> None:
    disk = MemoryDisk()
    put(SmallStore(disk), ["clear"])
    put(SmallStore(disk, keys=KEYS), ["hidden"])
    assert (header_of(disk, 1).cipher, header_of(disk, 2).cipher) == (0, 1)
    assert recovered(disk) == ["clear", "hidden"]


def test_switching_off_needs_the_key_until_the_encrypted_files_are_gone() -> None:
    disk = MemoryDisk()
    put(SmallStore(disk, keys=KEYS), ["hidden"])
    before = disk.fingerprint()
    for accept_loss in (False, True):
        with pytest.raises(WrongKey, match="no key is configured") as refusal:
            recovered(disk, Keyring.none(), accept_loss=accept_loss)
        assert log_path(1) in str(refusal.value)
        assert key_id_of(OLD).hex() in str(refusal.value)
    assert disk.fingerprint() == before, "a refusal changes nothing"
    assert recovered(disk) == ["hidden"]


def test_several_keys_open_what_each_of_them_wrote() -> None:
    disk = MemoryDisk()
    put(SmallStore(disk, keys=KEYS), ["one"])
    put(SmallStore(disk, keys=Keyring((NEW, OLD))), ["two"])
    assert [header_of(disk, number).key_id for number in (1, 2)] == [key_id_of(OLD), key_id_of(NEW)]
    assert recovered(disk.copy(), Keyring((OLD, NEW))) == ["one", "two"]
    with pytest.raises(WrongKey, match=r"0000000001\.log"):
        recovered(disk.copy(), Keyring((NEW,)))
    with pytest.raises(WrongKey, match=r"0000000002\.log"):
        recovered(disk.copy(), KEYS)


def test_a_change_of_the_current_key_ends_the_file() -> None:
    disk = MemoryDisk()
    rotating = Keyring((OLD,))
    store = SmallStore(disk, keys=rotating)
    put(store, ["one"])
    assert store.writer.room_bytes > 0
    rotating._keys = Keyring((NEW, OLD))._keys
    assert store.writer.room_bytes == 0
    put(store, ["two", "three"])
    assert [header_of(disk, number).key_id for number in (1, 2)] == [key_id_of(OLD), key_id_of(NEW)]
    assert recovered(disk.copy(), Keyring((NEW, OLD))) == ["one", "two", "three"]


# ---- damage ------------------------------------------------------------------------------------------------------


def check(image: MemoryDisk, path: str, change: Callable[[bytearray], None]) -> str:
    """What the damage leads to: "all", "prefix" or "refused"; asserts that it is one of the right ones."""
    disk = image.copy()
    change(disk.content(path))
    try:
        found = recovered(disk)
    except CorruptData as error:
        assert path in str(error)
        assert "--accept-loss" in str(error)
        if "offset 0:" not in str(error):
            assert re.search(r"offset \d+, LSN \d+", str(error))
        return "refused"
    assert found == NAMES[: len(found)]
    assert len(found) >= PROVED
    return "all" if found == NAMES else "prefix"


def flip(offset: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset] ^= 1 << offset % 8

    return change


def cut(length: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[length:]

    return change


@pytest.mark.parametrize("number", [1, 2])
def test_every_flipped_byte(image: MemoryDisk, number: int) -> None:
    path = log_path(number)
    for offset in (0, 60, 88, 92, 96, 112, 143, 2000, 4095):
        assert check(image, path, flip(offset)) == "refused"
    results = [check(image, path, flip(offset)) for offset in range(HEADER_BLOCK_BYTES, len(image.content(path)))]
    end = frames_of(image, number)[-1] + frame.frame_bytes(112) - HEADER_BLOCK_BYTES
    assert "all" not in results[:end], "every byte of a frame counts"
    assert set(results[:end]) == ({"refused"} if number == 1 else {"refused", "prefix"})
    assert results[-1] == "all"


@pytest.mark.parametrize("number", [1, 2])
def test_every_truncation(image: MemoryDisk, number: int) -> None:
    path = log_path(number)
    results = [check(image, path, cut(length)) for length in range(HEADER_BLOCK_BYTES, len(image.content(path)))]
    assert set(results) == ({"refused", "all"} if number == 1 else {"refused"})


def test_a_refusal_names_the_offset_of_the_frame_in_the_file(image: MemoryDisk) -> None:
    offsets = frames_of(image, 1)
    for index, offset in enumerate(offsets):
        disk = image.copy()
        disk.content(log_path(1))[offset + 40] ^= 1
        lsn = header_of(disk, 1).first_lsn + index * 112
        with pytest.raises(CorruptData, match=rf"1\.log is damaged at offset {offset}, LSN {lsn} \(frame crc\)"):
            recovered(disk)


def test_accepted_loss_cuts_at_the_bad_frame(image: MemoryDisk) -> None:
    disk = image.copy()
    disk.content(log_path(1))[frames_of(disk, 1)[2] + 40] ^= 1
    assert recovered(disk, accept_loss=True) == NAMES[:2]
    assert recovered(disk) == NAMES[:2]


def test_a_torn_last_frame_is_cut_and_reported(image: MemoryDisk) -> None:
    disk = image.copy()
    last = frames_of(disk, 2)[-1]
    disk.content(log_path(2))[last + 100 :] = bytes(len(disk.content(log_path(2))) - last - 100)
    store = SmallStore(disk, keys=KEYS)
    assert store.recovered == NAMES[:PROVED]
    assert store.started.cut_lsn == header_of(image, 2).first_lsn + 112 * (len(frames_of(image, 2)) - 1)


def forge_last(disk: MemoryDisk) -> None:
    """Change the last frame and make its checksums right again."""
    data, header = disk.content(log_path(2)), header_of(disk, 2)
    offset = frames_of(disk, 2)[-1]
    length, _, lsn, durable, _, raw = frame._HEADER.unpack_from(data, offset)
    content = slice(offset + frame.HEADER_BYTES, offset + frame.HEADER_BYTES + raw + 16)
    data[content.start] ^= 1
    sealed_crc = _core.crc32c(bytes(data[content]))
    crc = frame._header_crc(length, lsn, durable, sealed_crc, raw, frame.frame_seed(header))
    frame._HEADER.pack_into(data, offset, length, crc, lsn, durable, sealed_crc, raw)


def test_a_last_frame_that_was_changed_on_purpose_is_no_torn_tail(image: MemoryDisk) -> None:
    disk = image.copy()
    forge_last(disk)
    with pytest.raises(CorruptData, match=r"frame tag.*changed on purpose"):
        recovered(disk)
    assert recovered(disk, accept_loss=True) == NAMES[:PROVED]


def test_another_key_under_the_same_id_would_be_damage_not_a_wrong_key(image: MemoryDisk) -> None:
    mixed = Keyring((OLD,))
    mixed._keys = {key_id_of(OLD): NEW}
    with pytest.raises(CorruptData, match="changed on purpose"):
        recovered(image.copy(), mixed)


# ---- looking -----------------------------------------------------------------------------------------------------


def names_in(disk: MemoryDisk, since_lsn: int = 0) -> list[str]:
    items = [item for _, _, item in log_records(disk, "/data", since_lsn=since_lsn, keys=KEYS)]
    return [entry.key.decode() for item in items if isinstance(item, Record) for entry in item.entries]


def test_records_are_shown_with_the_offset_of_their_frame(image: MemoryDisk) -> None:
    assert names_in(image) == NAMES
    found = [
        (path, offset) for path, offset, item in log_records(image, "/data", keys=KEYS) if isinstance(item, Record)
    ]
    assert found == [(log_path(number), offset) for number in (1, 2) for offset in frames_of(image, number)]
    lsns = [item.header.lsn for _, _, item in log_records(image, "/data", keys=KEYS) if isinstance(item, Record)]
    assert names_in(image, lsns[5]) == NAMES[5:]
    stops = [item.reason for _, _, item in log_records(image, "/data", keys=KEYS) if isinstance(item, Stop)]
    assert stops == ["end", "frame length"]
    assert log_problems(image, "/data", keys=KEYS) == []


def test_records_that_share_or_cross_frames_are_shown_once() -> None:
    disk = MemoryDisk()
    store = SmallStore(disk, shape=LogShape(8 << 20, 1), keys=KEYS)
    for number in range(15):
        store.append(f"name{number}", bytes(200_000))
    store.writer.write([b"".join(data for _, data in store.ring)], store.tail)
    store.writer.sync()
    assert names_in(disk) == [f"name{number}" for number in range(15)]
    assert SmallStore(disk, keys=KEYS).recovered == [f"name{number}" for number in range(15)]


def test_without_the_key_checksums_are_checked_and_the_key_is_named(image: MemoryDisk) -> None:
    assert missing_keys(image, "/data", Keyring.none()) == {key_id_of(OLD): 2}
    assert missing_keys(image, "/data", KEYS) == {}
    assert log_problems(image, "/data") == []
    with pytest.raises(WrongKey):
        list(log_records(image, "/data"))
    for number in (1, 2):
        for offset in frames_of(image, number)[:-1]:
            disk = image.copy()
            disk.content(log_path(number))[offset + 40] ^= 1
            (problem,) = log_problems(disk, "/data")
            assert f"{log_path(number)} is damaged at offset {offset}, LSN" in problem
            assert log_problems(disk, "/data", keys=KEYS) == [problem]


# ---- seeds ---------------------------------------------------------------------------------------------------------


def test_the_seed_of_frames_is_that_of_records() -> None:
    header = FileHeader(bytes(range(16)), 7, 1 << 40, 1, 0, 0, 0, 0)
    assert frame.frame_seed(header) == record.record_seed(header.store_id, header.incarnation)
