"""Others that stop: a stopped holder of a lock, a stopped persister, and Ctrl-C while waiting for them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

import shmkv
from shmkv.supervisor.control import ask
from tests.conftest import Places, Supervised
from tests.system.programs import Program

Start = Callable[..., Supervised]

# A busy machine runs a woken process late; the promise itself is 50 ms.
SLACK_S = 0.5

HAMMER = """
import sys, shmkv
db = shmkv.attach(sys.argv[1])
value = b"x" * 1_000_000
db["k"] = value
print("ready", flush=True)
while True:
    db["k"] = value
"""


def stopped_holder(db: Any, hammer: Program) -> shmkv.LockTimeout:
    """Stop the hammer again and again, until it is caught inside of a write; what a writer is told then."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        os.kill(hammer.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, hammer.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            db["k"] = b"mine"
        except shmkv.LockTimeout as error:
            return error
        os.kill(hammer.pid, signal.SIGCONT)
    pytest.fail("the writer was never caught with a lock")


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL])
def test_a_stopped_holder_of_a_lock_is_named_and_not_robbed(
    launched: Any, program: Callable[..., Program], end: signal.Signals
) -> None:
    owner = launched(memory="64MiB")
    owner["other"] = 1
    hammer = program(Program, HAMMER, owner.name)
    hammer.wait_for(1)
    with shmkv.attach(owner.name, lock_timeout=0.2) as db:
        error = stopped_holder(db, hammer)
        assert f"process {hammer.pid}" in str(error)
        assert db["other"] == 1
        before_s = time.monotonic()
        with pytest.raises(shmkv.LockTimeout, match=f"process {hammer.pid}"):
            db["k"] = b"mine"
        assert 0.2 <= time.monotonic() - before_s < 0.2 + SLACK_S
        os.kill(hammer.pid, end)
        if end == signal.SIGKILL:
            hammer.end()
            assert db["k"] in (b"x" * 1_000_000, b"mine")
            db["k"] = b"mine"
            assert db["k"] == b"mine"
        else:
            hammer.kill()
            db["k"] = b"mine"
            assert db["k"] == b"mine"


WAITER = """
import sys, time, shmkv
db = shmkv.attach(sys.argv[1], durability=sys.argv[2], log_timeout=60)
number = 0
try:
    while True:
        print(number, flush=True)
        db[f"k{number}"] = b"x" * 1000
        number += 1
except KeyboardInterrupt:
    print("interrupted", time.monotonic(), flush=True)
"""


@pytest.mark.parametrize("durability", ["always", "interval"])
def test_ctrl_c_ends_a_wait_for_a_persister_that_is_stopped(
    places: Places, supervised: Start, program: Callable[..., Program], durability: str
) -> None:
    name = places.name()
    supervised(name, "--lag-limit", "0.3s")
    children = ask(f"{places.runtime}/shmkv/{name}/control", {"do": "status"})["children"]
    (persister,) = [each["pid"] for each in children if each["role"] == "persister"]
    os.kill(persister, signal.SIGSTOP)
    waiter = program(Program, WAITER, name, durability)
    waiter.wait_for(1)
    # Nothing said for so long means that it waits: for the disk, or for the limit of the lag to be over.
    while waiter.read(0.6):
        continue
    sent_s = time.monotonic()
    os.kill(waiter.pid, signal.SIGINT)
    lines, errors = waiter.end()
    word, when_s = lines[-1].split()
    assert (word, errors) == ("interrupted", "")
    assert float(when_s) - sent_s < 0.05 + SLACK_S
    os.kill(persister, signal.SIGCONT)
    with shmkv.attach(name) as db:
        db["after"] = 1
        db.sync(timeout=10)
        assert len(db) >= len(lines) - 2
