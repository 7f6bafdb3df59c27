"""The arena of a store in the supervisor's hands: opened or made at the start, watched, removed at the end.

Why here: `arena` knows only the object, `service` only the order of things; this is where the header is
read and the two state words that belong to the supervisor are written.

Invariants:
  I1  The state word says READY only from `serve` to the end of the arena.
  I2  While it serves, no lock of the arena is taken: only `info`, `set_state` and `ring` are called.
"""

from __future__ import annotations

import os
from typing import Any

from shmkv import errors, paths
from shmkv.config import Settings, format_size
from shmkv.segment import _core
from shmkv.supervisor import arena as arenas
from shmkv.supervisor.arena import ArenaFile, Refused, Verdict
from shmkv.supervisor.report import Report
from shmkv.supervisor.states import Exit


class Opened:
    """An arena with its flock; `created`: this run made it; `serving`: it was announced."""

    def __init__(self, file: ArenaFile, *, created: bool) -> None:
        self.file = file
        self.created = created
        self.serving = False
        self._arena: _core.Arena | None = None

    def serve(self, settings: Settings) -> None:
        """Say READY in the arena: from here `attach` works."""
        self._arena = _core.Arena(self.file.fd, prefault=False)
        self._arena.set_state(
            state="READY", supervisor_pid=os.getpid(), lag_limit_ms=round(settings.lag_limit * 1000),
            durability=settings.durability if not settings.memory_only else "none", adopted=not self.created,
        )  # fmt: skip
        self.serving = True

    def trouble(self) -> str:
        """Why this arena can't be served any longer; empty if it can."""
        if not self.file.is_current():
            inode = paths.object_inode(self.file.name)
            fate = "was removed" if inode is None else "was replaced"
            return (
                f"{paths.object_path(self.file.name)} {fate} by another process (rm, RemoveIPC=yes, a container's end?)"
            )
        if self._arena is None:
            return ""
        info = self._arena.info()
        if self.file.size_bytes < info["size_bytes"]:
            return (
                f"{paths.object_path(self.file.name)} was cut to {self.file.size_bytes} of {info['size_bytes']} bytes"
            )
        return "the arena is condemned: an audit failed, or a lock is beyond repair" if info["condemned"] else ""

    def status(self) -> dict[str, Any]:
        """State and ring words, for the control socket."""
        if self._arena is None:
            return {"size_bytes": self.file.size_bytes, "state": "CREATING"}
        info = self._arena.info()
        wanted = ("state", "condemned", "epoch", "log_state", "incarnation", "size_bytes")
        return {**{key: info[key] for key in wanted if key in info}, "ring": self._arena.ring()}

    def leave(self) -> None:
        """No supervisor from now on; the arena may live on without one."""
        if self._arena is not None:
            self._arena.set_state(supervisor_pid=0)

    def remove(self) -> str:
        """End of the arena: attached processes notice, the name goes; what could not be done is returned.

        Usually a child retired it already. If not, this is the last act of a supervisor whose children are
        gone, so that it may wait for locks: up to 5 s for one whose holder was stopped.
        """
        trouble = retire(self.file.fd) if self.serving else ""
        self.file.unlink()
        return trouble

    def close(self) -> None:
        """Unmap, and give the flock back."""
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        self.file.close()


def open_arena(settings: Settings, *, has_log: bool, report: Report) -> Opened:
    """Adopt the arena of that name, or make one; Refused says why neither can be done."""
    _check_plan(settings)
    found = arenas.find(settings.name)
    if found is not None:
        try:
            opened = _take_over(found, settings, has_log, report)
        except BaseException:
            found.close()
            raise
        if opened is not None:
            return opened
        found.close()
    file = arenas.create(settings.name, settings.memory, settings.mode, settings.group)
    if not has_log:
        if shortage := file.shortage():
            file.unlink()
            file.close()
            raise shortage
        ring_bytes = _core.plan(**plan_of(settings))["ring_bytes"]
        first_lsn = -(-_core.LSN_GAP // ring_bytes) * ring_bytes
        _core.format_arena(
            file.fd,
            **plan_of(settings),
            name=settings.name,
            store_id=os.urandom(16),
            incarnation=1,
            first_lsn=first_lsn,
            has_log=False,
        )
    return Opened(file, created=True)


def retire(fd: int) -> str:
    """Let those who still use an arena notice its end; what prevented it, or nothing. It may have ended before."""
    try:
        arena = _core.Arena(fd, prefault=False)
    except (errors.CorruptData, errors.IncompatibleStore):
        # Nobody here can be attached to what can't be mapped here.
        return ""
    try:
        if not arena.info()["retired"]:
            arena.retire()
    except (errors.LockTimeout, errors.StoreUnavailable) as error:
        return f"not every process could be told that the arena ended: {error}"
    finally:
        arena.close()
    return ""


def plan_of(settings: Settings) -> dict[str, Any]:
    """The numbers that lay out the arena, as `_core.plan` takes them."""
    return {
        "size_bytes": settings.memory, "max_size_bytes": 0, "ring_bytes": settings.ring,
        "expected_items": settings.expected_items,
    }  # fmt: skip


def _take_over(found: ArenaFile, settings: Settings, has_log: bool, report: Report) -> Opened | None:
    header, info = inspect(found.fd)
    verdict = arenas.judge(header, info)
    if header is not None and info is not None and verdict is not Verdict.DISCARD and bool(info["has_log"]) != has_log:
        kinds = ("memory only", "with a log")
        raise Refused(
            Exit.BAD_CONFIG, "InvalidSetting",
            f"the living arena of {settings.name!r} is {kinds[bool(info['has_log'])]}, the settings say "
            f"{kinds[has_log]}; start it as it was, or remove it: shmkv-admin -s {settings.name} destroy",
        )  # fmt: skip
    if verdict is Verdict.ADOPT or (verdict is Verdict.FINISH and has_log):
        if found.size_bytes != settings.memory:
            report.warn(
                f"memory is {format_size(settings.memory)} in the settings and {format_size(found.size_bytes)} in the "
                f"living arena, which stays as it is until a clean stop"
            )
        return Opened(found, created=False)
    if verdict is Verdict.FINISH:
        retire(found.fd)
    # One that was still being made has no header yet; this one had something, and nobody can say how much.
    if header is None and any(os.pread(found.fd, 8, 0)):
        report.warn(
            f"the header of {paths.object_path(found.name)} is damaged, or another program made it; it is replaced and "
            f"what it held is lost{' except what is in the log' if has_log else ''}"
        )
    found.unlink()
    return None


def inspect(fd: int) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(`read_header`, `Arena.info`) of an arena, None for what can't be read."""
    try:
        header = _core.read_header(fd)
    except (errors.CorruptData, errors.IncompatibleStore):
        return None, None
    try:
        arena = _core.Arena(fd, prefault=False)
    except (errors.CorruptData, errors.IncompatibleStore):
        return header, None
    try:
        return header, arena.info()
    finally:
        arena.close()


def _check_plan(settings: Settings) -> None:
    try:
        _core.plan(**plan_of(settings))
    except ValueError as error:
        raise Refused(
            Exit.BAD_CONFIG, "InvalidSetting", f"memory = {format_size(settings.memory)} does not work: {error}"
        ) from None
