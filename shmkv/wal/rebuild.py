"""Bringing the data back at a cold start: a snapshot and its log into a new arena, and what is tried when one is bad.

Why here: the loop over bases (newest snapshot, the one before it, nothing) with all that is read on the way. What may
be decided without reading is cold.py, what an end of the log means is recovery.py, the order of syncs is start.py.

Invariants:
  I1  Each try begins with a new arena: nothing of a base that was given up is served.
  I2  A bad snapshot is no loss: the one before it, or the whole log, gives the same records. Damage of the log is, on
      every base alike: so it refuses the start, unless loss is accepted.
  I3  What is accepted is a prefix of what was written, but for one case, which needs accepted loss, is told in numbers
      and is taken only when no base gives a prefix: a snapshot whose log ends before the snapshot does.
  I4  Nothing on disk is changed here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from shmkv.dataclass import dataclass, replace
from shmkv.errors import CorruptData
from shmkv.wal.block import BlockReader
from shmkv.wal.cipher import Keyring
from shmkv.wal.cold import ColdPlan, Stored, plan_cold, reaches_back, usable_files
from shmkv.wal.files import Files
from shmkv.wal.generations import SNAPSHOT_DIR, generation_of, snapshot_path
from shmkv.wal.log import LogFile, file_name
from shmkv.wal.manifest import Manifest, SnapshotFacts
from shmkv.wal.recovery import damage, judge
from shmkv.wal.replay import Replay, replay_segment, size_of
from shmkv.wal.snapshot import facts_of, load_snapshot

# (phase: "snapshot" or "log"; entries or records, bytes done, of bytes)
Progress = Callable[[str, int, int, int], None]


class NewArena(Protocol):
    """An arena that nothing was loaded into yet; _core.Arena is one."""

    def apply(self, data: Any, *, store_id: Any, incarnation: int, first_lsn: int) -> dict[str, Any]: ...
    def load(self, data: Any, /, *, first_stripe: int = 0, end_stripe: int | None = None) -> dict[str, Any]: ...
    def info(self) -> dict[str, Any]: ...


# Formats an arena anew, with that hash key (None = a random one); may be called again, the one before is dropped then.
MakeArena = Callable[[bytes | None], NewArena]


class BadSnapshot(CorruptData):
    """A snapshot that cannot be the base of a start."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a cold start found. base: the snapshot that it began with, snapshots: those that count from now on."""

    plan: ColdPlan
    replay: Replay
    base: SnapshotFacts | None
    snapshots: tuple[SnapshotFacts, ...]
    entries: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Try:
    """One base, tried: how much it gave; is_short = the log ends at LSN `reached`, before the snapshot does."""

    base: SnapshotFacts | None
    plan: ColdPlan
    replay: Replay
    entries: int = 0
    reached: int = 0
    is_short: bool = False


class Rebuild:
    """One cold start's reading."""

    def __init__(
        self,
        files: Files,
        data_dir: str,
        keys: Keyring,
        *,
        load_threads: int,
        found: Sequence[LogFile],
        manifest: Manifest,
        accept_loss: bool,
        make_arena: MakeArena,
        progress: Progress,
    ) -> None:
        self._files = files
        self._data_dir = data_dir
        self._keys = keys
        self._load_threads = load_threads
        self._found = found
        self._manifest = manifest
        self._accept_loss = accept_loss
        self._make_arena = make_arena
        self._progress = progress
        self._warnings: list[str] = []
        self._bad: set[int] = set()

    def run(self) -> Rebuilt:
        """Fill an arena from the newest base that gives everything that is left.

        Blocks for as long as snapshot and log take. Raises CorruptData with what is damaged, WrongKey,
        MemoryLimitExceeded, OSError.
        """
        short: list[Try] = []
        for base in self._bases():
            try:
                attempt = self._try(base)
            except BadSnapshot as problem:
                assert base is not None
                self._bad.add(base.generation)
                self._warnings.append(str(problem))
                continue
            if not attempt.is_short:
                return self._rebuilt(attempt)
            short.append(attempt)
        if not short:
            raise self._nothing_left()
        return self._rebuilt(self._forced(short[0]))

    def _bases(self) -> list[SnapshotFacts | None]:
        bases: list[SnapshotFacts | None] = [*reversed(self._manifest.snapshots)]
        # A store without snapshots is its log, whatever is wrong with that.
        if not bases or reaches_back(self._found, self._manifest):
            bases.append(None)
        return bases

    # ---- one base -------------------------------------------------------------------------------------------

    def _try(self, base: SnapshotFacts | None) -> Try:
        plan = plan_cold(self._found, self._manifest, accept_loss=self._accept_loss, base=base)
        if base is None and not reaches_back(self._found, self._manifest):
            raise self._nothing_left()
        if base is not None and not base.alone and not plan.usable:
            # Loss was accepted: not even the place where the snapshot began is there.
            self._check(base)
            return Try(base, plan, Replay(), is_short=True)
        return self._fill(base, plan)

    def _fill(self, base: SnapshotFacts | None, plan: ColdPlan) -> Try:
        arena, entries = (self._make_arena(None), 0) if base is None else self._load(base)
        replay, reached = self._replay(plan, arena)
        is_short = base is not None and not base.alone and reached < base.end_lsn
        if is_short and base is not None and not self._accept_loss:
            raise damage(
                f"the log ends at LSN {reached}, but snapshot {base.generation} was published when it was on disk up "
                f"to LSN {base.end_lsn}"
            )
        return Try(base, plan, replay, entries, reached, is_short)

    def _forced(self, attempt: Try) -> Try:
        """The snapshot though its log is not all there; what was written while it was taken is there in part."""
        base = attempt.base
        assert base is not None
        plan = attempt.plan
        attempt = self._fill(base, plan)
        reached = max(base.start_lsn, attempt.reached)
        self._warnings.append(
            f"loss accepted: the log ends at LSN {attempt.reached}, before the end of snapshot {base.generation}: of "
            f"the {base.end_lsn - reached} bytes of log from LSN {reached} to {base.end_lsn} only some records are in "
            f"the store, and nothing behind"
        )
        forced = replace(base, end_lsn=reached, alone=not plan.usable)
        if attempt.replay.end is None or attempt.replay.end < (base.incarnation, reached):
            attempt.replay.end = (base.incarnation, reached)
        return replace(attempt, base=forced, reached=reached, is_short=False)

    # ---- snapshot -------------------------------------------------------------------------------------------

    def _load(self, base: SnapshotFacts) -> tuple[NewArena, int]:
        with self._reading(base) as reader:
            arena = self._make_arena(reader.info.hash_key)
            loaded = load_snapshot(
                reader,
                arena,
                threads=self._load_threads,
                progress=lambda entries, done, of: self._progress("snapshot", entries, done, of),
            )
            return arena, loaded.entries

    def _check(self, base: SnapshotFacts) -> None:
        with self._reading(base) as reader:
            reader.verify()

    @contextlib.contextmanager
    def _reading(self, base: SnapshotFacts) -> Iterator[BlockReader]:
        """The file of that snapshot; what is wrong with it becomes BadSnapshot."""
        path = snapshot_path(self._data_dir, base.generation)
        try:
            with BlockReader(self._files, path, self._keys) as reader:
                _compare(reader, base, self._manifest)
                yield reader
        except FileNotFoundError as problem:
            raise BadSnapshot(f"snapshot {base.generation} is gone: {path} is missing") from problem
        except CorruptData as problem:
            raise BadSnapshot(f"snapshot {base.generation} was not used: {problem}") from problem

    # ---- log ------------------------------------------------------------------------------------------------

    def _replay(self, plan: ColdPlan, arena: NewArena) -> tuple[Replay, int]:
        """The log of a plan into the arena; also the LSN that was reached in the life of the plan's snapshot."""
        base, manifest = plan.base, self._manifest
        state = Replay(bytes_all=sum(size_of(segment) for segment in plan.segments))
        # Each snapshot was published when the log was on disk up to its end.
        watermark = max([manifest.watermark, *(facts.end_lsn for facts in manifest.snapshots)])
        reached = 0
        if base is not None:
            state.end = (base.incarnation, base.end_lsn)
            # Taken before its life had a log file: nothing of the log belongs between its two LSNs.
            least = base.end_lsn if base.start_lsn == base.end_lsn else 0
            reached = plan.ends.get(base.incarnation, least) if plan.usable else 0
        for segment in plan.segments:
            ending = replay_segment(
                self._files,
                segment,
                manifest.store_id,
                arena.apply,
                state,
                lambda records, done, of: self._progress("log", records, done, of),
                keys=self._keys,
            )
            state.end = (segment.incarnation, ending.lsn)
            if base is not None and segment.incarnation == base.incarnation:
                reached = ending.lsn
            problem = judge(segment, ending, max(watermark, state.durable_before))
            if problem and not self._accept_loss:
                raise damage(problem)
            if problem:
                state.cut_in, state.cut_lsn = segment.file.number, ending.lsn
                break
            if segment.end_lsn is None and not ending.tail_is_zero:
                state.cut_lsn = ending.lsn
        return state, reached

    # ---- words ----------------------------------------------------------------------------------------------

    def _rebuilt(self, attempt: Try) -> Rebuilt:
        base = attempt.base
        older = tuple(
            facts
            for facts in self._manifest.snapshots
            if base is not None and facts.generation < base.generation and facts.generation not in self._bad
        )
        if base is not None and base not in self._manifest.snapshots:
            # What the others give is not what is served now.
            older = ()
        warnings = [*self._warnings, *self._spare_warnings(older)]
        if self._bad:
            instead = "the log alone" if base is None else f"snapshot {base.generation} and its log"
            warnings.append(f"the store was recovered from {instead}; nothing is lost by that")
        return Rebuilt(
            attempt.plan,
            attempt.replay,
            base,
            () if base is None else (*older, base),
            attempt.entries,
            (*warnings, *attempt.plan.warnings, *_cut_warning(attempt.replay)),
        )

    def _spare_warnings(self, older: Sequence[SnapshotFacts]) -> list[str]:
        problems = [(facts, usable_files(self._found, self._manifest, facts)[1]) for facts in older]
        return [
            f"snapshot {facts.generation} could not take the place of a newer one: {problem}"
            for facts, problem in problems
            if problem
        ]

    def _nothing_left(self) -> CorruptData:
        reasons = "; ".join(self._warnings) or "the manifest names no snapshot"
        return CorruptData(
            f"nothing to start from: {reasons}; and the log in {self._data_dir} does not reach back to an empty store. "
            "Put one of these snapshots back as it was, or restore a backup"
        )


def _compare(reader: BlockReader, base: SnapshotFacts, manifest: Manifest) -> None:
    """Whether this is the file that the manifest means. Raises CorruptData."""
    path, store_id = reader.path, reader.header.store_id
    if store_id != manifest.store_id:
        raise CorruptData(f"{path} belongs to store {store_id.hex()}, the manifest to {manifest.store_id.hex()}")
    found = facts_of(reader, alone=base.alone)
    # Where loss was accepted, the manifest says less than the file.
    if found.end_lsn < base.end_lsn or replace(found, end_lsn=base.end_lsn) != base:
        raise CorruptData(f"{path} is not the snapshot that the manifest names: it is {found} instead of {base}")


def stored_snapshots(files: Files, data_dir: str, keys: Keyring) -> Stored:
    """The published snapshots of a directory whose manifest is gone."""
    folder = os.path.join(data_dir, SNAPSHOT_DIR)
    names = files.names(folder) if SNAPSHOT_DIR in files.names(data_dir) else []
    snapshots: list[tuple[bytes, SnapshotFacts]] = []
    problems: list[str] = []
    for name in names:
        if generation_of(name) is None:
            continue
        try:
            with BlockReader(files, os.path.join(folder, name), keys) as reader:
                snapshots.append((reader.header.store_id, facts_of(reader, alone=False)))
        except CorruptData as problem:
            problems.append(str(problem))
    return Stored(tuple(snapshots), tuple(problems))


def _cut_warning(replay: Replay) -> list[str]:
    if replay.cut_in is not None:
        return [f"loss accepted: the log was cut at LSN {replay.cut_lsn} in {file_name(replay.cut_in)}"]
    if replay.cut_lsn is not None:
        return [f"the log ended in a torn record and was cut at LSN {replay.cut_lsn}; nothing behind it was durable"]
    return []
