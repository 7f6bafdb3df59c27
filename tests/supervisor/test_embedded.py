"""Private stores: they end with their owner, however that ends, and leave nothing, outside and in the process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import shmkv
from shmkv import config, errors, paths
from shmkv.processes import is_alive, start_time
from shmkv.supervisor.embedded import start_embedded, sweep_dead_stores
from tests.conftest import ROOT, Places, wait_until

OWNER = """
import os, signal, sys, shmkv
db = shmkv.launch({arguments})
db["k"] = 1
{more}
print(db.name, flush=True)
signal.pause()
"""


def owner(arguments: str = "memory='16MB'", more: str = "") -> tuple[subprocess.Popen[str], str]:
    """A program that launched a store and waits; and the name of that store."""
    program = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(arguments=arguments, more=more)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    name = program.stdout.readline().strip()
    assert paths.object_inode(name) is not None
    return program, name


def test_a_throw_away_store_is_gone_at_the_end(places: Places) -> None:
    with shmkv.launch(memory="16MB") as db:
        name = db.name
        db["k"] = 1
        assert paths.temporary_owner(name) == (os.getpid(), start_time(os.getpid()))
        assert dict(db.items()) == {"k": 1}
    assert paths.object_inode(name) is None
    assert not places.processes()


def test_data_with_a_directory_stays_and_the_memory_goes(places: Places, tmp_path: Path) -> None:
    for value in (1, 2):
        with shmkv.launch(places.name(), memory="16MB", data_dir=tmp_path / "data") as db:
            assert db.setdefault("first", value) == 1
            db[f"k{value}"] = value
        assert paths.object_inode(db.name) is None
    with shmkv.launch(memory="16MB", data_dir=tmp_path / "data") as db:
        assert dict(db.items()) == {"first": 1, "k1": 1, "k2": 2}


def traces() -> tuple[list[str], list[str], int]:
    """Descriptors, children (also unwaited ones) and mapped arenas of this process."""
    gc.collect()
    children = sorted(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    mapped = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if "/shmkv." in line and ".so" not in line
    ]
    return sorted(os.listdir("/proc/self/fd")), children, len(mapped)


def launch_once() -> None:
    with shmkv.launch(memory="8MiB") as db:
        db["k"] = 1


def test_many_launches_leave_no_memory_process_object_or_descriptor(places: Places) -> None:
    launch_once()
    before = traces()
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(8):
        launch_once()
    assert traces() == before
    # One arena that stays mapped would be 8 MiB; the allocator's own noise is far below.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 4096


@pytest.mark.slow
def test_two_hundred_launches_leave_nothing(places: Places) -> None:
    launch_once()
    before = traces()
    for _ in range(200):
        launch_once()
    assert traces() == before
    assert not places.processes()


def test_a_killed_owner_takes_its_store_along(places: Places) -> None:
    program, name = owner()
    program.kill()
    program.communicate()
    wait_until(lambda: paths.object_inode(name) is None, "the end of the store")
    wait_until(lambda: not places.processes(), "the end of its processes")


def test_forked_workers_that_live_on_do_not_keep_the_store_alive(places: Places) -> None:
    program, name = owner(more="if os.fork() == 0:\n    signal.pause()")
    program.kill()
    program.wait()
    wait_until(lambda: paths.object_inode(name) is None, "the end of the store")
    for pid in places.processes():
        os.kill(pid, signal.SIGKILL)
    program.communicate()


def test_the_keeper_cleans_up_when_owner_and_supervisor_are_killed(places: Places) -> None:
    program, name = owner()
    for pid in places.processes("shmkv.supervisor.private"):
        os.kill(pid, signal.SIGKILL)
    # The owner goes on with its store: the last process of it lives as long as the owner.
    assert paths.object_inode(name) is not None
    assert places.processes("keeper")
    program.kill()
    program.communicate()
    wait_until(lambda: paths.object_inode(name) is None, "the end of the store")


def test_what_a_mass_kill_leaves_is_swept_by_the_next_launch(places: Places) -> None:
    program, name = owner()
    for pid in places.processes():
        os.kill(pid, signal.SIGKILL)
    program.communicate()
    assert paths.object_inode(name) is not None
    with shmkv.launch(memory="16MB"):
        assert paths.object_inode(name) is None


def test_stores_of_the_living_are_not_swept(places: Places) -> None:
    program, name = owner()
    assert name not in sweep_dead_stores()
    assert paths.object_inode(name) is not None
    program.kill()
    program.communicate()
    wait_until(lambda: paths.object_inode(name) is None, "the end of the store")


def test_a_store_whose_supervisor_was_killed_still_ends_completely(places: Places, tmp_path: Path) -> None:
    for data_dir in (None, tmp_path / "data"):
        db = shmkv.launch(memory="16MB", data_dir=data_dir)
        db["k"] = 1
        for pid in places.processes("shmkv.supervisor.private"):
            os.kill(pid, signal.SIGKILL)
        assert db["k"] == 1
        db.close()
        assert paths.object_inode(db.name) is None
        wait_until(lambda: not places.processes(), "the end of its processes")
    with shmkv.launch(memory="16MB", data_dir=tmp_path / "data") as db:
        assert db["k"] == 1


def leave_the_block(db: shmkv.Store) -> None:
    with db:
        assert db["k"] == 1


def test_a_forked_child_that_leaves_the_block_ends_nothing(places: Places) -> None:
    with shmkv.launch(memory="16MB") as db:
        db["k"] = 1
        child = multiprocessing.get_context("fork").Process(target=leave_the_block, args=(db,))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert db["k"] == 1
        assert paths.object_inode(db.name) is not None


def test_a_process_that_ends_without_closing_leaves_nothing(places: Places) -> None:
    program = "import shmkv\ndb = shmkv.launch(memory='16MB')\ndb['k'] = 1\nprint(db.name)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: paths.object_inode(done.stdout.strip()) is None, "the end of the store")


def test_what_the_supervisor_refuses_is_raised_as_what_it_is(places: Places, tmp_path: Path) -> None:
    name = places.name()
    with shmkv.launch(name, memory="16MB", data_dir=tmp_path / "data"):
        with pytest.raises(errors.StoreExists, match="is held by process"):
            shmkv.launch(name, memory="16MB", data_dir=tmp_path / "other")
        # The loser must not touch what belongs to the winner.
        assert (places.runtime / "shmkv" / name / "control").exists()
        with pytest.raises(errors.StoreExists, match=str(tmp_path / "data")):
            shmkv.launch(places.name(), memory="16MB", data_dir=tmp_path / "data")
    with pytest.raises(errors.MemoryLimitExceeded, match="15 TiB"):
        shmkv.launch(memory="15TiB")
    with pytest.raises(config.InvalidSetting, match="did you mean 'durability'"):
        shmkv.launch(memory="16MB", durabilty="always")
    with pytest.raises(errors.InvalidName):
        shmkv.launch("../x")
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StoreUnavailable, match="file"):
        shmkv.launch(memory="16MB", data_dir=tmp_path / "file")
    assert not places.processes()


def test_a_start_that_takes_too_long_is_ended(places: Places) -> None:
    with pytest.raises(errors.StoreUnavailable, match=r"not ready within 0.001 s"):
        start_embedded(memory="16MB", timeout_s=0.001)
    assert not places.processes()


def test_settings_of_the_environment_do_not_reach_a_private_store(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMKV_DATA_DIR", "/no/such/place")
    with shmkv.launch(memory="16MB") as db:
        db["k"] = 1


def test_ctrl_c_reaches_the_owner_only(places: Places) -> None:
    program, name = owner(more="signal.signal(signal.SIGINT, lambda *_: print('interrupted', flush=True))")
    program.send_signal(signal.SIGINT)
    assert program.stdout is not None
    select.select([program.stdout], [], [], 10)
    assert program.stdout.readline() == "interrupted\n"
    assert paths.object_inode(name) is not None
    program.kill()
    program.communicate()
    wait_until(lambda: paths.object_inode(name) is None, "the end of the store")


def test_a_process_is_known_by_its_start_time_too() -> None:
    mine = start_time(os.getpid())
    assert mine is not None
    assert is_alive(os.getpid(), mine)
    assert not is_alive(os.getpid(), mine + 1)
    assert not is_alive(2**22 + 1, mine)
