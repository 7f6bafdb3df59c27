"""Bad luck of the log: a persister that dies whenever it comes, a torn tail, a flipped byte."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shmkv
from shmkv import paths
from shmkv.supervisor.control import ask
from tests.conftest import Places, Supervised, wait_until

Start = Callable[..., Supervised]

# A start reads all of a file: small ones make it short.
SMALL = ("--log-file", "1MiB")


def status(places: Places, name: str) -> dict[str, Any]:
    return ask(f"{places.runtime}/shmkv/{name}/control", {"do": "status"})


def persister(places: Places, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in status(places, name)["children"] if each["role"] == "persister")
    return found


def written(db: Any, number: int) -> bool:
    try:
        return bool(db.set(f"k{number}", number))
    except shmkv.LogStalled:
        return False


def test_a_persister_that_is_killed_whenever_it_comes_stalls_writers_and_never_readers(
    places: Places, supervised: Start, kill_all: Callable[..., None]
) -> None:
    name = places.name()
    # Room for all that a fast machine can write before the lag limit: not a full store is to be seen here.
    roomy = ("--memory", "256MiB", *SMALL)
    store = supervised(name, "--lag-limit", "0.3s", *roomy)
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            kill_all("shmkv.wal.persister")
            done.wait(0.002)

    killer = threading.Thread(target=kill)
    with shmkv.attach(name, log_timeout=0.2) as db:
        db["before"] = 1
        killer.start()
        acknowledged = 0
        try:
            while written(db, acknowledged):
                assert db["before"] == 1
                acknowledged += 1
            wait_until(lambda: persister(places, name)["failures"] >= 4, "the fourth try")
            assert not written(db, acknowledged)
            assert [db[f"k{number}"] for number in range(acknowledged)] == list(range(acknowledged))
            assert f"k{acknowledged}" not in db
        finally:
            done.set()
            killer.join()
        wait_until(lambda: written(db, acknowledged), "writes to work again")
    code, lines = store.stop()
    assert code == 0
    waits = re.findall(r"the persister was killed by SIGKILL; next try in ([\d.]+) s", lines)
    assert [float(wait) for wait in waits[:4]] == [0.1, 0.2, 0.4, 0.8]
    supervised(name, *roomy)
    with shmkv.attach(name) as db:
        expected = {"before": 1} | {f"k{number}": number for number in range(acknowledged + 1)}
        assert dict(db.items()) == expected


def log_files(places: Places, name: str) -> list[Path]:
    return sorted((places.state / "shmkv" / name / "log").glob("*.log"))


def place_of(places: Places, name: str, text: bytes) -> tuple[Path, int]:
    """The one file of the log that holds those bytes, and where."""
    found = [(path, at) for path in log_files(places, name) if (at := path.read_bytes().find(text)) >= 0]
    assert len(found) == 1
    return found[0]


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def power_off(places: Places, name: str, store: Supervised, kill_all: Callable[..., None]) -> None:
    """All processes and the memory are gone; the files are as they are."""
    kill_all("-m shmkv.")
    store.end()
    wait_until(lambda: not places.processes("-m shmkv."), "the end of the children")
    os.unlink(paths.object_path(name))


def test_a_torn_tail_is_cut_and_said_and_stays_cut(
    places: Places, supervised: Start, kill_all: Callable[..., None]
) -> None:
    name = places.name()
    store = supervised(name, "--durability", "none", *SMALL)
    with shmkv.attach(name) as db:
        db.update({f"k{number}": f"value {number} " + "x" * 100 for number in range(100)})
        db["last"] = "the last value " + "y" * 100
        wait_until(lambda: status(places, name)["arena"]["ring"]["written_lsn"] > db.last_lsn, "the writing")
    power_off(places, name, store, kill_all)
    path, offset = place_of(places, name, b"the last value")
    change(path, offset + 50, bytes(path.stat().st_size - offset - 50))
    store = supervised(name, "--durability", "none", *SMALL)
    expected = {f"k{number}": f"value {number} " + "x" * 100 for number in range(100)}
    with shmkv.attach(name) as db:
        assert dict(db.items()) == expected
        db["after"] = expected["after"] = "set after the cut"
    code, lines = store.stop()
    assert code == 0
    assert re.search(r"torn record and was cut at LSN \d+", lines), lines
    store = supervised(name, *SMALL)
    with shmkv.attach(name) as db:
        assert dict(db.items()) == expected
    assert "torn" not in store.stop()[1]


def test_a_flipped_byte_in_the_middle_is_named_refused_and_given_up_only_when_asked(
    places: Places, supervised: Start, kill_all: Callable[..., None]
) -> None:
    name = places.name()
    store = supervised(name, "--durability", "always", *SMALL)
    with shmkv.attach(name) as db:
        for number in range(200):
            db[f"k{number}"] = f"value {number} " + "x" * 100
    power_off(places, name, store, kill_all)
    path, offset = place_of(places, name, b"value 100 ")
    before = path.read_bytes()
    change(path, offset + 3, bytes([before[offset + 3] ^ 0x10]))
    damaged = path.read_bytes()
    for _ in range(2):
        code, lines = supervised(name, *SMALL, ready=False).end()
        assert code == 65
        assert str(path) in lines
        assert "--accept-loss" in lines
        named = re.search(r"offset (\d+).*?LSN (\d+)", lines)
        assert named, lines
        # The record begins shortly before its value, and its LSN is as far behind the first one as it in the file.
        assert offset - 200 < int(named[1]) <= offset
        assert (int(named[2]) - int(named[1]) + 4096) % 4096 == 0
        assert paths.object_inode(name) is None
        assert path.read_bytes() == damaged
    # With the byte back it is whole: the refusals changed nothing.
    change(path, 0, before)
    store = supervised(name, *SMALL)
    with shmkv.attach(name) as db:
        assert len(db) == 200
    # Not a stop: that takes a snapshot, and then the log before it is needed no more.
    power_off(places, name, store, kill_all)
    change(path, offset + 3, bytes([before[offset + 3] ^ 0x10]))
    assert supervised(name, *SMALL, ready=False).end()[0] == 65
    store = supervised(name, "--accept-loss", *SMALL)
    with shmkv.attach(name) as db:
        assert dict(db.items()) == {f"k{number}": f"value {number} " + "x" * 100 for number in range(100)}
