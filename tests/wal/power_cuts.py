"""Histories of a store on a MemoryDisk, every moment of them at which the machine may stop, and what must be true then.

A history is a list of states, one after each write. A moment is the disk as it is before one operation, with the states
that were acknowledged and those that may be found. Whatever legal part of the unsynced state survives, a start must
give one of these states, and after it nothing that was served may go, and nothing that was cut may come back.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from memory_disk import MemoryDisk, none_kept, some_kept
from small_log import SmallStore, snapshot_file

from shmkv.segment import _core
from shmkv.wal.files import Buffer
from shmkv.wal.frame import FrameReader
from shmkv.wal.log import HEADER_BLOCK_BYTES, file_number, unpack_file_header
from shmkv.wal.manifest import read_manifest

ARCHIVE = "/archive"
CHANGING = frozenset(("create", "preallocate", "write", "sync", "sync_dir", "rename", "unlink", "make_dir"))

State = dict[bytes, bytes]


@dataclass(frozen=True)
class Moment:
    """The machine stops here: states that may be found, the oldest first, and those that are too old."""

    disk: MemoryDisk
    legal: tuple[State, ...]
    lost: tuple[State, ...]
    after: tuple[str, ...]


@dataclass
class History:
    """What was written, in order, and how much of it was acknowledged; `moments` as they pass."""

    disk: MemoryDisk
    rng: random.Random
    archive_dir: str = ""
    states: list[State] = field(default_factory=lambda: [{}])
    acknowledged: int = 0
    moments: list[Moment] = field(default_factory=list)
    busy: Callable[[str, str], None] | None = None

    def __post_init__(self) -> None:
        self.disk.before = self._before

    def _before(self, operation: str, path: str) -> None:
        if operation not in CHANGING:
            return
        disk = self.disk.copy()
        legal, lost = self.states[self.acknowledged :], self.states[: self.acknowledged]
        self.moments.append(Moment(disk, tuple(legal), tuple(lost), tuple(self.disk.last_operations(3))))
        # Not where the loop itself stands, nor where the lock of the manifest keeps it waiting.
        is_job = operation == "unlink" or path.startswith(("/data/snapshot", ARCHIVE))
        if self.busy is not None and is_job:
            busy, self.busy = self.busy, None
            busy(operation, path)
            self.busy = busy

    # ---- steps ----------------------------------------------------------------------------------------------

    def start(self) -> SmallStore:
        """A cold start from the disk as it is now: all processes died, the page cache is intact."""
        store = SmallStore(self.disk, archive_dir=self.archive_dir)
        at = max(index for index, state in enumerate(self.states) if state == store.state)
        assert at >= self.acknowledged
        # What was not written is gone for ever; what was found was served.
        del self.states[at + 1 :]
        self.acknowledged = at
        return store

    def write(self, store: SmallStore, count: int, size_bytes: int = 40) -> None:
        """New keys, overwrites and deletes, into the ring."""
        for _ in range(count):
            # It is in the ring, so it may be found on the disk from now on.
            state = dict(self.states[-1])
            number = len(self.states)
            key = self.rng.choice((f"key{number % 17}", f"new{number}"))
            if state and self.rng.random() < 0.15:
                key = self.rng.choice(sorted(state)).decode()
                del state[key.encode()]
                self.states.append(state)
                store.delete(key)
            else:
                value = f"{number}:".encode() + bytes(size_bytes)
                state[key.encode()] = value
                self.states.append(state)
                store.append(key, value)

    def sync(self, store: SmallStore) -> None:
        count = len(self.states) - 1
        store.sync()
        self.acknowledged = max(self.acknowledged, count)

    def snapshot(self, store: SmallStore, *, writes: int, busy: bool = False) -> None:
        """One that is written to while it walks, and (busy) at each step of its publication."""

        def between(_stripe: int) -> None:
            self.write(store, writes)

        def go_on(_operation: str, _path: str) -> None:
            if self.rng.random() < 0.5:
                self.write(store, 1)
                self.sync(store)

        self.busy = go_on if busy else None
        store.snapshot(between)
        self.busy = None

    def retire(self, store: SmallStore, *, with_snapshot: bool) -> None:
        store.retire(with_snapshot=with_snapshot)
        self.acknowledged = len(self.states) - 1

    def restore(self, store: SmallStore, old: dict[bytes, tuple[int, bytes]], lsn: int, state: State) -> None:
        """To an earlier state; from the switch on it is the newest one."""
        self.sync(store)
        self.states.append(state)
        store.restore(old, lsn)
        self.acknowledged = len(self.states) - 1


def tour(disk: MemoryDisk, archive_dir: str = "") -> History:
    """A life with everything that touches the disk."""
    history = History(disk, random.Random(7), archive_dir)
    store = history.start()
    store.make_spares()
    history.write(store, 3)
    history.sync(store)
    history.write(store, 2)
    store.write()
    history.snapshot(store, writes=1)
    history.write(store, 12, 90)  # fills the file and half of the next one
    history.sync(store)
    history.write(store, 2)
    store.write()
    store.restart_warm()
    history.write(store, 2)
    history.sync(store)
    store.make_spares()
    history.snapshot(store, writes=2)
    history.write(store, 2)
    store.write()
    store.writer.abandon_file()
    store.writer.open_file()
    history.sync(store)
    history.write(store, 14, 80)
    history.snapshot(store, writes=1, busy=True)
    history.write(store, 3)
    store.write()
    store = history.start()
    history.write(store, 3)
    history.sync(store)
    history.snapshot(store, writes=0)
    history.write(store, 2)
    history.retire(store, with_snapshot=True)
    store = history.start()
    old, lsn, state = dict(store.arena.entries), store.tail, store.state
    history.write(store, 5)
    history.sync(store)
    history.restore(store, old, lsn, state)
    store = history.start()
    history.write(store, 3)
    history.snapshot(store, writes=1)
    history.sync(store)
    history.write(store, 1)
    store.write()
    return history


def random_life(disk: MemoryDisk, seed: int) -> History:
    """Steps in any order."""
    rng = random.Random(f"life {seed}")
    history = History(disk, rng, rng.choice(("", ARCHIVE)))
    store = history.start()
    kept: list[tuple[dict[bytes, tuple[int, bytes]], int, State]] = []

    def snapshot() -> None:
        history.snapshot(store, writes=rng.randrange(3), busy=rng.random() < 0.5)

    steps: list[tuple[int, Callable[[], None]]] = [
        (6, lambda: history.write(store, rng.randrange(1, 5), rng.choice((20, 90)))),
        (4, lambda: history.sync(store)),
        (3, lambda: store.write()),
        (4, snapshot),
        (1, lambda: store.make_spares()),
        (1, lambda: kept.append((dict(store.arena.entries), store.tail, store.state))),
    ]
    for _ in range(rng.randrange(8, 16)):
        chance = rng.random()
        if chance < 0.08:
            store.restart_warm()
        elif chance < 0.16:
            store = history.start()
        elif chance < 0.22:
            history.retire(store, with_snapshot=rng.random() < 0.7)
            store = history.start()
        elif chance < 0.26 and kept:
            history.restore(store, *rng.choice(kept))
            store = history.start()
        elif chance < 0.32 and store.writer.is_open:
            store.writer.abandon_file()
            store.writer.open_file()
        else:
            rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()
    return history


def check_legal(moment: Moment, state: State) -> None:
    """Whether that state is a state of the history, and holds what was acknowledged."""
    if state not in moment.legal:
        assert state not in moment.lost, "acknowledged records are lost"
        raise AssertionError(f"{sorted(state)} is no state of the history")


def survivors(moment: Moment, seed: object, count: int) -> Iterator[tuple[str, MemoryDisk]]:
    """What may be left: the page cache (only the processes died), nothing unsynced, and any part of it."""
    yield "killed", moment.disk.copy()
    yield "nothing unsynced kept", moment.disk.after_power_cut(none_kept)
    for number in range(count):
        yield f"seed {seed} {number}", moment.disk.after_power_cut(some_kept((seed, number)))


def check_survivor(history: History, moment: Moment, survivor: MemoryDisk, seed: object, *, thorough: bool) -> None:
    """Start from it, and cut again."""
    rng = random.Random(f"check {seed}")
    if thorough:
        check_nested(history, moment, survivor, rng)
    archive_dir = history.archive_dir
    spoiled = survivor.copy()
    store = SmallStore(survivor, archive_dir=archive_dir)
    check_legal(moment, store.state)
    served = store.state
    check_archive(survivor, archive_dir)
    if thorough or rng.random() < 0.2:
        check_spare(spoiled, served, archive_dir)
    if thorough or rng.random() < 0.5:
        # What was served survives the next cut, whatever that loses.
        keep = none_kept if rng.random() < 0.5 else some_kept(rng.random())
        assert SmallStore(survivor.after_power_cut(keep), archive_dir=archive_dir).state == served
        if not thorough:
            return
    store.append("later0")
    store.append("later1", bytes(200))
    store.sync()
    store.append("unsynced")
    store.write()
    again = SmallStore(survivor.after_power_cut(none_kept), archive_dir=archive_dir)
    expected = {**served, b"later0": b"v", b"later1": bytes(200)}
    assert again.state == expected, "a cut record came back, or a served one went"


def check_nested(
    history: History, moment: Moment, survivor: MemoryDisk, rng: random.Random, count: int = 4
) -> list[MemoryDisk]:
    """Cuts during the recovery: as good as none. What they left."""
    disk = survivor.copy()
    stops: list[MemoryDisk] = []
    disk.before = lambda operation, _path: stops.append(disk.copy()) if operation in CHANGING else None
    SmallStore(disk, archive_dir=history.archive_dir)
    left: list[MemoryDisk] = []
    for stop in rng.sample(stops, min(count, len(stops))):
        cut = stop.after_power_cut(some_kept(rng.random()))
        left.append(cut.copy())
        check_legal(moment, SmallStore(cut, archive_dir=history.archive_dir).state)
    return left


def check_spare(disk: MemoryDisk, served: State, archive_dir: str) -> None:
    """The newest snapshot is damaged: the one before it, or the log, gives the same; else it is refused by name."""
    manifest = read_manifest(disk, "/data").manifest
    if manifest is None or not manifest.snapshots or (len(manifest.snapshots) == 1 and manifest.snapshots[0].alone):
        return
    newest = manifest.snapshots[-1]
    content = disk.content(snapshot_file(newest.generation))
    content[len(content) // 2] ^= 1
    store = SmallStore(disk, archive_dir=archive_dir)
    assert store.state == served, "the spare generation gives something else"
    assert any(f"snapshot {newest.generation} was not used" in warning for warning in store.started.warnings)


def check_archive(disk: MemoryDisk, archive_dir: str) -> None:
    """Every number is in the log or in the archive, and what is in the archive is whole."""
    if not archive_dir:
        return
    paths = {name: f"/data/log/{name}" for name in disk.names("/data/log") if file_number(name)}
    for folder in disk.names(archive_dir):
        inside = f"{archive_dir}/{folder}"
        paths |= {name: f"{inside}/{name}" for name in disk.names(inside) if file_number(name)}
    manifest = read_manifest(disk, "/data").manifest
    assert manifest is not None
    lost = [number for number in range(1, manifest.newest_file + 1) if f"{number:010d}.log" not in paths]
    skipped = [number for number in lost if any(first <= number <= last for first, last in manifest.disowned)]
    assert lost == skipped, f"log files {lost} are neither in the log nor in the archive"
    files = [disk.content(path) for _, path in sorted(paths.items())]
    for content, following in itertools.pairwise(files):
        header, after = unpack_file_header(bytes(content)), unpack_file_header(bytes(following))
        is_same_life = after.incarnation == header.incarnation
        end_lsn = after.first_lsn if is_same_life else after.previous_end_lsn
        if is_same_life or after.previous_incarnation == header.incarnation:
            data: Buffer = memoryview(content)[HEADER_BLOCK_BYTES:]
            if header.cipher:
                assert disk.keys is not None
                opener = disk.keys.for_file(header.cipher, header.key_id, header.salt, "")
                data = b"".join(iter(FrameReader(memoryview(content), header, opener).next, None))
            found = _core.verify(
                data, store_id=header.store_id, incarnation=header.incarnation, first_lsn=header.first_lsn
            )
            assert found["next_lsn"] >= end_lsn, f"log file {header.number} is not whole"
