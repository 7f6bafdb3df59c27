"""Programs of the system tests: real client processes that say on standard output what was acknowledged to them."""

from __future__ import annotations

import select
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import DEADLINE_S, ROOT

# Sets own-0, own-1 ... and says each number after the call returned; an exception of shmkv is said, too, and ends it.
WRITER = """
import sys, shmkv
name, own, durability, log_timeout, timeout = sys.argv[1:6]
number = -1
try:
    db = shmkv.attach(name, timeout=float(timeout), durability=durability, log_timeout=float(log_timeout))
    while True:
        db[f"{own}-{number + 1}"] = number + 1
        number += 1
        print(number, flush=True)
except shmkv.ShmkvError as error:
    print(type(error).__name__, flush=True)
"""


class Program:
    """A Python program in a process of its own, read line by line."""

    def __init__(self, source: str, *arguments: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", source, *map(str, arguments)], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self.lines: list[str] = []
        self._rest = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self, timeout_s: float) -> bool:
        """Take in what it says within that time; False if that is nothing."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout_s)[0]:
            return False
        data = self.process.stdout.read(65536)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += [line.decode() for line in lines]
        return data != b""

    def wait_for(self, count: int) -> None:
        """Until it has said so many lines in all."""
        while len(self.lines) < count:
            if not self.read(DEADLINE_S):
                self.process.kill()
                pytest.fail(f"{len(self.lines)} of {count} lines, then nothing: {self.process.communicate()}")

    def more(self, count: int) -> None:
        """Until it has said so many further lines, counted from what it has said by now."""
        while self.read(0):
            continue
        self.wait_for(len(self.lines) + count)

    def end(self) -> tuple[list[str], str]:
        """Wait for its end: (all lines, error output)."""
        while self.read(DEADLINE_S):
            continue
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.lines, errors.decode()

    def kill(self) -> list[str]:
        """SIGKILL, then all lines."""
        self.process.kill()
        return self.end()[0]


def writer(
    name: str, own: str = "w", durability: str = "interval", log_timeout_s: float = 5, timeout_s: float = 15
) -> Program:
    """A process that writes for ever; each of its lines is the number of an acknowledged write."""
    return Program(WRITER, name, own, durability, log_timeout_s, timeout_s)


def numbers(lines: list[str]) -> list[int]:
    """The acknowledged writes, which come in order and without a hole."""
    found = [int(line) for line in lines if line.isdecimal()]
    assert found == list(range(len(found)))
    return found


def check_written(db: Any, own: str, acknowledged: int) -> None:
    """At least the acknowledged writes are there, at most one more, each with its value, and no hole."""
    mine = {key: value for key, value in db.items() if key.startswith(f"{own}-")}
    assert acknowledged <= len(mine) <= acknowledged + 1
    assert mine == {f"{own}-{number}": number for number in range(len(mine))}
