"""An export: one line of JSON for each entry, between a line that says what it is and one that says how many.

Why here: the commands that write, read and verify an export agree on it. Format: docs/formats.md.

Invariants:
  I1  A file that ends before its last line, or has more or fewer entries than that line says, is refused.
  I2  One line is in memory at a time, whatever the size of the file.
  I3  What is wrong is told with the number of the line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from json.encoder import encode_basestring
from typing import Any, BinaryIO, Final, NamedTuple

from shmkv.admin.portable import DECODER, ENCODER, TAG, tagged, to_text
from shmkv.errors import CorruptData
from shmkv.values import encode

FORMAT: Final = "shmkv export"
VERSION: Final = 1
START: Final = b'{"format":'
# The first line tells whether a file is an export at all; it is not worth more memory than this.
FIRST_LINE_BYTES: Final = 1 << 16
SCAN_BYTES: Final = 1 << 20
LAST_LINE_BYTES: Final = 256


class Line(NamedTuple):
    """One entry; expires_ms = Unix time, 0 = never. end_offset: where the next line starts."""

    number: int
    key: str | bytes
    value: Any
    expires_ms: int
    pinned: bool
    end_offset: int


def first_line(store: str, wall_ms: int) -> bytes:
    """What every export starts with."""
    return _line({"format": FORMAT, "version": VERSION, "store": store, "wall_ms": wall_ms})


def entry_line(key: str | bytes, value: Any, *, expires_ms: int = 0, pinned: bool = False) -> bytes:
    """One entry. TypeError, naming the key, for a value that has no portable form."""
    try:
        # Text is most of what there is, and needs no encoder made for each line.
        json_value = encode_basestring(value) if type(value) is str else to_text(tagged(value))
    except TypeError as error:
        raise TypeError(f"key {key!r}: {error}; delete the key, or export without it") from error
    json_key = encode_basestring(key) if type(key) is str else to_text(tagged(key))
    more = (f',"expires_ms":{expires_ms}' if expires_ms else "") + (',"pinned":true' if pinned else "")
    return f'{{"key":{json_key},"value":{json_value}{more}}}\n'.encode()


def last_line(entries: int) -> bytes:
    """What every whole export ends with."""
    return _line({"entries": entries})


def _line(document: dict[str, Any]) -> bytes:
    return ENCODER.encode(document).encode() + b"\n"


class ExportReader:
    """Reads an export line by line; `header` is its first line. Every problem is a CorruptData that names the line."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self._stream = stream
        self._number = 1
        self._offset = 0
        self.header = self._read_header()

    def _read_header(self) -> dict[str, Any]:
        raw = self._stream.readline(FIRST_LINE_BYTES)
        self._offset += len(raw)
        header = _document(raw)
        if type(header) is not dict or header.get("format") != FORMAT:
            raise CorruptData(f"{self.name} is no export of shmkv: its first line does not say so")
        if header.get("version") != VERSION:
            raise CorruptData(
                f"{self.name} is an export of version {header.get('version')!r}; this program reads version {VERSION}; "
                f"use a newer shmkv"
            )
        return header

    def __iter__(self) -> Iterator[Line]:
        entries = 0
        while True:
            self._number += 1
            raw = self._stream.readline()
            if not raw.endswith(b"\n"):
                raise self._bad(
                    f"the file ends {'here' if not raw else 'within this line'}: it was cut off. "
                    f"{entries} entries before it are whole"
                )
            self._offset += len(raw)
            document = self._parse(raw)
            if "entries" in document:
                self._check_end(document, entries)
                return
            yield self._entry(document)
            entries += 1

    def _check_end(self, document: dict[str, Any], entries: int) -> None:
        if document != {"entries": entries} or type(document["entries"]) is not int:
            raise self._bad(f"the last line says {document['entries']!r} entries, but {entries} are there")
        if self._stream.read(1):
            self._number += 1
            raise self._bad("there is more behind the last line; were two exports joined?")

    def _parse(self, raw: bytes) -> dict[str, Any]:
        try:
            text = raw.decode()
            document, end = DECODER.raw_decode(text)
            if end != len(text) - 1 and text[end:].strip():
                raise ValueError("there is more behind the object")
            if b"\\" in raw and b"\\ud" in raw.lower():
                encode(document)  # refuses lone surrogates, which only an escape can make
        except (ValueError, RecursionError) as error:
            raise self._bad(str(error) or "it is nested too deep") from error
        if type(document) is not dict:
            raise self._bad("a line is an object of JSON")
        return document

    def _entry(self, document: dict[str, Any]) -> Line:
        expires_ms, pinned = 0, False
        try:
            key, value = document.pop("key"), document.pop("value")
            if document:
                expires_ms, pinned = document.pop("expires_ms", 0), document.pop("pinned", False)
        except KeyError as missing:
            raise self._bad(f"an entry has no {missing}") from missing
        if document:
            raise self._bad(f"an entry has unknown members: {', '.join(document)}")
        if type(key) is not str and type(key) is not bytes:
            raise self._bad(f"a key is a str or {TAG}bytes, not {type(key).__name__}")
        if type(expires_ms) is not int or not 0 <= expires_ms < 1 << 63 or type(pinned) is not bool:
            raise self._bad("expires_ms is a Unix time in ms, pinned is true or false")
        return Line(self._number, key, value, expires_ms, pinned, self._offset)

    def _bad(self, problem: str) -> CorruptData:
        return CorruptData(f"{self.name}, line {self._number}: {problem}")


def check_whole(stream: BinaryIO, name: str) -> int:
    """How many entries a seekable export has; CorruptData if it was cut off. Counts lines, which is quick; rewinds."""
    lines, tail = 0, b""
    while piece := stream.read(SCAN_BYTES):
        lines += piece.count(b"\n")
        tail = (tail + piece)[-LAST_LINE_BYTES:]
    stream.seek(0, os.SEEK_SET)
    ExportReader(stream, name)
    stream.seek(0, os.SEEK_SET)
    entries = max(0, lines - 2)
    if not tail.endswith(b"\n") or _document(tail.splitlines()[-1]) != {"entries": entries}:
        raise CorruptData(
            f"{name}, line {lines}: the file was cut off, or lines are missing: {entries} entries are there, and no "
            f"last line that says so; nothing was taken from it"
        )
    return entries


def _document(raw: bytes) -> Any:
    """What a line holds, None if it is not JSON."""
    try:
        return DECODER.decode(raw.decode())
    except (ValueError, RecursionError):
        return None
