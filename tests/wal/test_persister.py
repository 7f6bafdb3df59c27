"""The persister as a process: real arena, files and signals; every end is followed by a start that is checked."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_persister import RealStore

from shmkv.segment import _core
from shmkv.wal.files import Files
from shmkv.wal.log import HEADER_BLOCK_BYTES
from shmkv.wal.manifest import read_manifest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RealStore]:
    real = RealStore(f"waltest-{os.getpid()}-{tmp_path.name[-30:]}", tmp_path / "data")
    real.data_dir.mkdir()
    yield real
    for persister in real.log:
        persister.kill()
    real.forget_arena()


class Writer:
    """A client process that sets key after key and leaves the number of the last set that returned where we see it."""

    def __init__(self, store: RealStore, durability: str) -> None:
        context = multiprocessing.get_context("fork")
        self._last = context.RawValue("q", -1)
        self._process = context.Process(target=self._run, args=(store.fd, store.name, durability), daemon=True)
        self._process.start()

    def _run(self, fd: int, name: str, durability: str) -> None:
        client = _core.Store(fd, name, durability=durability)
        for number in itertools.count():
            client.set(f"key{number % 500}", number)
            self._last.value = number

    def wait_for(self, count: int) -> None:
        """Until that many more sets have returned."""
        target = self._last.value + count
        deadline_s = time.monotonic() + 20
        while self._last.value < target:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)

    def kill(self) -> int:
        """kill -9; the number of the last set that returned."""
        self._process.kill()
        self._process.join()
        return int(self._last.value)


def check_values(contents: dict[str, int], acknowledged: int) -> None:
    """Every key holds the last value that was acknowledged for it, or the one that was under way."""
    newest = max(contents.values())
    assert newest >= acknowledged
    for key, value in contents.items():
        assert int(key[3:]) == value % 500
        assert value > newest - 500
    assert len(contents) == min(500, newest + 1)


def test_kill_9_of_everything_at_once_loses_no_acknowledged_write(store: RealStore) -> None:
    store.create()
    ready = store.serve(created=True)
    assert (ready["warm"], ready["records"], ready["cut_lsn"], ready["warnings"]) == (False, 0, None, [])
    writer = Writer(store, "always")
    for _ in range(3):
        writer.wait_for(300)
        assert store.persister is not None
        store.persister.kill()
        assert store.serve(created=False)["warm"]
    writer.wait_for(300)
    last = writer.kill()
    store.power_off()
    store.create()
    ready = store.serve(created=True)
    assert not ready["warm"]
    check_values(store.contents(), last)
    with contextlib.closing(_core.Arena(store.fd)) as arena:
        assert arena.audit() == []


def test_kill_9_of_the_persister_loses_nothing_at_any_durability(store: RealStore) -> None:
    store.create()
    store.serve(created=True, durability="interval")
    writer = Writer(store, "none")
    for _ in range(3):
        writer.wait_for(4000)
        assert store.persister is not None
        store.persister.kill()
        store.serve(created=False, durability="interval", sync_interval_s=0.05)
    last = writer.kill()
    expected = store.contents()
    check_values(expected, last)
    assert store.persister is not None
    store.persister.order("retire")
    assert store.persister.end() == 0
    assert not store.exists()
    store.forget_arena()
    store.create()
    assert store.serve(created=True)["cut_lsn"] is None
    assert store.contents() == expected


def test_a_stop_keeps_the_arena_and_the_next_start_is_warm(store: RealStore) -> None:
    store.create()
    store.serve(created=True, durability="none")
    with contextlib.closing(store.attach("none")) as client:
        client.set("a", "x")
    assert store.persister is not None
    store.persister.order("stop")
    assert store.persister.end() == 0
    assert store.exists()
    ready = store.serve(created=False)
    assert ready["warm"]
    assert ready["seconds"] < 5
    assert store.contents() == {"a": "x"}


def test_the_end_of_the_command_pipe_is_a_stop(store: RealStore) -> None:
    store.create()
    store.serve(created=True, durability="interval")
    with contextlib.closing(store.attach("none")) as client:
        client.set("a", 1)
    assert store.persister is not None
    store.persister.hang_up()
    assert store.persister.end() == 0
    assert store.exists()
    store.power_off()
    store.create()
    store.serve(created=True)
    assert store.contents() == {"a": 1}


def test_signals_to_the_whole_group_do_not_end_it(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    assert store.persister is not None
    store.persister.process.terminate()
    with contextlib.closing(store.attach()) as client:
        client.set("a", 1)
    store.persister.order("retire")
    assert store.persister.end() == 0


def test_a_heartbeat_tells_the_durable_lsn(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    with contextlib.closing(store.attach()) as client:
        client.set("a", 1)
        assert store.persister is not None
        while store.persister.wait_for("progress")["durable_lsn"] <= client.last_lsn:
            pass


def damaged_store(store: RealStore) -> int:
    """A store that is down, with a flipped byte in the middle of its log; the offset."""
    store.create()
    store.serve(created=True)
    with contextlib.closing(store.attach()) as client:
        for number in range(20):
            client.set(f"key{number}", number)
    store.power_off()
    path = store.log_path(1)
    content = bytearray(path.read_bytes())
    offset = HEADER_BLOCK_BYTES + 500
    content[offset] ^= 4
    path.write_bytes(content)
    return offset


def test_damage_is_refused_with_exit_65_until_loss_is_accepted(store: RealStore) -> None:
    damaged_store(store)
    store.create()
    failed = store.start(created=True).wait_for("failed")
    assert failed["exit"] == 65
    assert str(store.log_path(1)) in failed["error"]
    assert "LSN" in failed["error"]
    assert "--accept-loss" in failed["error"]
    assert store.persister is not None
    assert store.persister.end() == 65
    store.forget_arena()
    store.create()
    ready = store.serve(created=True, accept_loss=True)
    assert ready["cut_lsn"] is not None
    kept = store.contents()
    assert 0 < len(kept) < 20
    assert kept == {f"key{number}": number for number in range(len(kept))}
    store.power_off()
    store.create()
    assert store.serve(created=True)["warnings"] == []
    assert store.contents() == kept


def test_the_arena_of_another_directory_is_left_alone(store: RealStore, tmp_path: Path) -> None:
    store.create()
    store.serve(created=True)
    with contextlib.closing(store.attach()) as client:
        client.set("a", 1)
    assert store.persister is not None
    store.persister.kill()
    other = tmp_path / "other"
    other.mkdir()
    failed = store.start(created=False, data_dir=str(other)).wait_for("failed")
    assert failed["exit"] == 78
    assert "belongs to store" in failed["error"]
    assert store.exists()
    assert store.serve(created=False)["warm"]
    assert store.contents() == {"a": 1}


def test_the_arena_from_before_a_restore_is_discarded(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    backup = store.data_dir.with_name("backup")
    with contextlib.closing(store.attach()) as client:
        client.set("a", 1)
    assert store.persister is not None
    store.persister.kill()
    shutil.copytree(store.data_dir, backup)
    store.forget_arena()
    store.create()
    store.serve(created=True)
    assert store.persister is not None
    store.persister.kill()
    shutil.rmtree(store.data_dir)
    shutil.copytree(backup, store.data_dir)
    discarded = _core.read_header(store.fd)
    assert discarded["incarnation"] == 2
    ended = store.start(created=False).wait_for("ended")
    assert "restored" in ended["reason"]
    assert store.persister.end() == 0
    assert not store.exists()
    store.forget_arena()
    store.create()
    store.serve(created=True)
    assert store.contents() == {"a": 1}
    header = _core.read_header(store.fd)
    assert header["incarnation"] == 3, "the one of the discarded arena is used"
    assert header["first_lsn"] >= discarded["tail"] + (1 << 40)


def pretend_other_layout(fd: int) -> None:
    """Another layout version in both copies of the header, with the right checksum."""
    memory = mmap.mmap(fd, 0)
    for copy in (0, 4096):
        header = memory[copy : copy + 4096]
        crc_at = next(
            at for at in range(8, 4096, 4) if _core.crc32c(header[:at]) == int.from_bytes(header[at : at + 4], "little")
        )
        header = header[:8] + (99).to_bytes(4, "little") + header[12:crc_at]
        memory[copy : copy + crc_at + 4] = header + _core.crc32c(header).to_bytes(4, "little")
    memory.close()


@pytest.mark.parametrize("how", ["retired", "condemned", "version"])
def test_an_arena_that_must_end_is_drained_and_removed(store: RealStore, how: str) -> None:
    store.create()
    store.serve(created=True, durability="interval", sync_interval_s=100)
    assert store.persister is not None
    store.persister.kill()
    with contextlib.closing(store.attach("none")) as client:
        for number in range(100):
            client.set(f"key{number}", number)
    with contextlib.closing(_core.Arena(store.fd)) as arena:
        if how == "retired":
            arena.retire()
        elif how == "condemned":
            arena.set_state(condemned=True)
        else:
            pretend_other_layout(store.fd)
    ended = store.start(created=False).wait_for("ended")
    assert how in ended["reason"]
    assert store.persister.end() == 0
    assert not store.exists()
    store.forget_arena()
    store.create()
    store.serve(created=True)
    assert store.contents() == {f"key{number}": number for number in range(100)}


def test_a_name_that_leads_to_another_arena_by_now_is_left_alone(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    first = store.persister
    store.forget_arena()
    store.create()
    assert first is not None
    first.order("retire")
    assert first.end() == 0
    assert store.exists()


def test_an_arena_that_never_served_is_discarded(store: RealStore) -> None:
    store.create()
    assert "never served" in store.start(created=False).wait_for("ended")["reason"]
    assert store.persister is not None
    assert store.persister.end() == 0
    assert not store.exists()


def test_a_second_persister_of_the_directory_is_refused(store: RealStore) -> None:
    store.create()
    store.serve(created=True)
    first = store.persister
    failed = store.start(created=False, lock_timeout_s=0.1).wait_for("failed")
    assert failed["exit"] == 75
    assert store.persister is not None
    assert store.persister.end() == 75
    with contextlib.closing(store.attach()) as client:
        client.set("a", 1)
    assert first is not None
    assert first.process.poll() is None


def test_a_log_that_does_not_fit_into_the_arena_says_so(store: RealStore) -> None:
    store.create(16 << 20)
    store.serve(created=True, durability="none")
    with contextlib.closing(store.attach("none")) as client:
        for number in range(90):
            client.set(f"key{number}", bytes(100_000))
    assert store.persister is not None
    store.persister.order("stop")
    assert store.persister.end() == 0
    store.power_off()
    store.create(8 << 20)
    failed = store.start(created=True).wait_for("failed")
    assert failed["exit"] == 78
    assert "memory" in failed["error"]


def test_bad_arguments_are_exit_78(store: RealStore) -> None:
    store.create()
    assert store.start(created=True, durability="sometimes").end() == 78
    assert "durability is 'sometimes'" in store.log[-1].stderr


def test_a_large_log_comes_back_whole_with_progress(store: RealStore) -> None:
    store.create(64 << 20)
    store.serve(created=True, durability="interval")
    with contextlib.closing(store.attach("none")) as client:
        for start in range(0, 150_000, 5000):
            client.set_many({f"key{number}": number for number in range(start, start + 5000)})
        client.sync(timeout=10)
    expected = store.contents()
    assert len(expected) == 150_000
    store.power_off()
    store.create(64 << 20)
    store.serve(created=True)
    assert store.contents() == expected
    manifest = read_manifest(Files(), str(store.data_dir)).manifest
    assert manifest is not None
    assert manifest.incarnation == 2
    assert len(manifest.seals) == 1
