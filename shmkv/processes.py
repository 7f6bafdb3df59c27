"""Whether a process of this machine still is the one that it was.

Why here: whoever cleans up behind the dead must not take a reused process id for its owner.
"""

from __future__ import annotations

import os


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None if there is none, or only a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Whether that very process still runs."""
    return start_time(pid) == started


def own_file_name(suffix: str) -> str:
    """A name for a file of this process, which others may remove when it is dead: `owner_of_file` tells."""
    pid = os.getpid()
    return f"{pid}-{start_time(pid) or 0}-{int.from_bytes(os.urandom(6), 'big')}{suffix}"


def owner_of_file(name: str) -> tuple[int, int] | None:
    """(pid, start time) of the process that made up this name; None for every other name."""
    parts = name.partition(".")[0].split("-")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    return int(parts[0]), int(parts[1])
