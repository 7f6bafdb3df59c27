"""The pages of a new arena: reserved beside the rest of a start, told when they do not suffice, given up at an end."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from shmkv import paths
from shmkv.supervisor import arena as arenas
from shmkv.supervisor.arena import RESERVE_STEP_BYTES
from shmkv.supervisor.states import Exit
from tests.conftest import Places


def test_all_pages_are_there_when_it_is_done(places: Places) -> None:
    file = arenas.create(places.name(), 2 * RESERVE_STEP_BYTES + 4096, 0o600, "")
    try:
        assert file.shortage() is None
        assert os.fstat(file.fd).st_blocks * 512 >= 2 * RESERVE_STEP_BYTES + 4096
    finally:
        file.unlink()
        file.close()


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [(errno.ENOSPC, "MemoryLimitExceeded", "64 MiB .* enlarge"), (errno.EIO, "StoreUnavailable", "set up")],
)
def test_what_went_wrong_is_told_afterwards(
    places: Places, monkeypatch: pytest.MonkeyPatch, number: int, kind: str, text: str
) -> None:
    def reserve(fd: int, offset: int, length: int) -> None:
        if offset:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    file = arenas.create(places.name(), 2 * RESERVE_STEP_BYTES, 0o600, "")
    try:
        shortage = file.shortage()
        assert shortage is not None
        assert (shortage.code, shortage.kind) == (Exit.CANNOT_CREATE, kind)
        with pytest.raises(arenas.Refused, match=text):
            raise shortage
    finally:
        file.unlink()
        file.close()


def test_it_is_given_up_between_two_steps(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def reserve(fd: int, offset: int, length: int) -> None:
        offsets.append(offset)
        started.set()
        assert go_on.wait(10)

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    name = places.name()
    file = arenas.create(name, 4 * RESERVE_STEP_BYTES, 0o600, "")
    assert started.wait(10)
    file.unlink()
    threading.Timer(0.05, go_on.set).start()
    file.close()
    assert offsets == [0]
    assert paths.object_inode(name) is None
