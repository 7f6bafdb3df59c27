"""Whole lives on a disk whose Nth call fails, once or for ever, N rising until none does: start, writes, rotation,
snapshots, trim, archive, stop; and then a cold start from what a power cut leaves, whose calls fail in turn.

Whatever fails, and whenever: with the disk well again the next start gives everything that was acknowledged, in order;
a life that ended cleanly gives everything; and a snapshot is never worth less than the log that it replaces.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from memory_disk import Fault, MemoryDisk, all_kept, none_kept, some_kept
from rig import Rig
from small_log import place_on

from shmkv.errors import CorruptData, DiskFull, LogStalled, ReadOnly, ShmkvError
from shmkv.wal.channel import RETIRE
from shmkv.wal.drain import drain
from shmkv.wal.manifest import read_manifest
from shmkv.wal.pace import LogState
from shmkv.wal.writer import LogShape

ALL = (
    "create", "open", "preallocate", "write", "sync", "sync_dir", "rename", "unlink", "make_dir", "read", "map",
)  # fmt: skip
SHAPE = LogShape(file_bytes=12 << 10, spare_count=1)
ROUNDS = 10
SNAPSHOT_ROUNDS = (2, 5, 8)
KEYS = 12
DEADLINE_S = 20.0
# A quick run tries every so many-th call; an odd number, so that it does not keep step with a life's rhythm.
QUICK_STEP = 23
COMPOUND_STEP, RECOVERY_STEP = 149, 17

Change = tuple[str, bytes | None, int]  # key, value or None for a delete, LSN where its record ends


def well(_operation: str, _path: str) -> None:
    """A disk without faults."""


class Life:
    """One store from its birth to its stop; `changes` are those that were accepted, in order."""

    def __init__(self, disk: MemoryDisk, durability: str, *, archive: bool, cut_in: int) -> None:
        """cut_in: the round after which the power fails, as far as `cut` goes; the life itself goes on."""
        self.disk = disk
        self.durability = durability
        self.archive = archive
        self.cut_in = cut_in
        self.cut: tuple[MemoryDisk, list[dict[str, bytes]]] | None = None  # the disk, and what it may give
        self.changes: list[Change] = []
        self.refused = 0
        self.raised: BaseException | None = None
        self.rig: Rig | None = None

    def run(self) -> None:
        """Until its stop, or until an error that ends a persister; `raised` is that error."""
        try:
            self.rig = start(self.disk, self.durability, archive=self.archive)
            self.rig.turns()
            for number in range(ROUNDS):
                self._round(self.rig, number)
            self.rig.orders.give(RETIRE)
            self._end(self.rig)
        except OSError as error:
            assert not isinstance(error, ShmkvError), "a disk that fails is no damage"
            self.raised = error

    def _round(self, rig: Rig, number: int) -> None:
        for step in range(4):
            index = number * 4 + step
            key = f"key{index % KEYS}"
            value = None if index % 7 == 6 else f"{index} ".encode() * 90
            try:
                if value is None:
                    rig.store.delete(key)
                else:
                    rig.store.set(key, value)
            except (DiskFull, ReadOnly, LogStalled):
                self.refused += 1
            else:
                self.changes.append((key, value, rig.tail))
        rig.turns(8)
        if number in SNAPSHOT_ROUNDS:
            rig.jobs.submit(f"job{number}", "snapshot", {})
            # While the disk is full it waits for the log, as writers do.
            self._pass_time(rig, lambda: rig.jobs.idle or rig.pace.state is not LogState.OK)
        rig.later(1001)
        if number == self.cut_in and rig.jobs.idle:
            self.cut = (self.disk.after_power_cut(none_kept), self.states())

    def _end(self, rig: Rig) -> None:
        self._pass_time(rig, lambda: rig.persister.exit_code is not None)

    def _pass_time(self, rig: Rig, until: Callable[[], bool]) -> None:
        """The hand clock runs, as far as a full disk that is asked again every second needs it."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < deadline_s, "it does not end"
            rig.turns(4)
            rig.arena.now_ms += 10

    # ---- what must be true ----------------------------------------------------------------------------------

    @property
    def is_clean(self) -> bool:
        return self.rig is not None and self.rig.persister.exit_code == 0

    @property
    def acknowledged(self) -> int:
        """How many of the changes are acknowledged as durable; all, after a clean stop."""
        if self.rig is None:
            return 0
        durable_lsn = self.rig.durable_lsn
        count = sum(end_lsn <= durable_lsn for _, _, end_lsn in self.changes)
        assert count == len(self.changes) or not self.is_clean
        return count

    def check(self, image: MemoryDisk) -> None:
        """A cold start from that disk gives a prefix of the changes that holds all that is acknowledged."""
        recovered = contents(image, self.durability, archive=self.archive)
        assert recovered in self.states(), f"{self.acknowledged} of {len(self.changes)} acknowledged: {recovered}"

    def states(self) -> list[dict[str, bytes]]:
        """What a start may give."""
        state: dict[str, bytes] = {}
        states = [dict(state)] if self.acknowledged == 0 else []
        for number, (key, value, _) in enumerate(self.changes, 1):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
            if number >= self.acknowledged:
                states.append(dict(state))
        return states

    def close(self) -> None:
        if self.rig is not None:
            self.rig.close()


def start(disk: MemoryDisk, durability: str, *, archive: bool) -> Rig:
    return Rig(disk, durability=durability, shape=SHAPE, archive_dir="/archive" if archive else "")


def contents(disk: MemoryDisk, durability: str, *, archive: bool) -> dict[str, bytes]:
    """All keys and values that a cold start gives; OSError or CorruptData if it can't."""
    rig = start(disk, durability, archive=archive)
    try:
        return everything(rig)
    finally:
        rig.close()


def everything(rig: Rig) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    cursor = 0
    while True:
        cursor, pairs = rig.store._scan(cursor, True)
        found.update(pairs)
        if cursor == 2**64 - 1:
            return found


@contextlib.contextmanager
def life(
    fault: Callable[[str, str], None], durability: str = "always", *, archive: bool = False, cut_in: int = 0
) -> Iterator[Life]:
    """A life under that fault; the disk is well again when it is given."""
    disk = MemoryDisk()
    disk.before = fault
    result = Life(disk, durability, archive=archive, cut_in=cut_in)
    try:
        result.run()
        disk.before = well
        yield result
    finally:
        result.close()


def check_everything(result: Life, nth: int) -> None:
    if result.cut is not None:
        image, states = result.cut
        # In the middle of life: what is lost in a log file is not made good by a later snapshot.
        assert contents(image, result.durability, archive=result.archive) in states
    for keep in (none_kept, all_kept, some_kept(nth)):
        result.check(result.disk.after_power_cut(keep))
    if result.rig is not None and not result.rig.unlinked:
        check_rescue(result, result.rig)


def check_rescue(result: Life, rig: Rig) -> None:
    """The arena is still there and the disk is well: the next persister saves what the ring holds."""
    if rig.arena.info()["retired"]:
        manifest = read_manifest(rig.disk, "/data").manifest
        assert manifest is not None
        drain(place_on(rig.disk, SHAPE, rig.archive_dir), rig.arena, manifest)  # type: ignore[arg-type]
    else:
        assert rig.arena.audit(deep=True) == []
        assert everything(rig) == result.states()[-1], "reads go on"
        rig.restart_warm()
        rig.arena.set_state(log_state="OK")
        rig.later(1001)
        rig.later(1001)
        assert rig.durable_lsn == rig.tail
    image = result.disk.after_power_cut(none_kept)
    assert contents(image, result.durability, archive=result.archive) == result.states()[-1]


@pytest.mark.parametrize("archive", [False, True])
def test_a_life_without_faults_rotates_snapshots_trims_and_ends_cleanly(archive: bool) -> None:
    with life(well, archive=archive) as result:
        assert result.raised is None
        assert result.is_clean
        assert result.refused == 0
        assert len(result.changes) == ROUNDS * 4
        names = result.disk.names("/data/snapshot")
        assert len(names) == 2
        assert "0000000001.log" not in result.disk.names("/data/log")
        assert bool(result.disk.names("/archive")) == archive
        check_everything(result, 0)


def each_nth(step: int, **options: Any) -> Iterator[tuple[int, Fault]]:
    """Faults at a rising call, until one is not reached; the caller runs a life under each."""
    nth = 0
    while True:
        fault = Fault(nth, **{"operations": ALL, **options})
        yield nth, fault
        if not fault.hits:
            break
        nth += step


def run_lives(step: int, durability: str, code: int, *, for_ever: bool, archive: bool, **which: Any) -> int:
    """A life under each step-th fault; `which` calls: operations, path as for Fault. How many lives."""
    count = 0
    for nth, fault in each_nth(step, code=code, for_ever=for_ever, **which):
        with life(fault, durability, archive=archive, cut_in=nth % ROUNDS) as result:
            try:
                check_everything(result, nth)
                if not for_ever and result.raised is None:
                    assert result.is_clean, "one error alone never costs a clean end"
            except (AssertionError, CorruptData, OSError) as problem:
                raise AssertionError(f"call {nth}: {result.disk.operations[-3:]}, {result.raised!r}") from problem
        count += 1
    return count


CASES = [
    pytest.param(durability, code, for_ever, id=f"{durability}-{errno.errorcode[code]}{'-for-ever' * for_ever}")
    for durability in ("always", "interval")
    for code in (errno.EIO, errno.ENOSPC)
    for for_ever in (False, True)
]


@pytest.mark.parametrize(("durability", "code", "for_ever"), CASES)
def test_the_nth_call_fails(durability: str, code: int, for_ever: bool) -> None:
    assert run_lives(QUICK_STEP, durability, code, for_ever=for_ever, archive=True) > 5


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_the_nth_call_on_a_log_file_fails(operation: str) -> None:
    which = {"operations": (operation,), "path": ".log"}
    assert run_lives(1, "always", errno.EIO, for_ever=False, archive=False, **which) > 20


@pytest.mark.slow
@pytest.mark.parametrize(("durability", "code", "for_ever"), CASES)
def test_every_call_fails(durability: str, code: int, for_ever: bool) -> None:
    assert run_lives(1, durability, code, for_ever=for_ever, archive=code == errno.EIO) > 100


# ---- faults of the recovery of a faulty life ---------------------------------------------------------------------


def check_recovery(result: Life, image: MemoryDisk, step: int) -> int:
    """Every step-th call of the cold start of that image fails, once and for ever; how many starts were tried."""
    count = 0
    for for_ever in (False, True):
        for _, fault in each_nth(step, code=errno.EIO, for_ever=for_ever):
            disk = image.copy()
            disk.before = fault
            try:
                recovered = contents(disk, result.durability, archive=result.archive)
            except OSError as error:
                assert not isinstance(error, ShmkvError), "a disk that fails is no damage"
            else:
                assert recovered in result.states()
            disk.before = well
            result.check(disk.copy())
            result.check(disk.after_power_cut(none_kept))
            count += 1
    return count


def run_compounds(life_step: int, recovery_step: int) -> int:
    count = 0
    for for_ever in (False, True):
        for nth, fault in each_nth(life_step, code=errno.EIO, for_ever=for_ever):
            with life(fault, "interval", archive=True) as result:
                image = result.disk.after_power_cut(some_kept(nth))
                count += check_recovery(result, image, recovery_step)
    return count


def test_a_recovery_that_fails_loses_nothing() -> None:
    assert run_compounds(COMPOUND_STEP, RECOVERY_STEP) > 20


@pytest.mark.slow
def test_every_recovery_that_fails_loses_nothing() -> None:
    assert run_compounds(5, 1) > 1000
