"""What happens to backup files in the user's process: times, places, copies that must be whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from shmkv import backup, errors, remote
from shmkv.processes import is_alive, own_file_name, owner_of_file
from shmkv.wal.block import BACKUP_MAGIC, INFO, BlockFileHeader, BlockWriter, Info
from shmkv.wal.block_format import pack_map
from shmkv.wal.files import Files


@pytest.mark.parametrize(
    "time",
    [
        1795554764.25, "1795554764.25", "2026-11-24T21:12:44.250Z", "2026-11-24 22:12:44.25+01:00",
        datetime(2026, 11, 24, 21, 12, 44, 250_000, UTC),
        datetime(2026, 11, 24, 23, 12, 44, 250_000, timezone(timedelta(hours=2))),
    ],
)  # fmt: skip
def test_a_time_in_every_form_is_the_same_moment(time: Any) -> None:
    assert backup.wall_ms_of(time) == 1795554764250


@pytest.mark.parametrize("time", ["yesterday", "2026-11-24T21:12:44", datetime(2026, 1, 1), -1, 1e12, float("nan"), ""])
def test_what_is_no_moment_is_a_value_error(time: Any) -> None:
    with pytest.raises(ValueError, match=r"zone|neither|no time"):
        backup.wall_ms_of(time)


@pytest.mark.parametrize("time", [True, None, b"1", [1]])
def test_what_is_no_time_at_all_is_a_type_error(time: Any) -> None:
    with pytest.raises(TypeError, match="aware datetime"):
        backup.wall_ms_of(time)


def test_local_paths_and_addresses(tmp_path: Path) -> None:
    assert remote.local_path(tmp_path / "a") == str(tmp_path / "a")
    assert remote.local_path("a") == os.path.abspath("a")
    assert remote.local_path(f"file://{tmp_path}/a") == f"{tmp_path}/a"
    assert remote.local_path("s3://bucket/a") is None
    # A path object is a path, whatever it looks like.
    assert remote.local_path(Path("s3://bucket/a")) == os.path.abspath("s3:/bucket/a")
    with pytest.raises(TypeError):
        remote.local_path(b"a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no path"):
        remote.local_path("")


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(errors.IncompatibleStore, match=r"pip install 'shmkv\[remote\]'"):
        remote.check_address("s3://bucket/a")


def test_an_upload_gets_its_name_only_when_it_was_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    source, told = tmp_path / "a", []
    source.write_bytes(os.urandom(1 << 20))
    remote.upload(str(source), "memory://backups/a", lambda done, of: told.append((done, of)))
    assert told[-1] == (2 << 20, 2 << 20)
    filesystem = fsspec.filesystem("memory")
    assert [path.rpartition("/")[2] for path in filesystem.ls("/backups", detail=False)] == ["a"]
    remote.download("memory://backups/a", str(tmp_path / "b"), lambda *_: None)
    assert (tmp_path / "b").read_bytes() == source.read_bytes()

    def lose(source: Any, write: Any, progress: Any, copy: Any = remote._copy) -> tuple[int, int]:
        size_bytes, crc = copy(source, write, progress)
        return size_bytes, crc ^ (write is len)

    monkeypatch.setattr(remote, "_copy", lose)
    before = filesystem.cat("/backups/a")
    source.write_bytes(b"new")
    with pytest.raises(errors.CorruptData, match="gives back 3 bytes with checksum"):
        remote.upload(str(source), "memory://backups/a", lambda *_: None)
    assert filesystem.cat("/backups/a") == before
    assert len(filesystem.ls("/backups")) == 1
    filesystem.rm("/backups", recursive=True)


def test_only_a_backup_or_nothing_is_replaced(tmp_path: Path) -> None:
    backup.check_target(str(tmp_path / "new"))
    for content, allowed in ((b"", True), (b"SHMKVBAK" + bytes(100), True), (b"SHMKVSNP", False), (b"thesis", False)):
        (tmp_path / "there").write_bytes(content)
        if allowed:
            backup.check_target(str(tmp_path / "there"))
        else:
            with pytest.raises(FileExistsError, match="nothing was overwritten"):
                backup.check_target(str(tmp_path / "there"))
    with pytest.raises(IsADirectoryError):
        backup.check_target(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="make it first"):
        backup.check_target(str(tmp_path / "no" / "new"))


def write_backup(path: Path) -> None:
    """A backup without entries."""
    files = Files()
    fd = files.create(str(path))
    try:
        writer = BlockWriter(files, fd, BlockFileHeader(BACKUP_MAGIC, b"s" * 16, 1, 0, 100, 7))
        writer.add(INFO, pack_map(Info("orders", b"k" * 16, 16, 1 << 24, 1 << 20, 0, "0", 7)))
        writer.finish(end_lsn=100, highest_version=0, wall_ms=8, log_end_lsn=100)
    finally:
        files.close(fd)


def test_a_copy_to_another_file_system_is_verified_and_a_torn_one_never_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, staged, target = os.replace, tmp_path / "staged", tmp_path / "target"
    write_backup(staged)

    def other_file_system(source: str, destination: str) -> None:
        if source == str(staged):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, destination)

    monkeypatch.setattr(os, "replace", other_file_system)
    backup.move_into_place(str(staged), str(target), lambda *_: None)
    assert target.read_bytes() == staged.read_bytes()
    good = target.read_bytes()

    def torn(source: Any, copy: Any, size: int) -> None:
        copy.write(source.read()[:-8])

    monkeypatch.setattr(shutil, "copyfileobj", torn)
    with pytest.raises(errors.CorruptData):
        backup.move_into_place(str(staged), str(target), lambda *_: None)
    assert target.read_bytes() == good
    assert sorted(os.listdir(tmp_path)) == ["staged", "target"]


def test_a_file_tells_whose_it_is() -> None:
    owner = owner_of_file(own_file_name(".backup"))
    assert owner is not None
    assert owner[0] == os.getpid()
    assert is_alive(*owner)
    assert not is_alive(owner[0], owner[1] + 1)
    assert owner_of_file("orders.backup") is None
