"""`shmkv-admin verify`: what is whole is called good up to where, what is not is called bad, with its place."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmkv.admin.verification import Verdict, Verifier
from shmkv.dataclass import replace
from shmkv.errors import CorruptData
from shmkv.wal.cipher import Keyring
from shmkv.wal.files import Files
from shmkv.wal.log import pack_file_header
from shmkv.wal.recovery import LSN_GAP
from tests.admin.test_admin import Start, admin
from tests.admin.test_log import write_some
from tests.conftest import Places
from tests.golden import make

Launch = Callable[..., Any]
GOLDEN = Path(make.__file__).parent
KINDS = {name: name.partition(".")[0].partition("-")[0] for name in make.FILES if name != "key" and "value" not in name}


def look(path: Path, keys: Keyring | None = None) -> list[Verdict]:
    return list(Verifier(keys or Keyring.none()).look(str(path)))


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_changed_byte_anywhere_is_found(name: str, tmp_path: Path) -> None:
    """With and without the key; only zeros behind the end of a log, and bytes in unused places, are nobody's."""
    whole = (GOLDEN / name).read_bytes()
    copy = tmp_path / name
    chance = random.Random(name)
    # All of the header's fields, and some of the rest.
    places = [*range(0, min(160, len(whole)), 3), *(chance.randrange(len(whole)) for _ in range(150))]
    for at in places:
        changed = bytearray(whole)
        changed[at] ^= 1 << chance.randrange(8)
        copy.write_bytes(changed)
        for keys in (Keyring.none(), make.keyring()):
            (verdict,) = look(copy, keys)
            if KINDS[name] == "export":
                continue  # text without checksums: a changed letter of a value is a value
            if KINDS[name] == "manifest" and 28 <= at < 32:
                continue  # unused
            torn = KINDS[name] == "log" and any("torn tail" in note for note in verdict.notes)
            assert not verdict.is_good or torn, (at, verdict)
            assert verdict.bad_offset is None or verdict.bad_offset <= at


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_file_that_was_cut_is_found(name: str, tmp_path: Path) -> None:
    whole = (GOLDEN / name).read_bytes()
    copy = tmp_path / name
    for length in {0, 1, 7, 8, 15, 100, 4095, 4096, 4097, len(whole) // 2, len(whole) - 1}:
        if length < len(whole):
            copy.write_bytes(whole[:length])
            (verdict,) = look(copy, make.keyring())
            assert not verdict.is_good, length
            assert verdict.size_bytes == length


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name] in ("snapshot", "backup")])
def test_what_follows_the_footer_is_found(name: str, tmp_path: Path) -> None:
    copy = tmp_path / name
    copy.write_bytes((GOLDEN / name).read_bytes() + b"\0" * 8)
    (verdict,) = look(copy)
    assert not verdict.is_good


def test_a_disk_that_cannot_read_is_a_finding_with_its_place() -> None:
    class BadDisk(Files):
        def read_into(self, fd: int, view: memoryview, offset: int) -> int:
            raise OSError(5, "Input/output error")

    for name in ("snapshot.v1", "log.v1"):
        (verdict,) = Verifier(Keyring.none(), files=BadDisk()).look(str(GOLDEN / name))
        assert (verdict.is_good, verdict.bad_offset) == (False, 0)
        assert "cannot be read at offset 0: Input/output error" in verdict.problems[0]


def test_other_files_are_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "empty"):
        (verdict,) = look(tmp_path / name)
        assert verdict.kind == "unknown"
        assert "is no snapshot" in verdict.problems[0]
    (verdict,) = look(tmp_path)
    assert "no data directory" in verdict.problems[0]
    with pytest.raises(FileNotFoundError):
        look(tmp_path / "nothing")


# ---- data directories --------------------------------------------------------------------------------------------


@pytest.fixture
def data(launched: Launch, tmp_path: Path) -> Path:
    """A directory in which a store has lived twice."""
    for life in range(2):
        db = launched(data_dir=str(tmp_path / "data"))
        write_some(db)
        db["life"] = life
        db.close()
    return tmp_path / "data"


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x55]))


def bad_ones(path: Path) -> dict[str, Verdict]:
    return {Path(verdict.file).name: verdict for verdict in look(path) if not verdict.is_good}


def test_a_whole_directory_is_good(data: Path) -> None:
    verdicts = look(data)
    assert all(verdict.is_good for verdict in verdicts), verdicts
    kinds = [verdict.kind for verdict in verdicts]
    assert kinds[:2] == ["manifest", "manifest"]
    assert set(kinds) == {"manifest", "snapshot", "log"}
    ends = [verdict.end_lsn or 0 for verdict in verdicts if verdict.kind == "log"]
    assert all(end > LSN_GAP for end in ends)
    assert ends == sorted(ends)


def test_each_damaged_file_is_named_and_the_others_are_good(data: Path, tmp_path: Path) -> None:
    counted = [Path(verdict.file) for verdict in look(data)]
    for path in counted:
        copy = tmp_path / "copy"
        shutil.copytree(data, copy)
        target = copy / path.relative_to(data)
        flip(target, 40 if target.name.startswith("manifest") else 4096 + 60)
        assert list(bad_ones(copy)) == [target.name]
        shutil.rmtree(copy)


def test_a_missing_file_is_named(data: Path) -> None:
    last = sorted(path for path in (data / "log").iterdir() if path.suffix == ".log")[-1]
    last.unlink()
    (problem,) = [verdict.problems[0] for verdict in bad_ones(data).values()]
    assert last.name in problem
    snapshot = sorted((data / "snapshot").iterdir())[-1]
    snapshot.unlink()
    assert snapshot.name in bad_ones(data)


def test_a_directory_without_a_manifest_is_bad_and_its_files_are_looked_at(data: Path) -> None:
    for slot in ("manifest.0", "manifest.1"):
        (data / slot).unlink()
    verdicts = look(data)
    assert [verdict.kind for verdict in verdicts if not verdict.is_good] == ["manifest"]
    assert any(verdict.kind == "log" and verdict.is_good for verdict in verdicts)


def test_a_snapshot_of_another_time_is_not_the_one_that_counts(data: Path) -> None:
    older, newer = sorted((data / "snapshot").iterdir())[-2:]
    shutil.copyfile(older, newer)
    (verdict,) = bad_ones(data).values()
    assert "not the one that the manifest names" in verdict.problems[0]


def test_a_folder_of_log_files_is_looked_at_file_by_file(tmp_path: Path) -> None:
    """An archive: two files of one life, and the first one of the next."""
    data, middle = make.plain_log(), 64 + 72
    head = make.LOG_HEADER
    second = replace(
        head,
        number=18,
        first_lsn=head.first_lsn + middle,
        previous_incarnation=3,
        previous_end_lsn=head.first_lsn + middle,
    )
    third = replace(
        head, number=19, incarnation=4, first_lsn=1 << 42, previous_incarnation=3, previous_end_lsn=make.END_LSN
    )
    files = [tmp_path / f"00000000{number}.log" for number in (17, 18, 19)]
    for file, header, part in zip(files, (head, second, third), (data[:middle], data[middle:], b""), strict=True):
        file.write_bytes((pack_file_header(header) + part).ljust(header.size_bytes, b"\0"))
    (tmp_path / "spare.1").write_bytes(b"\0")
    verdicts = look(tmp_path)
    assert [verdict.file for verdict in verdicts] == [str(file) for file in files]
    assert all(verdict.is_good for verdict in verdicts), verdicts
    assert [verdict.end_lsn for verdict in verdicts] == [second.first_lsn, make.END_LSN, third.first_lsn]
    # The next file knows where this one ended: what would be a torn tail is damage.
    for file in files[:2]:
        whole = file.read_bytes()
        file.write_bytes(whole[:4096].ljust(len(whole), b"\0"))
        assert list(bad_ones(tmp_path)) == [file.name]
        file.write_bytes(whole)
    files[1].unlink()
    assert [verdict.notes for verdict in look(tmp_path)] == [("files 18 to 18 are not there",), ()]


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_with_and_without_json(places: Places, supervised: Start, tmp_path: Path) -> None:
    name = places.name()
    supervised(name)
    admin("-s", name, "set", "k", "v")
    running = str(places.state / "shmkv" / name)
    assert all(verdict["good"] for verdict in json.loads(admin("verify", running, "--json").stdout))
    good, bad = tmp_path / "good", tmp_path / "bad"
    shutil.copyfile(GOLDEN / "backup.v1", good)
    shutil.copyfile(GOLDEN / "backup.v1", bad)
    flip(bad, 5000)
    assert "ok" in admin("verify", str(good)).stdout
    done = admin("verify", str(good), str(bad), "--json", check=1)
    assert "1 of 2 files are bad" in done.stderr
    first, second = json.loads(done.stdout)
    assert (first["good"], first["kind"], first["end_lsn"], first["entries"]) == (True, "backup", make.END_LSN, 5)
    assert (second["good"], second["file"]) == (False, str(bad))
    assert 4096 <= second["bad_offset"] <= 5000
    assert "BAD" in admin("verify", str(bad), check=1).stdout
    assert "No such file" in admin("verify", str(tmp_path / "none"), check=1).stderr
    admin("verify", check=2)


def test_the_key_of_an_encrypted_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes((GOLDEN / "key").read_bytes())
    file = str(GOLDEN / "backup-zstd-encrypted.v1")
    key.chmod(0o600)
    (found,) = json.loads(admin("verify", file, "--json").stdout)
    assert (found["good"], found["encrypted"], found["decrypted"]) == (True, True, False)
    assert "checksums and structure only" in found["notes"][0]
    (found,) = json.loads(admin("verify", file, "--json", "--key-file", str(key)).stdout)
    assert (found["good"], found["encrypted"], found["decrypted"]) == (True, True, True)
    key.chmod(0o644)
    assert "chmod 600" in admin("verify", file, "--key-file", str(key), check=1).stderr


def test_an_address_is_fetched_and_named_as_given(tmp_path: Path) -> None:
    from shmkv.admin import command_verify

    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/golden/backup.v1", (GOLDEN / "backup.v1").read_bytes())
    memory.pipe("/golden/cut", (GOLDEN / "backup.v1").read_bytes()[:-9])
    (good,) = command_verify.look("memory://golden/backup.v1", Keyring.none())
    assert (good.is_good, good.file) == (True, "memory://golden/backup.v1")
    (cut,) = command_verify.look("memory://golden/cut", Keyring.none())
    assert not cut.is_good


def test_corrupt_data_carries_its_place() -> None:
    assert CorruptData("x").offset is None
    assert os.path.isdir(GOLDEN)
