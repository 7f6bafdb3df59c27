"""`shmkv-admin` as it is called: output for people and for machines, exit codes, errors in one line."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv import config, paths
from shmkv.admin import cli
from tests.conftest import ROOT, Places, Supervised, wait_until

Start = Callable[..., Supervised]


def admin(*words: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run one command; an error must be one line on standard error and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "shmkv.admin.cli", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    if check is not None:
        assert done.returncode == check, done
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == (0 if done.returncode == 0 else 1)
    return done


def document(*words: str, check: int = 0) -> Any:
    return json.loads(admin(*words, check=check).stdout)


def test_every_command_with_and_without_json(places: Places, supervised: Start) -> None:
    name = places.name()
    supervised(name)
    assert document("-s", name, "set", "greeting", "hello", "--json") == {"key": "greeting", "set": True}
    assert admin("-s", name, "get", "greeting").stdout == "hello\n"
    assert document("-s", name, "--json", "get", "greeting") == {"key": "greeting", "type": "str", "value": "hello"}
    admin("-s", name, "set", "a:1", "x", "--ttl", "1h")
    assert sorted(admin("-s", name, "keys").stdout.split()) == ["a:1", "greeting"]
    assert document("-s", name, "keys", "a:*", "--json") == ["a:1"]
    assert document("-s", name, "keys", "nothing*", "--json") == []
    assert len(document("-s", name, "keys", "--limit", "1", "--json")) == 1
    assert document("-s", name, "stats", "--json")["items"] == 2
    assert "items" in admin("-s", name, "stats").stdout
    assert any("persister" in client["command"] for client in document("-s", name, "clients", "--json"))
    assert "persister" in admin("-s", name, "clients").stdout
    assert any(store["name"] == name and store["state"] == "READY" for store in document("list", "--json"))
    assert name in admin("list").stdout
    assert all(check["ok"] for check in document("-s", name, "doctor", "--audit", "--json"))
    assert admin("-s", name, "doctor").returncode == 0
    assert {key["key"] for key in document("-s", name, "config", "--json")} == {key.name for key in config.KEYS}
    assert document("-s", name, "del", "greeting", "--json") == {"greeting": True}
    assert document("-s", name, "shutdown", "--json")["ended"] is True
    assert paths.object_inode(name) is None


def test_values_that_json_cannot_hold(places: Places, supervised: Start) -> None:
    name = places.name()
    supervised(name)
    with shmkv.attach(name) as db:
        db["bytes"] = b"\x00\xff"
        db["tuple"] = (1, b"x", {2: "two"})
        db[b"\xff"] = 1
        db["escape"] = "\x1b[31mred"
    assert document("-s", name, "get", "bytes", "--json")["value"] == {"base64": "AP8="}
    assert document("-s", name, "get", "tuple", "--json") == {
        "key": "tuple",
        "type": "tuple",
        "value": [1, {"base64": "eA=="}, [[2, "two"]]],
    }
    assert {"base64": "/w=="} in document("-s", name, "keys", "--json")
    assert admin("-s", name, "get", "tuple").stdout == "(1, b'x', {2: 'two'})\n"
    assert "b'\\xff'" in admin("-s", name, "keys").stdout


def test_exit_codes(places: Places, supervised: Start) -> None:
    name = places.name()
    supervised(name)
    assert "no key 'missing'" in admin("-s", name, "get", "missing", check=1).stderr
    assert "deleted 0 of 1" in admin("-s", name, "del", "missing", check=1).stderr
    admin("-s", name, "set", "k", "v")
    assert "there already" in admin("-s", name, "set", "k", "w", "--if-absent", check=1).stderr
    assert "not there" in admin("-s", name, "set", "l", "w", "--if-present", check=1).stderr
    assert admin("-s", name, "get", "k").stdout == "v\n"
    admin("-s", name, "dance", check=2)
    admin("-s", name, "get", check=2)
    admin("--no-such-option", check=2)
    admin("-s", "../etc", "stats", check=2)
    for command in (["stats"], ["get", "k"], ["clients"], ["doctor"], ["shutdown"]):
        assert "no-such-store" in admin("-s", "no-such-store", *command, check=3).stderr


def test_an_error_names_the_stores_that_there_are(places: Places, supervised: Start) -> None:
    name = places.name()
    supervised(name)
    assert name in admin("-s", "no-such-store", "stats", check=3).stderr


def test_a_store_without_a_supervisor_can_still_be_looked_at(places: Places, supervised: Start) -> None:
    name = places.name()
    store = supervised(name)
    admin("-s", name, "set", "k", "v")
    store.process.kill()
    store.end()
    wait_until(lambda: not places.processes("shmkv.wal"), "the end of the persister")
    assert "reads go on" in admin("-s", name, "stats").stdout
    assert admin("-s", name, "get", "k").stdout == "v\n"
    assert "does not answer" in admin("-s", name, "shutdown", check=3).stderr
    findings = {each["check"]: each for each in document("-s", name, "doctor", "--json", check=1)}
    assert not findings["supervisor"]["ok"]
    assert "shmkv-supervisor" in findings["supervisor"]["remedy"]
    supervised(name)


def test_destroy_needs_a_yes_and_leaves_data_unless_asked(places: Places, supervised: Start) -> None:
    name = places.name()
    store = supervised(name)
    admin("-s", name, "set", "k", "v")
    assert "--yes" in admin("-s", name, "destroy", check=2).stderr
    assert admin("-s", name, "get", "k").stdout == "v\n"
    assert document("-s", name, "destroy", "--yes", "--json") == {"name": name, "removed": True, "data_dir": None}
    assert store.end()[0] == 0
    assert paths.object_inode(name) is None
    assert (places.state / "shmkv" / name / "manifest.0").exists()
    supervised(name)
    assert admin("-s", name, "get", "k").stdout == "v\n"
    admin("-s", name, "destroy", "--data", "--yes")
    assert not (places.state / "shmkv" / name).exists()
    assert "has no shared memory" in admin("-s", name, "destroy", "--yes", check=3).stderr


def test_destroy_does_not_delete_what_is_no_data_directory(places: Places, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    lines = admin(
        "-s", places.name(), "destroy", "--data", "--data-dir", str(tmp_path / "precious"), "--yes", check=1
    ).stderr
    assert "does not look like a data directory" in lines
    assert (tmp_path / "precious" / "file").exists()


def test_destroy_asks_on_a_terminal(places: Places, supervised: Start) -> None:
    name = places.name()
    supervised(name)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "shmkv.admin.cli", "-s", name, "destroy"])
    wait_until(lambda: b"[y/N]" in os.read(terminal, 9999), "the question")
    os.write(terminal, b"n\n")
    _, end = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(end) == 1
    assert paths.object_inode(name) is not None


def test_control_characters_do_not_reach_a_terminal(places: Places, supervised: Start) -> None:
    name = places.name()
    supervised(name)
    with shmkv.attach(name) as db:
        db["escape"] = "\x1b[31mred"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "shmkv.admin.cli", "-s", name, "get", "escape"])
    shown = wait_until(lambda: os.read(terminal, 9999), "the value")
    os.waitpid(pid, 0)
    os.close(terminal)
    assert b"\x1b" not in shown
    assert b"\\x1b[31mred" in shown


def test_a_reader_that_has_enough_is_no_error(places: Places, supervised: Start) -> None:
    name = places.name()
    supervised(name)
    with shmkv.attach(name) as db:
        db.set_many({f"key:{number:06}": None for number in range(20000)})
    command = f"{sys.executable} -m shmkv.admin.cli -s {name} keys | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_the_settings_file_that_config_writes_starts_a_store(places: Places, supervised: Start, tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text(admin("config", "--toml").stdout.replace("# lag_limit = 5.0", "lag_limit = 3.0"))
    name = places.name()
    supervised(name, "--config", str(file))
    assert document("-s", name, "stats", "--json")["lag_limit_ms"] == 3000


def test_a_wrong_variable_is_named_with_the_nearest_key(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMKV_MEMROY", "1GiB")
    assert "did you mean 'memory'" in admin("config", check=2).stderr


def test_help_lists_every_command() -> None:
    lines = admin("--help").stdout
    for command in cli.COMMANDS:
        assert f"  {command} " in lines
    assert admin("get", "--help").returncode == 0


def test_a_stopped_client_is_named_by_the_doctor(places: Places, supervised: Start) -> None:
    name = places.name()
    supervised(name)
    program = (
        f"import shmkv, signal\ndb = shmkv.attach({name!r})\ndb['k'] = 1\nprint('ready', flush=True)\nsignal.pause()"
    )
    client = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert client.stdout is not None
    client.stdout.readline()
    client.send_signal(signal.SIGSTOP)
    findings = {each["check"]: each for each in document("-s", name, "doctor", "--json", check=1)}
    assert str(client.pid) in findings["stopped clients"]["seen"]
    client.kill()
    client.communicate()
