"""Records: what the Python writer packs, both readers read; every broken byte is noticed, with the same reason."""

from __future__ import annotations

import pytest

from shmkv.segment import _core
from shmkv.wal import pace, record
from shmkv.wal.record import Entry, Mark, Record, Stop

STORE_ID = bytes(range(100, 116))
INCARNATION = 3
FIRST_LSN = 1 << 41
SEED = record.record_seed(STORE_ID, INCARNATION)
ENTRIES = (
    Entry(record.PUT, b"", b"", type=6),
    Entry(record.PUT, b"user:1", b"Ada", type=6, namespace=3, expires_ms=1_900_000_000_123, pinned=True),
    Entry(record.PUT, b"12345678", bytes(range(64)), namespace=63),
    Entry(record.DELETE, b"gone", b"", type=0),
)


def sample() -> bytes:
    """One record of each kind."""
    data = b""
    for entry in ENTRIES:
        data += record.pack_entries([entry], lsn=FIRST_LSN + len(data), durable_before=FIRST_LSN, seed=SEED)
    data += record.pack_entries(ENTRIES, lsn=FIRST_LSN + len(data), durable_before=FIRST_LSN + 8, seed=SEED)
    data += record.pack_clear(5, lsn=FIRST_LSN + len(data), durable_before=FIRST_LSN + 16, seed=SEED)
    mark = Mark(1_700_000_000_000, FIRST_LSN + 24)
    return data + record.pack_mark(mark, lsn=FIRST_LSN + len(data), durable_before=FIRST_LSN + 24, seed=SEED)


def read(data: bytes, first_lsn: int = FIRST_LSN) -> tuple[list[Record], Stop]:
    items = list(record.read_records(data, store_id=STORE_ID, incarnation=INCARNATION, first_lsn=first_lsn))
    stop = items.pop()
    assert isinstance(stop, Stop)
    return [item for item in items if isinstance(item, Record)], stop


def test_what_was_packed_is_read() -> None:
    records, stop = read(sample())
    assert stop == Stop(FIRST_LSN + len(sample()), len(sample()), "end")
    assert [item.entries for item in records[:4]] == [(entry,) for entry in ENTRIES]
    assert records[4].entries == ENTRIES
    assert (records[5].header.kind, records[5].header.count) == (record.CLEAR, 5)
    assert records[6].mark == Mark(1_700_000_000_000, FIRST_LSN + 24)
    assert records[6].header.length_bytes == pace.MARK_RECORD_BYTES
    assert records[6].end_lsn == stop.lsn


def test_the_core_reads_the_same() -> None:
    found = _core.verify(sample(), store_id=STORE_ID, incarnation=INCARNATION, first_lsn=FIRST_LSN)
    assert found["consumed_bytes"] == len(sample())
    assert found["next_lsn"] == FIRST_LSN + len(sample())
    assert found["records"] == 7
    assert found["durable_before"] == FIRST_LSN + 24
    assert found["wall_ms"] == 1_700_000_000_000
    assert found["stopped"] is None


@pytest.mark.parametrize(
    ("store_id", "incarnation", "first_lsn", "reason"),
    [
        (bytes(16), INCARNATION, FIRST_LSN, "header crc"),
        (STORE_ID, INCARNATION + 1, FIRST_LSN, "header crc"),
        (STORE_ID, INCARNATION, FIRST_LSN + 8, "lsn"),
    ],
)
def test_records_of_another_store_incarnation_or_place_are_none(
    store_id: bytes, incarnation: int, first_lsn: int, reason: str
) -> None:
    (stop,) = record.read_records(sample(), store_id=store_id, incarnation=incarnation, first_lsn=first_lsn)
    assert stop == Stop(first_lsn, 0, reason)
    found = _core.verify(sample(), store_id=store_id, incarnation=incarnation, first_lsn=first_lsn)
    assert found["stopped"] == reason
    assert found["consumed_bytes"] == 0


def test_every_truncation_gives_the_whole_records_before_it() -> None:
    data = sample()
    ends = [item.end_lsn - FIRST_LSN for item in read(data)[0]]
    for length in range(len(data)):
        records, stop = read(data[:length])
        whole = [end for end in ends if end <= length]
        assert len(records) == len(whole)
        assert stop.reason == ("end" if length in (0, *whole) else "short")
        found = _core.verify(data[:length], store_id=STORE_ID, incarnation=INCARNATION, first_lsn=FIRST_LSN)
        assert found["consumed_bytes"] == stop.offset
        assert (found["stopped"] or "end") == stop.reason


def test_every_flipped_byte_ends_the_reading_before_its_record() -> None:
    data = sample()
    records, _ = read(data)
    ends = [item.end_lsn - FIRST_LSN for item in records]
    for offset in range(len(data)):
        for mask in (0x01, 0x80):
            broken = bytearray(data)
            broken[offset] ^= mask
            good, stop = read(bytes(broken))
            before = sum(end <= offset for end in ends)
            assert len(good) == before, f"byte {offset}"
            found = _core.verify(broken, store_id=STORE_ID, incarnation=INCARNATION, first_lsn=FIRST_LSN)
            assert found["consumed_bytes"] == stop.offset, f"byte {offset}: the two readers disagree"


def durable_behind(data: bytes, first_lsn: int) -> int:
    return record.durable_behind(data, first_lsn=first_lsn, store_id=STORE_ID, incarnation=INCARNATION)


@pytest.mark.parametrize("distance", [8, 16, 64, 4096, 100_000])
@pytest.mark.parametrize("to_block", [0, 8, 64, 2048])
def test_a_valid_record_behind_bad_bytes_is_found_wherever_it_lies(distance: int, to_block: int) -> None:
    """Also across the places where the upper bytes of the LSN change, and behind bytes that look like an LSN."""
    lsn = (5 << 24) + to_block
    first_lsn = lsn - distance
    good = record.pack_clear(0, lsn=lsn, durable_before=12345, seed=SEED)
    for filler in (b"\0", b"\xff", (5 << 24).to_bytes(8, "little")):
        bad = (filler * distance)[:distance]
        assert durable_behind(bad + good, first_lsn) == 12345
        assert durable_behind(bad + good[:-1], first_lsn) == 0


def test_the_last_of_many_valid_records_decides() -> None:
    data = bytes(40)
    for number in range(5):
        data += record.pack_clear(0, lsn=FIRST_LSN + len(data), durable_before=100 + number, seed=SEED)
        data += b"\x07" * (number * 8)
    assert durable_behind(data, FIRST_LSN) == 104
