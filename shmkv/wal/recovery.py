"""What a start decides about an end of the log: is it legal; and about an arena that is there: is it adopted.

Why here: pure functions over what was found on disk, so that every case of the decision table in README.md is a test
without a disk. Which files are the log is cold.py; the driver that reads, syncs and writes is start.py.

Invariants:
  I1  An incarnation that is not the last one ends where its seal says; a file that is not the last of its incarnation
      ends at the first LSN of the next one. Both ends were synced: anything bad before them is damage.
  I2  Only the last file of the last incarnation may end early: at the first bad record, if no valid record and no
      manifest says that more than that was durable (the watermark). Else it is damage; so is a file that shrank.
  I3  Damage refuses the start, unless loss is accepted; then the log ends there and everything behind is disowned for
      ever, by seals.
"""

from __future__ import annotations

from shmkv.dataclass import dataclass
from shmkv.errors import CorruptData
from shmkv.wal.log import HEADER_BLOCK_BYTES, LogFile
from shmkv.wal.manifest import Manifest

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


# ---- the end of the log ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ending:
    """Where one segment ended: at its known end or at the last whole record (stopped "" = nothing is bad).

    offset: where in the file the bad bytes are, None = where that LSN lies in a file in clear. proof: why this is
    damage whatever the watermark says, "" = it may be a torn tail.
    """

    lsn: int
    stopped: str
    durable_before: int
    tail_is_zero: bool
    offset: int | None = None
    proof: str = ""


def judge(segment: Segment, ending: Ending, watermark: int) -> str:
    """What is wrong with that end: "" = nothing or a legal torn tail, else the damage in words."""
    if segment.end_lsn is not None:
        if ending.lsn == segment.end_lsn:
            return ""
        known = ending.proof or f"the log is known to go on to LSN {segment.end_lsn} in this file"
    else:
        watermark = max(watermark, ending.durable_before)
        if segment.file.is_short and segment.file.header is not None:
            known = f"it was made with {segment.file.header.size_bytes} bytes and has {segment.file.size_bytes}"
        elif ending.proof:
            known = ending.proof
        elif ending.lsn >= watermark:
            return ""
        else:
            known = f"everything below LSN {watermark} was once synced"
    offset = segment.offset_of(ending.lsn) if ending.offset is None else ending.offset
    return (
        f"{segment.file.path} is damaged at offset {offset}, LSN {ending.lsn} "
        f"({ending.stopped or 'the file ends'}), though {known}; the log is good up to that LSN"
    )


def damage(problem: str) -> CorruptData:
    """The refusal of a start, with the remedy."""
    return CorruptData(
        f"{problem}. Restore the file from a backup, or start with --accept-loss, which gives up everything "
        "from there on"
    )


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
