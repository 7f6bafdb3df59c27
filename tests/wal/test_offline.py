"""Restore into a directory without processes: what is there, what may be replaced, and a kill at every step of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv.dataclass import replace
from shmkv.errors import CorruptData, StoreExists
from shmkv.wal.cipher import Keyring
from shmkv.wal.files import Files
from shmkv.wal.generations import snapshot_path
from shmkv.wal.manifest import Manifest, read_manifest
from shmkv.wal.offline import Directory, restore_stopped
from shmkv.wal.restore_log import Goal
from tests.conftest import Places
from tests.wal.restoring import PLAN, State, state_of

CHANGING = ("create", "write_all", "fdatasync", "fsync", "fsync_dir", "rename", "unlink", "make_dir", "preallocate")


class Killed(BaseException):
    """The process is gone; nothing catches it."""


class MortalFiles(Files):
    """Dies at the Nth call that changes something, and does nothing from then on."""

    def __init__(self, lives: int) -> None:
        self.lives = lives

    def __getattribute__(self, name: str) -> Any:
        if name in CHANGING:
            self.lives -= 1
            if self.lives < 0:
                raise Killed
        return super().__getattribute__(name)


def directory(path: Path) -> Directory:
    return Directory(str(path), PLAN, Keyring.none())


def manifest_of(path: Path) -> Manifest:
    found = read_manifest(Files(), str(path)).manifest
    assert found is not None
    return found


def held(path: Path) -> State:
    """What the next start would begin with; the newest snapshot needs no log here."""
    newest = manifest_of(path).snapshots[-1]
    assert newest.alone
    return state_of(snapshot_path(str(path), newest.generation))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A stopped store that holds {"new": ...}, and a backup of it that holds {"old": ...}."""
    root = tmp_path_factory.mktemp("stopped")
    with shmkv.launch(memory="16MB", data_dir=root / "data") as db:
        db["old"] = "1"
        db.backup(root / "one.backup")
        db.clear()
        db["new"] = "2"
    return root / "data", root / "one.backup"


@pytest.fixture
def copies(stopped: tuple[Path, Path], tmp_path: Path) -> Callable[[], Path]:
    number = iter(range(1000))

    def copy() -> Path:
        path = tmp_path / str(next(number))
        shutil.copytree(stopped[0], path)
        return path

    return copy


def test_a_directory_that_holds_data_is_replaced_only_by_force(
    stopped: tuple[Path, Path], copies: Callable[[], Path]
) -> None:
    path = copies()
    before = manifest_of(path)
    with pytest.raises(StoreExists, match=r"1 entries in its newest snapshot, 1 log files of \d+ bytes; --force"):
        restore_stopped(Files(), directory(path), str(stopped[1]), Goal())
    assert manifest_of(path) == before
    restore_stopped(Files(), directory(path), str(stopped[1]), Goal(), force=True)
    assert held(path).keys() == {"old"}
    after = manifest_of(path)
    assert after.store_id == before.store_id
    assert after.incarnation > before.incarnation
    assert after.highest_lsn >= before.highest_lsn
    assert after.oldest_file > before.newest_file


@pytest.mark.parametrize("leftover", [None, "lock", "snapshot/0000000001.snapshot.tmp"])
def test_an_empty_directory_becomes_a_new_store(
    stopped: tuple[Path, Path], tmp_path: Path, leftover: str | None
) -> None:
    path = tmp_path / "fresh"
    if leftover is not None:
        (path / leftover).parent.mkdir(parents=True)
        (path / leftover).touch()
    restore_stopped(Files(), directory(path), str(stopped[1]), Goal())
    assert held(path).keys() == {"old"}
    assert manifest_of(path).store_id != manifest_of(stopped[0]).store_id
    assert not list(path.rglob("*.tmp"))


def test_lsns_go_past_an_arena_that_is_given_up(stopped: tuple[Path, Path], copies: Callable[[], Path]) -> None:
    path = copies()
    tail = 1 << 50
    restore_stopped(Files(), directory(path), str(stopped[1]), Goal(), force=True, arena_tail_lsn=tail)
    assert manifest_of(path).highest_lsn >= tail


def test_a_damaged_manifest_can_be_replaced_by_force_only(
    stopped: tuple[Path, Path], copies: Callable[[], Path]
) -> None:
    path = copies()
    for slot in path.glob("manifest.*"):
        slot.write_bytes(b"rubbish")
    with pytest.raises(StoreExists, match="whose manifest is damaged or missing"):
        restore_stopped(Files(), directory(path), str(stopped[1]), Goal())
    restore_stopped(Files(), directory(path), str(stopped[1]), Goal(), force=True)
    assert held(path).keys() == {"old"}


def test_a_second_one_waits_for_the_lock_and_gives_up(stopped: tuple[Path, Path], copies: Callable[[], Path]) -> None:
    path, files = copies(), Files()
    fd = files.lock_dir(str(path / "log"), 1)
    try:
        with pytest.raises(TimeoutError, match="still locked"):
            restore_stopped(files, directory(path), str(stopped[1]), Goal(), force=True)
    finally:
        files.close(fd)


def test_a_kill_at_every_step_leaves_the_old_data_or_the_new(
    stopped: tuple[Path, Path], copies: Callable[[], Path]
) -> None:
    outcomes = []
    for steps in range(200):
        path = copies()
        before = manifest_of(path)
        try:
            restore_stopped(MortalFiles(steps), directory(path), str(stopped[1]), Goal(), force=True)
        except Killed:
            outcomes.append("".join(held(path)))
            if outcomes[-1] == "new":
                assert replace(manifest_of(path), snapshots=()) == replace(before, snapshots=())
            # The next try is not disturbed by what was left.
            restore_stopped(Files(), directory(path), str(stopped[1]), Goal(), force=True)
            assert held(path).keys() == {"old"}
            assert not list(path.rglob("*.tmp"))
            shutil.rmtree(path)
        else:
            break
    else:
        pytest.fail("200 steps and no end")
    switch = outcomes.index("old")
    assert switch > 10
    assert outcomes == ["new"] * switch + ["old"] * (len(outcomes) - switch)


def test_a_refusal_changes_nothing(stopped: tuple[Path, Path], copies: Callable[[], Path], tmp_path: Path) -> None:
    path = copies()
    damaged = tmp_path / "damaged"
    damaged.write_bytes(stopped[1].read_bytes()[:-8])
    before = {each.name: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    with pytest.raises(CorruptData):
        restore_stopped(Files(), directory(path), str(damaged), Goal(), force=True)
    assert {each.name: each.read_bytes() for each in path.rglob("*") if each.is_file()} == before


def test_a_restored_directory_starts(stopped: tuple[Path, Path], copies: Callable[[], Path], places: Places) -> None:
    path = copies()
    restore_stopped(Files(), directory(path), str(stopped[1]), Goal(), force=True)
    highest = manifest_of(path).highest_lsn
    with shmkv.launch(memory="16MB", data_dir=path) as db:
        assert dict(db.items()) == {"old": "1"}
        db["next"] = "3"
        assert db.last_lsn > highest
    with shmkv.launch(memory="64MB", data_dir=path) as db:
        assert dict(db.items()) == {"old": "1", "next": "3"}
