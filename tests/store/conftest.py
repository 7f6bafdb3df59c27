"""A store for the tests of the handle: one a file, emptied for each test, audited at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import posix_ipc
import pytest

import shmkv
from shmkv import paths
from shmkv.segment import _core

Audit = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def audit() -> Audit:
    """All findings of a full audit of the arena of that name."""

    def run(name: str) -> list[dict[str, Any]]:
        memory = posix_ipc.SharedMemory(paths.object_name(name))
        try:
            arena = _core.Arena(memory.fd)
            try:
                return arena.audit()
            finally:
                arena.close()
        finally:
            memory.close_fd()

    return run


@pytest.fixture(scope="module")
def shared(audit: Audit) -> Iterator[shmkv.Store]:
    with shmkv.launch(memory="64MB") as store:
        yield store
        assert audit(store.name) == []


@pytest.fixture
def db(shared: shmkv.Store) -> shmkv.Store:
    """A writable, empty store."""
    shared.clear()
    return shared


@pytest.fixture
def reader(db: shmkv.Store) -> Iterator[shmkv.Store]:
    """A read-only handle on the same store."""
    with shmkv.attach(db.name, read_only=True) as handle:
        yield handle
