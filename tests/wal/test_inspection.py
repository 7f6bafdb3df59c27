"""Looking at a log: every record is shown once, damage is named as a start would name it, and nothing changes."""

from __future__ import annotations

import pytest
from memory_disk import MemoryDisk
from small_log import SmallStore, log_path

from shmkv.errors import CorruptData
from shmkv.wal.inspection import log_problems, log_records
from shmkv.wal.record import Record, Stop

KEYS = [f"key{number}" for number in range(30)]


@pytest.fixture
def disk() -> MemoryDisk:
    """Two incarnations and a warm restart: files that overlap."""
    disk = MemoryDisk()
    store = SmallStore(disk)
    for number, key in enumerate(KEYS):
        store.append(key, bytes(60))
        if number == 5:
            store.write()
            store.restart_warm()
        if number == 20:
            store.sync()
            store = SmallStore(disk)
        if number % 3 == 0:
            store.sync()
    store.sync()
    return disk


def keys_of(disk: MemoryDisk, since_lsn: int = 0) -> list[str]:
    items = [item for _, _, item in log_records(disk, "/data", since_lsn=since_lsn)]
    return [entry.key.decode() for item in items if isinstance(item, Record) for entry in item.entries]


def test_every_record_is_shown_once_and_in_order(disk: MemoryDisk) -> None:
    mark = disk.fingerprint()
    assert keys_of(disk) == KEYS
    assert log_problems(disk, "/data") == []
    assert disk.fingerprint() == mark


def test_path_and_offset_lead_to_the_record(disk: MemoryDisk) -> None:
    for path, offset, item in log_records(disk, "/data"):
        if isinstance(item, Record):
            assert int.from_bytes(disk.content(path)[offset + 8 : offset + 16], "little") == item.header.lsn


def test_since_starts_at_that_record(disk: MemoryDisk) -> None:
    lsns = [item.header.lsn for _, _, item in log_records(disk, "/data") if isinstance(item, Record)]
    for index, lsn in enumerate(lsns):
        assert keys_of(disk, lsn) == KEYS[index:]
        assert keys_of(disk, lsn + 1) == KEYS[index + 1 :]


def test_damage_is_a_stop_and_a_problem(disk: MemoryDisk) -> None:
    disk.content(log_path(1))[4096 + 120] ^= 1
    stops = [item for path, _, item in log_records(disk, "/data") if path == log_path(1) and isinstance(item, Stop)]
    assert [stop.reason for stop in stops] == ["lsn"]
    (problem,) = log_problems(disk, "/data")
    with pytest.raises(CorruptData) as refusal:
        SmallStore(disk)
    assert problem in str(refusal.value)


def test_a_missing_file_is_a_problem(disk: MemoryDisk) -> None:
    disk.unlink(log_path(2))
    (problem,) = log_problems(disk, "/data")
    assert "0000000002.log is missing" in problem


def test_an_empty_directory_has_no_records() -> None:
    disk = MemoryDisk()
    disk.make_dir("/data/log")
    assert keys_of(disk) == []
    assert log_problems(disk, "/data") == []
