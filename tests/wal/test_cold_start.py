"""Cold starts of real persisters from real snapshots and files: what was lost is named, what was kept is whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_persister import RealStore

from shmkv.segment import _core
from shmkv.wal.files import Files
from shmkv.wal.manifest import read_manifest

LARGE = 200_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RealStore]:
    real = RealStore(f"coldtest-{os.getpid()}-{tmp_path.name[-30:]}", tmp_path / "data")
    real.data_dir.mkdir()
    yield real
    for persister in real.log:
        persister.kill()
    real.forget_arena()


def take_snapshot(store: RealStore) -> dict[str, Any]:
    """The facts of a new generation."""
    assert store.persister is not None
    store.persister.order("job", job="1", kind="snapshot")
    while (event := store.persister.wait_for("job"))["state"] == "running":
        pass
    assert event["state"] == "done", event
    result: dict[str, Any] = event["result"]
    return result


def write(store: RealStore, first: int, count: int) -> None:
    """Keys of all sizes, overwrites, deletes."""
    with contextlib.closing(store.attach("none")) as client:
        for number in range(first, first + count):
            client.set(f"key{number % 700}", bytes(number % 1500))
            client.set(f"hot{number % 50}", number)
            if number % 7 == 0:
                client.delete(f"key{(number - 5) % 700}")
        client.set(f"large{first}", bytes(LARGE))
        client.sync()


def snapshots(store: RealStore) -> list[str]:
    return sorted(os.listdir(store.data_dir / "snapshot"))


def restart(store: RealStore, **options: Any) -> dict[str, Any]:
    store.power_off()
    store.create()
    return store.serve(created=True, **options)


def audit(store: RealStore) -> list[dict[str, Any]]:
    with contextlib.closing(_core.Arena(store.fd)) as arena:
        return arena.audit()


def fill(store: RealStore) -> dict[Any, Any]:
    """Two snapshots and records behind them; what the store holds."""
    store.create()
    store.serve(created=True, file_bytes=1 << 20)
    write(store, 0, 1500)
    take_snapshot(store)
    write(store, 500, 2500)
    take_snapshot(store)
    write(store, 1000, 200)
    return store.contents()


def test_a_cold_start_loads_the_newest_snapshot_and_the_log_behind_it(store: RealStore) -> None:
    expected = fill(store)
    manifest = read_manifest(Files(), str(store.data_dir)).manifest
    assert manifest is not None
    assert [facts.generation for facts in manifest.snapshots] == [1, 2]
    assert manifest.oldest_file > 1
    assert not store.log_path(1).exists(), "nothing needs it any more"
    ready = restart(store)
    assert (ready["warm"], ready["cut_lsn"], ready["warnings"]) == (False, None, [])
    assert ready["records"] < 1000
    assert store.contents() == expected
    assert audit(store) == []


@pytest.mark.parametrize("where", [0.02, 0.5, 0.99])
def test_a_damaged_snapshot_is_replaced_by_the_one_before_it(store: RealStore, where: float) -> None:
    expected = fill(store)
    path = store.data_dir / "snapshot" / "0000000002.snapshot"
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 1
    path.write_bytes(data)
    ready = restart(store)
    assert any("snapshot 2 was not used" in warning and str(path) in warning for warning in ready["warnings"])
    assert store.contents() == expected
    assert audit(store) == []
    assert snapshots(store) == ["0000000001.snapshot", "0000000002.snapshot.damaged"]
    assert take_snapshot(store)["generation"] == 3
    assert restart(store)["warnings"] == []
    assert store.contents() == expected


def test_nothing_to_start_from_is_refused_with_exit_code_65(store: RealStore) -> None:
    fill(store)
    for generation in (1, 2):
        path = store.data_dir / "snapshot" / f"{generation:010d}.snapshot"
        path.write_bytes(path.read_bytes()[:-20])
    store.power_off()
    store.create()
    for accept_loss in (False, True):
        persister = store.start(created=True, accept_loss=accept_loss)
        failed = persister.wait_for("failed")
        assert failed["exit"] == 65
        assert "nothing to start from" in failed["error"]
        assert persister.end() == 65


def test_leftovers_of_a_killed_process_are_removed_at_a_warm_start(store: RealStore) -> None:
    expected = fill(store)
    folder = store.data_dir / "snapshot"
    (folder / "0000000003.snapshot.tmp").write_bytes(b"unfinished")
    (folder / "0000000004.snapshot").write_bytes(b"never named by a manifest")
    for name in ("backup", "restore"):
        (store.data_dir / name).mkdir()
        (store.data_dir / name / "half.backup").write_bytes(b"half")
        (store.data_dir / name / "folder").mkdir()
    store.log_path(1).write_bytes(b"no longer needed")
    assert store.persister is not None
    store.persister.kill()
    assert store.serve(created=False)["warm"]
    assert snapshots(store) == ["0000000001.snapshot", "0000000002.snapshot"]
    assert all(os.listdir(store.data_dir / name) == ["folder"] for name in ("backup", "restore"))
    assert not store.log_path(1).exists()
    assert take_snapshot(store)["generation"] == 5, "a number that was seen is not used again"
    assert store.contents() == expected


def test_trimmed_log_files_go_to_the_archive(store: RealStore, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    store.create()
    store.serve(created=True, file_bytes=1 << 20, archive_dir=str(archive))
    write(store, 0, 1500)
    original = store.log_path(1).read_bytes()
    take_snapshot(store)
    write(store, 500, 2500)
    take_snapshot(store)
    (folder,) = archive.iterdir()
    with contextlib.closing(_core.Arena(store.fd)) as arena:
        assert folder.name == arena.info()["store_id"].hex()
    assert (folder / "0000000001.log").read_bytes()[: len(original)] == original
    archived = {path.name for path in folder.iterdir()}
    left = {path.name for path in (store.data_dir / "log").iterdir() if path.name[0] == "0"}
    assert not archived & left
    assert sorted(archived | left) == [f"{number + 1:010d}.log" for number in range(len(archived | left))]


def test_a_file_of_another_time_line_in_the_archive_is_neither_replaced_nor_taken_for_ours(
    store: RealStore, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    store.create()
    store.serve(created=True, file_bytes=1 << 20, archive_dir=str(archive))
    write(store, 0, 1500)
    ours = store.log_path(1).read_bytes()
    with contextlib.closing(_core.Arena(store.fd)) as arena:
        folder = archive / arena.info()["store_id"].hex()
    folder.mkdir(parents=True)
    theirs = bytes([ours[200] ^ 1]) * 4096 + ours[4096:]
    (folder / "0000000001.log").write_bytes(theirs)
    for first in (0, 500):
        take_snapshot(store)
        write(store, first, 1500)
    assert "another file of that number is there" in take_snapshot(store)["warning"]
    assert store.log_path(1).exists()
    assert (folder / "0000000001.log").read_bytes() == theirs


def test_an_archive_that_takes_nothing_keeps_the_log_and_does_not_stop_snapshots(
    store: RealStore, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(b"a file where a folder should be")
    store.create()
    store.serve(created=True, file_bytes=1 << 20, archive_dir=str(archive))
    for first in (0, 500, 1000):
        write(store, first, 2000)
        take_snapshot(store)
    assert snapshots(store) == ["0000000002.snapshot", "0000000003.snapshot"]
    assert store.log_path(1).exists()
    archive.unlink()
    take_snapshot(store)
    assert not store.log_path(1).exists()
    assert len(list(archive.rglob("*.log"))) >= 3
