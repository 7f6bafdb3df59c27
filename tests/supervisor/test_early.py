"""The persister's interpreter that is started ahead; it touches nothing before its arguments, and never stays."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv.supervisor.cli import wants_persister
from shmkv.supervisor.early import EarlyPersister
from shmkv.supervisor.spawn import EVENT_FD
from tests.conftest import Places, Supervised, wait_until


@pytest.fixture
def early(places: Places) -> Iterator[EarlyPersister]:
    made = EarlyPersister(wanted=True)
    yield made
    made.close()


def arguments(places: Places) -> dict[str, Any]:
    plan = {"size_bytes": 16 << 20, "max_size_bytes": 0, "ring_bytes": 0, "expected_items": 0}
    return {
        "name": places.name(), "data_dir": str(places.state / "data"), "created": True, "durability": "interval",
        "event_fd": EVENT_FD, "plan": plan,
    }  # fmt: skip


def test_unused_it_is_gone_when_it_is_closed(places: Places, early: EarlyPersister) -> None:
    wait_until(lambda: places.processes("shmkv.wal.persister"), "the interpreter")
    early.close()
    assert not places.processes()
    early.close()


def test_it_ends_with_its_pipe_and_has_touched_nothing(places: Places, early: EarlyPersister) -> None:
    process = early.start_process("shmkv.wal.persister", {}, None)
    # The line was an empty object: no persister can be made of it.
    assert select.select([process.pidfd], [], [], 20)[0]
    assert process.reap() == 78
    process.close()
    unused = EarlyPersister(wanted=True)
    spawned = unused._spawned
    assert spawned is not None
    os.set_blocking(spawned.events, True)
    os.close(spawned.commands)
    assert os.read(spawned.events, 100) == b"", "it says nothing"
    assert os.waitstatus_to_exitcode(os.waitpid(spawned.pid, 0)[1]) == 0
    os.close(spawned.pidfd)
    os.close(spawned.events)
    unused._spawned = None
    assert not list(Path(places.state).rglob("*"))


def test_only_the_first_persister_is_the_early_one(places: Places, early: EarlyPersister) -> None:
    ahead = early._spawned
    assert ahead is not None
    given = arguments(places)
    first = early.start_process("shmkv.wal.persister", given, None)
    second = early.start_process("shmkv.wal.persister", given, None)
    assert first.pid == ahead.pid
    assert second.pid != ahead.pid
    for process in (first, second):
        # There is no such arena.
        assert select.select([process.pidfd], [], [], 20)[0]
        said = process.receive()
        assert said is not None
        assert said[-1]["event"] == "failed", said
        assert process.reap() == 1
        process.close()


@pytest.mark.parametrize(
    ("argv", "environ", "wanted"),
    [
        (["x"], {}, True),
        ([], {"SHMKV_NAME": "x"}, True),
        (["x", "--memory-only"], {}, False),
        (["--help"], {}, False),
        (["x"], {"SHMKV_MEMORY_ONLY": "1"}, False),
    ],
)
def test_it_is_started_when_a_log_is_likely(argv: list[str], environ: dict[str, str], wanted: bool) -> None:
    assert wants_persister(argv, environ) is wanted


def test_a_store_that_turns_out_to_be_memory_only_keeps_none(
    places: Places, supervised: Callable[..., Supervised]
) -> None:
    name = places.name()
    file = places.runtime / "settings.toml"
    file.write_text("memory_only = true\n")
    supervised(name, "--config", str(file))
    with shmkv.attach(name) as db:
        db["k"] = 1
    assert not places.processes("shmkv.wal.persister")
    file.unlink()


def test_a_refused_start_leaves_none_behind(places: Places, supervised: Callable[..., Supervised]) -> None:
    name = places.name()
    supervised(name)
    running = set(places.processes())
    assert supervised(name, ready=False).end()[0] == 75
    assert supervised(name, "--memory", "rubbish", ready=False).end()[0] == 78
    assert set(places.processes()) == running


def test_a_killed_supervisor_takes_it_along(places: Places, early: EarlyPersister) -> None:
    import subprocess
    import sys

    program = (
        "import time\nfrom shmkv.supervisor.early import EarlyPersister\n"
        "early = EarlyPersister(wanted=True)\nprint('up', flush=True)\ntime.sleep(60)"
    )
    early.close()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"up\n"
        supervisor.send_signal(signal.SIGKILL)
    wait_until(lambda: not places.processes(), "the end of the interpreter")


def test_arguments_may_still_come_on_the_command_line(places: Places) -> None:
    import subprocess
    import sys

    read, write = os.pipe()
    given = {**arguments(places), "event_fd": write}
    command = [sys.executable, "-m", "shmkv.wal.persister", json.dumps(given)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=(write,), check=False)
    os.close(write)
    assert done.returncode == 1
    assert b'"failed"' in os.read(read, 65536)
    os.close(read)
