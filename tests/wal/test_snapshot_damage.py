"""Damage of snapshots, manifest and log at a cold start: the spare generation, the log, or a refusal that names it.

The small store has two snapshots, a log that is trimmed to the start of the older one, and records behind the newer.
Right is: the state that was acknowledged, or CorruptData that names the file; with accepted loss an older state, or the
one case that is none, told in numbers; never anything else, and never another state at the next start.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from memory_disk import MemoryDisk
from small_log import SmallStore, log_path, snapshot_file

from shmkv.errors import CorruptData
from shmkv.wal.block_format import HEADER_BLOCK_BYTES
from shmkv.wal.manifest import read_manifest

MANIFESTS = ("/data/manifest.0", "/data/manifest.1")
OLDER, NEWER = snapshot_file(2), snapshot_file(3)
ASIDE = ".damaged"

State = dict[bytes, bytes]


class Image:
    """A disk, what it holds, and the states on the way there by LSN."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.states: list[tuple[int, State]] = []
        store = SmallStore(self.disk)
        for number in range(3):
            self._write(store, f"old{number}", 200)
        store.snapshot()
        for generation in (2, 3):
            for number in range(6):
                self._write(store, f"key{number}", 100 + generation)
            store.delete(f"old{generation - 2}")
            self._note(store)
            store.snapshot(lambda stripe, store=store: self._write(store, f"walk{stripe}", 10))  # type: ignore[misc]
        for number in range(5):
            self._write(store, f"end{number}", 60)
        store.sync()
        self._write(store, "proof", 1)
        store.sync()
        self.state = store.state
        self.facts = store.generations.named

    def _write(self, store: SmallStore, key: str, size_bytes: int) -> None:
        store.append(key, bytes(size_bytes))
        self._note(store)

    def _note(self, store: SmallStore) -> None:
        self.states.append((store.tail, store.state))

    def is_prefix(self, state: State) -> bool:
        return state == {} or any(state == known for _, known in self.states)


@pytest.fixture(scope="module")
def image() -> Image:
    found = Image()
    assert found.disk.names("/data/snapshot") == [OLDER[-19:], NEWER[-19:]]
    assert not found.disk.names("/data/log")[0].startswith("0000000001")
    assert found.facts[-1].start_lsn < found.facts[-1].end_lsn
    return found


def start(disk: MemoryDisk, *, accept_loss: bool = False) -> SmallStore:
    return SmallStore(disk, accept_loss=accept_loss)


def flip(offset: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset] ^= 1 << offset % 8

    return change


def zero(offset: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset : offset + 64] = bytes(len(data[offset : offset + 64]))

    return change


def cut(offset: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[offset:]

    return change


DAMAGES = {"flip": flip, "zero": zero, "cut": cut}


def offsets_of(data: bytearray, step: int) -> list[int]:
    """All behind the header block, some in it: test_block.py looks at every byte of that."""
    return [*range(0, HEADER_BLOCK_BYTES, 256), *range(HEADER_BLOCK_BYTES, len(data), step)]


# ---- snapshots ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("damage", "step"), [("flip", 3), ("zero", 17), ("cut", 13)])
def test_the_spare_generation_takes_the_place_of_a_damaged_newest_one(image: Image, damage: str, step: int) -> None:
    content = image.disk.content(NEWER)
    for offset in offsets_of(content, step):
        disk = image.disk.copy()
        before = bytes(content)
        DAMAGES[damage](offset)(disk.content(NEWER))
        store = start(disk)
        assert store.state == image.state
        if bytes(disk.content(NEWER) if NEWER[-19:] in disk.names("/data/snapshot") else b"") == before:
            continue  # zeros over zeros
        assert store.started.generation == 2
        assert any(NEWER in warning for warning in store.started.warnings)
        assert NEWER[-19:] + ASIDE in disk.names("/data/snapshot")
        again = start(disk)
        assert again.state == image.state
        assert again.started.warnings == ()


def test_a_damaged_spare_generation_changes_nothing(image: Image) -> None:
    disk = image.disk.copy()
    disk.content(OLDER)[5000] ^= 1
    store = start(disk)
    assert (store.state, store.started.generation, store.started.warnings) == (image.state, 3, ())


@pytest.mark.parametrize("gone", [NEWER, OLDER])
def test_a_missing_snapshot_is_as_good_as_a_damaged_one(image: Image, gone: str) -> None:
    disk = image.disk.copy()
    disk.unlink(gone)
    store = start(disk)
    assert store.state == image.state
    assert store.started.generation == (2 if gone == NEWER else 3)


def test_a_snapshot_under_the_name_of_another_is_not_used(image: Image) -> None:
    disk = image.disk.copy()
    disk.content(NEWER)[:] = disk.content(OLDER)
    store = start(disk)
    assert (store.state, store.started.generation) == (image.state, 2)
    assert any("is not the snapshot that the manifest names" in warning for warning in store.started.warnings)


def test_both_damaged_is_refused_whatever_loss_is_accepted(image: Image) -> None:
    disk = image.disk.copy()
    disk.content(NEWER)[5000] ^= 1
    disk.content(OLDER)[5000] ^= 1
    mark = disk.fingerprint()
    for accept_loss in (False, True):
        with pytest.raises(CorruptData, match=r"nothing to start from.*3\.snapshot.*2\.snapshot.*restore a backup"):
            start(disk, accept_loss=accept_loss)
        assert disk.fingerprint() == mark, "a refusal changes nothing"


def test_the_whole_log_takes_the_place_of_a_damaged_first_snapshot() -> None:
    disk = MemoryDisk()
    store = SmallStore(disk)
    for number in range(20):
        store.append(f"key{number}", bytes(100))
    store.snapshot()
    store.append("later")
    store.sync()
    disk.content(snapshot_file(1))[5000] ^= 1
    again = start(disk)
    assert again.state == store.state
    assert again.started.generation is None
    assert any("recovered from the log alone" in warning for warning in again.started.warnings)
    assert again.manifest.snapshots == ()


def test_the_number_of_a_damaged_snapshot_is_not_used_again(image: Image) -> None:
    disk = image.disk.copy()
    disk.content(NEWER)[5000] ^= 1
    store = start(disk)
    assert store.snapshot().generation == 4
    assert [facts.generation for facts in store.generations.named] == [2, 4]
    assert store.snapshot().generation == 5
    assert start(disk).state == image.state


# ---- manifest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_slot_loses_nothing(image: Image, path: str, damage: str) -> None:
    for offset in range(0, len(image.disk.content(path)), 3):
        disk = image.disk.copy()
        DAMAGES[damage](offset)(disk.content(path))
        store = start(disk)
        assert store.state == image.state
        # The slot before the newest names an older pair: one of them is enough.
        assert store.started.generation in (2, 3)


@pytest.mark.parametrize("damage", DAMAGES)
def test_both_slots_damaged_is_refused_and_rebuilt_from_snapshots_and_log(image: Image, damage: str) -> None:
    for offset in range(0, min(len(image.disk.content(path)) for path in MANIFESTS), 11):
        disk = image.disk.copy()
        for path in MANIFESTS:
            DAMAGES[damage](offset)(disk.content(path))
        if read_manifest(disk, "/data").manifest is not None:
            continue  # the unused bytes
        with pytest.raises(CorruptData, match="no valid manifest beside"):
            start(disk)
        store = start(disk, accept_loss=True)
        assert (store.state, store.started.generation) == (image.state, 3)
        again = start(disk)
        assert (again.state, again.started.warnings) == (image.state, ())


def test_both_slots_and_the_newest_snapshot_are_rebuilt_from_the_spare(image: Image) -> None:
    disk = image.disk.copy()
    for path in MANIFESTS:
        disk.unlink(path)
    disk.content(NEWER)[4200] ^= 1
    store = start(disk, accept_loss=True)
    assert (store.state, store.started.generation) == (image.state, 2)


def test_snapshots_alone_are_no_empty_store(image: Image) -> None:
    disk = image.disk.copy()
    for path in [*MANIFESTS, *(f"/data/log/{name}" for name in disk.names("/data/log"))]:
        disk.unlink(path)
    for change in (lambda: None, lambda: disk.content(NEWER).clear(), lambda: disk.content(OLDER).clear()):
        change()
        with pytest.raises(CorruptData, match="no valid manifest beside"):
            start(disk)
    with pytest.raises(CorruptData, match="nothing is left to start from"):
        start(disk, accept_loss=True)


# ---- log ---------------------------------------------------------------------------------------------------------


def log_files(disk: MemoryDisk) -> list[str]:
    return [f"/data/log/{name}" for name in disk.names("/data/log") if name[0] == "0"]


def test_every_missing_log_file_is_refused_or_not_needed(image: Image) -> None:
    refused = []
    for path in log_files(image.disk):
        disk = image.disk.copy()
        disk.unlink(path)
        mark = disk.fingerprint()
        try:
            store = start(disk)
        except CorruptData as problem:
            assert re.search(r"\d{10}\.log is missing|holds LSN \d+ is missing", str(problem))
            assert disk.fingerprint() == mark
            refused.append(path)
            continue
        # Only the spare generation needs it.
        assert store.state == image.state
        assert any("could not take the place" in warning for warning in store.started.warnings)
    assert 0 < len(refused) < len(log_files(image.disk))


def test_accepted_loss_gives_an_older_state_or_says_what_it_gives(image: Image) -> None:
    paths = log_files(image.disk)
    generations = [check_loss(image, paths[keep:], is_some=keep == 0) for keep in range(len(paths))]
    assert set(generations) == {2, 3}


def check_loss(image: Image, lost: list[str], *, is_some: bool) -> int | None:
    """These log files are gone, which may leave a state that is none; the generation that the store came from."""
    disk = image.disk.copy()
    for path in lost:
        disk.unlink(path)
    with pytest.raises(CorruptData):
        start(disk)
    store = start(disk, accept_loss=True)
    warnings = " ".join(store.started.warnings)
    assert "loss accepted" in warnings
    if not image.is_prefix(store.state):
        assert re.search(r"of the \d+ bytes of log from LSN \d+ to \d+ only some records", warnings)
        assert is_some
    served = store.state
    store.append("later")
    store.sync()
    for _ in range(2):
        again = start(disk)
        assert again.state == {**served, b"later": b"v"}
        assert again.started.warnings == ()
    # And the next snapshots have a place to stand on.
    again.snapshot()
    again.snapshot()
    assert start(disk).state == {**served, b"later": b"v"}
    return store.started.generation


def test_every_flipped_byte_of_the_log_is_legal_or_refused_and_can_be_given_up(image: Image) -> None:
    for path in log_files(image.disk):
        for offset in range(HEADER_BLOCK_BYTES, len(image.disk.content(path)), 23):
            disk = image.disk.copy()
            disk.content(path)[offset] ^= 4
            try:
                # The last record was not proved durable: it may count as torn.
                assert start(disk).state in (image.state, image.states[-2][1])
            except CorruptData as problem:
                assert path in str(problem)
                store = start(disk, accept_loss=True)
                if not image.is_prefix(store.state):
                    assert "only some records" in " ".join(store.started.warnings)
                assert start(disk).state == store.state


def test_a_snapshot_that_a_clean_stop_left_needs_no_log(image: Image) -> None:
    disk = image.disk.copy()
    store = start(disk)
    store.append("last")
    store.retire()
    state = store.state
    for path in log_files(disk):
        disk.unlink(path)
    again = start(disk)
    assert (again.state, again.started.generation) == (state, 4)
    again.append("more")
    again.sync()
    assert start(disk).state == {**state, b"more": b"v"}
    # But what followed it is needed.
    disk.unlink(log_path(again.manifest.newest_file))
    with pytest.raises(CorruptData, match="is missing"):
        start(disk)


def test_a_clean_stop_with_a_damaged_snapshot_falls_back_to_the_log(image: Image) -> None:
    disk = image.disk.copy()
    store = start(disk)
    store.retire()
    newest = store.generations.newest()
    assert newest is not None
    assert newest.alone
    disk.content(snapshot_file(newest.generation))[5000] ^= 1
    assert start(disk).state == image.state
