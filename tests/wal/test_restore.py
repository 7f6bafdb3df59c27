"""Restore without a running store: any moment that the log covers, into any size, or a refusal that says why."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv.errors import CorruptData, MemoryLimitExceeded
from shmkv.wal.block import BlockReader
from shmkv.wal.files import Files
from shmkv.wal.log import HEADER_BLOCK_BYTES
from shmkv.wal.restore_log import OutOfReach
from tests.conftest import Places
from tests.wal.restoring import PLAN, Beside, History, state_of

KEYS = [f"key-{number}" for number in range(60)]
SEED = 20


@dataclass
class Past:
    """A store that has lived four times, with a backup from its first life, and all that was ever written."""

    data_dir: Path
    archive: Path
    backup: shmkv.BackupInfo
    history: History
    between: tuple[int, int]
    """Wall clock in ms, and LSN of the last write before it: nothing was written for a while around."""

    @property
    def later(self) -> list[int]:
        """LSNs of the writes that the backup does not hold."""
        return [lsn for lsn, _ in self.history.events if lsn >= self.backup.end_lsn]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    root = tmp_path_factory.mktemp("past")
    chance = random.Random(SEED)
    data_dir, archive = root / "data", root / "archive"
    settings = {"memory": "16MB", "data_dir": data_dir, "archive_dir": str(archive), "log_file": "1MiB"}
    history = History(None)
    with shmkv.launch(**settings) as db:
        history.db = db
        write(history, chance, 300)
        backup = db.backup(root / "first.backup")
        write(history, chance, 200)
        history.clear()
        write(history, chance, 300)
    with shmkv.launch(**settings) as db:
        history.db = db
        write(history, chance, 200)
        tail_lsn = tail_of(db)
        db.sync(timeout=10)
        # A mark follows the last write within about a second; then nothing is written until after that moment.
        wait_until(lambda: tail_of(db) > tail_lsn)
        between = (time.time_ns() // 1_000_000, history.events[-1][0])
        wait_until(lambda: time.time_ns() // 1_000_000 > between[0])
        write(history, chance, 200)
        db.snapshot()
        write(history, chance, 50)
        db.snapshot()
    for _ in range(2):
        with shmkv.launch(**settings) as db:
            history.db = db
            write(history, chance, 100)
    return Past(data_dir, archive, backup, history, between)


def tail_of(db: shmkv.Store) -> int:
    return int(db.stats().numbers["tail"])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def write(history: History, chance: random.Random, count: int) -> None:
    for _ in range(count):
        key = chance.choice(KEYS)
        if key in history.db and chance.random() < 0.3:
            history.delete(key)
        else:
            history.set(**{key: f"{chance.random()}" * chance.randint(1, 20)})


@pytest.fixture
def beside(tmp_path: Path) -> Callable[..., Beside]:
    return lambda name="beside", **identity: Beside(tmp_path / name, **identity)


def test_the_log_was_trimmed_into_the_archive_so_that_a_long_way_needs_both(past: Past) -> None:
    archived = list(past.archive.rglob("*.log"))
    kept = list((past.data_dir / "log").glob("[0-9]*.log"))
    assert archived
    assert {path.name for path in archived}.isdisjoint({path.name for path in kept})


def test_a_backup_alone_is_the_state_at_its_end(past: Past, beside: Callable[..., Beside]) -> None:
    state, facts, told = beside().restore(past.backup.path)
    assert state == past.history.at(past.backup.end_lsn - 1)
    assert (facts.alone, facts.start_lsn, facts.end_lsn) == (True, past.backup.end_lsn, past.backup.end_lsn)
    assert told["lsn"] == past.backup.end_lsn
    assert told["warnings"] == []


def test_fifty_moments_of_a_long_life(past: Past, beside: Callable[..., Beside]) -> None:
    chance, target = random.Random(SEED + 1), beside()
    ends = [past.later[0], past.later[-1]]
    for lsn in [*ends, *chance.sample(past.later, 48)]:
        # A record counts from its first byte on; nothing begins inside of it.
        asked = lsn + chance.choice((0, 1, 31))
        state, facts, told = target.restore(past.backup.path, past.data_dir, past.archive, to_lsn=asked)
        assert state == past.history.at(asked), f"LSN {asked}"
        assert lsn < facts.end_lsn
        assert told["records"] > 0
        Path(target.generations.unfinished_path(facts.generation)).unlink()


def test_a_moment_by_the_clock(past: Past, beside: Callable[..., Beside]) -> None:
    wall_ms, lsn = past.between
    state, _, told = beside().restore(past.backup.path, past.data_dir, past.archive, to_wall_ms=wall_ms)
    assert state == past.history.at(lsn)
    assert told["wall_ms"] <= wall_ms
    assert told["warnings"] == []


def test_a_time_to_come_means_all_there_is(past: Past, beside: Callable[..., Beside]) -> None:
    tomorrow_ms = (int(time.time()) + 86400) * 1000
    state, _, told = beside().restore(past.backup.path, past.data_dir, past.archive, to_wall_ms=tomorrow_ms)
    assert state == past.history.at(past.later[-1])
    assert told["warnings"] == []


def test_a_time_behind_the_end_of_the_log_is_told_in_numbers(past: Past, beside: Callable[..., Beside]) -> None:
    just_now_ms = time.time_ns() // 1_000_000 - 1
    state, _, told = beside().restore(past.backup.path, past.data_dir, past.archive, to_wall_ms=just_now_ms)
    assert state == past.history.at(past.later[-1])
    assert f"{just_now_ms / 1000:.3f} was asked for" in told["warnings"][0]


def test_what_is_before_the_backup_is_out_of_reach_and_both_numbers_are_named(
    past: Past, beside: Callable[..., Beside]
) -> None:
    end_lsn = past.backup.end_lsn
    with pytest.raises(OutOfReach, match=rf"LSN {end_lsn - 1} is before .* LSN {end_lsn}"):
        beside("a").restore(past.backup.path, past.data_dir, to_lsn=end_lsn - 1)
    with pytest.raises(OutOfReach, match=r"time 1\.000 is before"):
        beside("b").restore(past.backup.path, past.data_dir, to_wall_ms=1000)
    with pytest.raises(OutOfReach, match="not both"):
        beside("c").restore(past.backup.path, past.data_dir, to_lsn=end_lsn, to_wall_ms=1000)


def test_what_is_behind_the_log_is_refused(past: Past, beside: Callable[..., Beside]) -> None:
    beyond = past.later[-1] + (1 << 30)
    with pytest.raises(CorruptData, match=rf"ends at LSN \d+ \(life \d+\), LSN {beyond} was asked for"):
        beside().restore(past.backup.path, past.data_dir, past.archive, to_lsn=beyond)


def test_without_the_archive_the_hole_is_named(past: Past, beside: Callable[..., Beside]) -> None:
    with pytest.raises(CorruptData, match=r"log (from LSN \d+ to \d+|of life \d+).* is missing"):
        beside().restore(past.backup.path, past.data_dir, to_lsn=past.later[-1])


def test_a_file_that_is_missing_in_the_middle_is_named(
    past: Past, beside: Callable[..., Beside], tmp_path: Path
) -> None:
    shutil.copytree(past.archive, tmp_path / "archive")
    folder = next((tmp_path / "archive").iterdir())
    gone = sorted(folder.glob("*.log"))[1]
    gone.unlink()
    with pytest.raises(CorruptData, match=r"LSN \d+.* is missing"):
        beside().restore(past.backup.path, past.data_dir, tmp_path / "archive", to_lsn=past.later[-1])


def test_a_record_that_rotted_in_the_archive_ends_nothing_silently(
    past: Past, beside: Callable[..., Beside], tmp_path: Path
) -> None:
    shutil.copytree(past.archive, tmp_path / "archive")
    rotten = sorted(next((tmp_path / "archive").iterdir()).glob("*.log"))[1]
    data = bytearray(rotten.read_bytes())
    data[HEADER_BLOCK_BYTES + 40] ^= 1
    rotten.write_bytes(data)
    with pytest.raises(CorruptData, match=r"is missing: .*0000000002\.log ends there"):
        beside().restore(past.backup.path, past.data_dir, tmp_path / "archive", to_lsn=past.later[-1])


def test_a_folder_that_does_not_exist_is_an_error(past: Past, beside: Callable[..., Beside]) -> None:
    with pytest.raises(FileNotFoundError):
        beside().restore(past.backup.path, past.data_dir / "nowhere", to_lsn=past.later[-1])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_damaged_backup_is_refused_and_leaves_no_file(
    past: Past, beside: Callable[..., Beside], tmp_path: Path, share: float
) -> None:
    data = bytearray(Path(past.backup.path).read_bytes())
    data[int(share * len(data))] ^= 4
    damaged = tmp_path / "damaged"
    damaged.write_bytes(data)
    target = beside()
    with pytest.raises(CorruptData, match=r"damaged"):
        target.restore(str(damaged))
    assert not list(Path(target.path).rglob("*.tmp"))


@pytest.mark.parametrize("cut_bytes", [1, 100, 5000])
def test_a_backup_that_was_cut_is_refused(
    past: Past, beside: Callable[..., Beside], tmp_path: Path, cut_bytes: int
) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(Path(past.backup.path).read_bytes()[:-cut_bytes])
    with pytest.raises(CorruptData):
        beside().restore(str(cut))


def test_a_snapshot_file_can_be_restored_and_needs_its_log_beyond(past: Past, beside: Callable[..., Beside]) -> None:
    newest = sorted((past.data_dir / "snapshot").glob("*.snapshot"))[-1]
    state, _, _ = beside().restore(str(newest))
    assert state == past.history.at(past.later[-1])
    first = sorted((past.data_dir / "snapshot").glob("*.snapshot"))[0]
    with BlockReader(Files(), str(first)) as reader:
        end_lsn = reader.footer.end_lsn
    goal = past.later[-10]
    state, _, _ = beside("again").restore(str(first), past.data_dir, to_lsn=goal)
    assert end_lsn <= goal
    assert state == past.history.at(goal)


def test_what_was_restored_can_be_restored_again(past: Past, beside: Callable[..., Beside]) -> None:
    target = beside()
    state, facts, _ = target.restore(past.backup.path)
    path = target.generations.unfinished_path(facts.generation)
    again, facts_again, _ = beside("again").restore(path)
    assert again == state
    assert facts_again.end_lsn == facts.end_lsn


def test_a_state_of_another_store_continues_no_life_of_this_one(past: Past, beside: Callable[..., Beside]) -> None:
    with BlockReader(Files(), past.backup.path) as reader:
        mine, life = reader.header.store_id, reader.header.incarnation
    _, same, _ = beside("same", store_id=mine, incarnation=9).restore(past.backup.path)
    assert same.incarnation == life
    _, other, _ = beside("other", incarnation=9).restore(past.backup.path)
    assert other.incarnation == 10


def test_a_larger_and_a_smaller_arena_hold_the_same(past: Past, beside: Callable[..., Beside]) -> None:
    for size_bytes in (8 << 20, 128 << 20):
        plan = {**PLAN, "size_bytes": size_bytes}
        state, _, _ = beside(str(size_bytes)).restore(past.backup.path, plan=plan)
        assert state == past.history.at(past.backup.end_lsn - 1)


def test_what_does_not_fit_is_refused_in_numbers_before_anything_is_written(
    launched: Callable[..., Any], places: Places, beside: Callable[..., Beside], tmp_path: Path
) -> None:
    db = launched(memory="64MB", data_dir=tmp_path / "data")
    db.set_many({f"k{number}": "x" * 10_000 for number in range(2000)})
    info = db.backup(tmp_path / "large.backup")
    target = beside()
    with pytest.raises(MemoryLimitExceeded, match=r"holds about 2\d{7} bytes .* memory = 8388608 bytes"):
        target.restore(info.path, plan={**PLAN, "size_bytes": 8 << 20})
    assert not list(Path(target.path).rglob("*.tmp"))
    # It fits in the end, though not on the way.
    db.delete_many([f"k{number}" for number in range(1900)])
    db.sync(timeout=10)
    state, _, _ = beside("later").restore(
        info.path, tmp_path / "data", to_lsn=db.last_lsn, plan={**PLAN, "size_bytes": 8 << 20}
    )
    assert set(state) == {f"k{number}" for number in range(1900, 2000)}


def test_after_a_restore_both_the_old_branch_and_the_new_one_can_be_reached(
    launched: Callable[..., Any], places: Places, beside: Callable[..., Beside], tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    db = launched(data_dir=tmp_path / "data", archive_dir=str(archive))
    history = History(db)
    history.set(common="1")
    info = db.backup(tmp_path / "one.backup")
    history.set(common="2", old="3")
    given_up = history.at(history.events[-1][0])
    old_lsn = history.events[-1][0]
    between = db.backup(tmp_path / "between.backup")
    history.set(old="4")
    db.restore(info.path)
    branch = History(db, history.events[:1])
    branch.set(new="5")
    branch.set(common="6")
    new_lsn = branch.events[-1][0]
    # Both snapshots are of the new life then, and the old log goes into the archive.
    db.snapshot()
    branch.set(new="7")
    db.snapshot()
    db.sync(timeout=10)
    assert [path.name for path in archive.rglob("*.log")] == ["0000000001.log"]
    folders = (tmp_path / "data", archive)
    assert beside("old").restore(info.path, *folders, to_lsn=old_lsn)[0] == given_up
    assert beside("new").restore(info.path, *folders, to_lsn=new_lsn)[0] == branch.at(new_lsn)
    with pytest.raises(CorruptData, match="not on the way to life"):
        beside("no way").restore(between.path, *folders, to_lsn=new_lsn)
    # The running store goes back to what it had given up.
    db.restore(info.path, to_lsn=old_lsn)
    assert {key: db[key] for key in db} == {key: value for key, (_, value) in given_up.items()}


def test_entries_keep_their_versions_and_their_time_to_live(
    launched: Callable[..., Any], places: Places, tmp_path: Path
) -> None:
    db = launched(data_dir=tmp_path / "data")
    db.set("short", "x", ttl=3600)
    db.set("long", "y")
    versions = {key: db.entry(key).version for key in db}
    info = db.backup(tmp_path / "one.backup")
    assert {key: version for key, (version, _) in state_of(info.path).items()} == versions
    db.clear()
    db.restore(info.path)
    assert {key: db.entry(key).version for key in db} == versions
    assert 3500 < db.ttl("short") <= 3600
    assert db.ttl("long") is None
