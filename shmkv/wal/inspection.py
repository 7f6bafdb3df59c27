"""Looking at a log without changing it: its records one by one, and what is wrong with it.

Why here: the same decisions as a start (recovery.py), for `shmkv-admin log` and `shmkv-admin verify`, which run beside
a living persister or on a copy. Slow: records are read in Python.

Invariants:
  I1  Nothing is written, locked or removed.
  I2  What a start would accept is shown as good, what it would refuse as damage, in the same words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from shmkv.errors import CorruptData
from shmkv.segment import _core
from shmkv.wal.files import Files
from shmkv.wal.log import LogDirectory
from shmkv.wal.manifest import read_manifest
from shmkv.wal.record import Record, Stop, read_records
from shmkv.wal.recovery import ColdPlan, judge, plan_cold
from shmkv.wal.replay import Replay, replay_segment
from shmkv.wal.start import LOG_DIR


def plan_of(files: Files, data_dir: str) -> ColdPlan:
    """What a start would replay. Raises CorruptData where it would."""
    found = LogDirectory(files, os.path.join(data_dir, LOG_DIR)).log_files()
    return plan_cold(found, read_manifest(files, data_dir), accept_loss=False)


def log_records(files: Files, data_dir: str, *, since_lsn: int = 0) -> Iterator[tuple[str, int, Record | Stop]]:
    """(path, offset, record) of each record from since_lsn on, in order, and a Stop at the end of each file's part.

    Raises CorruptData when files are missing or their headers are bad; bad records show as a Stop.
    """
    plan = plan_of(files, data_dir)
    for segment in plan.segments:
        if segment.end_lsn is not None and segment.end_lsn <= since_lsn:
            continue
        assert plan.manifest is not None
        length = None if segment.end_lsn is None else segment.end_lsn - segment.start_lsn
        data = files.map(segment.file.path)[segment.offset :][:length]
        for item in read_records(
            data,
            store_id=plan.manifest.store_id,
            incarnation=segment.incarnation,
            first_lsn=segment.start_lsn,
        ):
            lsn = item.lsn if isinstance(item, Stop) else item.header.lsn
            if lsn >= since_lsn:
                yield segment.file.path, segment.offset_of(lsn), item


def log_problems(files: Files, data_dir: str) -> list[str]:
    """What a start would complain about, in words; [] = the log is whole. Reads all of it, at the speed of C."""
    try:
        plan = plan_of(files, data_dir)
    except CorruptData as refusal:
        return [str(refusal)]
    problems = list(plan.warnings)
    if plan.manifest is None:
        return problems
    state = Replay()
    for segment in plan.segments:
        ending = replay_segment(files, segment, plan.manifest.store_id, _core.verify, state)
        problem = judge(segment, ending, max(plan.manifest.watermark, state.durable_before))
        if problem:
            problems.append(problem)
    return problems
