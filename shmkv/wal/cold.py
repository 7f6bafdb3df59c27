"""What a cold start finds: which store it is, and which parts of which log files belong on a snapshot or on nothing.

Why here: pure functions over manifest and headers, so that every case of the decision table in README.md is a test
without a disk. Where the log ends is decided while it is read: recovery.py judges that, start.py drives.

A base is a snapshot, or nothing. What the log must hold follows from it.

Invariants:
  I1  A snapshot needs every file from the one with its start LSN on; one that is `alone` only those of lives behind
      its own. Files before them may be missing or damaged.
  I2  Nothing is a base only for a log whose first file says that no log was before it: a trimmed log never makes a
      store by itself, whatever loss is accepted.
  I3  Damage refuses the start, unless loss is accepted; then the log ends there, and the files behind are disowned by
      number for ever.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from shmkv.dataclass import dataclass, replace
from shmkv.errors import CorruptData
from shmkv.wal.log import LogFile, file_name
from shmkv.wal.manifest import Manifest, ManifestRead, SnapshotFacts
from shmkv.wal.recovery import Segment, damage

KEPT_SNAPSHOTS = 2


@dataclass(frozen=True, slots=True)
class ColdPlan:
    """What to replay, and what the next incarnation must know.

    manifest: the one found, or the one rebuilt from the log; None = there is no store yet. base: the snapshot that the
    log is applied to, None = nothing. usable: the files that belong on it. ends: incarnation -> end LSN as far as known
    before the replay. disowned: file numbers that count no more, as in the manifest.
    """

    manifest: Manifest | None
    segments: tuple[Segment, ...]
    ends: Mapping[int, int]
    disowned: tuple[tuple[int, int], ...]
    highest_lsn: int
    next_number: int
    warnings: tuple[str, ...]
    base: SnapshotFacts | None = None
    usable: tuple[LogFile, ...] = ()


def manifest_of(
    found: Sequence[LogFile], read: ManifestRead, stored: Stored, *, accept_loss: bool
) -> tuple[Manifest | None, tuple[str, ...]]:
    """The manifest to start from, and warnings; None = there is no store. stored: for a rebuild.

    Raises CorruptData if there is none that is valid, though there are files, and loss is not accepted.
    """
    if read.manifest is not None:
        return read.manifest, read.problems
    if not found and not stored.snapshots and not stored.problems:
        return None, read.problems
    there = f"{len(found)} log files and {len(stored.snapshots)} snapshots"
    if not accept_loss:
        reasons = "; ".join(read.problems) or "there is none"
        raise CorruptData(
            f"no valid manifest beside {there}: {reasons}. Restore one of the two manifest files, or start with "
            "--accept-loss to rebuild it from the headers"
        )
    manifest = rebuild_manifest(found, stored)
    return manifest, (*read.problems, *stored.problems, f"the manifest was rebuilt from {there}")


def plan_cold(
    found: Sequence[LogFile],
    manifest: Manifest | None,
    *,
    accept_loss: bool,
    base: SnapshotFacts | None = None,
    warnings: Sequence[str] = (),
) -> ColdPlan:
    """Decide what the log is, on that base. Raises CorruptData if it is not all there and loss is not accepted."""
    if manifest is None:
        return ColdPlan(None, (), {}, (), 0, 1, tuple(warnings))
    highest_number = max([manifest.newest_file, *(file.number for file in found)])
    usable, problem = usable_files(found, manifest, base)
    disowned = manifest.disowned
    if problem:
        if not accept_loss:
            raise damage(problem)
        first_bad = usable[-1].number + 1 if usable else manifest.oldest_file
        disowned = (*disowned, (first_bad, max(first_bad, highest_number)))
        warnings = (*warnings, f"loss accepted: {problem}; the log ends before {file_name(first_bad)}")
    ends = {**_ends_in_headers(usable), **dict(manifest.seals)}
    return ColdPlan(
        manifest=manifest,
        segments=segments_of(usable, ends, base),
        ends=ends,
        disowned=disowned,
        highest_lsn=highest_lsn_of(found, manifest),
        next_number=highest_number + 1,
        warnings=tuple(warnings),
        base=base,
        usable=usable,
    )


def highest_lsn_of(found: Sequence[LogFile], manifest: Manifest) -> int:
    """No LSN above it was ever given to a record of this store."""
    return max(
        [
            manifest.highest_lsn,
            manifest.watermark,
            *(file.limit_lsn for file in found),
            *(facts.end_lsn for facts in manifest.snapshots),
        ]
    )


def counted_files(found: Sequence[LogFile], manifest: Manifest) -> tuple[LogFile, ...]:
    """The files whose number still counts."""
    return tuple(
        file
        for file in found
        if file.number >= manifest.oldest_file and _skip_disowned(file.number, manifest) == file.number
    )


def oldest_needed(counted: Sequence[LogFile], base: SnapshotFacts, default: int) -> int:
    """Number of the file that holds the start LSN of that snapshot: the log before it can go."""
    start = (base.incarnation, base.start_lsn)
    return max((file.number for file in counted if _start_of(file) <= start), default=default)


def usable_files(
    found: Sequence[LogFile], manifest: Manifest, base: SnapshotFacts | None = None
) -> tuple[tuple[LogFile, ...], str]:
    """The files that belong on that base, up to the first that is missing, damaged or not of this store; and what is
    wrong there, or "".
    """
    counted = counted_files(found, manifest)
    first, problem = _first_needed(counted, manifest, base)
    if problem:
        return (), problem
    usable: list[LogFile] = []
    expected = first
    for file in counted:
        if file.number < first:
            continue
        problem = _problem_of(file, expected, usable[-1] if usable else None, manifest)
        if problem:
            return tuple(usable), problem
        usable.append(file)
        expected = _skip_disowned(file.number + 1, manifest)
    if expected <= manifest.newest_file:
        return tuple(usable), f"{file_name(expected)} is missing; the manifest names files up to {manifest.newest_file}"
    return tuple(usable), ""


def _first_needed(counted: Sequence[LogFile], manifest: Manifest, base: SnapshotFacts | None) -> tuple[int, str]:
    """Number of the first file that the base needs; and what is wrong with that, or ""."""
    if base is None:
        return _skip_disowned(manifest.oldest_file, manifest), ""
    mine = [file for file in counted if file.header is not None and file.header.store_id == manifest.store_id]
    if not base.alone:
        first = oldest_needed(mine, base, 0)
        return first, "" if first else f"the log file that holds LSN {base.start_lsn} is missing"
    for file in mine:
        if file.header is not None and file.header.incarnation > base.incarnation:
            is_next = file.header.previous_incarnation <= base.incarnation
            return file.number, "" if is_next else f"the file before {file.path} is missing or damaged"
    newest = manifest.newest_file
    counts = newest >= manifest.oldest_file and _skip_disowned(newest, manifest) == newest
    if counts and manifest.incarnation > base.incarnation and all(file.number != newest for file in mine):
        return 0, f"{file_name(newest)} is missing or damaged"
    return newest + 1, ""


def reaches_back(found: Sequence[LogFile], manifest: Manifest) -> bool:
    """Whether the log begins with an empty store: then it gives everything without any snapshot."""
    counted = counted_files(found, manifest)
    first = counted[0].header if counted else None
    if first is not None and counted[0].number == _skip_disowned(manifest.oldest_file, manifest):
        return first.previous_incarnation == 0
    return manifest.oldest_file == 1 and not manifest.snapshots


def _skip_disowned(number: int, manifest: Manifest) -> int:
    """The first file number from this one on that still counts."""
    for first, last in sorted(manifest.disowned):
        if first <= number <= last:
            number = last + 1
    return number


def _problem_of(file: LogFile, expected: int, before: LogFile | None, manifest: Manifest) -> str:
    header = file.header
    if file.number != expected:
        return f"{file_name(expected)} is missing in {os.path.dirname(file.path)}"
    if header is None:
        return f"{file.path} is damaged at offset 0: {file.problem}"
    if header.store_id != manifest.store_id:
        return f"{file.path} belongs to store {header.store_id.hex()}, the manifest to {manifest.store_id.hex()}"
    if header.incarnation > manifest.incarnation:
        return (
            f"{file.path} was written by incarnation {header.incarnation}, but the manifest only knows of "
            f"{manifest.incarnation}: the manifest is older than the log"
        )
    reached = (
        (0, 0) if before is None or before.header is None else (before.header.incarnation, before.header.first_lsn)
    )
    if (header.incarnation, header.first_lsn) < reached:
        return f"{file.path} starts at LSN {header.first_lsn}, before the one in front of it ({reached[1]})"
    return ""


def segments_of(
    usable: Sequence[LogFile], ends: Mapping[int, int], base: SnapshotFacts | None = None
) -> tuple[Segment, ...]:
    """The parts of these files that count. Raises CorruptData if an incarnation but the last has no known end."""
    segments: list[Segment] = []
    for index, file in enumerate(usable):
        header = file.header
        assert header is not None
        end_lsn = ends.get(header.incarnation)
        following = usable[index + 1].header if index + 1 < len(usable) else None
        if following is not None and following.incarnation == header.incarnation:
            end_lsn = following.first_lsn if end_lsn is None else min(end_lsn, following.first_lsn)
        elif following is not None and end_lsn is None:
            raise CorruptData(
                f"{file.path}: neither the manifest nor the next file says where incarnation {header.incarnation} "
                "ended; restore the manifest"
            )
        start_lsn = header.first_lsn
        if base is not None and header.incarnation <= base.incarnation:
            if base.alone or header.incarnation < base.incarnation:
                continue
            start_lsn = max(start_lsn, base.start_lsn)
        if end_lsn is None or start_lsn < end_lsn:
            segments.append(Segment(file, start_lsn, end_lsn, header.incarnation))
    return tuple(segments)


@dataclass(frozen=True, slots=True)
class Stored:
    """The snapshot files that are there: (store id, what header and footer say), oldest first; those that are bad."""

    snapshots: tuple[tuple[bytes, SnapshotFacts], ...] = ()
    problems: tuple[str, ...] = ()


def rebuild_manifest(found: Sequence[LogFile], stored: Stored) -> Manifest:
    """A manifest from headers and footers, for a store whose two slots are both gone. Raises CorruptData.

    A snapshot that ends its walk where it began, and whose life left no log file, is one that needs none.
    """
    headers = [file.header for file in found if file.header is not None]
    if not headers and not stored.snapshots:
        raise CorruptData(
            f"none of the {len(found) + len(stored.problems)} files of log and snapshots has a valid header: nothing "
            "is left to start from"
        )
    store_id = headers[-1].store_id if headers else stored.snapshots[-1][0]
    lives = {header.incarnation for header in headers}
    snapshots = tuple(
        replace(facts, alone=facts.start_lsn == facts.end_lsn and facts.incarnation not in lives)
        for facts in [facts for owner, facts in stored.snapshots if owner == store_id][-KEPT_SNAPSHOTS:]
    )
    incarnation = max([*lives, *(facts.incarnation for facts in snapshots)])
    newest = headers[-1].incarnation if headers else incarnation
    oldest_file = found[0].number if found else 1
    if snapshots:
        oldest_file = oldest_needed(found, snapshots[0], oldest_file)
    return Manifest(
        store_id=store_id,
        incarnation=incarnation,
        first_lsn=next((header.first_lsn for header in headers if header.incarnation == newest), 0),
        highest_lsn=max([*(file.limit_lsn for file in found), *(facts.end_lsn for facts in snapshots)]),
        oldest_file=oldest_file,
        newest_file=found[-1].number if found else 0,
        snapshots=snapshots,
    )


def seals_after(plan: ColdPlan, end: tuple[int, int] | None) -> tuple[tuple[int, int], ...]:
    """The seals of the next manifest; end = (incarnation, LSN) where the accepted log ends, None = it is empty.

    Those of later lives stay: they may have left files without a record.
    """
    return tuple(sorted({**plan.ends, **dict([end] if end else [])}.items()))


def disowned_after(plan: ColdPlan, cut_in: int | None) -> tuple[tuple[int, int], ...]:
    """The disowned ranges of the next manifest, when the log was cut in file number cut_in before its known end."""
    if cut_in is None or cut_in + 1 >= plan.next_number:
        return plan.disowned
    return (*(numbers for numbers in plan.disowned if numbers[0] <= cut_in), (cut_in + 1, plan.next_number - 1))


# ---- words -------------------------------------------------------------------------------------------------------


def _ends_in_headers(usable: Sequence[LogFile]) -> dict[int, int]:
    """Ends of incarnations as the first file of the next one remembers them."""
    ends: dict[int, int] = {}
    for file in usable:
        header = file.header
        assert header is not None
        if 0 < header.previous_incarnation < header.incarnation:
            ends[header.previous_incarnation] = header.previous_end_lsn
    return ends


def _start_of(file: LogFile) -> tuple[int, int]:
    """Incarnation and first LSN; behind everything if the header is bad."""
    return (file.header.incarnation, file.header.first_lsn) if file.header is not None else (1 << 64, 0)
