"""A private store lives as long as its handle, and leaves nothing: no process, no shared object, no file."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv import paths
from shmkv.config import InvalidSetting

ROOT = Path(__file__).parent.parent


def wait_until(condition: Any, what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def gone(name: str) -> bool:
    return name not in paths.store_names()


def test_a_throw_away_store_leaves_nothing(places: Any) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with shmkv.launch(memory="16MB") as db:
        name = db.name
        db["a"] = 1
        assert name in paths.store_names()
        assert places.processes()
        assert not list(places.runtime.rglob("*.*"))
    assert db.closed
    assert gone(name)
    assert not places.processes()
    assert sorted(os.listdir("/proc/self/fd")) == before
    db.close()


def test_without_arguments_it_works_as_in_the_manual(places: Any) -> None:
    with shmkv.launch() as db:
        db["user:1"] = {"name": "Ada", "visits": 3}
        assert db["user:1"]["visits"] == 3
        assert db.stats().memory_bytes == 256 << 20


def test_data_with_a_directory_is_there_again(places: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places.runtime.parent)
    name = places.name()
    for number in range(3):
        with shmkv.launch(
            name, memory="16MB", data_dir="scratch", expected_items=1000, eviction="noeviction", durability="always"
        ) as db:
            assert dict(db.items()) == {f"run {earlier}": (earlier,) for earlier in range(number)}
            db[f"run {number}"] = (number,)
    assert (places.runtime.parent / "scratch").is_dir()
    assert gone(name)


def test_settings_are_passed_on_and_checked(places: Any) -> None:
    with shmkv.launch(memory="32MiB", ring="4MiB") as db:
        assert db.stats().ring_bytes == 4 << 20
        assert db.stats().memory_bytes == 32 << 20
    with pytest.raises(InvalidSetting, match="did you mean 'memory'"):
        shmkv.launch(memori="32MB")
    for wrong in ({"memory": "10 parrots"}, {"memory": "1kB"}, {"eviction": "sometimes"}, {"expected_items": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            shmkv.launch(**wrong)  # type: ignore[arg-type]


def test_a_name_or_a_directory_that_is_taken_is_store_exists(places: Any) -> None:
    name, data = places.name(), places.state / "data"
    with shmkv.launch(name, memory="16MB", data_dir=data) as db:
        with pytest.raises(shmkv.StoreExists, match=name):
            shmkv.launch(name, memory="16MB")
        with pytest.raises(shmkv.StoreExists):
            shmkv.launch(places.name(), memory="16MB", data_dir=data)
        db["a"] = 1
        assert db["a"] == 1


def test_more_memory_than_there_is_is_refused_with_numbers(places: Any) -> None:
    with pytest.raises(shmkv.MemoryLimitExceeded, match=r"/dev/shm"):
        shmkv.launch(memory="15TiB")
    assert not [name for name in paths.store_names() if str(os.getpid()) in name]


def test_an_error_inside_of_the_block_ends_the_store_too(places: Any) -> None:
    name = ""
    with pytest.raises(ZeroDivisionError), shmkv.launch(memory="16MB") as db:
        name = db.name
        1 // 0  # noqa: B018
    assert gone(name)


def test_a_handle_that_is_forgotten_ends_its_store(places: Any) -> None:
    db = shmkv.launch(memory="16MB")
    name = db.name
    del db
    gc.collect()
    assert gone(name)
    assert not places.processes()


def test_a_forked_child_that_leaves_the_block_ends_nothing(places: Any) -> None:
    with shmkv.launch(memory="16MB") as db:
        db["n"] = 0
        pids = []
        for number in range(3):
            pid = os.fork()
            if pid == 0:
                try:
                    db.incr("n")
                    if number == 0:
                        db.close()
                    elif number == 1:
                        db.__exit__(None, None, None)
                    else:
                        db._end()
                finally:
                    os._exit(0)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
        assert db["n"] == 3
        assert db.name in paths.store_names()


def test_another_handle_on_it_ends_nothing(places: Any) -> None:
    with shmkv.launch(memory="16MB") as db:
        with pickle.loads(pickle.dumps(db)) as copy, shmkv.attach(db.name) as other:
            copy["a"] = 1
            other["b"] = 2
        assert db == {"a": 1, "b": 2}


def test_two_private_stores_are_two(places: Any) -> None:
    with shmkv.launch(memory="16MB") as one, shmkv.launch(memory="16MB") as two:
        one["a"] = 1
        assert "a" not in two
        assert one.name != two.name
        assert one.store_id != two.store_id


def test_stores_may_be_launched_by_several_threads_at_once(places: Any) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with shmkv.launch(memory="16MB") as db:
                db["a"] = 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def run_program(text: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_program_that_forgets_to_close_ends_cleanly(places: Any) -> None:
    program = run_program("import shmkv; db = shmkv.launch(memory='16MB'); db['a'] = 1; print(db.name)")
    output, lines = program.communicate(timeout=30)
    assert (program.returncode, lines) == (0, "")
    assert gone(output.strip())
    assert not places.processes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_its_owner_is_killed_the_store_ends(places: Any, number: signal.Signals) -> None:
    program = run_program(
        "import shmkv, time; db = shmkv.launch(memory='16MB'); print(db.name, flush=True); time.sleep(60)"
    )
    assert program.stdout is not None
    name = program.stdout.readline().strip()
    assert name in paths.store_names()
    program.send_signal(number)
    program.communicate(timeout=30)
    wait_until(lambda: gone(name) and not places.processes(), "end of the store")


def test_workers_of_a_killed_owner_do_not_keep_the_store(places: Any) -> None:
    program = run_program(
        "import os, shmkv, time\n"
        "db = shmkv.launch(memory='16MB')\n"
        "pid = os.fork()\n"
        "if pid == 0: time.sleep(60)\n"
        "print(db.name, pid, flush=True)\n"
        "time.sleep(60)"
    )
    assert program.stdout is not None
    name, worker = program.stdout.readline().split()
    program.kill()
    try:
        wait_until(lambda: gone(name), "end of the store")
    finally:
        os.kill(int(worker), signal.SIGKILL)
        program.communicate(timeout=30)


def test_a_store_whose_supervisor_was_killed_still_closes(places: Any) -> None:
    with shmkv.launch(memory="16MB") as db:
        name = db.name
        db["a"] = 1
        (supervisor,) = places.processes("shmkv.supervisor.private")
        os.kill(supervisor, signal.SIGKILL)
        assert db["a"] == 1 or db.closed
    assert gone(name)


def test_a_second_store_is_not_disturbed_by_the_kill_of_the_first(places: Any) -> None:
    with shmkv.launch(memory="16MB") as survivor:
        survivor["a"] = 1
        program = run_program(
            "import shmkv, time; db = shmkv.launch(memory='16MB'); print(db.name, flush=True); time.sleep(60)"
        )
        assert program.stdout is not None
        name = program.stdout.readline().strip()
        program.kill()
        program.communicate(timeout=30)
        wait_until(lambda: gone(name), "end of the store")
        assert survivor["a"] == 1


def cycle(number: int) -> None:
    with shmkv.launch(memory="8MiB") as db:
        db["n"] = number
        assert db["n"] == number
        name = db.name
    assert gone(name)


def test_twenty_launches_one_after_the_other_leave_nothing(places: Any) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for number in range(20):
        cycle(number)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not places.processes()


@pytest.mark.slow
def test_two_hundred_launches_leave_nothing(places: Any) -> None:
    for number in range(200):
        cycle(number)
    assert not places.processes()
