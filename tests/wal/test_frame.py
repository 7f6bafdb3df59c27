"""Frames: what is sealed comes back, what is changed, cut or moved is named, and no nonce ever comes twice."""

from __future__ import annotations

import random

import pytest

from shmkv.wal import frame
from shmkv.wal.cipher import FileCipher, Keyring
from shmkv.wal.frame import (
    FrameReader,
    FrameSealer,
    NonceReuse,
    durable_behind,
    frame_bytes,
    frame_seed,
    raw_room,
    sealed_bytes,
)
from shmkv.wal.log import HEADER_BLOCK_BYTES, FileHeader, pack_file_header

KEYS = Keyring((bytes(range(32)),))
FIRST_LSN = 1 << 40
FILE_BYTES = HEADER_BLOCK_BYTES + 2048


def new_file(first_lsn: int = FIRST_LSN, number: int = 1) -> tuple[FileHeader, FileCipher]:
    kind, key_id, salt, cipher = KEYS.for_new_file("0000000001.log")
    assert cipher is not None
    return FileHeader(bytes(16), 1, first_lsn, number, 0, 0, 0, FILE_BYTES, kind, key_id, salt), cipher


def file_with(texts: list[bytes]) -> tuple[bytearray, FileHeader, FileCipher]:
    """A whole file with one frame for each text, and zeros behind them."""
    header, cipher = new_file()
    sealer = FrameSealer(cipher, header)
    data = bytearray(pack_file_header(header))
    lsn = FIRST_LSN
    for index, text in enumerate(texts):
        for one in sealer.seal([text], lsn, FIRST_LSN + index):
            data += one
        lsn += len(text)
    return data.ljust(FILE_BYTES, b"\0"), header, cipher


def read_all(data: bytes | bytearray, header: FileHeader, cipher: FileCipher | None) -> tuple[list[bytes], FrameReader]:
    reader = FrameReader(memoryview(data), header, cipher)
    found: list[bytes] = []
    while (raw := reader.next()) is not None:
        found.append(raw)
    return found, reader


TEXTS = [b"first", b"the second one", bytes(100), b"x" * 8]


def test_what_was_sealed_is_read() -> None:
    data, header, cipher = file_with(TEXTS)
    found, reader = read_all(data, header, cipher)
    assert found == TEXTS
    assert reader.lsn == FIRST_LSN + sum(map(len, TEXTS))
    assert reader.offset == HEADER_BLOCK_BYTES + sum(frame_bytes(len(text)) for text in TEXTS)
    assert reader.durable_before == FIRST_LSN + len(TEXTS) - 1
    assert reader.stopped == "frame length"
    assert TEXTS[1] not in data


def test_a_file_that_is_full_to_the_last_byte_ends_well() -> None:
    data, header, cipher = file_with(TEXTS)
    end = HEADER_BLOCK_BYTES + sum(frame_bytes(len(text)) for text in TEXTS)
    found, reader = read_all(data[:end], header, cipher)
    assert found == TEXTS
    assert reader.stopped == "end"


def test_large_pieces_become_several_frames_and_small_ones_one() -> None:
    header, cipher = new_file()
    sealer = FrameSealer(cipher, header)
    large = random.Random(1).randbytes(frame.FRAME_RAW_BYTES * 2 + 12)
    frames = [bytes(one) for one in sealer.seal([large, b"tail"], FIRST_LSN, 0)]
    assert [len(one) for one in frames] == [frame_bytes(1 << 20), frame_bytes(1 << 20), frame_bytes(12), frame_bytes(4)]
    found, _ = read_all(pack_file_header(header) + b"".join(frames), header, cipher)
    assert b"".join(found) == large + b"tail"


@pytest.mark.parametrize("raw", [0, 8, 40, 1000, (1 << 20) - 8, 1 << 20, (1 << 20) + 8, 7 << 20, 123456784, 1 << 34])
def test_room_for_records_is_room_for_their_frames(raw: int) -> None:
    assert raw_room(sealed_bytes(raw)) >= raw


@pytest.mark.parametrize("room", [0, 100, 112, 120, 4096, (1 << 20) - 8, 1 << 20, (1 << 20) + 100, (3 << 20) + 4])
def test_what_is_said_to_fit_fits_however_the_ring_splits_it(room: int) -> None:
    raw = raw_room(room)
    for split in {0, min(8, raw), raw // 16 * 8, max(0, raw - 8), raw}:
        frames = [
            min(frame.FRAME_RAW_BYTES, length - at)
            for length in (split, raw - split)
            for at in range(0, length, frame.FRAME_RAW_BYTES)
        ]
        assert sum(map(frame_bytes, frames)) <= room


# ---- damage ------------------------------------------------------------------------------------------------------


def test_every_byte_that_is_changed_is_noticed() -> None:
    data, header, cipher = file_with(TEXTS)
    ends, at = [], HEADER_BLOCK_BYTES
    for text in TEXTS:
        at += frame_bytes(len(text))
        ends.append(at)
    for at in range(HEADER_BLOCK_BYTES, ends[-1]):
        changed = bytearray(data)
        changed[at] ^= 0x10
        whole = sum(end <= at for end in ends)
        for opener in (cipher, None):
            found, reader = read_all(changed, header, opener)
            assert reader.lsn == FIRST_LSN + sum(map(len, TEXTS[:whole])), at
            assert reader.stopped.startswith("frame "), at
            assert reader.stopped != "frame tag", at
            assert opener is None or found == TEXTS[:whole]


def test_every_cut_is_noticed() -> None:
    data, header, cipher = file_with(TEXTS)
    ends = [HEADER_BLOCK_BYTES]
    for text in TEXTS:
        ends.append(ends[-1] + frame_bytes(len(text)))
    for end in range(HEADER_BLOCK_BYTES, ends[-1] + 1):
        found, reader = read_all(data[:end], header, cipher)
        assert found == TEXTS[: sum(known <= end for known in ends) - 1]
        assert reader.stopped == ("end" if end in ends else "frame short")


def forge(data: bytearray, header: FileHeader, offset: int, change: int) -> None:
    """Change a byte of a frame's sealed part and make all its checksums right again."""
    length, _, first_lsn, durable, _, raw = frame._HEADER.unpack_from(data, offset)
    start = offset + frame.HEADER_BYTES
    data[start + change] ^= 1
    sealed_crc = frame._core.crc32c(bytes(data[start : start + raw + frame.TAG_BYTES]))
    crc = frame._header_crc(length, first_lsn, durable, sealed_crc, raw, frame_seed(header))
    frame._HEADER.pack_into(data, offset, length, crc, first_lsn, durable, sealed_crc, raw)


def test_a_change_with_right_checksums_is_a_bad_tag() -> None:
    data, header, cipher = file_with(TEXTS)
    second = HEADER_BLOCK_BYTES + frame_bytes(len(TEXTS[0]))
    for change in range(len(TEXTS[1]) + frame.TAG_BYTES):
        forged = bytearray(data)
        forge(forged, header, second, change)
        found, reader = read_all(forged, header, cipher)
        assert found == TEXTS[:1]
        assert (reader.stopped, reader.offset) == ("frame tag", second)
        assert read_all(forged, header, None)[1].lsn == FIRST_LSN + sum(map(len, TEXTS)), "without a key it looks whole"


def test_a_frame_that_was_moved_or_said_to_be_older_is_a_bad_tag() -> None:
    data, header, cipher = file_with([b"one text", b"two text"])
    size = frame_bytes(8)
    swapped = bytearray(data)
    first, second = (slice(at, at + size) for at in (HEADER_BLOCK_BYTES, HEADER_BLOCK_BYTES + size))
    swapped[first], swapped[second] = data[second], data[first]
    assert read_all(swapped, header, cipher)[1].stopped == "frame lsn"
    for field in (2, 3):
        moved = bytearray(data)
        fields = list(frame._HEADER.unpack_from(moved, HEADER_BLOCK_BYTES))
        fields[field] += 8
        fields[1] = frame._header_crc(fields[0], *fields[2:], frame_seed(header))
        frame._HEADER.pack_into(moved, HEADER_BLOCK_BYTES, *fields)
        shown = FileHeader(header.store_id, 1, fields[2], 1, 0, 0, 0, FILE_BYTES, 1, header.key_id, header.salt)
        assert read_all(moved, shown, cipher)[1].stopped == "frame tag"


def test_a_frame_of_another_file_with_the_same_salt_is_a_bad_tag() -> None:
    data, header, cipher = file_with(TEXTS)
    other = FileHeader(header.store_id, 1, FIRST_LSN, 2, 0, 0, 0, FILE_BYTES, 1, header.key_id, header.salt)
    assert read_all(data, other, cipher)[1].stopped == "frame tag"


def test_the_watermark_behind_a_bad_frame_is_found() -> None:
    data, header, cipher = file_with(TEXTS)
    offset = HEADER_BLOCK_BYTES
    for index, text in enumerate(TEXTS):
        changed = bytearray(data)
        changed[offset + frame.HEADER_BYTES] ^= 1
        _, reader = read_all(changed, header, cipher)
        # The header of the bad frame is whole, so what it says counts too.
        assert reader.durable_behind() == FIRST_LSN + len(TEXTS) - 1
        changed[offset : offset + frame.HEADER_BYTES] = bytes(frame.HEADER_BYTES)
        _, reader = read_all(changed, header, cipher)
        assert reader.durable_behind() == (FIRST_LSN + len(TEXTS) - 1 if index + 1 < len(TEXTS) else 0)
        offset += frame_bytes(len(text))


def test_the_search_crosses_a_border_of_four_gigabytes() -> None:
    border = FIRST_LSN + (1 << 32)
    header, cipher = new_file(border - 8)
    sealer = FrameSealer(cipher, header)
    frames = [bytes(one) for lsn in (border - 8, border, border + 8) for one in sealer.seal([b"8 bytes."], lsn, lsn)]
    data = bytes(64) + b"".join(frames)
    assert durable_behind(memoryview(data), 0, border - 8, frame_seed(header)) == border + 8
    assert durable_behind(memoryview(data), 0, border - 8, 1234) == 0, "of another store"


def test_reading_starts_in_the_middle() -> None:
    data, header, cipher = file_with(TEXTS)
    for count in range(len(TEXTS) + 1):
        lsn = FIRST_LSN + sum(map(len, TEXTS[:count]))
        reader = FrameReader(memoryview(data), header, cipher)
        reader.skip_to(lsn)
        assert reader.lsn == lsn
        assert reader.next() == (TEXTS[count] if count < len(TEXTS) else None)
    reader = FrameReader(memoryview(data), header, cipher)
    reader.skip_to(FIRST_LSN + 7)
    assert reader.lsn == FIRST_LSN + 5, "the frame that holds it comes next"


# ---- nonces ------------------------------------------------------------------------------------------------------


def test_a_sealer_never_repeats_an_lsn() -> None:
    header, cipher = new_file()
    sealer = FrameSealer(cipher, header)
    list(sealer.seal([bytes(16)], FIRST_LSN, 0))
    for lsn in (FIRST_LSN - 8, FIRST_LSN, FIRST_LSN + 8):
        with pytest.raises(NonceReuse, match=r"0000000001\.log"):
            list(sealer.seal([bytes(8)], lsn, 0))
    list(sealer.seal([bytes(8)], FIRST_LSN + 16, 0))


def test_a_frame_that_was_sealed_and_not_written_counts() -> None:
    header, cipher = new_file()
    sealer = FrameSealer(cipher, header)
    frames = sealer.seal([bytes(frame.FRAME_RAW_BYTES), bytes(8)], FIRST_LSN, 0)
    next(frames)
    frames.close()
    with pytest.raises(NonceReuse):
        list(sealer.seal([bytes(8)], FIRST_LSN + 8, 0))


def test_nothing_is_sealed_before_the_file_begins() -> None:
    header, cipher = new_file()
    with pytest.raises(NonceReuse):
        list(FrameSealer(cipher, header).seal([bytes(8)], FIRST_LSN - 8, 0))
