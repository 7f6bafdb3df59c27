"""Looking at a log without changing it: its records one by one, and what is wrong with it.

Why here: the same decisions as a start (recovery.py), for `shmkv-admin log` and `shmkv-admin verify`, which run beside
a living persister or on a copy. Slow: records are read in Python.

An encrypted log is read with its keys; without them its problems are those that the checksums of its frames show.

Invariants:
  I1  Nothing is written, locked or removed.
  I2  What a start would accept is shown as good, what it would refuse as damage, in the same words.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from shmkv.errors import CorruptData
from shmkv.segment import _core
from shmkv.wal.cipher import Keyring
from shmkv.wal.cold import ColdPlan, Stored, manifest_of, plan_cold
from shmkv.wal.files import Files
from shmkv.wal.log import LogDirectory
from shmkv.wal.manifest import read_manifest
from shmkv.wal.record import Record, Stop, read_records
from shmkv.wal.recovery import Segment, judge
from shmkv.wal.replay import Part, Replay, check_frames, open_part, replay_segment
from shmkv.wal.start import LOG_DIR


def plan_of(files: Files, data_dir: str) -> ColdPlan:
    """What a start would replay. Raises CorruptData where it would."""
    found = LogDirectory(files, os.path.join(data_dir, LOG_DIR)).log_files()
    manifest, warnings = manifest_of(found, read_manifest(files, data_dir), Stored(), accept_loss=False)
    return plan_cold(found, manifest, accept_loss=False, warnings=warnings)


def log_records(
    files: Files, data_dir: str, *, since_lsn: int = 0, keys: Keyring | None = None
) -> Iterator[tuple[str, int, Record | Stop]]:
    """(path, offset, record) of each record from since_lsn on, in order, and a Stop at the end of each file's part.

    In an encrypted file the offset is that of the frame around it. Raises CorruptData when files are missing or their
    headers are bad, WrongKey; bad records show as a Stop.
    """
    plan = plan_of(files, data_dir)
    for segment in plan.segments:
        if segment.end_lsn is not None and segment.end_lsn <= since_lsn:
            continue
        assert plan.manifest is not None
        for offset, item in _items(open_part(files, segment, keys), segment, plan.manifest.store_id):
            lsn = item.lsn if isinstance(item, Stop) else item.header.lsn
            if lsn >= since_lsn:
                yield segment.file.path, offset, item


def _items(part: Part, segment: Segment, store_id: bytes) -> Iterator[tuple[int, Record | Stop]]:
    """(offset, record) of the records of one file's part, chunk by chunk, and the Stop behind them."""
    lsn, window = segment.start_lsn, part.chunk_bytes
    while True:
        chunk = part.peek(window)
        for item in read_records(chunk, store_id=store_id, incarnation=segment.incarnation, first_lsn=lsn):
            if isinstance(item, Record):
                yield part.offset_of(item.header.lsn), item
        assert isinstance(item, Stop), "the last item of read_records"
        if len(chunk) < window or item.reason not in ("end", "short"):
            reason, _proof = part.end() if item.reason in ("end", "short") else ("", "")
            yield part.offset_of(item.lsn), replace(item, reason=reason or item.reason)
            return
        window = part.chunk_bytes if item.offset else 2 * window
        part.advance(item.offset)
        lsn = item.lsn


def missing_keys(files: Files, data_dir: str, keys: Keyring) -> dict[bytes, int]:
    """Ids of keys that the log needs and the ring does not have, with the number of files. Raises CorruptData."""
    wanted = [file.header for file in (segment.file for segment in plan_of(files, data_dir).segments) if file.header]
    return dict(Counter(header.key_id for header in wanted if header.cipher and header.key_id not in keys.ids))


def log_problems(files: Files, data_dir: str, *, keys: Keyring | None = None) -> list[str]:
    """What a start would complain about, in words; [] = the log is whole. Reads all of it, at the speed of C.

    Of files whose key is not there (missing_keys names them) only the checksums around the sealed parts are checked.
    """
    try:
        plan = plan_of(files, data_dir)
    except CorruptData as refusal:
        return [str(refusal)]
    problems = list(plan.warnings)
    if plan.manifest is None:
        return problems
    known = keys.ids if keys else ()
    state = Replay()
    for segment in plan.segments:
        header = segment.file.header
        if header is not None and header.cipher and header.key_id not in known:
            ending = check_frames(files, segment)
        else:
            ending = replay_segment(files, segment, plan.manifest.store_id, _core.verify, state, keys=keys)
        problem = judge(segment, ending, max(plan.manifest.watermark, state.durable_before))
        if problem:
            problems.append(problem)
    return problems
