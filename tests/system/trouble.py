"""A store whose disk is in trouble, as it is seen from outside: by clients, and by the administrator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.disk import unavailable

import shmkv
from shmkv import paths
from shmkv.admin import cli
from shmkv.supervisor.control import ask
from tests.conftest import Places, Supervised

Start = Callable[..., Supervised]

VALUE = "x" * 4000
needs_disk = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "there are loop disks")


class Trouble:
    """One store and what can be seen of it from outside."""

    def __init__(self, places: Places, supervised: Start, capsys: pytest.CaptureFixture[str], data: Path) -> None:
        self.name = places.name()
        self.data = data
        self._places = places
        self._supervised = supervised
        self._capsys = capsys

    def start(self, *options: str, durability: str = "always", ready: bool = True) -> Supervised:
        small = ("--log-file", "1MiB", "--memory", "16MiB", "--ring", "1MiB")
        where = ("--data-dir", str(self.data), "--durability", durability)
        return self._supervised(self.name, *small, *where, *options, ready=ready)

    def attach(self, log_timeout_s: float = 0.3) -> Any:
        return shmkv.attach(self.name, log_timeout=log_timeout_s)

    def persisters(self) -> list[int]:
        return sorted(self._places.processes("shmkv.wal.persister"))

    def child(self) -> dict[str, Any]:
        status = ask(f"{self._places.runtime}/shmkv/{self.name}/control", {"do": "status"})
        found: dict[str, Any] = next(each for each in status["children"] if each["role"] == "persister")
        return found

    def admin(self, *command: str) -> tuple[int, str]:
        self._capsys.readouterr()
        code = cli.main(["-s", self.name, *command])
        seen = self._capsys.readouterr()
        return code, seen.out + seen.err

    def doctor(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """Exit code, and the findings by the name of the check."""
        code, said = self.admin("doctor", "--json")
        return code, {finding["check"]: finding for finding in json.loads(said.splitlines()[0])}

    def shows(self, state: str) -> None:
        """The state of the log is seen by clients and by the administrator, who is told what to do if it is not OK."""
        with shmkv.attach(self.name, read_only=True) as db:
            assert db.stats().log_state == state
        assert f"{state}, durability" in self.admin("stats")[1]
        code, findings = self.doctor()
        assert findings["log"]["seen"].startswith(state)
        assert findings["log"]["ok"] == (state == "OK")
        assert bool(findings["log"]["remedy"]) == (state != "OK")
        if state != "OK":
            assert code == 1
            assert "[Errno " in findings["log"]["seen"]

    def is_kept(self) -> bool:
        return paths.object_inode(self.name) is not None


def write_until_refused(db: Any, error: type[Exception], own: str = "k", limit: int = 20_000) -> int:
    """Sets k0, k1 ...; how many were accepted before the error."""
    for number in range(limit):
        try:
            db[f"{own}{number}"] = VALUE
        except error:
            assert f"{own}{number}" not in db
            return number
    pytest.fail(f"no {error.__name__} in {limit} writes")


def has_all(db: Any, count: int) -> bool:
    return all(db[f"k{number}"] == VALUE for number in range(count))
