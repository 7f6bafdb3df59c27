"""Client processes that end with their test, and what the tests of this directory ask about a store."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.conftest import Places
from tests.system.programs import Program


@pytest.fixture
def program(places: Places) -> Iterator[Callable[..., Program]]:
    """Start programs: `program(make, *arguments)`; what still runs at the end is killed."""
    started: list[Program] = []

    def start(make: Callable[..., Program], *arguments: Any, **options: Any) -> Program:
        started.append(make(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()
        else:
            each.process.communicate()


@pytest.fixture
def kill_all(places: Places) -> Callable[..., None]:
    """SIGKILL every process of the test whose command line holds `part`."""

    def kill(part: str = "") -> None:
        for pid in places.processes(part):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return kill
