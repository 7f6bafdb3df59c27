"""Snapshots of a real arena: what is written comes back in an arena of any size, whatever goes on meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_disk import MemoryDisk

from shmkv.errors import CorruptData, MemoryLimitExceeded
from shmkv.segment import _core
from shmkv.wal import jobs, snapshot
from shmkv.wal.block import ENTRIES, BlockReader
from shmkv.wal.cipher import Keyring
from shmkv.wal.files import Files
from shmkv.wal.jobs import Cancelled
from shmkv.wal.manifest import SnapshotFacts
from shmkv.wal.snapshot import Identity, load_snapshot, open_snapshot, write_snapshot

PATH = "/data/x.snapshot.tmp"
STORE_ID = bytes(range(16))
FIRST_LSN = 1 << 40
ARENA_BYTES = 16 << 20


class Memory:
    """An arena in memory of its own, and a store on it when it serves."""

    def __init__(self, size_bytes: int = ARENA_BYTES, *, hash_key: bytes | None = None, stripes: int = 0) -> None:
        self.fd = os.memfd_create("shmkv-test", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size_bytes)
        _core.format_arena(
            self.fd,
            size_bytes=size_bytes,
            name="test",
            store_id=STORE_ID,
            incarnation=4,
            first_lsn=FIRST_LSN,
            has_log=False,
            hash_key=hash_key,
            stripes=stripes,
        )
        self.arena = _core.Arena(self.fd)
        self._store: _core.Store | None = None

    @property
    def store(self) -> _core.Store:
        if self._store is None:
            self.arena.set_state(state="READY", durability="none")
            self._store = _core.Store(self.fd, "test", durability="none")
        return self._store

    def contents(self) -> dict[Any, Any]:
        cursor, found = 0, {}
        while cursor != _core.CURSOR_END:
            cursor, pairs = self.store._scan(cursor, True)
            found.update(pairs)
        return found

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        self.arena.close()
        os.close(self.fd)


class Memories:
    def __init__(self) -> None:
        self._made: list[Memory] = []

    def make(self, size_bytes: int = ARENA_BYTES, **options: Any) -> Memory:
        self._made.append(Memory(size_bytes, **options))
        return self._made[-1]

    def close(self) -> None:
        for memory in self._made:
            memory.close()


@pytest.fixture
def memories() -> Iterator[Memories]:
    made = Memories()
    yield made
    made.close()


def write(memory: Memory, files: Files, path: str = PATH, **options: Any) -> SnapshotFacts:
    defaults: dict[str, Any] = {
        "generation": 5,
        "keys": Keyring.none(),
        "compression": "none",
        "wall_ms": lambda: 1_700_000_000_000,
    }
    return write_snapshot(memory.arena, files, path, **{**defaults, **options})


def load(memories: Memories, files: Files, path: str = PATH, *, keys: Keyring | None = None, **options: Any) -> Memory:
    """A new arena with what the file holds."""
    threads = options.pop("threads", 2)
    with open_snapshot(files, path, keys) as reader:
        memory = memories.make(hash_key=reader.info.hash_key, **options)
        load_snapshot(reader, memory.arena, threads=threads)
        memory.arena.set_lsn(reader.footer.end_lsn)
    return memory


def fill(store: _core.Store, count: int) -> dict[str, Any]:
    expected: dict[str, Any] = {f"key{number}": f"{number}:" + "x" * (number % 300) for number in range(count)}
    expected |= {"": 1, "flag": True, "float": 0.5, "none": None, "bytes": b"\0\xff", "big": 1 << 62}
    store.set_many(expected)
    return expected


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("keys", [Keyring.none(), Keyring((bytes(32),))], ids=["clear", "encrypted"])
def test_what_was_written_comes_back(memories: Memories, compression: str, keys: Keyring) -> None:
    disk, old = MemoryDisk(), memories.make()
    expected = fill(old.store, 5000)
    facts = write(old, disk, compression=compression, keys=keys)
    assert (facts.generation, facts.incarnation, facts.entries) == (5, 4, len(expected))
    assert facts.start_lsn == facts.end_lsn == old.arena.ring()["tail"]
    assert not facts.alone, "records may follow"
    assert facts.size_bytes == disk.size_bytes(PATH)
    new = load(memories, disk, keys=keys)
    assert new.contents() == expected
    assert new.arena.audit() == []
    assert new.store._entry("key7") == old.store._entry("key7"), "versions are kept"


@pytest.mark.parametrize("stripes", [16, 64, 256])
@pytest.mark.parametrize("threads", [1, 2, 4, 16])
def test_an_arena_of_another_shape_takes_it(memories: Memories, stripes: int, threads: int) -> None:
    disk, old = MemoryDisk(), memories.make(stripes=64)
    expected = fill(old.store, 3000)
    write(old, disk)
    new = load(memories, disk, size_bytes=32 << 20, stripes=stripes, threads=threads)
    assert new.contents() == expected
    assert new.arena.audit() == []


def test_an_empty_store_has_an_empty_snapshot(memories: Memories) -> None:
    disk = MemoryDisk()
    assert write(memories.make(), disk).entries == 0
    assert load(memories, disk).contents() == {}


def test_an_entry_that_is_larger_than_a_block_gets_one_of_its_own(
    memories: Memories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "BLOCK_BYTES", 4096)
    disk, old = MemoryDisk(), memories.make(64 << 20)
    expected = {f"key{number}": os.urandom(size) for number, size in enumerate((10, 5000, 1 << 20, 200, 70_000, 3))}
    old.store.set_many(expected)
    write(old, disk)
    with BlockReader(disk, PATH) as reader:
        sizes = [len(block.data) for block in reader.blocks(lambda header: header.kind == ENTRIES)]
    assert max(sizes) > 1 << 20
    assert sorted(sizes)[-4] <= 4096
    assert load(memories, disk, size_bytes=64 << 20).contents() == expected


def test_pins_and_expiry_survive(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make()
    old.store.set("pinned", 1, pin=True)
    old.store.set("passing", 2, ttl=1000)
    write(old, disk)
    new = load(memories, disk)
    for key in ("pinned", "passing"):
        assert new.store._entry(key) == old.store._entry(key)


def test_what_was_cleared_is_not_in_it(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make()
    fill(old.store, 1000)
    old.store.clear()
    old.store.set("after", 1)
    write(old, disk)
    assert load(memories, disk).contents() == {"after": 1}


def test_a_walk_beside_writers_misses_nothing_that_was_there_before(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make(64 << 20)
    for start in range(0, 40_000, 1000):
        old.store.set_many({f"still{number}": number for number in range(start, start + 1000)})
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            old.store.set(f"busy{number % 1000}", bytes(number % 2000))
            if number % 3 == 0:
                old.store.delete(f"busy{(number + 500) % 1000}")
            number += 1

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        facts = [write(old, disk, f"{PATH}.{round_}") for round_ in range(3)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for round_, each in enumerate(facts):
        assert each.start_lsn < each.end_lsn
        with BlockReader(disk, f"{PATH}.{round_}") as reader:
            assert reader.footer.highest_version < each.end_lsn
        contents = load(memories, disk, f"{PATH}.{round_}", size_bytes=64 << 20).contents()
        assert {key: value for key, value in contents.items() if key.startswith("still")} == {
            f"still{number}": number for number in range(40_000)
        }


def test_a_retired_arena_gives_a_whole_state_of_its_own(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make()
    expected = fill(old.store, 500)
    old.arena.retire()
    facts = write(old, disk)
    assert facts.alone
    assert facts.start_lsn == facts.end_lsn == old.arena.ring()["tail"]
    assert load(memories, disk).contents() == expected


def test_a_restore_writes_the_identity_of_its_target(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make()
    fill(old.store, 10)
    target = Identity(bytes(range(50, 66)), 9, old.arena.ring()["tail"] + 4096)
    facts = write(old, disk, identity=target)
    assert (facts.incarnation, facts.start_lsn, facts.end_lsn, facts.alone) == (9, target.lsn, target.lsn, True)
    with open_snapshot(disk, PATH) as reader:
        assert reader.header.store_id == target.store_id
        assert snapshot.facts_of(reader, alone=True) == facts


def test_a_store_that_fills_the_arena_comes_back_in_one_of_the_same_size(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make(8 << 20)
    number = 0
    with pytest.raises(MemoryLimitExceeded):
        while True:
            old.store.set(f"key{number}", bytes(number * 37 % 3000))
            number += 1
    expected = old.contents()
    write(old, disk)
    new = load(memories, disk, size_bytes=8 << 20)
    assert new.contents() == expected
    assert new.arena.audit() == []


def test_an_arena_that_is_too_small_is_said_to_be(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make(64 << 20)
    old.store.set_many({f"key{number}": bytes(10_000) for number in range(2000)})
    write(old, disk)
    with pytest.raises(MemoryLimitExceeded):
        load(memories, disk, size_bytes=8 << 20)


@pytest.mark.parametrize("fails", ["create", "write", "sync", "read"])
def test_a_failure_anywhere_leaves_no_file(memories: Memories, fails: str) -> None:
    old = memories.make()
    fill(old.store, 2000)
    whole = MemoryDisk()
    write(old, whole)
    count = sum(operation.startswith(fails) for operation in whole.operations)
    assert count >= 1
    for nth in {0, count // 2, count - 1}:
        disk, left = MemoryDisk(), nth

        def strike(operation: str, _path: str) -> None:
            nonlocal left
            if operation == fails:
                left -= 1
                if left < 0:
                    raise OSError(5, "broken")

        disk.before = strike
        with pytest.raises(OSError, match="broken"):
            write(old, disk)
        assert disk.names("/data") == []
        assert disk.open_files == {}


def test_a_sync_beside_that_fails_leaves_neither_file_nor_thread(memories: Memories, tmp_path: Path) -> None:
    old = memories.make(64 << 20)
    old.store.set_many({f"key{number}": bytes(10_000) for number in range(4000)})
    before = threading.active_count()
    for nth in (0, 1, 2):
        left = nth

        class Broken(Files):
            def fdatasync(self, fd: int) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(5, "broken")
                super().fdatasync(fd)

        with pytest.raises(OSError, match="broken"):
            write(old, Broken(), str(tmp_path / "x.tmp"), spawn=jobs.beside_job)
        assert list(tmp_path.iterdir()) == []
        assert threading.active_count() == before


def test_a_thread_that_syncs_beside_changes_no_byte(memories: Memories, tmp_path: Path) -> None:
    old = memories.make(64 << 20)
    old.store.set_many({f"key{number}": bytes(10_000) for number in range(4000)})
    paths = [tmp_path / name for name in ("beside", "alone")]
    for path, spawn in zip(paths, (jobs.beside_job, None), strict=True):
        write(old, Files(), str(path), spawn=spawn)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_cancelled_one_leaves_no_file(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make()
    fill(old.store, 2000)
    for nth in (0, 5, 16):
        answers = iter([False] * nth + [True])
        with pytest.raises(Cancelled):
            write(old, disk, cancelled=lambda: next(answers))  # noqa: B023
        assert disk.names("/data") == []


def test_what_the_disk_does_not_keep_is_found_at_once(memories: Memories, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, old = MemoryDisk(), memories.make()
    fill(old.store, 2000)
    real = disk.fsync

    def lie(fd: int) -> None:
        real(fd)
        disk.content(PATH)[9000] ^= 1

    monkeypatch.setattr(disk, "fsync", lie)
    with pytest.raises(CorruptData, match="offset"):
        write(old, disk)
    assert disk.names("/data") == []


def test_an_entry_with_a_wrong_checksum_is_never_written(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make()
    fill(old.store, 500)
    marker = b"damage me" * 20
    old.store.set("victim", marker)
    with open(f"/proc/self/fd/{old.fd}", "r+b") as memory:
        at = memory.read().rindex(marker)
        memory.seek(at)
        memory.write(b"X")
    with pytest.raises(CorruptData):
        write(old, disk)
    assert disk.names("/data") == []


def test_progress_goes_up_to_the_end(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make()
    fill(old.store, 5000)
    told: list[tuple[int, int]] = []
    write(old, disk, progress=lambda done, of: told.append((done, of)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    assert all(done <= of for done, of in told)
    loaded: list[tuple[int, int, int]] = []
    with open_snapshot(disk, PATH) as reader:
        new = memories.make(hash_key=reader.info.hash_key)
        load_snapshot(reader, new.arena, progress=lambda *numbers: loaded.append(numbers))
    assert loaded[-1][0] == 5006
    assert [entries for entries, _, _ in loaded] == sorted(entries for entries, _, _ in loaded)


def test_damage_is_found_while_it_is_loaded(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make()
    fill(old.store, 3000)
    write(old, disk)
    disk.content(PATH)[disk.size_bytes(PATH) // 2] ^= 16
    with pytest.raises(CorruptData, match="block"):
        load(memories, disk)


def test_a_backup_is_no_snapshot(memories: Memories) -> None:
    disk, old = MemoryDisk(), memories.make()
    write(old, disk)
    data = disk.content(PATH)
    data[:8] = b"SHMKVBAK"
    data[4092:4096] = _core.crc32c(bytes(data[:4092])).to_bytes(4, "little")
    with pytest.raises(CorruptData, match="no snapshot"):
        open_snapshot(disk, PATH)
    assert disk.open_files == {}


def test_memory_stays_flat_on_the_real_disk(memories: Memories, tmp_path: Path) -> None:
    old = memories.make(256 << 20)
    value = os.urandom(20_000)
    old.store.set_many({f"key{number}": value for number in range(8000)})

    def private_bytes() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

    before = private_bytes()
    path = str(tmp_path / "x.tmp")
    facts = write(old, Files(), path)
    assert facts.size_bytes > 150 << 20
    assert private_bytes() - before < 16 << 20
    with open_snapshot(Files(), path) as reader:
        new = memories.make(256 << 20, hash_key=reader.info.hash_key)
        before = private_bytes()
        load_snapshot(reader, new.arena)
        assert private_bytes() - before < 16 << 20
