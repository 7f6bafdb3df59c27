"""What the control socket answers to `status`: one picture of a store for administration and monitoring.

Why here: its names are read by shmkv-admin, by `db.stats()` and by users' scripts, so they stand in one place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from shmkv.config import Settings
from shmkv.supervisor.child import ManagedChild
from shmkv.supervisor.lines import Message
from shmkv.supervisor.opening import Opened
from shmkv.supervisor.places import Places
from shmkv.supervisor.recipes import key_arguments
from shmkv.supervisor.report import seconds_since_exec
from shmkv.supervisor.states import Phase


def store_status(
    settings: Settings, places: Places, phase: Phase, opened: Opened | None, persister: ManagedChild | None,
    children: Sequence[ManagedChild], ready: Message, now_s: float,
) -> Message:  # fmt: skip
    """All but the jobs. `ready`: what the last persister said when it was ready."""
    starting = phase in (Phase.OPENING, Phase.STARTING)
    return {
        "name": settings.name, "pid": os.getpid(), "phase": phase.name,
        "up_s": round(seconds_since_exec(), 2),
        "data_dir": places.data, "durability": settings.durability, "keys": key_arguments(settings),
        "arena": opened.status() if opened is not None else {},
        "children": [child.status(now_s) for child in children],
        "recovery": recovery_status(starting, persister.progress if persister is not None else {}, ready),
    }  # fmt: skip


def recovery_status(running: bool, progress: Message, ready: Message) -> Message:
    """How far a start is, or what came of the last one."""
    found = {**(progress if running else ready), "running": running}
    return {key: value for key, value in found.items() if key not in ("event", "snapshots")}
