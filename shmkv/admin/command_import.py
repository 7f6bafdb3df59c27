"""`shmkv-admin import FILE`: set the entries of an export in a running store."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from shmkv import errors
from shmkv.admin.session import Session, with_json

if TYPE_CHECKING:
    from shmkv.admin.export_file import ExportReader, Line
    from shmkv.admin.progress import Advance
    from shmkv.store import Store

BATCH_ENTRIES = 1000
BATCH_BYTES = 1 << 20
SYNC_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Counts:
    """What became of the entries that were read."""

    imported: int = 0
    skipped: int = 0
    expired: int = 0


@click.command("import")
@click.argument("file", metavar="FILE|-")
@click.option("--replace", is_flag=True, help="keys that are in the store already get the value of the file")
@click.option("--skip-existing", is_flag=True, help="keys that are in the store already keep their value")
@with_json
@click.pass_obj
def command(session: Session, file: str, replace: bool, skip_existing: bool) -> None:
    """Set the entries of FILE, an export, or of standard input.

    Without an option the store must be empty. With --replace or --skip-existing keys that are not in the file stay as
    they are. Entries that have expired meanwhile are left out. A file that was cut off is refused before anything is
    set (from standard input: when its end comes). The import is not atomic: others see it grow, and when it stops at a
    bad line or at a full store, what came before stays; repeat it with --replace.
    """
    from shmkv.admin.export_file import ExportReader, check_whole
    from shmkv.admin.progress import progress

    if replace and skip_existing:
        raise click.UsageError("--replace and --skip-existing exclude each other")
    started_s = time.monotonic()
    with source(file) as (stream, name, size_bytes), session.attach() as store:
        if size_bytes is not None:
            check_whole(stream, name)
        reader = ExportReader(stream, name)
        if not (replace or skip_existing) and len(store):
            raise click.ClickException(
                f"store {store.name!r} has {len(store):,} entries; say --replace (the file's value wins) or "
                f"--skip-existing (the store's value wins). Nothing was imported"
            )
        with progress(f"import {store.name}", size_bytes, "bytes") as advance:
            counts = load(store, reader, advance, skip_existing=skip_existing)
        store.sync(timeout=SYNC_TIMEOUT_S)
    seconds = round(time.monotonic() - started_s, 3)
    if session.json:
        session.show_json(
            {"file": file, "imported": counts.imported, "skipped": counts.skipped, "expired": counts.expired,
             "seconds": seconds}
        )  # fmt: skip
        return
    left_out = [
        f", {number:,} {what}"
        for number, what in ((counts.skipped, "were there already"), (counts.expired, "had expired"))
        if number
    ]
    print(f"imported {counts.imported:,} entries into {session.name}{''.join(left_out)} in {seconds:g} s")


@contextmanager
def source(file: str) -> Iterator[tuple[BinaryIO, str, int | None]]:
    """(stream, its name in messages, size if it can be read twice)."""
    if file == "-":
        yield sys.stdin.buffer, "standard input", None
        return
    with open(file, "rb", buffering=BATCH_BYTES) as stream:
        status = os.fstat(stream.fileno())
        yield stream, file, status.st_size if stat.S_ISREG(status.st_mode) else None


def load(store: Store, reader: ExportReader, advance: Advance, *, skip_existing: bool) -> Counts:
    """Set all entries; CorruptData at a bad line, which says how many were set before it."""
    loading = Loading(store, reader.name)
    flushed_offset = 0
    try:
        for line in reader:
            if line.expires_ms or line.pinned or skip_existing:
                loading.add(line, skip_existing=skip_existing)
            else:
                loading.batch[line.key] = line.value
                loading.lines.append(line)
            if len(loading.lines) >= BATCH_ENTRIES or line.end_offset >= flushed_offset + BATCH_BYTES:
                loading.flush()
                flushed_offset = line.end_offset
                advance.set(flushed_offset)
        loading.flush()
    except errors.CorruptData as bad:
        loading.flush()
        raise errors.CorruptData(f"{bad}; the import ended there: {loading.so_far()}") from bad
    return loading.counts


@dataclass(slots=True)
class Loading:
    """Entries on their way; those that need nothing special wait in `batch`, and their lines in `lines`."""

    store: Store
    name: str
    counts: Counts = field(default_factory=Counts)
    batch: dict[str | bytes, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def add(self, line: Line, *, skip_existing: bool) -> None:
        """Set one entry that expires, is pinned, or may be there already."""
        if line.expires_ms and line.expires_ms <= time.time_ns() // 1_000_000:
            self.counts.expired += 1
            return
        if line.key in self.batch:
            self.flush()
        self._set(line, if_absent=skip_existing)

    def flush(self) -> None:
        """Set what was taken."""
        if not self.lines:
            return
        try:
            self.store.set_many(self.batch)
            self.counts.imported += len(self.lines)
        except errors.StoreUnavailable:
            raise
        except (errors.ShmkvError, ValueError, TypeError):
            # One by one, to know which line it was.
            for line in self.lines:
                self._set(line, if_absent=False)
        self.batch, self.lines = {}, []

    def _set(self, line: Line, *, if_absent: bool) -> None:
        # The core rounds up to whole ms: half a ms less gives exactly this one.
        expires_at = (line.expires_ms - 0.5) / 1000 if line.expires_ms else None
        try:
            done = self.store.set(line.key, line.value, expires_at=expires_at, pin=line.pinned, if_absent=if_absent)
        except errors.StoreUnavailable:
            raise
        except (errors.ShmkvError, ValueError, TypeError) as error:
            raise click.ClickException(
                f"{self.name}, line {line.number}: {error}; the import ended there: {self.so_far()}"
            ) from error
        if done:
            self.counts.imported += 1
        else:
            self.counts.skipped += 1

    def so_far(self) -> str:
        """What was done before an end that was not planned."""
        if not self.counts.imported:
            return "nothing was set"
        return f"{self.counts.imported:,} entries were set and stay; repeat it with --replace or --skip-existing"
