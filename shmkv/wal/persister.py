"""The persister process: from its arguments to its loop, and from there to an exit code.

    python -m shmkv.wal.persister JSON        (README.md: arguments, commands, events, exit codes)

Why here: what a start means for the process (which arena, adopt or recover, what to tell the supervisor) apart from
how the log is read (start.py) and written (loop.py).

Invariants:
  I1  `ready` is sent only after everything that was accepted is on disk.
  I2  No second persister of the directory runs: its lock is held for life.
  I3  Every end but a clean one sends `failed` with the reason, before it exits.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import posix_ipc

from shmkv import errors, paths
from shmkv.dataclass import asdict, replace
from shmkv.segment import _core
from shmkv.wal import jobs
from shmkv.wal.arguments import Arguments
from shmkv.wal.channel import Events, Orders
from shmkv.wal.cipher import Keyring, KeySourceFailed
from shmkv.wal.compression import require_zstd
from shmkv.wal.drain import FrozenRing, drain
from shmkv.wal.files import Files
from shmkv.wal.jobs import Context, Jobs, SyncWish
from shmkv.wal.loop import CLEAN, RETRY, Persister
from shmkv.wal.manifest import Manifest, ManifestRead, ManifestSlots, read_manifest
from shmkv.wal.pace import Pace
from shmkv.wal.recovery import ADOPT, DISCARD, FINISH, REFUSE, LivingArena, plan_warm
from shmkv.wal.schedule import Schedule, pace_after
from shmkv.wal.spares import SpareMaker, in_thread
from shmkv.wal.start import LOG_DIR, Place, Started, start_cold, start_warm

DAMAGED_LOG, CANNOT_CREATE, LOCK_HELD, BAD_CONFIG = 65, 73, 75, 78
PROGRESS_INTERVAL_S = 0.2


class Ended(Exception):
    """The process ends before its loop: exit code and reason; CLEAN = an old arena was finished."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Process:
    """One run of the persister."""

    def __init__(self, arguments: Arguments, events: Events, orders: Orders, started_s: float) -> None:
        self._arguments = arguments
        self._events = events
        self._orders = orders
        self._started_s = started_s
        self._files = Files()
        self._keys = Keyring.none()
        self._reported_s = started_s
        self._fd = -1

    def run(self) -> int:
        """Start, report ready, loop; the exit code. Raises Ended, ShmkvError, OSError."""
        log_dir = os.path.join(self._arguments.data_dir, LOG_DIR)
        self._files.make_dir(log_dir)
        try:
            self._files.lock_dir(log_dir, self._arguments.lock_timeout_s)
        except TimeoutError as error:
            raise Ended(LOCK_HELD, str(error)) from error
        self._keys = Keyring.load(self._arguments.key_settings())
        if self._arguments.snapshot_compression == "zstd":
            require_zstd()
        self._fd = posix_ipc.SharedMemory(paths.object_name(self._arguments.name)).fd
        arena, started, warm = self._cold() if self._arguments.created else self._warm()
        persister = self._persister(arena, started, warm)
        persister.open_first()
        self._events.emit(
            "ready",
            warm=warm,
            records=started.records,
            entries=started.entries,
            generation=started.generation,
            snapshots=[asdict(facts) for facts in started.generations.named],
            seconds=round(time.monotonic() - self._started_s, 4),
            cut_lsn=started.cut_lsn,
            warnings=list(started.warnings),
        )
        return persister.run()

    def _persister(self, arena: _core.Arena, started: Started, warm: bool) -> Persister:
        arguments, ring = self._arguments, arena.ring()
        arena.set_state(
            durability=arguments.durability, lag_limit_ms=round(arguments.lag_limit_s * 1000), log_state="OK"
        )
        wish = SyncWish(lambda: arena.ring()["durable_lsn"])
        context = Context(
            arena=arena,
            files=self._files,
            data_dir=arguments.data_dir,
            keys=self._keys,
            slots=started.slots,
            directory=started.directory,
            generations=started.generations,
            settings=arguments.job_settings(),
            wall_ms=wall_ms,
            wait_durable=wish.wait,
            spawn=jobs.beside_job,
        )
        return Persister(
            arena,
            started.writer,
            Pace(arguments.pace_settings(ring["ring_bytes"]), ring["now_ms"], started.writer.synced_lsn),
            SpareMaker(started.directory, started.writer.shape, in_thread),
            events=self._events,
            orders=self._orders,
            wall_ms=wall_ms,
            unlink=self._unlink,
            switch=lambda generation: switch_to(context, generation),
            keeps_ring=arguments.durability != "none",
            schedule=Schedule(
                pace_after(started, context, arguments.snapshot_settings(), warm=warm),
                Jobs(context, self._events, spawn=jobs.in_thread),
                started.generations,
            ),
            wish=wish,
        )

    # ---- cold -----------------------------------------------------------------------------------------------

    def _place(self) -> Place:
        arguments = self._arguments
        return Place(
            self._files, arguments.data_dir, arguments.file_bytes, wall_ms, keys=self._keys,
            archive_dir=arguments.archive_dir,
        )  # fmt: skip

    def _cold(self) -> tuple[_core.Arena, Started, bool]:
        arguments = self._arguments
        ring_bytes = _core.plan(**arguments.plan)["ring_bytes"]
        made: list[_core.Arena] = []

        def make_arena(manifest: Manifest, hash_key: bytes | None) -> _core.Arena:
            if made:
                # What was loaded from a damaged snapshot must not be there.
                made.pop().close()
                empty(self._fd)
            _core.format_arena(
                self._fd,
                size_bytes=arguments.plan["size_bytes"],
                max_size_bytes=arguments.plan.get("max_size_bytes", 0),
                ring_bytes=arguments.plan.get("ring_bytes", 0),
                expected_items=arguments.plan.get("expected_items", 0),
                name=arguments.name,
                store_id=manifest.store_id,
                incarnation=manifest.incarnation,
                first_lsn=manifest.first_lsn,
                has_log=True,
                hash_key=hash_key,
            )
            made.append(_core.Arena(self._fd))
            return made[0]

        started = start_cold(
            self._place(),
            ring_bytes=ring_bytes,
            accept_loss=arguments.accept_loss,
            make_arena=make_arena,
            progress=self._progress,
        )
        return made[0], started, False

    def _progress(self, phase: str, records: int, bytes_done: int, of_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s - self._reported_s >= PROGRESS_INTERVAL_S:
            self._reported_s = now_s
            self._events.emit("recovering", phase=phase, records=records, bytes=bytes_done, of_bytes=of_bytes)

    # ---- warm -----------------------------------------------------------------------------------------------

    def _warm(self) -> tuple[_core.Arena, Started, bool]:
        read = read_manifest(self._files, self._arguments.data_dir)
        header, arena = self._look()
        living = LivingArena(False) if header is None else _living(header, same_layout=arena is not None)
        if read.manifest is None and read.problems:
            raise errors.CorruptData(f"no valid manifest: {'; '.join(read.problems)}; the living arena was not touched")
        action, why = plan_warm(living, read.manifest)
        if action == REFUSE:
            raise Ended(BAD_CONFIG, why)
        if action == DISCARD:
            if arena is not None and living.state == "READY":
                # Handles would go on with it for ever, unaware of the one that takes its place.
                header = self._retire(arena)
            if header is not None and read.manifest is not None and living.store_id == read.manifest.store_id:
                self._remember(read, header)
            self._unlink()
            raise Ended(CLEAN, f"the old arena was discarded: {why}")
        assert header is not None
        assert read.manifest is not None
        if action == FINISH:
            self._drain(header, arena, read.manifest)
            raise Ended(CLEAN, f"the old arena was drained and removed: {why}")
        assert action == ADOPT
        assert arena is not None
        ring = arena.ring()
        started = start_warm(
            self._place(),
            ring_bytes=ring["ring_bytes"],
            start_lsn=max(ring["head"], ring["durable_lsn"]),
            manifest=read.manifest,
            verify=_core.verify,
        )
        return arena, started, True

    def _retire(self, arena: _core.Arena) -> dict[str, Any]:
        """End an arena that is not drained; its header after that. A process that was stopped can't be told."""
        try:
            arena.retire()
        except errors.LockTimeout as error:
            print(f"persister: not every process knows that the old arena ended: {error}", file=sys.stderr, flush=True)
        return _core.read_header(self._fd)

    def _remember(self, read: ManifestRead, header: dict[str, Any]) -> None:
        """Incarnation and LSNs of an arena that goes are never used again."""
        assert read.manifest is not None
        manifest = replace(
            read.manifest,
            incarnation=max(read.manifest.incarnation, header["incarnation"]),
            highest_lsn=max(read.manifest.highest_lsn, header["tail"]),
        )
        ManifestSlots(self._files, self._arguments.data_dir, read).publish(manifest)

    def _look(self) -> tuple[dict[str, Any] | None, _core.Arena | None]:
        """Header and mapping of the arena, None for what cannot be had."""
        try:
            header = _core.read_header(self._fd)
        except errors.CorruptData:
            return None, None
        try:
            return header, _core.Arena(self._fd)
        except errors.IncompatibleStore:
            return header, None

    def _drain(self, header: dict[str, Any], arena: _core.Arena | None, manifest: Manifest) -> None:
        ending = FrozenRing(self._fd, header) if arena is None else arena
        ending.retire()
        drain(self._place(), ending, manifest)
        self._unlink()

    def _unlink(self) -> None:
        """Remove the arena's name, unless it leads to another object by now."""
        name = self._arguments.name
        if paths.object_inode(name) == os.fstat(self._fd).st_ino:
            posix_ipc.unlink_shared_memory(paths.object_name(name))


def switch_to(context: Context, generation: int) -> None:
    """Make a restored snapshot the whole store; the arena has ended. What fails is told, and the old data stays."""
    from shmkv.wal.snapshot import facts_of, open_snapshot

    generations, files = context.generations, context.files
    # Not a published one: if a start removed what was restored, that number may since be that of an ordinary snapshot.
    path = generations.unfinished_path(generation)
    try:
        with open_snapshot(files, path, context.keys) as reader:
            facts = facts_of(reader, alone=True)
        if facts.start_lsn != facts.end_lsn:
            raise errors.CorruptData(f"{path} is a snapshot that needs its log, not what a restore made")
        generations.switch(facts, highest_lsn=context.arena.ring()["tail"])
    except (errors.ShmkvError, OSError) as error:
        print(f"persister: the restored data is not used: {error}", file=sys.stderr, flush=True)


def empty(fd: int) -> None:
    """Give the pages of a shared object back and reserve new ones, all zero; its size stays, so nobody's read fails.

    Raises OSError if somebody else took them meanwhile.
    """
    size_bytes = os.fstat(fd).st_size
    with mmap.mmap(fd, size_bytes) as memory:
        memory.madvise(mmap.MADV_REMOVE)
    os.posix_fallocate(fd, 0, size_bytes)


def _living(header: dict[str, Any], *, same_layout: bool) -> LivingArena:
    return LivingArena(
        readable=True,
        state="RETIRED" if header["retired"] else header["state"],
        store_id=header["store_id"],
        incarnation=header["incarnation"],
        condemned=header["condemned"],
        same_layout=same_layout,
    )


def wall_ms() -> int:
    """Wall clock in ms."""
    return time.time_ns() // 1_000_000


def exit_code_of(error: BaseException) -> int:
    """What the supervisor is told: whether a new try can help."""
    if isinstance(error, Ended):
        return error.code
    if isinstance(error, errors.CorruptData):
        return DAMAGED_LOG
    if isinstance(error, KeySourceFailed):
        return RETRY
    if isinstance(error, errors.MemoryLimitExceeded | errors.IncompatibleStore | errors.WrongKey):
        return BAD_CONFIG
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EACCES,
        errno.EROFS,
        errno.EPERM,
    ):
        return CANNOT_CREATE
    return RETRY


def read_line(fd: int) -> str | None:
    """The line that comes next, and nothing of what follows it; None if the end comes first. Blocks."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            return None
        line += byte
    return line.decode()


def main(argv: Sequence[str]) -> int:
    """Entry point: one argument, the JSON of Arguments, or "-": then it comes as the first line of standard input."""
    started_s = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The supervisor decides when the log ends; a signal to the whole group must not come before the last writes.
        signal.signal(number, signal.SIG_IGN)
    try:
        text = read_line(0) if argv[1:] == ["-"] else argv[1]
        if text is None:
            # Started ahead and not needed, or the supervisor died before it knew what for.
            return CLEAN
        arguments = Arguments.parse(text)
    except (IndexError, ValueError) as problem:
        print(f"persister: {problem!r}; it is started by shmkv-supervisor", file=sys.stderr)
        return BAD_CONFIG
    events = Events(arguments.event_fd)
    orders = Orders()
    orders.listen(0)
    try:
        return Process(arguments, events, orders, started_s).run()
    except (Ended, errors.ShmkvError, posix_ipc.Error, OSError) as error:
        code = exit_code_of(error)
        if code == CLEAN:
            events.emit("ended", reason=str(error))
        else:
            events.emit("failed", error=str(error), exit=code, kind=jobs.error_kind(error))
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv))
