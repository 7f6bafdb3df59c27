"""The formats on disk: files that were written once must be read for ever, and are still written the same way.

If one of these tests fails, the format has changed: that needs a new format version, a reader for both, and new golden
files beside the old ones; it never needs a change of a golden file.
"""

from __future__ import annotations

from pathlib import Path

from shmkv.wal import record
from shmkv.wal.log import HEADER_BLOCK_BYTES, FileHeader, pack_file_header, unpack_file_header
from shmkv.wal.manifest import Manifest, pack_slot, unpack_slot
from shmkv.wal.record import Entry, Mark, Record, Stop

GOLDEN = Path(__file__).parents[1] / "golden"
STORE_ID = bytes(range(0xA0, 0xB0))
FIRST_LSN = 0x123_4567_8000
HEADER = FileHeader(
    store_id=STORE_ID,
    incarnation=3,
    first_lsn=FIRST_LSN,
    number=17,
    previous_incarnation=2,
    previous_end_lsn=0x23_4567_89A8,
    created_wall_ms=1_700_000_000_123,
    size_bytes=5120,
)
ENTRIES = (
    Entry(record.PUT, b"greeting", "grüß Gott".encode(), type=6),
    Entry(record.PUT, b"session:42", b"\x00\x01\x02", type=5, namespace=3, expires_ms=1_900_000_000_000, pinned=True),
    Entry(record.PUT, b"", (7).to_bytes(8, "little"), type=3),
    Entry(record.DELETE, b"gone", type=1),
)
MARK = Mark(1_700_000_000_456, FIRST_LSN + 64)
MANIFEST = Manifest(
    store_id=STORE_ID,
    incarnation=3,
    first_lsn=FIRST_LSN,
    highest_lsn=FIRST_LSN + 600,
    watermark=FIRST_LSN + 500,
    oldest_file=2,
    newest_file=17,
    seals=((1, 0x1234_5678), (2, 0x23_4567_89A8)),
    disowned=((9, 11),),
    clean=False,
)


def log_file() -> bytes:
    """A log file with a record of each kind, as this program writes it."""
    seed = record.record_seed(STORE_ID, HEADER.incarnation)
    data = b""
    for entries in ((ENTRIES[0],), (ENTRIES[1],), ENTRIES, (ENTRIES[3],)):
        data += record.pack_entries(entries, lsn=FIRST_LSN + len(data), durable_before=FIRST_LSN, seed=seed)
    data += record.pack_clear(3, lsn=FIRST_LSN + len(data), durable_before=FIRST_LSN + 64, seed=seed)
    data += record.pack_mark(MARK, lsn=FIRST_LSN + len(data), durable_before=FIRST_LSN + 64, seed=seed)
    return (pack_file_header(HEADER) + data).ljust(HEADER.size_bytes, b"\0")


def test_the_golden_log_file_is_read() -> None:
    data = (GOLDEN / "log.v1").read_bytes()
    assert unpack_file_header(data[:HEADER_BLOCK_BYTES]) == HEADER
    items = list(record.read_records(data[HEADER_BLOCK_BYTES:], store_id=STORE_ID, incarnation=3, first_lsn=FIRST_LSN))
    stop = items.pop()
    assert isinstance(stop, Stop)
    assert stop.reason == "length", "zeros follow the last record"
    records = [item for item in items if isinstance(item, Record)]
    assert [item.entries for item in records] == [(ENTRIES[0],), (ENTRIES[1],), ENTRIES, (ENTRIES[3],), (), ()]
    assert [item.header.kind for item in records] == [1, 1, 7, 2, 5, 8]
    assert records[4].header.count == 3
    assert records[5].mark == MARK


def test_the_golden_log_file_is_written_the_same_today() -> None:
    assert log_file() == (GOLDEN / "log.v1").read_bytes()


def test_the_golden_manifest_is_read() -> None:
    assert unpack_slot((GOLDEN / "manifest.v1").read_bytes()) == (41, MANIFEST)


def test_the_golden_manifest_is_written_the_same_today() -> None:
    assert pack_slot(MANIFEST, 41) == (GOLDEN / "manifest.v1").read_bytes()
