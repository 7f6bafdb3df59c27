"""Snapshots of a real persister: on demand, by itself, at the end; and kill -9 in the middle of one."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_persister import RealPersister, RealStore

from shmkv.segment import _core
from shmkv.wal.files import Files
from shmkv.wal.manifest import Manifest, read_manifest

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RealStore]:
    real = RealStore(f"snaptest-{os.getpid()}-{tmp_path.name[-30:]}", tmp_path / "data")
    real.data_dir.mkdir()
    yield real
    for persister in real.log:
        persister.kill()
    real.forget_arena()


def persister_of(store: RealStore) -> RealPersister:
    assert store.persister is not None
    return store.persister


def ask(store: RealStore, job: str = "1", kind: str = "snapshot", **arguments: Any) -> None:
    persister_of(store).order("job", job=job, kind=kind, **arguments)


def end_of(store: RealStore, job: str = "1") -> dict[str, Any]:
    """The last event of that job."""
    while True:
        event = persister_of(store).wait_for("job")
        if event["job"] == job and event["state"] != "running":
            return event


def retire(store: RealStore) -> None:
    persister_of(store).order("retire")
    assert persister_of(store).end() == 0
    assert not store.exists()
    store.forget_arena()


def set_many(store: RealStore, first: int, last: int, text: str = "v") -> None:
    with contextlib.closing(store.attach("none")) as client:
        for start in range(first, last, 1000):
            client.set_many({f"key{number}": f"{text}{number}" for number in range(start, min(last, start + 1000))})
        client.sync(timeout=20)


def manifest_of(store: RealStore) -> Manifest:
    manifest = read_manifest(Files(), str(store.data_dir)).manifest
    assert manifest is not None
    return manifest


def generations(store: RealStore) -> list[int]:
    return [facts.generation for facts in manifest_of(store).snapshots]


def snapshot_files(store: RealStore) -> list[str]:
    folder = store.data_dir / "snapshot"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("durability", ["always", "interval", "none"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_snapshot_on_demand_and_the_log_behind_it_give_everything(
    store: RealStore, durability: str, compression: str
) -> None:
    store.create()
    store.serve(created=True, durability=durability, snapshot_compression=compression, sync_interval_s=100)
    set_many(store, 0, 5000)
    ask(store)
    done = end_of(store)
    assert (done["state"], done["kind"]) == ("done", "snapshot"), done
    result = done["result"]
    assert (result["generation"], result["entries"]) == (1, 5000)
    assert result["end_lsn"] >= result["start_lsn"]
    assert snapshot_files(store) == ["0000000001.snapshot"]
    assert generations(store) == [1]
    set_many(store, 4000, 6000, "w")
    expected = store.contents()
    store.power_off()
    store.create()
    ready = store.serve(created=True, durability=durability)
    assert (ready["generation"], ready["entries"], ready["warnings"]) == (1, 5000, [])
    assert [facts["generation"] for facts in ready["snapshots"]] == [1]
    assert store.contents() == expected


def test_two_generations_stay_and_the_log_before_them_goes(store: RealStore) -> None:
    store.create()
    store.serve(created=True, durability="none", file_bytes=2 * MIB)
    for number in range(4):
        set_many(store, 0, 20_000, str(number))
        ask(store, str(number))
        assert end_of(store, str(number))["state"] == "done"
    assert generations(store) == [3, 4]
    assert snapshot_files(store) == ["0000000003.snapshot", "0000000004.snapshot"]
    oldest = manifest_of(store).oldest_file
    assert oldest > 1
    assert min(int(path.stem) for path in (store.data_dir / "log").glob("0*.log")) == oldest
    expected = store.contents()
    store.power_off()
    store.create()
    assert store.serve(created=True)["generation"] == 4
    assert store.contents() == expected


def test_a_clean_end_is_a_snapshot_and_the_next_start_reads_no_log(store: RealStore) -> None:
    store.create()
    store.serve(created=True, durability="interval")
    set_many(store, 0, 5000)
    expected = store.contents()
    retire(store)
    (facts,) = manifest_of(store).snapshots
    assert (facts.alone, facts.entries, manifest_of(store).clean) == (True, 5000, True)
    store.create()
    ready = store.serve(created=True)
    assert (ready["generation"], ready["entries"], ready["records"]) == (1, 5000, 0)
    assert store.contents() == expected


def test_an_end_without_changes_writes_no_further_snapshot(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    retire(store)
    assert generations(store) == [], "nothing was ever written"
    store.create()
    store.serve(created=True)
    set_many(store, 0, 10)
    retire(store)
    assert generations(store) == [1]
    for _ in range(2):
        store.create()
        store.serve(created=True)
        retire(store)
        assert generations(store) == [1]
    store.create()
    store.serve(created=True)
    ask(store)
    assert end_of(store)["state"] == "done", "who asks gets one"
    retire(store)
    assert generations(store) == [1, 2]


def test_a_stop_that_keeps_the_arena_writes_none(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    set_many(store, 0, 10)
    persister_of(store).order("stop")
    assert persister_of(store).end() == 0
    assert snapshot_files(store) == []


def test_a_long_end_is_no_silence(store: RealStore) -> None:
    store.create(320 * MIB)
    store.serve(created=True, durability="none")
    with contextlib.closing(store.attach("none")) as client:
        for number in range(2400):
            client.set(f"key{number}", os.urandom(100_000))
    persister_of(store).order("retire")
    end = end_of(store, "final")
    assert end["state"] == "done"
    running = [event for event in persister_of(store).seen if event["event"] == "job" and event["state"] == "running"]
    assert len(running) >= 2
    assert running[-1]["done_bytes"] > 0
    assert persister_of(store).end() == 0


def test_snapshots_come_by_themselves_when_the_log_has_grown(store: RealStore) -> None:
    store.create(32 * MIB)
    store.serve(created=True, durability="interval", snapshot_log_bytes=2 * MIB, file_bytes=2 * MIB, lag_limit_s=2)
    for number in range(8):
        set_many(store, 0, 10_000, str(number))
    assert end_of(store, "periodic-1")["state"] == "done"
    assert generations(store)[0] == 1


def test_snapshots_come_by_themselves_after_the_interval_while_something_is_written(store: RealStore) -> None:
    store.create()
    store.serve(created=True, durability="interval", snapshot_interval_s=0.5, lag_limit_s=0.4)
    set_many(store, 0, 10)
    assert end_of(store, "periodic-1")["state"] == "done"
    for _ in range(20):
        persister_of(store).wait_for("progress")
    assert generations(store) == [1], "marks are no reason for another one"
    set_many(store, 5, 15)
    assert end_of(store, "periodic-2")["state"] == "done"


@pytest.mark.parametrize("kill_at", ["running", "later"])
def test_kill_9_in_the_middle_of_a_snapshot_loses_nothing(store: RealStore, kill_at: str) -> None:
    store.create(64 * MIB)
    store.serve(created=True, durability="interval")
    set_many(store, 0, 100_000)
    ask(store, "first")
    assert end_of(store, "first")["state"] == "done"
    set_many(store, 50_000, 150_000, "w")
    ask(store, "second")
    persister_of(store).wait_for("job")
    if kill_at == "later":
        deadline_s = time.monotonic() + 10
        while "0000000002.snapshot.tmp" not in snapshot_files(store) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        time.sleep(0.05)
    persister_of(store).kill()
    expected = store.contents()
    ready = store.serve(created=False)
    assert ready["warm"]
    assert not any(name.endswith(".tmp") for name in snapshot_files(store))
    assert snapshot_files(store) == [f"{number:010d}.snapshot" for number in generations(store)]
    store.power_off()
    store.create(64 * MIB)
    store.serve(created=True)
    assert store.contents() == expected
    ask(store, "third")
    assert end_of(store, "third")["result"]["generation"] > max(1, *generations(store)[:-1])


def test_kill_9_of_everything_while_the_end_writes_its_snapshot(store: RealStore) -> None:
    store.create(64 * MIB)
    store.serve(created=True, durability="interval")
    set_many(store, 0, 100_000)
    expected = store.contents()
    persister_of(store).order("retire")
    while persister_of(store).wait_for("job")["job"] != "final":
        pass
    persister_of(store).kill()
    assert store.exists()
    ended = store.start(created=False).wait_for("ended")
    assert "retired" in ended["reason"]
    assert persister_of(store).end() == 0
    store.forget_arena()
    store.create(64 * MIB)
    assert store.serve(created=True)["warnings"] == []
    assert store.contents() == expected


def test_a_stop_gives_up_the_snapshot_that_is_under_way(store: RealStore) -> None:
    store.create(128 * MIB)
    store.serve(created=True, durability="none")
    with contextlib.closing(store.attach("none")) as client:
        for number in range(500):
            client.set(f"key{number}", os.urandom(100_000))
    ask(store, "1")
    ask(store, "2")
    persister_of(store).wait_for("job")
    persister_of(store).order("stop")
    for job in ("2", "1"):
        assert "stops" in end_of(store, job)["error"]
    assert persister_of(store).end() == 0
    assert snapshot_files(store) == []


def test_writers_beside_snapshots_lose_nothing(store: RealStore) -> None:
    store.create(64 * MIB)
    store.serve(created=True, durability="interval")
    stop = threading.Event()
    last: dict[str, int] = {}

    def churn(name: str) -> None:
        with contextlib.closing(store.attach("none")) as client:
            number = 0
            while not stop.is_set():
                number += 1
                client.set(f"{name}{number % 5000}", number)
                last[name] = number
            client.sync(timeout=20)

    threads = [threading.Thread(target=churn, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for number in range(4):
        ask(store, str(number))
        assert end_of(store, str(number))["state"] == "done"
    stop.set()
    for thread in threads:
        thread.join(20)
    expected = store.contents()
    for name in ("a", "b"):
        assert expected[f"{name}{last[name] % 5000}"] == last[name]
    store.power_off()
    store.create(64 * MIB)
    ready = store.serve(created=True)
    assert (ready["generation"], ready["warnings"]) == (4, [])
    assert store.contents() == expected
    with contextlib.closing(_core.Arena(store.fd)) as arena:
        assert arena.audit() == []


def test_a_snapshot_that_fails_is_told_and_the_store_goes_on(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    set_many(store, 0, 100)
    folder = store.data_dir / "snapshot"
    folder.rmdir()
    folder.write_text("in the way")
    ask(store)
    failed = end_of(store)
    assert (failed["state"], failed["error_kind"]) == ("failed", "OSError")
    set_many(store, 100, 200)
    folder.unlink()
    ask(store, "2")
    assert end_of(store, "2")["result"]["entries"] == 200


def test_an_unknown_job_and_missing_arguments_are_failures_of_the_job(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    ask(store, "1", "dance")
    assert end_of(store, "1")["error_kind"] == "ValueError"
    ask(store, "2")
    assert end_of(store, "2")["state"] == "done"


def test_compression_that_is_not_known_or_not_installed_is_exit_78(store: RealStore) -> None:
    store.create()
    assert store.start(created=True, snapshot_compression="brotli").end() == 78


def test_an_encrypted_store_comes_back_from_its_snapshot(store: RealStore, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(bytes(range(32)).hex())
    key.chmod(0o600)
    keys = {"file": str(key)}
    store.create()
    store.serve(created=True, keys=keys)
    set_many(store, 0, 500, "secret value ")
    ask(store)
    assert end_of(store)["state"] == "done"
    expected = store.contents()
    retire(store)
    for path in [*(store.data_dir / "snapshot").iterdir(), *(store.data_dir / "log").glob("0*.log")]:
        assert b"secret value" not in path.read_bytes()
    store.create()
    store.serve(created=True, keys=keys)
    assert store.contents() == expected


def test_a_switch_makes_a_restored_generation_the_whole_store(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    set_many(store, 0, 300)
    expected = store.contents()
    ask(store)
    assert end_of(store)["state"] == "done"
    saved = store.data_dir.parent / "saved.snapshot"
    saved.write_bytes((store.data_dir / "snapshot" / "0000000001.snapshot").read_bytes())
    set_many(store, 100, 1000, "later ")
    ask(store, "2", "restore", path=str(saved))
    restored = end_of(store, "2")
    assert restored["state"] == "done", restored
    generation = restored["result"]["generation"]
    persister_of(store).order("retire", switch=generation)
    assert persister_of(store).end() == 0
    assert not store.exists()
    store.forget_arena()
    store.create()
    ready = store.serve(created=True)
    assert (ready["generation"], ready["records"], ready["warnings"]) == (generation, 0, [])
    found = store.contents()
    assert {key: found[key] for key in expected if key in found} == expected
    assert generations(store) == [generation]
    set_many(store, 0, 10, "new ")
    expected = store.contents()
    store.power_off()
    store.create()
    store.serve(created=True)
    assert store.contents() == expected


def test_a_switch_to_an_ordinary_snapshot_keeps_the_log_behind_it(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    set_many(store, 0, 300)
    ask(store)
    generation = end_of(store)["result"]["generation"]
    set_many(store, 100, 1000, "later ")
    expected = store.contents()
    persister_of(store).order("retire", switch=generation)
    assert persister_of(store).end() == 0
    assert "the restored data is not used" in persister_of(store).stderr
    store.forget_arena()
    store.create()
    store.serve(created=True)
    assert store.contents() == expected


def test_a_switch_to_what_is_not_there_keeps_the_old_data(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    set_many(store, 0, 300)
    expected = store.contents()
    persister_of(store).order("retire", switch=77)
    assert persister_of(store).end() == 0
    assert "the restored data is not used" in persister_of(store).stderr
    store.forget_arena()
    store.create()
    store.serve(created=True)
    assert store.contents() == expected
