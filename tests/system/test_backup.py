"""Backups of a store that is used: what was acknowledged is in, nothing is torn, whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv import errors
from tests.conftest import ROOT, Places, Supervised, wait_until
from tests.system.programs import Program, numbers, writer

Start = Callable[..., Supervised]
Run = Callable[..., Program]


def prefix_of(db: Any, own: str) -> int:
    """How many writes of that writer are there; fails if one is missing before another."""
    mine = {key: value for key, value in db.items() if key.startswith(f"{own}-")}
    assert mine == {f"{own}-{number}": number for number in range(len(mine))}
    return len(mine)


def test_a_backup_under_load_holds_what_was_acknowledged_before_it_and_nothing_torn(
    places: Places, supervised: Start, program: Run, launched: Callable[..., Any], tmp_path: Path
) -> None:
    name = places.name()
    supervised(name, "--memory", "64MiB", "--ring", "1MiB", "--log-file", "1MiB")
    owns = ["a", "b", "c"]
    with shmkv.attach(name) as db:
        # Enough for the walk to take a while.
        for start in range(0, 20_000, 1000):
            db.set_many({f"old-{number}": "x" * 100 for number in range(start, start + 1000)})
        writers = {own: program(writer, name, own) for own in owns}
        for each in writers.values():
            each.wait_for(50)
        written: dict[str, int] = {}
        for victim in owns:
            before = {own: written.get(own, len(numbers(each.lines))) for own, each in writers.items()}
            killer = threading.Timer(0.02, writers[victim].process.kill)
            killer.start()
            info = db.backup(tmp_path / f"{victim}.backup")
            killer.join()
            written[victim] = len(writers[victim].end()[0])
            with launched(data_dir=tmp_path / f"copy-{victim}", memory="64MB") as copy:
                copy.restore(info.path)
                assert sum(1 for key in copy if key.startswith("old-")) == 20_000
                for own in owns:
                    count = prefix_of(copy, own)
                    assert count >= before[own]
                    # At most one write was done, but not acknowledged, when its writer was killed.
                    assert own not in written or count <= written[own] + 1
            for own in set(owns) - set(written):
                writers[own].more(5)


def test_a_memory_only_store_has_no_snapshots_and_says_so(launched: Callable[..., Any], tmp_path: Path) -> None:
    with launched() as db, pytest.raises(errors.IncompatibleStore, match="memory only"):
        db.snapshot()


def test_a_named_memory_only_store_has_no_snapshots_and_says_so(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name = places.name()
    supervised(name, "--memory-only")
    with shmkv.attach(name) as db:
        db["k"] = 1
        for call in (db.snapshot, lambda: db.backup(tmp_path / "x"), lambda: db.restore(tmp_path / "x")):
            with pytest.raises((errors.IncompatibleStore, FileNotFoundError), match=r"memory only|no such backup"):
                call()
    assert not (tmp_path / "x").exists()


def test_backups_go_to_addresses_and_come_back(places: Places, supervised: Start, tmp_path: Path) -> None:
    name = places.name()
    supervised(name)
    with shmkv.attach(name, timeout=15) as db:
        db["k"] = "old"
        for address in (f"file://{tmp_path}/one.backup", f"memory://{name}/one.backup"):
            info = db.backup(address, compression="zstd")
            db["k"] = "new"
            db.restore(address)
            assert db["k"] == "old"
        assert info.path == address
        assert info.compression == "zstd"
        assert (tmp_path / "one.backup").exists()
        with pytest.raises(FileNotFoundError):
            db.restore("memory://nowhere/x")
        with pytest.raises(ValueError, match="Protocol not known"):
            db.backup("nonsense://x")


def test_a_backup_whose_persister_dies_fails_and_the_next_one_sweeps(
    places: Places, supervised: Start, kill_all: Callable[..., None], tmp_path: Path
) -> None:
    name = places.name()
    supervised(name, "--memory", "64MiB")
    staging = places.state / "shmkv" / name / "backup"
    with shmkv.attach(name) as db:
        db.set_many({f"k{number}": "x" * 5000 for number in range(4000)})
        failures: list[BaseException] = []

        def back_up() -> None:
            try:
                db.backup(tmp_path / "one.backup")
            except errors.ShmkvError as error:
                failures.append(error)

        asking = threading.Thread(target=back_up)
        asking.start()
        wait_until(lambda: staging.exists() and os.listdir(staging), "the backup in the making")
        kill_all("wal.persister")
        asking.join()
        assert "the persister ended before the job was done" in str(failures[0])
        assert not (tmp_path / "one.backup").exists()
        # One of a client that is dead; no process has that id and start time.
        wait_until(lambda: able(db.snapshot), "the next persister")
        (staging / "1-1-7.backup").touch()
        (staging / "of somebody else").touch()
        db.backup(tmp_path / "one.backup")
        assert os.listdir(staging) == ["of somebody else"]


def able(call: Callable[[], Any]) -> bool:
    try:
        call()
    except errors.StoreUnavailable:
        return False
    return True


def test_a_store_that_is_stopped_ends_its_backup_soon_and_leaves_nothing(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name = places.name()
    store = supervised(name, "--memory", "64MiB")
    with shmkv.attach(name) as db:
        db.set_many({f"k{number}": "x" * 5000 for number in range(4000)})
    program = f"import shmkv; shmkv.attach({name!r}).backup({str(tmp_path / 'one.backup')!r})"
    asking = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
    staging = places.state / "shmkv" / name / "backup"
    wait_until(lambda: staging.exists() and os.listdir(staging), "the backup in the making")
    assert store.stop()[0] == 0
    _, lines = asking.communicate(timeout=20)
    if asking.returncode:
        assert b"StoreUnavailable" in lines
        assert not (tmp_path / "one.backup").exists()
    assert os.listdir(staging) == []


def test_an_encrypted_store_has_encrypted_backups_and_goes_along_its_log(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name, plain = places.name(), places.name()
    key = tmp_path / "key"
    key.write_text("ab" * 32 + "\n")
    key.chmod(0o600)
    supervised(name, "--key-file", str(key))
    supervised(plain)
    with shmkv.attach(name, timeout=15) as db, shmkv.attach(plain, timeout=15) as other:
        db["secret"] = "xyzzy-plugh"
        info = db.backup(tmp_path / "one.backup")
        assert info.encrypted
        assert b"xyzzy-plugh" not in (tmp_path / "one.backup").read_bytes()
        db["n"] = 1
        lsn = db.last_lsn
        db["n"] = 2
        db.restore(info.path, to_lsn=lsn)
        assert dict(db.items()) == {"secret": "xyzzy-plugh", "n": 1}
        other["k"] = "v"
        with pytest.raises(errors.WrongKey):
            other.restore(info.path)
        assert other["k"] == "v"
        # The other way round: what was in clear is encrypted from then on.
        clear = other.backup(tmp_path / "clear.backup")
        db.restore(clear.path)
        assert dict(db.items()) == {"k": "v"}
        for file in (places.state / "shmkv" / name / "snapshot").iterdir():
            assert file.read_bytes()[64] != 0


def test_an_interrupted_call_leaves_no_file_and_the_store_goes_on(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name = places.name()
    supervised(name, "--memory", "64MiB")
    staging = places.state / "shmkv" / name / "backup"
    with shmkv.attach(name) as db:
        db.set_many({f"k{number}": "x" * 5000 for number in range(4000)})

        def interrupt(_number: int, _frame: Any) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            for delay_s in (0.02, 0.15):
                signal.setitimer(signal.ITIMER_REAL, delay_s)
                with pytest.raises(KeyboardInterrupt):
                    db.backup(tmp_path / "one.backup")
        finally:
            signal.signal(signal.SIGALRM, before)
        wait_until(lambda: all(job["state"] == "failed" for job in db.stats().service.jobs), "the end of both jobs")
        assert os.listdir(staging) == []
        assert not (tmp_path / "one.backup").exists()
        db.backup(tmp_path / "one.backup")
        assert os.listdir(staging) == []
