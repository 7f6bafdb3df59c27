"""Attaching by name: what is found, what is waited for, what is refused.

Half-made and ended arenas are made by hand, in real shared memory objects.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv import paths
from shmkv.config import InvalidSetting
from shmkv.lookup import Life, find_arena
from shmkv.segment import _core


def maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def later(seconds: float, work: Callable[[], None]) -> threading.Thread:
    thread = threading.Timer(seconds, work)
    thread.start()
    return thread


# ---- finding ---------------------------------------------------------------------------------------------------------


def test_an_unknown_name_fails_at_once_and_names_the_stores_that_there_are(launched: Any, places: Any) -> None:
    first, second = launched(places.name("one")), launched(places.name("two"))
    begun = time.monotonic()
    with pytest.raises(shmkv.StoreNotFound, match=f"{first.name}.*{second.name}") as caught:
        shmkv.attach("no-such-store", timeout=30)
    assert time.monotonic() - begun < 1
    assert isinstance(caught.value, FileNotFoundError)
    assert "shmkv-supervisor no-such-store" in str(caught.value)


@pytest.mark.parametrize("name", ["", "-x", ".x", "a/b", "../x", "a b", "x" * 65, "é", "a\n"])
def test_a_name_against_the_rule_is_refused(name: str) -> None:
    with pytest.raises(shmkv.InvalidName, match="1 to 64"):
        shmkv.attach(name)
    with pytest.raises(shmkv.InvalidName, match="1 to 64"):
        shmkv.launch(name)


def test_wrong_arguments_are_refused() -> None:
    for timeout in (-1, "soon", True, None, float("nan")):
        with pytest.raises((ValueError, TypeError)):
            shmkv.attach("x", timeout=timeout)  # type: ignore[arg-type]


def test_two_handles_see_the_same_data(launched: Any) -> None:
    db = launched()
    with shmkv.attach(db.name, timeout=timedelta(seconds=1), lock_timeout=1, log_timeout=timedelta(seconds=2)) as other:
        other["a"] = [1]
        assert db["a"] == [1]
        assert other == db
        assert (other.name, other.read_only, other.store_id, other.incarnation) == (
            db.name,
            False,
            db.store_id,
            db.incarnation,
        )
    assert db["a"] == [1]


def test_a_wrong_durability_is_refused(launched: Any) -> None:
    db = launched()
    with pytest.raises(ValueError, match="always"):
        shmkv.attach(db.name, durability="sometimes")
    with shmkv.attach(db.name, durability="none") as other:
        other["a"] = 1


def test_timeouts_come_from_the_settings(launched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    db = launched()
    monkeypatch.setenv("SHMKV_LOCK_TIMEOUT", "1.5")
    with shmkv.attach(db.name, log_timeout=3) as other:
        assert (other._attachment.lock_timeout_s, other._attachment.log_timeout_s) == (1.5, 3.0)
    monkeypatch.setenv("SHMKV_LOK_TIMEOUT", "1.5")
    with pytest.raises(InvalidSetting, match="lock_timeout"):
        shmkv.attach(db.name)


def test_no_descriptor_is_left_open(launched: Any) -> None:
    db = launched()

    def use() -> None:
        for read_only in (False, True):
            with shmkv.attach(db.name, read_only=read_only) as other:
                other.get("x")
        with pytest.raises(shmkv.StoreNotFound):
            shmkv.attach("no-such-store")
        pickle.loads(pickle.dumps(db)).close()

    use()
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        use()
    assert sorted(os.listdir("/proc/self/fd")) == before


# ---- waiting ---------------------------------------------------------------------------------------------------------


def test_an_arena_in_the_making_is_waited_for(hand_made: Any, places: Any) -> None:
    arena = hand_made(places.name())
    with pytest.raises(shmkv.StoreUnavailable, match=r"within 0.05 s.*being made"):
        shmkv.attach(arena.name, timeout=0.05)
    arena.format()
    with pytest.raises(shmkv.StoreUnavailable, match=r"CREATING.*timeout"):
        shmkv.attach(arena.name, timeout=0.05)
    with pytest.raises(shmkv.StoreUnavailable):
        shmkv.attach(arena.name, timeout=0)
    thread = later(0.2, lambda: arena.say("READY"))
    begun = time.monotonic()
    with shmkv.attach(arena.name, timeout=10) as db:
        assert 0.1 < time.monotonic() - begun < 2
        db["a"] = 1
        assert db["a"] == 1
    thread.join()


def test_ctrl_c_ends_the_wait_at_once(hand_made: Any, places: Any) -> None:
    arena = hand_made(places.name())
    main = threading.main_thread().ident
    assert main is not None
    thread = later(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        shmkv.attach(arena.name, timeout=20)
    assert time.monotonic() - begun < 1
    thread.join()


def test_an_ended_arena_is_not_attached_and_its_successor_is_waited_for(hand_made: Any, places: Any) -> None:
    name = places.name()
    old = hand_made(name)
    old.format()
    old.say("READY")
    old.retire()
    with pytest.raises(shmkv.StoreUnavailable, match="has ended"):
        shmkv.attach(name, timeout=0.05)

    def restart() -> None:
        old.remove()
        new = hand_made(name)
        new.format(incarnation=2)
        new.say("READY")

    thread = later(0.15, restart)
    # The name may be missing for a moment, which for a new attachment means that there is no store.
    deadline = time.monotonic() + 5
    while True:
        try:
            db = shmkv.attach(name, timeout=5)
            break
        except shmkv.StoreNotFound:
            assert time.monotonic() < deadline
    assert db.incarnation == 2
    db.close()
    thread.join()


# ---- refusing --------------------------------------------------------------------------------------------------------


def test_garbage_under_the_name_is_refused(hand_made: Any, places: Any) -> None:
    arena = hand_made(places.name())
    os.pwrite(arena.memory.fd, b"garbage." * 2048, 0)
    with pytest.raises(shmkv.CorruptData):
        shmkv.attach(arena.name, timeout=1)


def test_another_layout_is_refused_with_both_versions(hand_made: Any, places: Any) -> None:
    arena = hand_made(places.name())
    arena.format()
    arena.say("READY")
    for copy in (0, 4096):
        header = bytearray(os.pread(arena.memory.fd, 4096, copy))
        assert int.from_bytes(header[8:12], "little") == _core.LAYOUT_VERSION
        header[8:12] = (_core.LAYOUT_VERSION + 7).to_bytes(4, "little")
        length = header_length(bytes(os.pread(arena.memory.fd, 4096, copy)))
        header[length : length + 4] = _core.crc32c(bytes(header[:length])).to_bytes(4, "little")
        os.pwrite(arena.memory.fd, header, copy)
    with pytest.raises(shmkv.IncompatibleStore, match=f"{_core.LAYOUT_VERSION + 7}.*{_core.LAYOUT_VERSION}"):
        shmkv.attach(arena.name, timeout=1)


def header_length(page: bytes) -> int:
    """Where the header's checksum lies: where it is the checksum of everything before."""
    for length in range(64, len(page) - 4, 4):
        stored = int.from_bytes(page[length : length + 4], "little")
        if stored != 0 and stored == _core.crc32c(page[:length]):
            return length
    raise AssertionError("no checksum found")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_store_of_another_user_is_a_permission_error(launched: Any) -> None:
    db = launched()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setuid(65534)
            try:
                shmkv.attach(db.name)
            except PermissionError as error:
                code = 0 if "65534" in str(error) and db.name in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_an_owner_who_is_not_the_one_before_is_refused(launched: Any) -> None:
    db = launched()
    with pytest.raises(shmkv.StoreUnavailable, match="user"):
        find_arena(db.name, 0.1, read_only=True, ended=Life(b"x" * 16, 1), owner_uid=os.geteuid() + 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a pid namespace")
def test_another_pid_namespace_is_refused(launched: Any) -> None:
    db = launched()
    program = (
        "import sys, shmkv\n"
        "try: shmkv.attach(sys.argv[1])\n"
        "except shmkv.IncompatibleStore as error: sys.exit(0 if 'namespace' in str(error) else str(error))\n"
        "sys.exit('attached')"
    )
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("pid namespaces are not permitted here")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", program, db.name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_writing_through_read_only_memory_is_impossible(launched: Any) -> None:
    db = launched()
    with shmkv.attach(db.name, read_only=True):
        lines = [line for line in maps() if line.endswith(paths.object_path(db.name))]
    assert {line.split()[1] for line in lines} == {"rw-s", "r--s"}
