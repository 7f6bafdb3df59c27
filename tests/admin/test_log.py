"""`shmkv-admin log`: every change as people and machines read it, of a store that runs or is stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv.admin.command_log import text_of, time_text
from tests.admin.test_admin import Start, admin
from tests.conftest import ROOT, Places, wait_until

Launch = Callable[..., Any]


def changes(*words: str, check: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in admin("log", "--json", *words, check=check).stdout.splitlines()]


def write_some(db: shmkv.Store) -> None:
    """One change of each kind."""
    db["text"] = "value"
    db.set("dict", {"a": 1}, expires_at=4_000_000_000, pin=True)
    db.set_many({"one": 1, "two": (1, 2), b"\xff": b"x"})
    del db["text"]
    db["decimal"] = Decimal(1)
    db.clear()
    db["escape\x1b[31m"] = None
    db.sync()


EXPECTED = [
    {"kind": "put", "key": "text", "type": "str", "size_bytes": 5},
    {"kind": "put", "key": "dict", "type": "dict", "size_bytes": 4, "expires_ms": 4_000_000_000_000, "pinned": True},
    {"kind": "put", "key": "one", "type": "int", "size_bytes": 8, "batch": [1, 3]},
    {"kind": "put", "key": "two", "type": "tuple", "size_bytes": 6, "batch": [2, 3]},
    {"kind": "put", "key": {"base64": "/w=="}, "type": "bytes", "size_bytes": 1, "batch": [3, 3]},
    {"kind": "delete", "key": "text", "cause": "user"},
    {"kind": "put", "key": "decimal", "type": "Decimal", "size_bytes": 3},
    {"kind": "clear", "namespace": 0},
    {"kind": "put", "key": "escape\x1b[31m", "type": "NoneType", "size_bytes": 0},
]


def test_every_kind_of_change_of_a_running_and_of_a_stopped_store(places: Places, supervised: Start) -> None:
    name = places.name()
    store = supervised(name)
    with shmkv.attach(name) as db:
        write_some(db)
    running = [json.loads(line) for line in admin("-s", name, "log", "--json").stdout.splitlines()]
    found = [change for change in running if change["kind"] not in ("mark", "end")]
    assert [{key: value for key, value in change.items() if key != "lsn"} for change in found] == EXPECTED
    lsns = [change["lsn"] for change in running]
    assert lsns == sorted(lsns)
    assert running[-1]["kind"] == "end"
    wait_until(
        lambda: '"mark"' in admin("-s", name, "log", "--json").stdout, "the mark that follows when writes have stopped"
    )
    store.stop()
    stopped = [json.loads(line) for line in admin("-s", name, "log", "--json").stdout.splitlines()]
    assert [change for change in stopped if change["kind"] not in ("mark", "end")] == found
    marks = [change for change in stopped if change["kind"] == "mark"]
    assert all(mark["wall_ms"] > 1_700_000_000_000 and mark["durable_lsn"] <= stopped[-1]["lsn"] for mark in marks)
    since = found[5]["lsn"]
    later = changes("--data-dir", str(places.state / "shmkv" / name), "--since", str(since))
    assert later == [change for change in stopped if change["lsn"] >= since]
    text = admin("-s", name, "log").stdout
    assert "\x1b" not in text
    assert "escape\\x1b[31m" in text
    assert "expires 2096-10-02T07:06:40.000Z, pinned" in text
    assert len(text.splitlines()) == len(stopped)


def test_values_of_a_codec_show_its_name(launched: Launch, tmp_path: Path) -> None:
    db = launched(data_dir=str(tmp_path / "data"))
    program = (
        f"import shmkv\nclass P: pass\nshmkv.register_codec(P, 'test.log', lambda p: b'12', lambda d: P())\n"
        f"db = shmkv.attach({db.name!r}); db['p'] = P(); db['q'] = [P()]; db.sync()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
    found = changes("--data-dir", str(tmp_path / "data"))
    assert [change["type"] for change in found if change["kind"] == "put"] == ["codec test.log", "nested"]


def test_damage_is_shown_where_it_is_and_by_the_exit_code(launched: Launch, tmp_path: Path) -> None:
    db = launched(data_dir=str(tmp_path / "data"))
    write_some(db)
    db.close()
    second = launched(data_dir=str(tmp_path / "data"))
    second["later"] = 1
    second.close()
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "data", copy)
    first = sorted(os.listdir(copy / "log"))[0]
    with (copy / "log" / first).open("r+b") as file:
        file.seek(4096 + 60)
        file.write(b"\xff")
    done = admin("log", "--data-dir", str(copy), "--json", check=1)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    (damage,) = [change for change in found if change["kind"] == "damage"]
    assert (damage["offset"], damage["file"]) == (4096, str(copy / "log" / first))
    assert "verify" in done.stderr
    assert any(change.get("key") == "later" for change in found)


def test_what_has_no_log_is_said(places: Places, supervised: Start, tmp_path: Path) -> None:
    name = places.name()
    supervised(name, "--memory-only")
    assert "memory only" in admin("-s", name, "log", check=1).stderr
    assert "does not look like" in admin("log", "--data-dir", str(tmp_path), check=1).stderr
    assert "does not look like" in admin("-s", "no-such-store", "log", check=1).stderr
    admin("log", "--since", "-1", "--data-dir", str(tmp_path), check=2)


@pytest.mark.parametrize(
    ("wall_ms", "text"), [(0, "1970-01-01T00:00:00.000Z"), (4102444800123, "2100-01-01T00:00:00.123Z"), (1 << 62, "ms")]
)
def test_times_are_shown_in_utc(wall_ms: int, text: str) -> None:
    assert time_text(wall_ms).endswith(text)


def test_other_namespaces_and_causes_are_shown() -> None:
    change = {"lsn": 8, "kind": "delete", "key": "k", "cause": "expired", "namespace": 3}
    assert text_of(change).split() == ["8", "delete", "k", "expired,", "namespace", "3"]


def test_the_key_of_an_encrypted_log_comes_from_the_supervisor_or_from_the_option(
    places: Places, supervised: Start, tmp_path: Path
) -> None:
    name, key = places.name(), tmp_path / "key"
    key.write_text("41" * 32 + "\n")
    key.chmod(0o600)
    store = supervised(name, "--key-file", str(key))
    admin("-s", name, "set", "secret", "value", "--durability", "always")
    assert "secret" in admin("-s", name, "log").stdout
    store.stop()
    assert "no key is configured" in admin("-s", name, "log", check=1).stderr
    assert "secret" in admin("-s", name, "log", "--key-file", str(key)).stdout
