"""What the tests of backup and restore share: a recorded history, restores beside a store, the entries of a file."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shmkv.wal.block import ENTRIES, BlockReader
from shmkv.wal.cipher import Keyring
from shmkv.wal.files import Files
from shmkv.wal.generations import Generations
from shmkv.wal.manifest import ManifestSlots, SnapshotFacts, read_manifest
from shmkv.wal.restore import Target, Wanted, restore
from shmkv.wal.restore_log import Goal

PLAN = {"size_bytes": 16 << 20, "max_size_bytes": 0, "ring_bytes": 0, "expected_items": 0}
ENTRY_HEADER = struct.Struct("<QIIHHBBH")
HAS_EXPIRY = 2

State = dict[str, tuple[int, str]]


@dataclass
class History:
    """Writes through one handle, each with its LSN, so that the state at every LSN is known."""

    db: Any
    events: list[tuple[int, dict[str, str] | list[str] | None]] = field(default_factory=list)

    def set(self, **values: str) -> None:
        """One write; of several values a batch, all with one LSN each as the core gives them."""
        for key, value in values.items():
            self.db[key] = value
            self.events.append((self.db.last_lsn, {key: value}))

    def delete(self, *keys: str) -> None:
        for key in keys:
            del self.db[key]
            self.events.append((self.db.last_lsn, [key]))

    def clear(self) -> None:
        self.db.clear()
        self.events.append((self.db.last_lsn, None))

    def at(self, lsn: int) -> State:
        """Key -> (version, value) after every write whose LSN is not above that."""
        state: State = {}
        for each, change in self.events:
            if each > lsn:
                break
            if change is None:
                state = {}
            elif isinstance(change, list):
                for key in change:
                    del state[key]
            else:
                state |= {key: (each, value) for key, value in change.items()}
        return state


class Beside:
    """A data directory without a store, to restore into."""

    def __init__(self, path: Path, store_id: bytes = b"t" * 16, incarnation: int = 0) -> None:
        path.mkdir()
        self.path = str(path)
        self.store_id = store_id
        self._incarnation = incarnation
        files = Files()
        self.slots = ManifestSlots(files, self.path, read_manifest(files, self.path))
        self.generations = Generations(files, self.path, self.slots)

    def restore(
        self, source: str, *log_dirs: Path | str, to_lsn: int | None = None, to_wall_ms: int | None = None,
        plan: dict[str, int] = PLAN, keys: Keyring | None = None,
    ) -> tuple[State, SnapshotFacts, dict[str, Any]]:  # fmt: skip
        """The state that came out, the facts of its snapshot, what is told."""
        ring = keys or Keyring.none()
        target = Target(
            Files(), ring, self.store_id, self._incarnation, plan, "none", lambda: time.time_ns() // 1_000_000
        )
        wanted = Wanted(source, Goal(to_lsn, to_wall_ms), tuple(map(str, log_dirs)))
        facts, told = restore(target, wanted, self.generations)
        return state_of(self.generations.unfinished_path(facts.generation), ring), facts, told


def state_of(path: str, keys: Keyring | None = None) -> State:
    """Key -> (version, value) of the entries in a file of blocks, whose keys and values are text."""
    state: State = {}
    with BlockReader(Files(), path, keys) as reader:
        for block in reader.blocks(lambda header: header.kind == ENTRIES):
            entries = list(entries_in(bytes(block.data)))
            assert len(entries) == block.header.count
            state |= {key: (version, value) for key, version, value in entries}
    return state


def entries_in(data: bytes) -> Sequence[tuple[str, int, str]]:
    """(key, version, value) of entry images."""
    found, at = [], 0
    while at < len(data):
        version, _crc, value_bytes, key_bytes, _space, _kind, flags, _ = ENTRY_HEADER.unpack_from(data, at)
        at += ENTRY_HEADER.size + (8 if flags & HAS_EXPIRY else 0)
        key = data[at : at + key_bytes].decode()
        at += -(-key_bytes // 8) * 8
        found.append((key, version, data[at : at + value_bytes].decode()))
        at += -(-value_bytes // 8) * 8
    return found
