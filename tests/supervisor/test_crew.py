"""How long a child may take to end: as said, and longer only as long as a job of it gets on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from shmkv.supervisor.child import ManagedChild, Process
from shmkv.supervisor.crew import Crew, Hooks
from shmkv.supervisor.lines import Message
from shmkv.supervisor.loop import Loop
from shmkv.supervisor.report import Report


class HandProcess:
    """A process that says what the test lets it say."""

    pid = 1

    def __init__(self) -> None:
        self.events, self._event_write = os.pipe()
        self.pidfd, self._pid_write = os.pipe()
        self.messages: list[Message] = []
        self.killed = 0

    def say(self, **message: Any) -> None:
        self.messages.append(message)
        os.write(self._event_write, b".")

    def receive(self) -> list[Message]:
        if self.messages:
            os.read(self.events, 1 << 16)
        said, self.messages = self.messages, []
        return said

    def send(self, command: Message) -> bool:
        return True

    def kill(self) -> None:
        self.killed += 1

    def close(self) -> None:
        for fd in (self.events, self._event_write, self.pidfd, self._pid_write):
            os.close(fd)


class Bench:
    """A persister that is up, and a clock by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.loop = Loop(lambda: self.now_s)
        self.process = HandProcess()
        self.child = ManagedChild("persister")

        def nothing(*_: Any) -> None:
            return

        hooks = Hooks(
            recipe=lambda _child: ("module", {}, None),
            message=nothing,
            ready=nothing,
            died=lambda _child, _what: True,
            refused=nothing,
            finished=nothing,
            ended=nothing,
            may_start=lambda: True,
        )
        self.crew = Crew(self.loop, Report("test"), hooks, lambda *_: cast(Process, self.process))
        self.crew.start(self.child)
        self.hear(event="ready")

    def hear(self, **message: Any) -> None:
        self.process.say(**message)
        self.loop.turn()

    def at(self, now_s: float, **message: Any) -> int:
        """Say that at that time; how often it was killed by then."""
        self.now_s = now_s
        self.hear(**(message or {"event": "progress"}))
        return self.process.killed


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.loop.close()
    made.process.close()


def test_a_child_that_does_not_end_in_time_is_killed_though_it_lives(bench: Bench) -> None:
    bench.crew.stop(bench.child, {"do": "retire"}, 10.0)
    assert bench.at(9.9) == 0
    assert bench.at(10.0) == 1


def test_a_job_that_gets_on_begins_the_time_anew(bench: Bench) -> None:
    bench.crew.stop(bench.child, {"do": "retire"}, 10.0)
    for now_s in range(8, 80, 8):
        assert bench.at(now_s, event="job", job="final", state="running", done_bytes=now_s) == 0
    assert bench.at(81.9) == 0
    assert bench.at(82.0) == 1


def test_a_job_before_the_stop_and_its_end_give_no_time(bench: Bench) -> None:
    bench.at(1, event="job", job="1", state="running")
    bench.crew.stop(bench.child, {"do": "retire"}, 10.0)
    assert bench.at(9, event="job", job="1", state="done") == 0
    assert bench.at(11) == 1


def test_whoever_is_in_a_hurry_does_not_wait_for_a_job(bench: Bench) -> None:
    bench.crew.stop(bench.child, {"do": "retire"}, 10.0)
    bench.at(5, event="job", job="final", state="running")
    bench.crew.hurry(bench.child, 1.0)
    assert bench.at(5.9, event="job", job="final", state="running") == 0
    assert bench.at(6.0, event="job", job="final", state="running") == 1
