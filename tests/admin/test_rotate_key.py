"""`shmkv-admin rotate-key`, and a supervisor whose key is not the one that its store was written with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import shmkv
from shmkv.wal.cipher import key_id_of
from tests.admin.test_admin import Start, admin, document
from tests.conftest import Places

OLD, NEW = bytes(range(32)), bytes(range(32, 64))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    write_keys(path, OLD)
    return path


def write_keys(path: Path, *keys: bytes) -> None:
    path.write_text("".join(f"{key.hex()}\n" for key in keys))
    path.chmod(0o600)


def options(tmp_path: Path, key_file: Path | None) -> tuple[str, ...]:
    keys = () if key_file is None else ("--key-file", str(key_file))
    return ("--data-dir", str(tmp_path / "data"), *keys)


def test_a_new_key_is_made_and_the_old_one_can_go(
    places: Places, supervised: Start, tmp_path: Path, key_file: Path
) -> None:
    name = places.name()
    running = supervised(name, *options(tmp_path, key_file))
    with shmkv.attach(name) as db:
        db["k"] = "a text that must not be readable on disk"
    result = document("-s", name, "rotate-key", "--new", "--json")
    lines = key_file.read_text().splitlines()
    assert lines[1:] == [OLD.hex()]
    assert result["key_id"] == key_id_of(bytes.fromhex(lines[0])).hex()
    assert result["old_key_ids_in_use"] == []
    shown = admin("-s", name, "rotate-key").stdout
    assert result["key_id"] in shown
    assert "they can go" in shown
    assert running.stop()[0] == 0
    for path in (tmp_path / "data").rglob("*"):
        assert path.is_dir() or b"must not be readable" not in path.read_bytes()

    key_file.write_text(lines[0])
    supervised(name, *options(tmp_path, key_file))
    with shmkv.attach(name) as db:
        assert db["k"] == "a text that must not be readable on disk"


def test_what_cannot_be_rotated_says_why(places: Places, supervised: Start, tmp_path: Path, key_file: Path) -> None:
    assert "start it" in admin("-s", places.name(), "rotate-key", check=3).stderr
    memory_only = places.name()
    supervised(memory_only, "--memory-only")
    assert "memory only" in admin("-s", memory_only, "rotate-key", check=1).stderr
    clear = places.name()
    supervised(clear, *options(tmp_path / "clear", None))
    assert "key_file" in admin("-s", clear, "rotate-key", check=1).stderr
    encrypted = places.name()
    supervised(encrypted, *options(tmp_path, key_file))
    write_keys(key_file, NEW)
    text = admin("-s", encrypted, "rotate-key", check=1).stderr
    assert key_id_of(OLD).hex() in text
    assert NEW.hex() not in text
    write_keys(key_file, OLD)


def test_a_supervisor_with_another_key_ends_at_once_and_says_so(
    places: Places, supervised: Start, tmp_path: Path, key_file: Path
) -> None:
    name = places.name()
    assert supervised(name, *options(tmp_path, key_file)).stop()[0] == 0
    write_keys(key_file, NEW)
    code, lines = supervised(name, *options(tmp_path, key_file), ready=False).end()
    assert code == 78
    assert key_id_of(OLD).hex() in lines
    assert NEW.hex() not in lines
    assert not os.path.exists(f"/dev/shm/shmkv.{name}")
    with pytest.raises(shmkv.WrongKey, match=key_id_of(OLD).hex()):
        shmkv.launch(places.name(), data_dir=tmp_path / "data", memory="16MB", key_file=str(key_file))
    write_keys(key_file, NEW, OLD)
    supervised(name, *options(tmp_path, key_file))
