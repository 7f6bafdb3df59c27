"""Restores over a store that runs: its users go on; all of the old data or all of the new, whoever dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import shmkv
from shmkv import errors
from tests.conftest import ROOT, Places, Supervised, wait_until
from tests.system.programs import Program, writer

Start = Callable[..., Supervised]
Run = Callable[..., Program]

RESTORER = "import sys, shmkv; shmkv.attach(sys.argv[1], timeout=20).restore(sys.argv[2])"


def restore_by(name: str, path: str | Path) -> subprocess.Popen[bytes]:
    """A process that restores and ends."""
    words = [sys.executable, "-c", RESTORER, name, str(path)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_handles_and_programs_go_on_with_the_restored_data(
    places: Places, supervised: Start, program: Run, tmp_path: Path
) -> None:
    name = places.name()
    supervised(name)
    with shmkv.attach(name, timeout=15) as db, shmkv.attach(name, timeout=15, read_only=True) as reader:
        db["k"] = "old"
        info = db.backup(tmp_path / "one.backup")
        lsn = db.last_lsn
        other = program(writer, name, "w")
        other.wait_for(20)
        db["k"] = "new"
        told = db.restore(info.path)
        assert told.lsn == info.end_lsn
        assert db["k"] == reader["k"] == "old"
        db["more"] = 1
        assert db.last_lsn > lsn + (1 << 40)
        assert reader["more"] == 1
        other.more(20)
        assert other.process.poll() is None
        stats = db.stats()
        assert stats.service is not None
        assert stats.service.snapshot_lsn == info.end_lsn
        with pytest.raises(errors.ReadOnly):
            reader.restore(info.path)


def test_what_is_in_the_way_of_a_restore_is_said_and_nothing_changes(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name = places.name()
    supervised(name)
    with shmkv.attach(name) as db:
        db["k"] = 1
        info = db.backup(tmp_path / "one.backup")
        damaged = tmp_path / "damaged"
        data = bytearray(Path(info.path).read_bytes())
        data[-100] ^= 1
        damaged.write_bytes(data)
        db["k"] = 2
        with pytest.raises(errors.CorruptData, match="damaged at offset"):
            db.restore(damaged)
        with pytest.raises(FileNotFoundError):
            db.restore(tmp_path / "nothing")
        with pytest.raises(ValueError, match=rf"LSN 7 is before .* LSN {info.end_lsn}"):
            db.restore(info.path, to_lsn=7)
        assert db["k"] == 2
        assert os.listdir(places.state / "shmkv" / name / "backup") == []


def test_a_point_in_time_of_a_running_store(places: Places, supervised: Start, tmp_path: Path) -> None:
    name = places.name()
    supervised(name)
    with shmkv.attach(name, timeout=15) as db:
        info = db.backup(tmp_path / "one.backup")
        lsns = []
        for number in range(10):
            db["n"] = number
            lsns.append(db.last_lsn)
        db.sync(timeout=10)
        db.restore(info.path, to_lsn=lsns[6])
        assert db["n"] == 6


def test_a_point_in_time_before_anything_was_archived(places: Places, supervised: Start, tmp_path: Path) -> None:
    name = places.name()
    supervised(name, "--archive-dir", str(tmp_path / "archive"))
    with shmkv.attach(name, timeout=15) as db:
        path = db.backup(tmp_path / "one.backup").path
        db["k"] = "wanted"
        lsn = db.last_lsn
        db["k"] = "later"
        db.restore(path, to_lsn=lsn)
        assert db["k"] == "wanted"
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize("victim", ["wal.persister", "supervisor", ""], ids=["persister", "supervisor", "all"])
def test_a_restore_that_is_killed_in_the_middle_leaves_the_old_data_or_the_new(
    places: Places, supervised: Start, kill_all: Callable[..., None], tmp_path: Path, victim: str
) -> None:
    name = places.name()
    store = supervised(name, "--memory", "64MiB")
    old = {f"k{number}": "old" * 300 for number in range(5000)}
    new = {f"k{number}": "new" * 200 for number in range(2500, 8000)}
    with shmkv.attach(name, timeout=15) as db:
        db.set_many(old)
        info = db.backup(tmp_path / "one.backup")
        db.clear()
        db.set_many(new)
    chance, seen = random.Random(7), set()
    for _ in range(4):
        restorer = restore_by(name, info.path)
        time.sleep(0.15 + chance.random() * 0.6)
        kill_all(victim)
        if victim != "wal.persister":
            store.end()
            restorer.communicate()
            wait_until(lambda: not places.processes("shmkv."), "the end of the children")
            store = supervised(name, "--memory", "64MiB")
        else:
            restorer.communicate()
        with shmkv.attach(name, timeout=15) as db:
            found = dict(db.items())
            assert found in (old, new)
            seen.add("old" if found == old else "new")
            db.clear()
            db.set_many(new)
            db.sync(timeout=20)
    assert store.stop(signal.SIGTERM)[0] == 0


def test_a_stop_in_the_middle_of_a_restore_is_clean_and_leaves_the_old_data_or_the_new(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name = places.name()
    old = {f"k{number}": "old" * 300 for number in range(5000)}
    new = {f"k{number}": "new" * 200 for number in range(2500, 8000)}
    chance = random.Random(11)
    for _ in range(3):
        store = supervised(name, "--memory", "64MiB")
        with shmkv.attach(name, timeout=15) as db:
            if not (tmp_path / "one.backup").exists():
                db.set_many(old)
                db.backup(tmp_path / "one.backup")
            db.clear()
            db.set_many(new)
            restorer = restore_by(name, tmp_path / "one.backup")
            time.sleep(0.2 + chance.random() * 0.5)
            assert store.stop()[0] == 0
            restorer.communicate(timeout=20)
        again = supervised(name, "--memory", "64MiB")
        with shmkv.attach(name, timeout=15) as db:
            assert dict(db.items()) in (old, new)
        assert again.stop()[0] == 0


def test_what_is_asked_while_a_restore_switches_is_served_after_it(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name = places.name()
    supervised(name)
    with shmkv.attach(name, timeout=15) as db:
        db["n"] = 0
        info = db.backup(tmp_path / "one.backup")
        stop = threading.Event()
        done: list[int] = []

        def attach_again_and_again() -> None:
            while not stop.is_set():
                with shmkv.attach(name, timeout=15) as mine:
                    mine["other"] = 1
                    assert mine["n"] == 0
                    done.append(1)

        asking = threading.Thread(target=attach_again_and_again)
        asking.start()
        for _ in range(3):
            before = len(done)
            db.restore(info.path)
            wait_until(lambda before=before: len(done) > before + 2, "new handles")
        stop.set()
        asking.join(20)
        assert not asking.is_alive()
