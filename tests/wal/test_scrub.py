"""The job "scrub": rot on disk is found while the arena still holds everything, and a new snapshot takes its place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_persister import RealPersister, RealStore

from shmkv.wal.files import Files
from shmkv.wal.manifest import read_manifest

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RealStore]:
    real = RealStore(f"scrubtest-{os.getpid()}-{tmp_path.name[-30:]}", tmp_path / "data")
    real.data_dir.mkdir()
    yield real
    for persister in real.log:
        persister.kill()
    real.forget_arena()


def run(store: RealStore, kind: str) -> dict[str, Any]:
    """The result of that job."""
    persister = store.persister
    assert isinstance(persister, RealPersister)
    persister.order("job", job=kind, kind=kind)
    while (event := persister.wait_for("job"))["state"] == "running":
        pass
    assert event["state"] == "done", event
    result: dict[str, Any] = event["result"]
    return result


def served(store: RealStore) -> dict[Any, Any]:
    """A store with two snapshots and several log files; what is in it."""
    store.create()
    store.serve(created=True, durability="interval", file_bytes=MIB)
    for round_ in range(2):
        write(store, round_)
        run(store, "snapshot")
        write(store, 5 + round_)
    return store.contents()


def write(store: RealStore, round_: int) -> None:
    with contextlib.closing(store.attach("none")) as client:
        for start in range(0, 20_000, 1000):
            client.set_many({f"key{number}": f"{round_}-{number}" for number in range(start, start + 1000)})
        client.sync(timeout=20)


def generations(store: RealStore) -> list[int]:
    manifest = read_manifest(Files(), str(store.data_dir)).manifest
    assert manifest is not None
    return [facts.generation for facts in manifest.snapshots]


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def restart(store: RealStore) -> dict[str, Any]:
    store.power_off()
    store.create()
    return store.serve(created=True)


def test_a_whole_store_has_no_problems(store: RealStore) -> None:
    served(store)
    result = run(store, "scrub")
    assert (result["problems"], result["snapshots"]) == ([], 0)
    assert result["checked_bytes"] > MIB
    assert generations(store) == [1, 2]


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_snapshot_is_replaced(store: RealStore, generation: int, how: str) -> None:
    expected = served(store)
    path = store.data_dir / "snapshot" / f"{generation:010d}.snapshot"
    if how == "flip":
        flip(path, 300_000)
    elif how == "cut":
        os.truncate(path, 300_000)
    else:
        path.unlink()
    result = run(store, "scrub")
    assert result["snapshots"] == 2
    assert len(generations(store)) == 2
    assert str(path) in result["problems"][0]
    assert generation not in generations(store)
    assert run(store, "scrub")["problems"] == []
    ready = restart(store)
    assert ready["warnings"] == []
    assert store.contents() == expected


def test_a_damaged_log_is_made_unnecessary(store: RealStore) -> None:
    expected = served(store)
    manifest = read_manifest(Files(), str(store.data_dir)).manifest
    assert manifest is not None
    assert manifest.newest_file > manifest.oldest_file + 1
    path = store.log_path(manifest.newest_file - 1)
    flip(path, 100_000)
    result = run(store, "scrub")
    assert result["snapshots"] == 2
    assert str(path) in result["problems"][0]
    assert not path.exists()
    assert run(store, "scrub")["problems"] == []
    assert restart(store)["warnings"] == []
    assert store.contents() == expected
