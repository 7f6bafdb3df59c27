"""Client processes that end with their test, and what the tests of this directory ask about a store."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Places, Supervised
from tests.system.disks import Shim
from tests.system.programs import Program

# The disks of the tools are used here too; their directory goes on the path, as it does when a tool is run.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from harness.disk import LoopDisk

from tests.system.trouble import Trouble

Start = Callable[..., Supervised]
DISK_BYTES = 32 << 20


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


@pytest.fixture
def trouble(
    places: Places, supervised: Start, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[Path], Trouble]:
    return lambda data: Trouble(places, supervised, capsys, data)


@pytest.fixture
def shim_below(
    trouble: Callable[[Path], Trouble], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supervised: Start
) -> Iterator[Callable[[str], tuple[Trouble, Shim]]]:
    """A store whose calls on files of a folder can be made to fail. (`supervised` ends before the shim is healed.)"""
    shims: list[Shim] = []

    def make(folder: str) -> tuple[Trouble, Shim]:
        shims.append(Shim(tmp_path, tmp_path / "data" / folder))
        for name, value in shims[-1].environment.items():
            monkeypatch.setenv(name, value)
        return trouble(tmp_path / "data"), shims[-1]

    yield make
    for shim in shims:
        shim.close()


@pytest.fixture
def shimmed(shim_below: Callable[[str], tuple[Trouble, Shim]]) -> tuple[Trouble, Shim]:
    """The whole data directory."""
    return shim_below("")


@pytest.fixture
def shimmed_snapshots(shim_below: Callable[[str], tuple[Trouble, Shim]]) -> tuple[Trouble, Shim]:
    """Only the snapshots in it."""
    return shim_below("snapshot")


@pytest.fixture
def disk(tmp_path: Path, places: Places) -> Iterator[LoopDisk]:
    """A small ext4 that goes at the end, after the processes of the test."""
    with LoopDisk(tmp_path, DISK_BYTES, "errors=remount-ro") as disk:
        yield disk


@pytest.fixture
def on_disk(
    disk: LoopDisk, trouble: Callable[[Path], Trouble], supervised: Start
) -> Iterator[tuple[Trouble, LoopDisk]]:
    yield trouble(disk.path / "data"), disk
    disk.thaw()
