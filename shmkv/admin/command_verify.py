"""`shmkv-admin verify FILE...`: whether backups, snapshots, logs, data directories and exports are whole."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import click

from shmkv.admin.session import Session, with_json
from shmkv.config import format_size

if TYPE_CHECKING:
    from shmkv.admin.verification import Verdict


@click.command("verify")
@click.argument("places", metavar="FILE...", nargs=-1, required=True)
@click.option("--key-file", metavar="FILE", help="keys of encrypted files, if not where the settings say")
@with_json
@click.pass_obj
def command(session: Session, places: tuple[str, ...], key_file: str | None) -> None:
    """Read files of any kind that shmkv writes, and say what is good in them, up to where.

    FILE is a backup, snapshot, log file, manifest or export, a data directory (all that counts in it; the store may
    run), an archive of log files, or an address that fsspec knows. Encrypted files are checked without their key, too:
    checksums and structure; with it, their content as well. Exit code 1 when anything is bad.
    """
    from shmkv.admin.data import load_keys
    from shmkv.admin.verification import as_record

    keys = load_keys(session, key_file)
    verdicts = [verdict for place in places for verdict in look(place, keys)]
    rows = [["ok" if verdict.is_good else "BAD", verdict.kind, verdict.file, *words(verdict)] for verdict in verdicts]
    columns = ("", "kind", "file", "size", "good up to", "found")
    session.show_rows("verify", columns, rows, [as_record(verdict) for verdict in verdicts])
    bad = [verdict for verdict in verdicts if not verdict.is_good]
    if bad:
        raise click.ClickException(f"{len(bad)} of {len(verdicts)} files are bad; first: {bad[0].problems[0]}")


def look(place: str, keys: object) -> list[Verdict]:
    """The verdicts of one file, directory or address."""
    from dataclasses import replace

    from shmkv import remote
    from shmkv.admin.progress import progress
    from shmkv.admin.verification import Verifier
    from shmkv.backup import fetched
    from shmkv.wal.cipher import Keyring

    assert isinstance(keys, Keyring)
    with progress(f"verify {place}") as advance:
        local = remote.local_path(place)
        if local is not None:
            return list(Verifier(keys, advance.set).look(place if os.path.exists(place) else local))
        with tempfile.TemporaryDirectory(prefix="shmkv-verify-") as folder, fetched(place, folder, advance.set) as copy:
            return [replace(verdict, file=place) for verdict in Verifier(keys, advance.set).look(copy)]


def words(verdict: Verdict) -> list[str]:
    """Size, LSN, and what was found, for people."""
    found = [*verdict.problems]
    if verdict.entries is not None:
        found.append(f"{verdict.entries:,} entries")
    if verdict.records is not None:
        found.append(f"{verdict.records:,} records")
    if verdict.is_encrypted:
        found.append("encrypted, " + ("opened with its key" if verdict.is_opened else "not decrypted"))
    return [
        format_size(verdict.size_bytes),
        f"LSN {verdict.end_lsn}" if verdict.end_lsn else "",
        "; ".join([*found, *verdict.notes]),
    ]
