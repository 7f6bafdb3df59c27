"""`shmkv-admin snapshot`, `backup` and `restore`: into new, stopped and running stores, by force only where data is."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import shmkv
from tests.conftest import ROOT, Places, Supervised

Start = Callable[..., Supervised]


def admin(*words: str, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one command; an error is one line."""
    done = subprocess.run(
        [sys.executable, "-m", "shmkv.admin.cli", *words], cwd=ROOT, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert done.returncode == check, done
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (1 if check else 0)
    return done


def document(*words: str) -> Any:
    return json.loads(admin(*words, "--json").stdout)


def test_snapshot_backup_restore_of_a_running_store(places: Places, supervised: Start, tmp_path: Path) -> None:
    name, file = places.name(), str(tmp_path / "one.backup")
    supervised(name)
    admin("-s", name, "set", "k", "old")
    snapshot = document("-s", name, "snapshot")
    assert (snapshot["generation"], snapshot["entries"]) == (1, 1)
    assert f"snapshot 2 of {name}: 1 entries" in admin("-s", name, "snapshot").stdout
    assert "1 entries" in admin("-s", name, "backup", file).stdout
    again = document("-s", name, "backup", file, "--compression", "zstd")
    assert (again["path"], again["name"], again["compression"]) == (file, name, "zstd")
    assert again["size_bytes"] == os.stat(file).st_size
    assert os.stat(file).st_mode & 0o777 == 0o600
    admin("verify", file)
    admin("-s", name, "set", "k", "new")
    refusal = admin("-s", name, "restore", file, check=1).stderr
    assert "runs and holds 1 keys; --force" in refusal
    assert admin("-s", name, "get", "k").stdout == "new\n"
    told = admin("-s", name, "restore", file, "--force").stdout
    assert f"all up to LSN {again['end_lsn']}" in told
    assert admin("-s", name, "get", "k").stdout == "old\n"
    stats = document("-s", name, "stats")
    assert stats["service"]["snapshot_lsn"] == again["end_lsn"]
    assert [job["kind"] for job in stats["service"]["jobs"]] == ["snapshot", "snapshot", "backup", "backup", "restore"]
    assert "up to LSN" in admin("-s", name, "stats").stdout


def test_restore_into_a_new_store_and_over_a_stopped_one(places: Places, supervised: Start, tmp_path: Path) -> None:
    name, other, file = places.name(), places.name(), str(tmp_path / "one.backup")
    store = supervised(name)
    admin("-s", name, "set", "k", "old")
    admin("-s", name, "backup", file)
    admin("-s", name, "set", "k", "new")
    store.stop()
    assert "--force replaces all of it" in admin("-s", name, "restore", file, check=1).stderr
    assert "exclude each other" in admin("-s", name, "restore", file, "--to-lsn", "1", "--to-time", "1", check=2).stderr
    told = document("-s", name, "restore", file, "--force")
    assert told["data_dir"] == str(places.state / "shmkv" / name)
    supervised(name)
    assert admin("-s", name, "get", "k").stdout == "old\n"
    told = admin("-s", other, "restore", file).stdout
    assert f"start it: shmkv-supervisor {other}" in told
    supervised(other)
    assert admin("-s", other, "get", "k").stdout == "old\n"


def test_restore_to_a_time_and_what_is_no_time(places: Places, supervised: Start, tmp_path: Path) -> None:
    name, file = places.name(), str(tmp_path / "one.backup")
    supervised(name)
    admin("-s", name, "backup", file)
    admin("-s", name, "set", "k", "1")
    for wrong in ("yesterday", "2030-01-01T00:00:00", "-5"):
        assert "--to-time" in admin("-s", name, "restore", file, f"--to-time={wrong}", "--force", check=2).stderr
    before = admin("-s", name, "restore", file, "--to-time", "2020-01-01T00:00:00Z", "--force", check=1).stderr
    assert "time 1577836800.000 is before the end" in before
    later = datetime(2100, 1, 1, tzinfo=UTC).isoformat()
    told = document("-s", name, "restore", file, "--to-time", later, "--force")
    assert told["records"] >= 1
    assert admin("-s", name, "get", "k").stdout == "1\n"


def test_an_arena_that_outlived_its_supervisor_is_data_too(places: Places, supervised: Start, tmp_path: Path) -> None:
    name, file = places.name(), str(tmp_path / "one.backup")
    store = supervised(name)
    admin("-s", name, "set", "k", "old")
    admin("-s", name, "backup", file)
    with shmkv.attach(name, timeout=15) as db:
        store.process.kill()
        store.end()
        db["k"] = "only in memory"
        last_lsn = db.last_lsn
        assert "still there, though no supervisor runs" in admin("-s", name, "restore", file, check=1).stderr
        admin("-s", name, "restore", file, "--force")
        supervised(name)
        assert db["k"] == "old"
        db["l"] = 1
        assert db.last_lsn > last_lsn + (1 << 40)


def test_what_can_not_be_done_is_said_in_one_line(places: Places, supervised: Start, tmp_path: Path) -> None:
    name = places.name()
    assert "does not exist; make it first" in admin("-s", name, "backup", str(tmp_path / "a" / "b"), check=1).stderr
    assert "no supervisor" in admin("-s", name, "backup", str(tmp_path / "b"), check=3).stderr
    assert "no supervisor" in admin("-s", name, "snapshot", check=3).stderr
    assert "name it with -s" in admin("restore", str(tmp_path / "b"), check=2).stderr
    assert "no such backup" in admin("-s", name, "restore", str(tmp_path / "b"), check=1).stderr
    supervised(name)
    (tmp_path / "precious").write_text("my thesis")
    assert "nothing was overwritten" in admin("-s", name, "backup", str(tmp_path / "precious"), check=1).stderr
    assert (tmp_path / "precious").read_text() == "my thesis"
    refusal = admin("-s", name, "restore", str(tmp_path / "precious"), "--force", check=1).stderr
    assert "neither b'SHMKVSNP' nor b'SHMKVBAK'" in refusal or "only 9 of the 4096" in refusal
    assert "leave memory out" in admin("-s", name, "restore", "x", "--force", "--memory", "1GiB", check=2).stderr


def test_too_little_memory_is_refused_in_numbers(places: Places, supervised: Start, tmp_path: Path) -> None:
    name, other, file = places.name(), places.name(), str(tmp_path / "one.backup")
    supervised(name, "--memory", "64MiB")
    with shmkv.attach(name) as db:
        db.set_many({f"k{number}": "x" * 10_000 for number in range(2000)})
    admin("-s", name, "backup", file)
    refusal = admin("-s", other, "restore", file, "--memory", "8MiB", check=1).stderr
    assert "memory = 8388608 bytes leaves room for" in refusal
    assert not list((places.state / "shmkv" / other).rglob("*.snapshot*"))
    admin("-s", other, "restore", file, "--memory", "64MiB")


def test_a_terminal_sees_a_bar_and_standard_output_stays_clean(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name = places.name()
    supervised(name)
    ours, theirs = pty.openpty()
    words = ["-s", name, "backup", str(tmp_path / "one.backup")]
    done = subprocess.run(
        [sys.executable, "-m", "shmkv.admin.cli", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, timeout=60
    )
    os.close(theirs)
    assert done.returncode == 0
    assert b"entries of" in done.stdout
    assert done.stdout.count(b"\n") == 1
    shown = os.read(ours, 65536)
    os.close(ours)
    assert b"backup" in shown
