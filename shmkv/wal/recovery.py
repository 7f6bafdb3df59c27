"""What a start decides: which parts of which files are the log, where it ends, whether that end is legal.

Why here: pure functions over what was found on disk, so that every case of the decision table in README.md is a test
without a disk. The driver that reads, syncs and writes is start.py.

Invariants:
  I1  An incarnation that is not the last one ends where its seal says; a file that is not the last of its incarnation
      ends at the first LSN of the next one. Both ends were synced: anything bad before them is damage.
  I2  Only the last file of the last incarnation may end early: at the first bad record, if no valid record and no
      manifest says that more than that was durable (the watermark). Else it is damage; so is a file that shrank.
  I3  Damage refuses the start, unless loss is accepted; then the log ends there and everything behind is disowned for
      ever, by seals.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shmkv.errors import CorruptData
from shmkv.wal.log import HEADER_BLOCK_BYTES, LogFile, file_name
from shmkv.wal.manifest import Manifest, ManifestRead

LSN_GAP = 1 << 40


@dataclass(frozen=True, slots=True)
class Segment:
    """The part [start_lsn, end_lsn) of one file that belongs to the log; end_lsn None = as far as it goes."""

    file: LogFile
    start_lsn: int
    end_lsn: int | None
    incarnation: int

    @property
    def offset(self) -> int:
        """Where it starts in the file."""
        return self.offset_of(self.start_lsn)

    def offset_of(self, lsn: int) -> int:
        assert self.file.header is not None
        return HEADER_BLOCK_BYTES + lsn - self.file.header.first_lsn


@dataclass(frozen=True, slots=True)
class ColdPlan:
    """What to replay, and what the next incarnation must know.

    manifest: the one found, or the one rebuilt from the log; None = there is no store yet. ends: incarnation -> end
    LSN as far as known before the replay. disowned: file numbers that count no more, as in the manifest.
    """

    manifest: Manifest | None
    segments: tuple[Segment, ...]
    ends: Mapping[int, int]
    disowned: tuple[tuple[int, int], ...]
    highest_lsn: int
    next_number: int
    warnings: tuple[str, ...]


def plan_cold(found: Sequence[LogFile], read: ManifestRead, *, accept_loss: bool) -> ColdPlan:
    """Decide what the log is. Raises CorruptData if it is not all there and loss is not accepted."""
    warnings = list(read.problems)
    manifest = read.manifest
    if manifest is None:
        if not found:
            return ColdPlan(None, (), {}, (), 0, 1, tuple(warnings))
        manifest = _without_manifest(found, read, accept_loss)
        warnings.append(f"the manifest was rebuilt from {len(found)} log files")
    highest_number = max([manifest.newest_file, *(file.number for file in found)])
    usable, problem = usable_files(found, manifest)
    disowned = manifest.disowned
    if problem:
        if not accept_loss:
            raise damage(problem)
        first_bad = usable[-1].number + 1 if usable else manifest.oldest_file
        disowned = (*disowned, (first_bad, max(first_bad, highest_number)))
        warnings.append(f"loss accepted: {problem}; the log ends before {file_name(first_bad)}")
    ends = {**_ends_in_headers(usable), **dict(manifest.seals)}
    return ColdPlan(
        manifest=manifest,
        segments=segments_of(usable, ends),
        ends=ends,
        disowned=disowned,
        highest_lsn=max([manifest.highest_lsn, manifest.watermark, *(file.limit_lsn for file in found)]),
        next_number=highest_number + 1,
        warnings=tuple(warnings),
    )


def usable_files(found: Sequence[LogFile], manifest: Manifest) -> tuple[tuple[LogFile, ...], str]:
    """The files up to the first that is missing, damaged or not of this store; and what is wrong there, or ""."""
    usable: list[LogFile] = []
    expected = _skip_disowned(manifest.oldest_file, manifest)
    for file in found:
        if file.number < manifest.oldest_file or _skip_disowned(file.number, manifest) != file.number:
            continue
        problem = _problem_of(file, expected, usable[-1] if usable else None, manifest)
        if problem:
            return tuple(usable), problem
        usable.append(file)
        expected = _skip_disowned(file.number + 1, manifest)
    if expected <= manifest.newest_file:
        return tuple(usable), f"{file_name(expected)} is missing; the manifest names files up to {manifest.newest_file}"
    return tuple(usable), ""


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


def _without_manifest(found: Sequence[LogFile], read: ManifestRead, accept_loss: bool) -> Manifest:
    if not accept_loss:
        reasons = "; ".join(read.problems) or "there is none"
        raise CorruptData(
            f"no valid manifest beside {len(found)} log files in {os.path.dirname(found[0].path)}: {reasons}. Restore "
            "one of the two manifest files, or start with --accept-loss to rebuild it from the log"
        )
    return rebuild_manifest(found)


def segments_of(usable: Sequence[LogFile], ends: Mapping[int, int]) -> tuple[Segment, ...]:
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
        if end_lsn is None or header.first_lsn < end_lsn:
            segments.append(Segment(file, header.first_lsn, end_lsn, header.incarnation))
    return tuple(segments)


def rebuild_manifest(found: Sequence[LogFile]) -> Manifest:
    """A manifest from the headers alone, for a store whose two slots are both gone. Raises CorruptData."""
    headers = [file.header for file in found if file.header is not None]
    if not headers:
        raise CorruptData(f"none of the {len(found)} log files has a valid header: nothing is left to start from")
    newest = headers[-1]
    return Manifest(
        store_id=newest.store_id,
        incarnation=max(header.incarnation for header in headers),
        first_lsn=next(header.first_lsn for header in headers if header.incarnation == newest.incarnation),
        highest_lsn=max(file.limit_lsn for file in found),
        oldest_file=found[0].number,
        newest_file=found[-1].number,
    )


# ---- the end of the log ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ending:
    """Where one segment ended: at its known end or at the last whole record (stopped "" = nothing is bad)."""

    lsn: int
    stopped: str
    durable_before: int
    tail_is_zero: bool


def judge(segment: Segment, ending: Ending, watermark: int) -> str:
    """What is wrong with that end: "" = nothing or a legal torn tail, else the damage in words."""
    if segment.end_lsn is not None:
        if ending.lsn == segment.end_lsn:
            return ""
        known = f"the log is known to go on to LSN {segment.end_lsn} in this file"
    else:
        watermark = max(watermark, ending.durable_before)
        if segment.file.is_short and segment.file.header is not None:
            known = f"it was made with {segment.file.header.size_bytes} bytes and has {segment.file.size_bytes}"
        elif ending.lsn >= watermark:
            return ""
        else:
            known = f"everything below LSN {watermark} was once synced"
    return (
        f"{segment.file.path} is damaged at offset {segment.offset_of(ending.lsn)}, LSN {ending.lsn} "
        f"({ending.stopped or 'the file ends'}), though {known}; the log is good up to that LSN"
    )


def damage(problem: str) -> CorruptData:
    """The refusal of a start, with the remedy."""
    return CorruptData(
        f"{problem}. Restore the file from a backup, or start with --accept-loss, which gives up everything "
        "from there on"
    )


def seals_after(plan: ColdPlan, end: tuple[int, int] | None) -> tuple[tuple[int, int], ...]:
    """The seals of the next manifest; end = (incarnation, LSN) where the accepted log ends, None = it is empty."""
    ends = {incarnation: lsn for incarnation, lsn in plan.ends.items() if end is None or incarnation < end[0]}
    if end is not None:
        ends[end[0]] = end[1]
    return tuple(sorted(ends.items()))


def disowned_after(plan: ColdPlan, cut_in: int | None) -> tuple[tuple[int, int], ...]:
    """The disowned ranges of the next manifest, when the log was cut in file number cut_in before its known end."""
    if cut_in is None or cut_in + 1 >= plan.next_number:
        return plan.disowned
    return (*(numbers for numbers in plan.disowned if numbers[0] <= cut_in), (cut_in + 1, plan.next_number - 1))


def next_first_lsn(highest_lsn: int, ring_bytes: int) -> int:
    """Where the LSNs of a new incarnation start."""
    return -(-(highest_lsn + LSN_GAP) // ring_bytes) * ring_bytes


# ---- warm --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LivingArena:
    """What the header and the words of an arena that was found say; readable False = no valid header."""

    readable: bool
    state: str = ""
    store_id: bytes = b""
    incarnation: int = 0
    condemned: bool = False
    same_layout: bool = True


ADOPT, FINISH, DISCARD, REFUSE = "adopt", "finish", "discard", "refuse"


def plan_warm(arena: LivingArena, manifest: Manifest | None) -> tuple[str, str]:
    """What becomes of an arena that is there: (adopt | finish | discard | refuse, why).

    finish = drain it to the log and remove it; discard = remove it without draining.
    """
    if not arena.readable or arena.state == "CREATING":
        return DISCARD, "it was never served: its creator died before it was ready"
    if manifest is None or arena.store_id != manifest.store_id:
        mine = "is of none" if manifest is None else f"is of store {manifest.store_id.hex()}"
        return REFUSE, (
            f"the living arena belongs to store {arena.store_id.hex()}, but this data directory {mine}; start with the "
            "directory it belongs to, or remove the arena with `shmkv-admin destroy` if its data may go"
        )
    if arena.incarnation != manifest.incarnation:
        return DISCARD, (
            f"it is incarnation {arena.incarnation}, the data directory goes on from {manifest.incarnation}: "
            "the directory was restored"
        )
    if not arena.same_layout:
        return FINISH, "another version of shmkv, another C library or another pid namespace made it"
    if arena.state == "RETIRED":
        return FINISH, "it was retired, but not yet drained and removed"
    if arena.condemned:
        return FINISH, "it was condemned by an audit"
    return ADOPT, ""


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
