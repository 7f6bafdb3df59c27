"""`shmkv-admin export FILE`: all entries of a running store as lines of JSON."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from shmkv.admin.session import Session, with_json

if TYPE_CHECKING:
    from shmkv.admin.progress import Advance
    from shmkv.codecs import UnknownCodec
    from shmkv.store import Store

WRITE_BYTES = 1 << 20
UNFINISHED_SUFFIX = ".part"


@click.command("export")
@click.argument("file", metavar="FILE|-")
@with_json
@click.pass_obj
def command(session: Session, file: str) -> None:
    """Write all entries to FILE, or to standard output, as lines of JSON that `import` reads.

    Every value comes back as exactly its type; ttl travels as the moment of expiry. Other clients go on: an entry that
    is there all the time comes once, one that changes meanwhile comes as it was or as it is. For the state of one
    moment, and for speed, use `backup`. FILE gets its name when it is whole; an export of that name is replaced then,
    any other file is not. It is not encrypted, even if the store's files are.
    """
    from shmkv.admin.progress import progress

    started_s = time.monotonic()
    with session.attach(read_only=True) as store, output(file) as stream:
        with progress(f"export {store.name}", len(store), "entries", shown=not stream.isatty()) as advance:
            entries = write(store, stream, advance)
        size_bytes = stream.tell() if file != "-" and stream.seekable() else None
    if file == "-":
        return
    seconds = round(time.monotonic() - started_s, 3)
    record = {"file": file, "entries": entries, "size_bytes": size_bytes, "seconds": seconds}
    if session.json:
        session.show_json(record)
    else:
        print(f"exported {entries:,} entries of {session.name} to {file} in {seconds:g} s")


def write(store: Store, stream: BinaryIO, advance: Advance) -> int:
    """Write an export of the store; the number of its entries."""
    from shmkv.admin.export_file import entry_line, first_line, last_line
    from shmkv.codecs import UnknownCodec
    from shmkv.store import ENTRY_PINNED

    pieces, pending_bytes, entries = [first_line(store.name, time.time_ns() // 1_000_000)], 0, 0
    for key in store:
        try:
            found = store._entry(key)
        except UnknownCodec as unknown:
            found = stored_entry(store, key, unknown)
        if found is None:
            continue
        value, _, expires_ms, flags, _ = found
        line = entry_line(key, value, expires_ms=expires_ms, pinned=bool(flags & ENTRY_PINNED))
        pieces.append(line)
        pending_bytes += len(line)
        entries += 1
        if pending_bytes >= WRITE_BYTES:
            stream.write(b"".join(pieces))
            pieces, pending_bytes = [], 0
            advance.set(entries)
    pieces.append(last_line(entries))
    stream.write(b"".join(pieces))
    advance.set(entries)
    return entries


def stored_entry(store: Store, key: str | bytes, unknown: UnknownCodec) -> tuple[Any, int, int, int, int] | None:
    """An entry, None if it went meanwhile, whose value has parts of codecs that this process knows only by name."""
    from shmkv.admin.portable import stand_in
    from shmkv.codecs import UnknownCodec

    while True:
        stand_in(unknown.codec)
        try:
            return store._entry(key)
        except UnknownCodec as another:
            unknown = another


@contextmanager
def output(file: str) -> Iterator[BinaryIO]:
    """A stream whose file gets its name, and is on disk, when all went well; "-" = standard output.

    A kill leaves FILE.PID.part; what is no regular file (a pipe, a device) is written as it is. Raises FileExistsError
    if there is a file of that name that is no export.
    """
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.exists(file) and not stat.S_ISREG(os.stat(file).st_mode):
        with open(file, "wb") as stream:
            yield stream
        return
    check_target(file)
    unfinished = f"{file}.{os.getpid()}{UNFINISHED_SUFFIX}"
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(fd)
        os.replace(unfinished, file)
    except BaseException:
        os.unlink(unfinished)
        raise
    folder = os.open(os.path.dirname(os.path.abspath(file)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_target(file: str) -> None:
    """Refuse, before the work, to replace what is neither empty nor an export, and a folder that is not there."""
    from shmkv.admin.export_file import START

    folder = os.path.dirname(os.path.abspath(file))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder for the export does not exist; make it first", folder)
    if os.path.exists(file):
        with open(file, "rb") as old:
            start = old.read(len(START))
        if start not in (b"", START):
            problem = "there is a file of that name, and it is no export of shmkv: nothing was overwritten"
            raise FileExistsError(errno.EEXIST, problem, file)
