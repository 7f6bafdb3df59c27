"""SIGKILL for everything at once, then the next start, warm and cold, at every level of durability; and for launch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv import paths
from tests.conftest import Places, Supervised, wait_until
from tests.system.programs import Program, check_written, numbers, writer

Start = Callable[..., Supervised]
LEVELS = ("always", "interval", "none")
# A start reads all of a file: small ones make it short.
SMALL = ("--log-file", "1MiB")


@pytest.mark.parametrize("turns", [1, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("level", LEVELS)
def test_a_warm_start_has_every_acknowledged_write_and_an_attached_handle_goes_on(
    places: Places, supervised: Start, program: Callable[..., Program], kill_all: Callable[..., None], level: str,
    turns: int,
) -> None:  # fmt: skip
    name = places.name()
    store = supervised(name, "--durability", level, *SMALL)
    with shmkv.attach(name) as db:
        db["before"] = 1
        for turn in range(turns):
            writers = {own: program(writer, name, own, level) for own in (f"a{turn}", f"b{turn}")}
            for each in writers.values():
                each.wait_for(100)
            kill_all()
            counts = {own: len(numbers(each.end()[0])) for own, each in writers.items()}
            store.end()
            store = supervised(name, "--durability", level, *SMALL, ready=False)
            assert "(warm)" in store.ready_line()
            db[f"after {turn}"] = turn
            db.sync(timeout=10)
            for own, count in counts.items():
                check_written(db, own, count)
        assert db["before"] == 1


@pytest.mark.parametrize("level", LEVELS)
def test_a_cold_start_has_what_the_level_promises_and_ends_without_a_hole(
    places: Places, supervised: Start, program: Callable[..., Program], kill_all: Callable[..., None], level: str
) -> None:
    name = places.name()
    store = supervised(name, "--durability", level, *SMALL)
    client = program(writer, name, "w", level)
    client.wait_for(200)
    with shmkv.attach(name) as db:
        db["here"] = 1
        db.sync(timeout=10)
        entries = [entry for key in db if (entry := db.entry(key)) is not None and str(key).startswith("w-")]
        synced = sum(entry.version <= db.last_lsn for entry in entries)
    client.more(100)
    kill_all()
    acknowledged = len(numbers(client.end()[0]))
    store.end()
    os.unlink(paths.object_path(name))
    store = supervised(name, "--durability", level, *SMALL, ready=False)
    assert "(cold" in store.ready_line()
    with shmkv.attach(name) as db:
        kept = sum(str(key).startswith("w-") for key in db)
        promised = acknowledged if level == "always" else synced
        assert 200 <= promised <= kept <= acknowledged + 1
        check_written(db, "w", kept)
        assert db["here"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_all_killed_in_a_row_warm_and_cold_by_turns_keeps_what_was_synced(
    places: Places, supervised: Start, kill_all: Callable[..., None], level: str
) -> None:
    name = places.name()
    expected: dict[str, int] = {}
    for turn in range(6):
        store = supervised(name, "--durability", level, *SMALL)
        with shmkv.attach(name) as db:
            assert dict(db.items()) == expected
            for number in range(50):
                db[f"{turn} {number}"] = expected[f"{turn} {number}"] = number
            del db[f"{turn} 0"], expected[f"{turn} 0"]
            if turn % 2:
                db.sync(timeout=10)
        kill_all()
        store.end()
        if turn % 2:
            os.unlink(paths.object_path(name))
    supervised(name, "--durability", level, *SMALL)
    with shmkv.attach(name) as db:
        assert dict(db.items()) == expected


LAUNCHER = """
import sys, shmkv
shmkv.launch(memory="16MB", data_dir=sys.argv[1] or None)
print("launched", flush=True)
"""


def objects_of(pid: int) -> list[str]:
    return [name for name in paths.store_names() if (paths.temporary_owner(name) or (0,))[0] == pid]


@pytest.mark.parametrize("stage", [pytest.param("supervisor", marks=pytest.mark.slow), "object", "children", "ready"])
@pytest.mark.parametrize("data", [pytest.param(False, marks=pytest.mark.slow), True], ids=["memory", "data"])
def test_a_script_that_is_killed_inside_of_launch_leaves_nothing(
    places: Places, program: Callable[..., Program], tmp_path: Path, stage: str, data: bool
) -> None:
    script = program(Program, LAUNCHER + "\nimport signal; signal.pause()", tmp_path / "data" if data else "")
    reached: dict[str, Callable[[], Any]] = {
        "supervisor": lambda: len(places.processes()) > 1,
        "object": lambda: objects_of(script.pid),
        "children": lambda: places.processes("shmkv.wal.persister" if data else "shmkv.supervisor.keeper"),
        "ready": lambda: script.read(0),
    }
    wait_until(reached[stage], f"the stage {stage}")
    os.kill(script.pid, signal.SIGKILL)
    script.end()
    wait_until(lambda: not places.processes(), "the end of all processes")
    assert objects_of(script.pid) == []
    if data:
        with shmkv.launch(memory="16MB", data_dir=tmp_path / "data") as db:
            assert len(db) == 0
