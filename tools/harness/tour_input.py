"""What the tour stores: every file of this Python's standard library, as bytes and as a dict of typed facts.

Why here: writers make these values, readers and the final checks make them again, all from the file's own bytes.

Invariants:
  I1  A value is a function of (file, generation): generation 0 is the file as it is, later ones carry a trailer.
  I2  The digests are made before anything is stored, and never lie in the arena.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

TRAILER = b"\n# generation %010d\n"
TRAILER_LABEL = TRAILER.partition(b"%")[0]
TRAILER_BYTES = len(TRAILER % 0)
INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class File:
    """One file of the input; `path` is relative to the library."""

    path: str
    content: bytes
    digest: bytes
    facts: dict[str, Any]

    @property
    def content_key(self) -> str:
        """Where its bytes are stored."""
        return f"file:{self.path}"

    @property
    def facts_key(self) -> str:
        """Where its facts are stored."""
        return f"facts:{self.path}"


def read_library(limit: int | None) -> tuple[str, list[File]]:
    """Root and files of the standard library, installed packages left out; at most `limit` files, spread evenly."""
    root = sysconfig.get_paths()["stdlib"]
    names = []
    for directory, below, files in os.walk(root):
        below[:] = [name for name in below if name not in INSTALLED]
        names += [os.path.join(directory, name) for name in files]
    names.sort()
    if limit is not None and limit < len(names):
        names = [names[i * len(names) // limit] for i in range(limit)]
    return root, [_read(root, name) for name in names]


def _read(root: str, name: str) -> File:
    with open(name, "rb") as file:
        content, status = file.read(), os.fstat(file.fileno())
    path = os.path.relpath(name, root)
    digest = hashlib.sha256(content).digest()
    return File(path, content, digest, _facts(path, content, digest, status))


def _facts(path: str, content: bytes, digest: bytes, status: os.stat_result) -> dict[str, Any]:
    size = len(content)
    return {
        "path": path,
        "size": size,
        "generation": 0,
        "sha256": digest,
        "mode": status.st_mode & 0o7777,
        "modified": datetime.fromtimestamp(status.st_mtime_ns // 10**9, UTC),
        "is_text": b"\0" not in content[:8192],
        "suffixes": tuple(os.path.basename(path).split(".")[1:]),
        "lines": [size, None if size == 0 else content.count(b"\n")],
        "ascii_share": sum(byte < 128 for byte in content[:64]) / max(1, min(64, size)),
        "kilobytes": Decimal(size) / 1000,
        "id": uuid.UUID(bytes=digest[:16]),
    }


def content_of(file: File, generation: int) -> bytes:
    """The bytes that are stored."""
    return file.content + TRAILER % generation if generation else file.content


def facts_of(file: File, generation: int) -> dict[str, Any]:
    """The facts that are stored: one of each kind of value."""
    return {**file.facts, "generation": generation}


def generation_of_content(file: File, value: object) -> int | None:
    """Which generation of a file these bytes are, byte for byte; None: they are none of it."""
    if type(value) is not bytes or not value.startswith(file.content):
        return None
    trailer = value[len(file.content) :]
    if not trailer:
        return 0
    digits = trailer[len(TRAILER_LABEL) : -1]
    return int(digits) if digits.isdigit() and TRAILER % int(digits) == trailer else None


def generation_of_facts(file: File, value: object) -> int | None:
    """Which generation of a file's facts this is, with every type as it went in; None: it is none of it."""
    if type(value) is not dict or type(value.get("generation")) is not int:
        return None
    expected = facts_of(file, value["generation"])
    same = value == expected and all(type(value[key]) is type(expected[key]) for key in expected)
    return value["generation"] if same else None


def digest_matches(file: File, value: object) -> bool:
    """Whether a value carries the file's bytes, by the digest alone: what a reader checks."""
    if type(value) is not bytes or len(value) - len(file.content) not in (0, TRAILER_BYTES):
        return False
    return hashlib.sha256(memoryview(value)[: len(file.content)]).digest() == file.digest
