"""The persister with keys: from every source, over every kind of restart, and what it says when a key is another."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_persister import RealPersister, RealStore

from shmkv.wal import cipher, rotation
from shmkv.wal.block import BlockReader
from shmkv.wal.cipher import Keyring, KeySettings, UnusableKey, key_id_of
from shmkv.wal.files import Files
from shmkv.wal.inspection import log_problems
from shmkv.wal.log import HEADER_BLOCK_BYTES, LogDirectory

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
SECRET = "a text that must not be readable on disk"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RealStore]:
    real = RealStore(f"waltest-{os.getpid()}-{tmp_path.name[-30:]}", tmp_path / "data")
    real.data_dir.mkdir()
    yield real
    for persister in real.log:
        persister.kill()
    real.forget_arena()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    write_keys(path, OLD)
    return path


def write_keys(path: Path, *keys: bytes) -> None:
    path.write_text("".join(f"{key.hex()}\n" for key in keys))
    path.chmod(0o600)


def serve(store: RealStore, *, created: bool, key_file: Path | None = None, **options: Any) -> dict[str, Any]:
    keys = options.pop("keys", {"file": str(key_file)} if key_file else {})
    return store.serve(created=created, keys=keys, **options)


def put(store: RealStore, *names: str) -> None:
    with contextlib.closing(store.attach()) as client:
        for name in names:
            client.set(name, SECRET)


def cold_again(store: RealStore, **options: Any) -> dict[Any, Any]:
    """The power fails; what the next start finds."""
    store.power_off()
    store.create()
    serve(store, created=True, **options)
    return store.contents()


def end_of(persister: RealPersister) -> tuple[int, str]:
    """Exit code and message of a persister that does not start."""
    failed = persister.wait_for("failed")
    code = persister.end()
    assert code == failed["exit"]
    text = str(failed["error"])
    assert OLD.hex() not in text + persister.stderr
    assert NEW.hex() not in text + persister.stderr
    return code, text


def refused(store: RealStore, *, exit_code: int = 78, **keys: str) -> str:
    """Why a cold start with these keys is refused; 78 = as a matter of configuration."""
    store.power_off()
    store.create()
    code, text = end_of(store.start(created=True, keys=keys))
    assert code == exit_code
    return text


def content_of(folder: Path) -> bytes:
    """Of all files but those that were unfinished when the persister was killed, which a start removes."""
    return b"".join(
        path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".tmp"
    )


def headers_of(store: RealStore) -> list[bytes]:
    """Key ids of all log files and snapshots."""
    files = Files()
    found = [file.header.key_id for file in LogDirectory(files, str(store.data_dir / "log")).log_files() if file.header]
    for path in sorted((store.data_dir / "snapshot").glob("*.snapshot")):
        with BlockReader(files, str(path)) as reader:
            found.append(reader.header.key_id)
    return found


def job(store: RealStore, kind: str, **arguments: Any) -> dict[str, Any]:
    """Run one job; its last event."""
    assert store.persister is not None
    store.persister.order("job", job="test", kind=kind, **arguments)
    while (event := store.persister.wait_for("job"))["state"] == "running":
        pass
    return event


# ---- sources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["file", "environment", "command", "credential"])
def test_a_key_from_each_source_encrypts_and_brings_everything_back(
    store: RealStore, key_file: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAL_TEST_KEY", OLD.hex())
    monkeypatch.setenv(cipher.CREDENTIALS_DIRECTORY, str(key_file.parent))
    value = {"file": str(key_file), "environment": "WAL_TEST_KEY", "command": f"cat {key_file}", "credential": "key"}
    keys = {source: value[source]}
    store.create()
    serve(store, created=True, keys=keys)
    put(store, "one", "two")
    assert store.persister is not None
    command_line = Path(f"/proc/{store.persister.process.pid}/cmdline").read_bytes()
    assert OLD.hex().encode() not in command_line
    assert SECRET.encode() not in content_of(store.data_dir)
    assert OLD not in content_of(store.data_dir)
    assert cold_again(store, keys=keys) == {"one": SECRET, "two": SECRET}
    assert OLD.hex() not in store.log[0].stderr


def test_a_kill_and_a_warm_start_go_on_with_the_key(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True, key_file=key_file)
    put(store, "one")
    assert store.persister is not None
    store.persister.kill()
    assert serve(store, created=False, key_file=key_file)["warm"]
    put(store, "two")
    assert cold_again(store, key_file=key_file) == {"one": SECRET, "two": SECRET}
    assert log_problems(Files(), str(store.data_dir), keys=Keyring((OLD,))) == []


def test_a_clean_stop_leaves_an_encrypted_snapshot(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True, key_file=key_file)
    put(store, "one")
    assert store.persister is not None
    store.persister.order("retire")
    assert store.persister.end() == 0
    assert list((store.data_dir / "snapshot").glob("*.snapshot"))
    assert set(headers_of(store)) == {key_id_of(OLD)}
    assert SECRET.encode() not in content_of(store.data_dir)
    store.forget_arena()
    assert cold_again(store, key_file=key_file) == {"one": SECRET}


# ---- not the key -------------------------------------------------------------------------------------------------


def test_a_start_without_its_key_is_refused_by_name_and_changes_nothing(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True, key_file=key_file)
    put(store, "one")
    store.power_off()
    before = content_of(store.data_dir)
    text = refused(store)
    assert key_id_of(OLD).hex() in text
    assert str(store.log_path(1)) in text
    assert "no key is configured" in text
    write_keys(key_file, NEW)
    assert key_id_of(NEW).hex() in refused(store, file=str(key_file))
    assert content_of(store.data_dir) == before
    write_keys(key_file, NEW, OLD)
    assert cold_again(store, key_file=key_file) == {"one": SECRET}


def test_a_warm_start_with_another_key_is_refused_and_the_arena_lives(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True, key_file=key_file)
    put(store, "one")
    assert store.persister is not None
    store.persister.kill()
    write_keys(key_file, NEW)
    assert end_of(store.start(created=False, keys={"file": str(key_file)}))[0] == 78
    assert store.exists()
    write_keys(key_file, NEW, OLD)
    assert serve(store, created=False, key_file=key_file)["warm"]
    assert store.contents() == {"one": SECRET}


def test_a_source_without_a_key_is_refused_with_its_name(store: RealStore, key_file: Path) -> None:
    assert "chmod 600" in (key_file.chmod(0o644) or refused(store, file=str(key_file)))
    assert "WAL_TEST_NO_KEY" in refused(store, environment="WAL_TEST_NO_KEY")
    # It may work the next time: a store that serves must not end for that.
    assert "exit code 1" in refused(store, exit_code=1, command="false")
    assert "one of them" in refused(store, command="false", environment="WAL_TEST_NO_KEY")


def test_a_changed_frame_is_damage_and_no_wrong_key(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True, key_file=key_file)
    put(store, "one", "two", "three")
    store.power_off()
    content = bytearray(store.log_path(1).read_bytes())
    content[HEADER_BLOCK_BYTES + 50] ^= 1
    store.log_path(1).write_bytes(content)
    store.create()
    code, text = end_of(store.start(created=True, keys={"file": str(key_file)}))
    assert code == 65
    assert f"{store.log_path(1)} is damaged at offset {HEADER_BLOCK_BYTES}" in text


# ---- rotation ----------------------------------------------------------------------------------------------------


def test_rotation_leaves_no_file_with_an_old_key(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True, key_file=key_file)
    put(store, "one")
    write_keys(key_file, NEW, OLD)
    assert job(store, "rotate_key")["result"] == {
        "key_id": key_id_of(NEW).hex(),
        "old_key_ids_in_use": [],
        "snapshots": 2,
        "warning": "",
    }
    assert set(headers_of(store)) == {key_id_of(NEW)}
    put(store, "two")
    write_keys(key_file, NEW)
    assert cold_again(store, key_file=key_file) == {"one": SECRET, "two": SECRET}


def test_rotation_can_make_the_key(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True, key_file=key_file)
    put(store, "one")
    result = job(store, "rotate_key", new=True)["result"]
    made = Keyring.load(KeySettings(file=str(key_file)))
    assert [key_id.hex() for key_id in made.ids] == [result["key_id"], key_id_of(OLD).hex()]
    assert set(headers_of(store)) == {made.current_id}
    assert key_file.stat().st_mode & 0o777 == 0o600
    again = job(store, "rotate_key")["result"]
    assert (again["key_id"], again["snapshots"]) == (result["key_id"], 0)
    assert cold_again(store, key_file=key_file) == {"one": SECRET}


def test_rotation_encrypts_what_was_written_in_clear(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True)
    put(store, "one")
    assert cold_again(store, key_file=key_file) == {"one": SECRET}
    assert SECRET.encode() in content_of(store.data_dir)
    assert job(store, "rotate_key")["result"]["old_key_ids_in_use"] == []
    assert SECRET.encode() not in content_of(store.data_dir)
    assert cold_again(store, key_file=key_file) == {"one": SECRET}


def test_a_source_that_lost_a_needed_key_is_not_taken(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True, key_file=key_file)
    put(store, "one")
    write_keys(key_file, NEW)
    failed = job(store, "rotate_key")
    assert failed["state"] == "failed"
    assert failed["error_kind"] == "WrongKey"
    assert key_id_of(OLD).hex() in failed["error"]
    put(store, "two")
    assert set(headers_of(store)) == {key_id_of(OLD)}
    write_keys(key_file, OLD)
    assert cold_again(store, key_file=key_file) == {"one": SECRET, "two": SECRET}


def test_without_keys_there_is_nothing_to_rotate(store: RealStore) -> None:
    store.create()
    serve(store, created=True)
    failed = job(store, "rotate_key")
    assert (failed["state"], failed["error_kind"]) == ("failed", "WrongKey")
    assert "key_file" in failed["error"]


def test_a_kill_in_a_rotation_leaves_a_store_that_starts(store: RealStore, key_file: Path) -> None:
    store.create()
    serve(store, created=True, key_file=key_file)
    for number in range(6):
        put(store, f"name{number}")
        write_keys(key_file, bytes([number] * 32), *(bytes([old] * 32) for old in range(number)[::-1]), OLD)
        assert store.persister is not None
        store.persister.order("job", job="test", kind="rotate_key")
        # Anywhere in it.
        time.sleep(0.02 * number)
        found = cold_again(store, key_file=key_file)
        assert found == {f"name{known}": SECRET for known in range(number + 1)}


# ---- the key file ------------------------------------------------------------------------------------------------


def test_a_new_key_comes_first_and_the_rest_stays(key_file: Path) -> None:
    key_file.write_text(f"# of last year\n{OLD.hex()} # old\n")
    rotation.add_new_key(str(key_file))
    lines = key_file.read_text().splitlines()
    assert lines[1:] == ["# of last year", f"{OLD.hex()} # old"]
    assert len(bytes.fromhex(lines[0])) == 32
    assert os.listdir(key_file.parent) == ["key"]


def test_a_link_to_the_key_file_stays_a_link(key_file: Path) -> None:
    link = key_file.parent / "link"
    link.symlink_to(key_file)
    rotation.add_new_key(str(link))
    assert link.is_symlink()
    assert len(key_file.read_text().splitlines()) == 2


def test_what_a_kill_left_is_replaced_and_a_failure_leaves_the_file(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Path(f"{key_file}{rotation.NEW_SUFFIX}")
    left.write_text("half")
    rotation.add_new_key(str(key_file))
    before = key_file.read_text()
    assert not left.exists()

    def fail(*_: Any) -> None:
        raise OSError("made up")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="made up"):
        rotation.add_new_key(str(key_file))
    assert key_file.read_text() == before
    assert not left.exists()


def test_only_a_key_file_can_get_a_new_key(key_file: Path) -> None:
    with pytest.raises(UnusableKey, match="without --new"):
        rotation.add_new_key("")
    key_file.write_text("not a key\n")
    with pytest.raises(UnusableKey):
        rotation.add_new_key(str(key_file))
    assert key_file.read_text() == "not a key\n"
