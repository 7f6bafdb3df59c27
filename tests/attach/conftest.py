"""Arenas made by hand, in a state of one's choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import posix_ipc
import pytest

from shmkv import paths
from shmkv.segment import _core

SIZE_BYTES = 16 << 20


class HandMade:
    """A shared memory object in a state of one's choice."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.removed = False
        self.memory = posix_ipc.SharedMemory(paths.object_name(name), posix_ipc.O_CREX, size=SIZE_BYTES, mode=0o600)

    def format(self, *, incarnation: int = 1, store_id: bytes = b"hand made store!") -> None:
        first_lsn = _core.LSN_GAP * incarnation
        _core.format_arena(
            self.memory.fd,
            size_bytes=SIZE_BYTES,
            name=self.name,
            store_id=store_id,
            incarnation=incarnation,
            first_lsn=first_lsn,
            has_log=False,
        )

    def say(self, state: str) -> None:
        arena = _core.Arena(self.memory.fd)
        arena.set_state(state=state)
        arena.close()

    def retire(self) -> None:
        arena = _core.Arena(self.memory.fd)
        arena.retire()
        arena.close()

    def remove(self) -> None:
        """Once: the name may be another's by now."""
        if self.removed:
            return
        self.removed = True
        self.memory.close_fd()
        try:
            posix_ipc.unlink_shared_memory(paths.object_name(self.name))
        except posix_ipc.ExistentialError:
            return


@pytest.fixture
def hand_made(places: Any) -> Iterator[Callable[[str], HandMade]]:
    made: list[HandMade] = []

    def make(name: str) -> HandMade:
        made.append(HandMade(name))
        return made[-1]

    yield make
    for each in made:
        each.remove()
