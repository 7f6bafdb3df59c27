"""systemd's notify protocol, spoken to a real socket."""

import os
import socket
from pathlib import Path

import pytest

from shmkv.supervisor.systemd import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_reach_the_socket_that_systemd_names(tmp_path: Path, abstract: bool) -> None:
    name = f"shmkv-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": "@" + name if abstract else name})
        notifier.ready("serving")
        notifier.alive()
        notifier.status("backup: 1.0 of 2.0 MB, 50%")
        notifier.status("")
        notifier.stopping("writing")
        assert manager.recv(999) == b"READY=1\nSTATUS=serving"
        assert manager.recv(999) == b"WATCHDOG=1"
        assert manager.recv(999) == b"STATUS=backup: 1.0 of 2.0 MB, 50%"
        assert manager.recv(999) == b"STATUS=serving"
        assert manager.recv(999) == b"STOPPING=1\nSTATUS=writing"
        notifier.close()


def test_without_systemd_nothing_is_sent() -> None:
    notifier = Notifier({})
    notifier.ready("serving")
    assert notifier.watchdog_interval_s is None
    notifier.close()


def test_a_manager_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    notifier.ready("serving")
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_asked_and_only_by_its_process(
    environ: dict[str, str], interval: float | None
) -> None:
    assert Notifier(environ).watchdog_interval_s == interval
