"""The formats on disk: files that were written once must be read for ever, and are still written the same way.

If one of these tests fails, the format has changed: that needs a new format version, a reader for both, and new golden
files beside the old ones; it never needs a change of a golden file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shmkv import encryption
from shmkv.admin.export_file import ExportReader, check_whole
from shmkv.admin.verification import Verifier
from shmkv.dataclass import replace
from shmkv.errors import WrongKey
from shmkv.segment import _core
from shmkv.values import encode
from shmkv.wal.block import BACKUP_MAGIC, ENTRIES, LOG, SNAPSHOT_MAGIC, BlockReader
from shmkv.wal.cipher import Keyring, KeySettings
from shmkv.wal.files import Files
from shmkv.wal.log import HEADER_BLOCK_BYTES, LogFile, unpack_file_header
from shmkv.wal.manifest import unpack_slot
from shmkv.wal.record import Record, Stop, read_records
from shmkv.wal.recovery import Segment
from shmkv.wal.replay import open_part
from shmkv.wal.snapshot import load_snapshot
from tests.golden import make

GOLDEN = Path(__file__).parent
LOGS = ("log.v1", "log-encrypted.v1")
SNAPSHOTS = ("snapshot.v1", "snapshot-zstd.v1", "snapshot-encrypted.v1")
BACKUPS = ("backup.v1", "backup-zstd-encrypted.v1")
BLOCKS = (*SNAPSHOTS, *BACKUPS)


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    """The ring with the golden key, read as a store reads it."""
    file = tmp_path / "key"
    file.write_bytes((GOLDEN / "key").read_bytes())
    file.chmod(0o600)
    return Keyring.load(KeySettings(file=str(file)))


# Versions of zstd compress to other bytes.
@pytest.mark.parametrize("name", [name for name in make.FILES if "zstd" not in name])
def test_what_was_written_is_written_the_same_today(name: str) -> None:
    assert make.FILES[name]() == (GOLDEN / name).read_bytes()


@pytest.mark.parametrize("name", LOGS)
def test_the_log_is_read(name: str, keys: Keyring) -> None:
    path = str(GOLDEN / name)
    header = unpack_file_header((GOLDEN / name).read_bytes()[:HEADER_BLOCK_BYTES])
    assert replace(header, cipher=0, key_id=bytes(16), salt=bytes(32)) == make.LOG_HEADER
    segment = Segment(LogFile(path, 17, 5120, header), header.first_lsn, None, header.incarnation)
    data = open_part(Files(), segment, keys).peek(1 << 20)
    *records, stop = read_records(data, store_id=make.STORE_ID, incarnation=3, first_lsn=make.FIRST_LSN)
    assert isinstance(stop, Stop)
    assert stop.reason == ("length" if name == "log.v1" else "end"), "zeros follow the last record"
    assert stop.lsn == make.END_LSN
    assert all(isinstance(item, Record) for item in records)
    assert [item.entries for item in records if isinstance(item, Record)] == [*make.RECORDS, (), ()]
    assert [item.header.kind for item in records if isinstance(item, Record)] == [1, 1, 7, 2, 5, 8]
    assert isinstance(records[4], Record)
    assert records[4].header.count == 3
    assert isinstance(records[5], Record)
    assert records[5].mark == make.MARK


def test_the_log_is_applied() -> None:
    fd, arena = make.new_arena()
    data = (GOLDEN / "log.v1").read_bytes()[HEADER_BLOCK_BYTES:]
    done = arena.apply(data, store_id=make.STORE_ID, incarnation=3, first_lsn=make.FIRST_LSN)
    assert (done["records"], done["next_lsn"]) == (6, make.END_LSN)
    found = [entry for _, _, images in make.blocks_of_arena(arena) for _, entry in make.unpack_images(images)]
    # The clear took what was in namespace 3.
    assert sorted(found, key=lambda entry: entry.key) == [make.ENTRIES_OF_LOG[2], make.ENTRIES_OF_LOG[0]]
    arena.close()
    os.close(fd)


@pytest.mark.parametrize(
    ("name", "counter", "manifest"),
    [("manifest.v1", 41, make.MANIFEST), ("manifest-snapshots.v1", 42, make.MANIFEST_WITH_SNAPSHOTS)],
)
def test_the_manifest_is_read(name: str, counter: int, manifest: Any) -> None:
    assert unpack_slot((GOLDEN / name).read_bytes()) == (counter, manifest)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_file_of_blocks_is_read(name: str, keys: Keyring) -> None:
    with BlockReader(Files(), str(GOLDEN / name), keys) as reader:
        is_backup = name.startswith("backup")
        assert reader.header.magic == (BACKUP_MAGIC if is_backup else SNAPSHOT_MAGIC)
        assert (reader.header.store_id, reader.header.incarnation) == (make.STORE_ID, 3)
        assert (reader.header.generation, reader.header.start_lsn) == (0 if is_backup else 5, make.FIRST_LSN)
        assert reader.header.created_wall_ms == make.WALL_MS
        assert bool(reader.header.cipher) == ("encrypted" in name)
        assert bool(reader.header.compression) == ("zstd" in name)
        assert reader.info == make.ARENA_INFO
        footer = reader.verify()
        assert footer == make.footer_of(footer) == reader.footer
        assert footer.log_end_lsn == (make.END_LSN if is_backup else 0)
        blocks = [(block.header, bytes(block.data)) for block in reader.blocks()]
    found = {item for header, data in blocks if header.kind == ENTRIES for item in make.unpack_images(data)}
    assert found == set(make.IMAGES)
    logs = [(header.first_lsn, data) for header, data in blocks if header.kind == LOG]
    assert logs == ([(make.FIRST_LSN, make.plain_log())] if is_backup else [])


@pytest.mark.parametrize("name", BLOCKS)
def test_a_snapshot_is_loaded(name: str, keys: Keyring) -> None:
    fd, arena = make.new_arena()
    with BlockReader(Files(), str(GOLDEN / name), keys) as reader:
        assert load_snapshot(reader, arena).entries == len(make.IMAGES)
    assert arena.audit(deep=True) == []
    images = {item for _, _, data in make.blocks_of_arena(arena) for item in make.unpack_images(data)}
    assert images == set(make.IMAGES)
    arena.close()
    os.close(fd)


@pytest.mark.parametrize("name", [name for name in (*LOGS, *BLOCKS) if "encrypted" in name])
def test_an_encrypted_file_needs_its_key(name: str) -> None:
    (verdict,) = Verifier(Keyring.none()).look(str(GOLDEN / name))
    assert (verdict.is_good, verdict.is_encrypted, verdict.is_opened) == (True, True, False)
    (verdict,) = Verifier(Keyring((bytes(32),))).look(str(GOLDEN / name))
    assert (verdict.is_good, verdict.is_opened) == (True, False)
    if name in BLOCKS:
        with BlockReader(Files(), str(GOLDEN / name), Keyring((bytes(32),))) as reader, pytest.raises(WrongKey):
            list(reader.blocks())


def test_the_export_is_read() -> None:
    path = GOLDEN / "export.v1"
    with path.open("rb") as stream:
        assert check_whole(stream, str(path)) == len(make.EXPORTED)
        reader = ExportReader(stream, str(path))
        assert reader.header["store"] == "golden"
        lines = list(reader)
    assert [(line.key, line.expires_ms, line.pinned) for line in lines] == [
        (key, expires_ms, pinned) for key, _, expires_ms, pinned in make.EXPORTED
    ]
    assert [encode(line.value) for line in lines] == [encode(value) for _, value, _, _ in make.EXPORTED]


@pytest.mark.parametrize("name", ["value-gcm.v1", "value-gcm-siv.v1"])
def test_a_sealed_value_is_opened(name: str) -> None:
    stored = (GOLDEN / name).read_bytes()
    assert encryption._Box((make.KEY,)).open(stored) == encryption.Encrypted(make.SEALED)
    with pytest.raises(WrongKey, match=stored[1:17].hex()):
        encryption._Box((bytes(32),)).open(stored)


@pytest.mark.parametrize("name", [name for name in make.FILES if name != "key" and not name.startswith("value")])
def test_every_golden_file_is_found_good_to_its_last_byte(name: str, keys: Keyring) -> None:
    (verdict,) = Verifier(keys).look(str(GOLDEN / name))
    assert verdict.problems == ()
    assert verdict.is_opened == verdict.is_encrypted == ("encrypted" in name)
    if name not in ("export.v1", "manifest.v1", "manifest-snapshots.v1"):
        assert verdict.end_lsn == make.END_LSN


def test_each_file_of_the_folder_is_known() -> None:
    there = {path.name for path in GOLDEN.iterdir() if path.suffix != ".py" and path.is_file()}
    assert there == set(make.FILES)


def test_the_core_knows_the_images() -> None:
    data = b"".join(make.pack_image(version, entry) for version, entry in make.IMAGES)
    found = _core.check_entries(data)
    assert (found["consumed_bytes"], found["entries"], found["stopped"]) == (len(data), len(make.IMAGES), None)
