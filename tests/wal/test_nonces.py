"""Nonces: no key of an encrypted log meets one twice, over restarts, power cuts and failures of every operation."""

from __future__ import annotations

import contextlib
import errno
from typing import Any

import pytest
from memory_disk import MemoryDisk, some_kept
from rig import Rig
from small_log import SmallStore

from shmkv.errors import DiskFull, LogStalled, ReadOnly
from shmkv.wal.cipher import FileCipher, Keyring
from shmkv.wal.writer import LogShape


def put(store: SmallStore, count: int) -> None:
    for number in range(count):
        store.append(f"name{number}", bytes(60))
        store.sync()


class Noting(Keyring):
    """A ring whose ciphers note each pair of file key and nonce, over all lives of a store."""

    def __init__(self) -> None:
        super().__init__((bytes(range(32)),))
        self.pairs: list[tuple[bytes, int]] = []

    def for_new_file(self, path: str = "") -> tuple[int, bytes, bytes, FileCipher | None]:
        kind, key_id, salt, cipher = super().for_new_file(path)
        assert cipher is not None
        return kind, key_id, salt, NotingCipher(cipher, salt, self.pairs)

    def for_file(self, cipher: int, key_id: bytes, salt: bytes, path: str) -> FileCipher | None:
        found = super().for_file(cipher, key_id, salt, path)
        return None if found is None else OpeningCipher(found)

    def check(self) -> None:
        assert len(self.pairs) == len(set(self.pairs)), "a nonce came twice under one key"


class NotingCipher(FileCipher):
    def __init__(self, cipher: FileCipher, salt: bytes, pairs: list[tuple[bytes, int]]) -> None:
        self._cipher, self._salt, self._pairs, self.path = cipher, salt, pairs, cipher.path

    def seal(self, nonce: int, data: Any, associated: bytes) -> bytes:
        self._pairs.append((self._salt, nonce))
        return self._cipher.seal(nonce, data, associated)

    def seal_into(self, nonce: int, data: memoryview, associated: bytes, target: memoryview) -> None:
        target[:] = self.seal(nonce, data, associated)


class OpeningCipher(FileCipher):
    """What opens a file that was found must never seal."""

    def __init__(self, cipher: FileCipher) -> None:
        self._cipher, self.path = cipher, cipher.path

    def open(self, nonce: int, data: Any, associated: bytes) -> bytes:
        return self._cipher.open(nonce, data, associated)

    def seal(self, nonce: int, data: Any, associated: bytes) -> bytes:
        raise AssertionError("a file that was found is written to")

    def seal_into(self, nonce: int, data: memoryview, associated: bytes, target: memoryview) -> None:
        self.seal(nonce, data, associated)


def test_no_nonce_comes_twice_over_restarts_and_power_cuts() -> None:
    ring = Noting()
    disk = MemoryDisk()
    for life in range(6):
        store = SmallStore(disk, keys=ring)
        put(store, 8)
        store.append("not synced", bytes(100))
        store.write()
        if life % 2:
            store.restart_warm()
            put(store, 1)
        store.writer.abandon_file()
        store.writer.open_file()
        store.write()
        disk = disk.after_power_cut(some_kept(life)) if life % 3 else disk.copy()
    ring.check()
    assert len({salt for salt, _ in ring.pairs}) > 15
    assert len({lsn for _, lsn in ring.pairs}) < len(ring.pairs), "the history writes some LSNs into two files"


CHANGES = ("write", "sync", "create", "rename", "sync_dir", "preallocate", "unlink")


def run_with_failure(ring: Noting, durability: str, code: int, number: int) -> bool:
    """A life in which change number `number` of the disk fails; False = there were fewer."""
    disk = MemoryDisk()
    rig = Rig(disk, durability=durability, shape=LogShape(8 << 10, 1), keys=ring)
    left = number

    def fail(operation: str, path: str) -> None:
        nonlocal left
        left -= operation in CHANGES
        if left == -1 and operation in CHANGES:
            left -= 1
            raise OSError(code, "made up", path)

    disk.before = fail
    accepted: list[str] = []
    try:
        for step in range(12):
            with contextlib.suppress(DiskFull, ReadOnly, LogStalled):
                rig.store.set(f"name{step}", bytes(700))
                accepted.append(f"name{step}")
            rig.later(600)
        rig.later(2000)
        names = rig.recovered()
        assert names == accepted[: len(names)]
        assert names == accepted or rig.states()[-1] == "FAILED"
    finally:
        rig.close()
    return left < 0


@pytest.mark.parametrize("durability", ["always", "interval"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_no_nonce_comes_twice_whatever_operation_fails(durability: str, code: int) -> None:
    ring, number = Noting(), 0
    while run_with_failure(ring, durability, code, number):
        number += 1
    ring.check()
    assert number > 10
    assert len(ring.pairs) > 100
