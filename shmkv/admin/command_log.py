"""`shmkv-admin log`: the records of a store's log, as people read them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from shmkv.admin.session import Session, key_text, plain, with_json

if TYPE_CHECKING:
    from shmkv.wal.record import Entry, Record

WRITE_LINES = 500


@click.command("log")
@click.option("--since", metavar="LSN", type=click.IntRange(min=0), default=0, help="start at this LSN")
@click.option("--data-dir", metavar="DIR", help="where the log is, if not where the settings say")
@click.option("--key-file", metavar="FILE", help="keys of an encrypted log, if not where the settings say")
@with_json
@click.pass_obj
def command(session: Session, since: int, data_dir: str | None, key_file: str | None) -> None:
    """Show the changes in the log: what was set, deleted and cleared, and marks with their time.

    The store may run or not; what is in memory only, and not yet written, does not show. The log begins where the
    older one of two snapshots does. With --json each line is an object. Exit code 1 when the log is damaged: `verify`
    says more then.
    """
    from shmkv.admin.data import find_data_dir, load_keys

    directory = find_data_dir(session, data_dir)
    damage = ""
    lines: list[str] = []
    for change in changes(directory, load_keys(session, key_file), since):
        damage = damage or (change["problem"] if change["kind"] == "damage" else "")
        lines.append(json.dumps(change, default=plain, ensure_ascii=False) if session.json else text_of(change))
        if len(lines) >= WRITE_LINES:
            sys.stdout.write("\n".join([*lines, ""]))
            lines = []
    sys.stdout.write("\n".join([*lines, ""]))
    if damage:
        raise click.ClickException(f"the log is damaged: {damage}; see shmkv-admin verify {directory}")


def changes(data_dir: str, keys: Any, since_lsn: int) -> Iterator[dict[str, Any]]:
    """One object for each change, and one where the log ends; "damage" where a part of it ends too early."""
    from shmkv.wal.files import Files
    from shmkv.wal.inspection import log_records
    from shmkv.wal.record import Stop

    stop: tuple[str, int, Stop] | None = None
    for path, offset, item in records_of(log_records(Files(), data_dir, since_lsn=since_lsn, keys=keys)):
        if stop is not None and stop[2].reason != "end":
            problem = f"{stop[0]} at offset {stop[1]}, LSN {stop[2].lsn} ({stop[2].reason})"
            yield {"lsn": stop[2].lsn, "kind": "damage", "file": stop[0], "offset": stop[1], "problem": problem}
        if isinstance(item, Stop):
            stop = path, offset, item
        else:
            stop = None
            yield from changes_of(item)
    if stop is not None:
        yield {"lsn": stop[2].lsn, "kind": "end", "file": stop[0], "offset": stop[1]}


def records_of(found: Iterator[Any]) -> Iterator[Any]:
    """The same; a file that the store trims while it is to be read ends them with an error that says so."""
    try:
        yield from found
    except FileNotFoundError as gone:
        raise click.ClickException(
            f"{gone.filename} went while the log was read: the store has trimmed it, or it was removed; run it again"
        ) from gone


def changes_of(record: Record) -> Iterator[dict[str, Any]]:
    """The changes of one record; those of a batch share its LSN."""
    from shmkv.wal.record import CLEAR, KIND_NAMES

    header = record.header
    if record.mark is not None:
        mark = record.mark
        yield {"lsn": header.lsn, "kind": "mark", "wall_ms": mark.wall_ms, "durable_lsn": mark.durable_lsn}
    elif header.kind == CLEAR:
        yield {"lsn": header.lsn, "kind": "clear", "namespace": header.count}
    for number, entry in enumerate(record.entries, 1):
        change = {"lsn": header.lsn, "kind": KIND_NAMES[entry.kind], **entry_facts(entry)}
        if len(record.entries) > 1:
            change["batch"] = [number, len(record.entries)]
        yield change


def entry_facts(entry: Entry) -> dict[str, Any]:
    """What is to be said of one key."""
    from shmkv.wal.record import CAUSE_NAMES, DELETE

    facts: dict[str, Any] = {"key": text_key(entry.key)}
    if entry.namespace:
        facts["namespace"] = entry.namespace
    if entry.kind == DELETE:
        facts["cause"] = CAUSE_NAMES[entry.type] if entry.type < len(CAUSE_NAMES) else str(entry.type)
        return facts
    facts.update(type=type_of(entry), size_bytes=len(entry.value))
    if entry.expires_ms:
        facts["expires_ms"] = entry.expires_ms
    if entry.pinned:
        facts["pinned"] = True
    return facts


def text_key(key: bytes) -> str | bytes:
    """A key as iteration gives it."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def type_of(entry: Entry) -> str:
    """Name of the value's type; of a value of a codec, the codec's name."""
    from shmkv import values
    from shmkv.codecs import UnknownCodec
    from shmkv.errors import CorruptData

    try:
        return type(values.decode(entry.type, entry.value)).__name__
    except UnknownCodec as unknown:
        return f"codec {unknown.codec}" if entry.type == values.TYPE_CUSTOM else "nested"
    except CorruptData:
        return f"unreadable type {entry.type}"


def text_of(change: dict[str, Any]) -> str:
    """One line for people."""
    details: list[str] = []
    if "type" in change:
        details.append(f"{change['type']}, {change['size_bytes']:,} bytes")
    if "expires_ms" in change:
        details.append(f"expires {time_text(change['expires_ms'])}")
    if change.get("pinned"):
        details.append("pinned")
    if change.get("cause", "user") != "user":
        details.append(change["cause"])
    if "wall_ms" in change:
        details.append(f"{time_text(change['wall_ms'])}, on disk up to {change['durable_lsn']}")
    if change.get("namespace"):
        details.append(f"namespace {change['namespace']}")
    if "batch" in change:
        details.append("{} of {}".format(*change["batch"]))
    if "problem" in change:
        details.append(change["problem"])
    key = key_text(change["key"]) if "key" in change else ""
    return f"{change['lsn']:<16} {change['kind']:<7} {key:<24} {', '.join(details)}".rstrip()


def time_text(wall_ms: int) -> str:
    """A time in UTC, to the millisecond; one that no calendar holds as its number."""
    try:
        return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        return f"{wall_ms} ms"
