"""The fuzzers of files see what they are there to see, and find nothing in a few rounds."""

import random
from pathlib import Path

import fuzz
import pytest
from harness import fuzz_files

from shmkv.wal import block
from shmkv.wal.log import unpack_file_header
from shmkv.wal.manifest import unpack_slot


@pytest.mark.parametrize("name", sorted(fuzz_files.TARGETS))
@pytest.mark.parametrize("seed", [1, 2])
def test_a_few_rounds_find_nothing(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_files, "ROUNDS", 15)
    monkeypatch.setattr(fuzz_files, "STARTS", 4)
    fuzz.TARGETS[name](random.Random(seed))


def test_what_is_not_changed_is_read(tmp_path: Path) -> None:
    for whole in fuzz_files.samples("snapshot", "backup"):
        (tmp_path / "file").write_bytes(whole)
        assert fuzz_files.blocks_of(str(tmp_path / "file"), fuzz_files.keyring())
    fuzz_files.make_directory(tmp_path / "data", encrypted=True)
    assert fuzz_files.started(tmp_path / "data")


@pytest.mark.parametrize(
    ("kind", "mend"), [("snapshot", "mend_blocks"), ("backup", "mend_blocks"), ("manifest", "mend_slot")]
)
def test_mending_gives_the_checksums_that_were_there(kind: str, mend: str) -> None:
    for whole in fuzz_files.samples(kind):
        data = bytearray(whole)
        getattr(fuzz_files, mend)(data)
        assert bytes(data) == whole


def test_mended_changes_pass_the_checksums() -> None:
    whole = (fuzz_files.GOLDEN / "log-encrypted.v1").read_bytes()
    data = bytearray(whole)
    fuzz_files.mend_frames(data)
    assert fuzz_files.plain_of(bytes(data), None) == b""
    assert fuzz_files.plain_of(bytes(data), fuzz_files.keyring()) == fuzz_files.plain_of(whole, fuzz_files.keyring())
    data[40] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        unpack_file_header(bytes(data))
    fuzz_files.mend_frames(data)
    assert unpack_file_header(bytes(data)).first_lsn == unpack_file_header(whole).first_lsn ^ 1
    (slot, _) = fuzz_files.samples("manifest")
    changed = bytearray(slot)
    changed[16] ^= 1
    fuzz_files.mend_slot(changed)
    assert unpack_slot(bytes(changed))[0] == unpack_slot(slot)[0] ^ 1


def test_a_reader_that_misses_a_change_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(self: block.BlockReader, offset: int, header: block.BlockHeader, scratch: object) -> memoryview:
        view = memoryview(bytearray(header.stored_bytes))
        self._fill(view, offset + 48)
        return view

    monkeypatch.setattr(block.BlockReader, "_payload", unchecked)
    with pytest.raises(AssertionError, match="was accepted"):
        for seed in range(20):
            fuzz_files.fuzz_blocks(random.Random(seed), fuzz.change)
