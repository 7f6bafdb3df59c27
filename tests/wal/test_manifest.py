"""The manifest: one of the two slots is always whole, and single damage changes nothing."""

from __future__ import annotations

import errno
import threading

import pytest
from memory_disk import Fault, MemoryDisk, none_kept, some_kept

from shmkv.dataclass import replace
from shmkv.wal.manifest import (
    BadSlot,
    Manifest,
    ManifestSlots,
    SnapshotFacts,
    pack_slot,
    read_manifest,
    unpack_slot,
)

MANIFEST = Manifest(
    store_id=bytes(range(16)),
    incarnation=7,
    first_lsn=7 << 40,
    highest_lsn=(7 << 40) + 12345,
    watermark=(7 << 40) + 12000,
    oldest_file=3,
    newest_file=21,
    seals=((5, 123456), (6, 234567)),
    disowned=((11, 12),),
    clean=True,
    snapshots=(
        SnapshotFacts(4, 6 << 40, (6 << 40) + 99, 6, entries=12, size_bytes=5000, wall_ms=1),
        SnapshotFacts(5, 7 << 40, 7 << 40, 7, entries=13, size_bytes=6000, wall_ms=2, alone=True),
    ),
)
SLOTS = ("/data/manifest.0", "/data/manifest.1")


def publish(disk: MemoryDisk, manifest: Manifest) -> None:
    ManifestSlots(disk, "/data", read_manifest(disk, "/data")).publish(manifest)


def numbered(highest_lsn: int) -> Manifest:
    return Manifest(bytes(16), 1, 1, highest_lsn)


def test_a_slot_comes_back_as_it_was() -> None:
    assert unpack_slot(pack_slot(MANIFEST, 99)) == (99, MANIFEST)


def test_bytes_behind_the_body_do_not_count() -> None:
    assert unpack_slot(pack_slot(MANIFEST, 1) + b"rest of a longer one") == (1, MANIFEST)


def test_every_truncation_of_a_slot_is_refused() -> None:
    data = pack_slot(MANIFEST, 1)
    for length in range(len(data)):
        with pytest.raises(BadSlot):
            unpack_slot(data[:length])


def test_every_flipped_byte_of_a_slot_is_refused_or_unused() -> None:
    data = pack_slot(MANIFEST, 1)
    for offset in range(len(data)):
        broken = bytearray(data)
        broken[offset] ^= 1 << offset % 8
        try:
            assert unpack_slot(bytes(broken)) == (1, MANIFEST)
            assert 28 <= offset < 32, "only the spare bytes may be anything"
        except BadSlot:
            pass


def test_another_format_version_is_named() -> None:
    data = bytearray(pack_slot(MANIFEST, 1))
    data[8] = 2
    with pytest.raises(BadSlot):
        unpack_slot(bytes(data))


def test_the_higher_counter_wins_and_slots_alternate() -> None:
    disk = MemoryDisk()
    for number in range(5):
        publish(disk, numbered(number))
        read = read_manifest(disk, "/data")
        assert (read.manifest, read.counter, read.newest_slot) == (numbered(number), number + 1, number % 2)


@pytest.mark.parametrize("slot", SLOTS)
def test_one_damaged_slot_is_reported_and_the_other_one_used(slot: str) -> None:
    disk = MemoryDisk()
    publish(disk, MANIFEST)
    publish(disk, MANIFEST)
    disk.content(slot)[40] ^= 1
    read = read_manifest(disk, "/data")
    assert read.manifest == MANIFEST
    (problem,) = read.problems
    assert slot in problem
    publish(disk, numbered(3))
    assert read_manifest(disk, "/data").problems == (), "the damaged slot is written first"
    assert read_manifest(disk, "/data").manifest == numbered(3)


def test_no_power_cut_loses_a_published_manifest() -> None:
    for operation in range(8):
        disk = MemoryDisk()
        publish(disk, numbered(1))
        publish(disk, numbered(2))
        disk.before = Fault(
            operation, operations=("create", "open", "write", "sync", "sync_dir"), code=errno.EIO, for_ever=True
        )
        published = 2
        try:
            publish(disk, numbered(3))
            published = 3
        except OSError:
            pass
        disk.before = lambda _operation, _path: None
        for seed in range(16):
            survivor = disk.after_power_cut(none_kept if seed == 0 else some_kept((operation, seed)))
            found = read_manifest(survivor, "/data").manifest
            assert found in (numbered(published), numbered(3))


def test_a_failed_publication_can_be_repeated() -> None:
    for nth in range(6):
        disk = MemoryDisk()
        publish(disk, numbered(1))
        slots = ManifestSlots(disk, "/data", read_manifest(disk, "/data"))
        disk.before = Fault(nth, operations=("create", "open", "write", "sync", "sync_dir"), code=errno.EIO)
        try:
            slots.publish(numbered(2))
        except OSError:
            assert slots.manifest == numbered(1)
            slots.publish(numbered(2))
        assert read_manifest(disk.after_power_cut(none_kept), "/data").manifest == numbered(2)


def test_no_slot_is_no_manifest() -> None:
    read = read_manifest(MemoryDisk(), "/data")
    assert (read.manifest, read.problems) == (None, ())


def stops(disk: MemoryDisk, manifest: Manifest) -> list[MemoryDisk]:
    """The disk before each operation of a publication, and after it."""
    found: list[MemoryDisk] = []
    disk.before = lambda _operation, _path: found.append(disk.copy())
    publish(disk, manifest)
    return [*found, disk.copy()]


def test_no_power_cut_after_a_kill_loses_a_published_manifest() -> None:
    """The slot that the killed process had written may be in the page cache only when the next one writes the other."""
    disk = MemoryDisk()
    for number in (1, 2, 3):
        publish(disk, numbered(number))
    for kill, killed in enumerate(stops(disk, numbered(4))):
        for cut, stopped in enumerate(stops(killed, numbered(5))):
            for seed in range(150):
                survivor = stopped.after_power_cut(none_kept if seed == 0 else some_kept((kill, cut, seed)))
                found = read_manifest(survivor, "/data").manifest
                assert found in (numbered(3), numbered(4), numbered(5)), f"killed at {kill}, cut at {cut}"


def test_updates_of_two_threads_never_undo_each_other() -> None:
    disk = MemoryDisk()
    publish(disk, numbered(0))
    slots = ManifestSlots(disk, "/data", read_manifest(disk, "/data"))

    def count(name: str) -> None:
        for _ in range(200):
            slots.update(lambda manifest: replace(manifest, **{name: getattr(manifest, name) + 1}))

    threads = [threading.Thread(target=count, args=(name,)) for name in ("highest_lsn", "newest_file")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_manifest(disk, "/data").manifest
    assert found is not None
    assert (found.highest_lsn, found.newest_file) == (200, 200)
