"""Fuzzing of files: golden ones are changed at random and read by the real readers.

Why here: what each format promises of a changed file is said next to its target.

Invariants:
  I1  A target fails by an exception that is no refusal, or by content that was not in the original.
  I2  Each sample is changed as it is, and also with its checksums made right again, so that the code behind them is
      reached; then the content may be anything, but never another exception.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shmkv
from shmkv.admin.export_file import ExportReader, check_whole, entry_line
from shmkv.admin.verification import Verifier
from shmkv.dataclass import replace
from shmkv.segment import _core
from shmkv.wal import inspection, start
from shmkv.wal.block import BlockReader, BlockWriter
from shmkv.wal.cipher import Keyring, parse_keys
from shmkv.wal.files import Files
from shmkv.wal.frame import FrameReader
from shmkv.wal.log import FileHeader, pack_file_header, unpack_file_header
from shmkv.wal.manifest import Manifest, pack_slot, unpack_slot
from shmkv.wal.record import Record, read_records
from shmkv.wal.snapshot import facts_of

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
REFUSALS = (shmkv.ShmkvError, ValueError)
ARENA_BYTES = 8 << 20
ROUNDS = 60
STARTS = 12

Change = Callable[[random.Random, bytes], bytes]


def keyring() -> Keyring:
    """The ring with the key of the golden files."""
    return Keyring(parse_keys((GOLDEN / "key").read_bytes(), "the golden key"))


def samples(*kinds: str) -> list[bytes]:
    """The golden files of these kinds."""
    paths = [path for path in sorted(GOLDEN.iterdir()) if path.name.partition(".")[0].partition("-")[0] in kinds]
    assert paths, f"no golden files of {kinds} in {GOLDEN}"
    return [path.read_bytes() for path in paths]


# ---- checksums made right ----------------------------------------------------------------------------------------


def put_crc(data: bytearray, at: int, *parts: slice, seed: int = 0) -> None:
    """Write at `at` the CRC over those parts."""
    crc = seed
    for part in parts:
        crc = _core.crc32c(bytes(data[part]), crc)
    data[at : at + 4] = crc.to_bytes(4, "little")


def mend_blocks(data: bytearray) -> None:
    """A snapshot or backup."""
    put_crc(data, 4092, slice(0, 4092))
    seed, at = _core.crc32c(bytes(data[16:40] + data[48:64])), 4096
    while at + 48 <= len(data):
        stored = int.from_bytes(data[at : at + 4], "little")
        put_crc(data, at + 40, slice(at + 48, at + 48 + stored))
        put_crc(data, at + 44, slice(at, at + 44), seed=seed)
        at += 48 + (stored + 7) // 8 * 8


def mend_frames(data: bytearray) -> None:
    """An encrypted log file."""
    put_crc(data, 4092, slice(0, 4092))
    seed, at = _core.crc32c(bytes(data[16:40])), 4096
    while at + 32 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        raw_bytes = int.from_bytes(data[at + 28 : at + 32], "little")
        if length < 32:
            return
        put_crc(data, at + 24, slice(at + 32, at + 32 + raw_bytes + 16))
        put_crc(data, at + 4, slice(at, at + 4), slice(at + 8, at + 32), seed=seed)
        at += length


def mend_slot(data: bytearray) -> None:
    """A slot of the manifest."""
    data[12:16] = max(0, len(data) - 32).to_bytes(4, "little")
    put_crc(data, 24, slice(0, 24), slice(32, None))


# ---- targets -----------------------------------------------------------------------------------------------------


def blocks_of(path: str, keys: Keyring) -> list[tuple[Any, bytes]]:
    """All that a snapshot or backup gives out."""
    with BlockReader(Files(), path, keys) as reader:
        return [(block.header, bytes(block.data)) for block in reader.blocks()]


def fuzz_blocks(chance: random.Random, change: Change) -> None:
    """A changed snapshot or backup is refused; no changed byte of it is harmless."""
    keys = keyring()
    with tempfile.TemporaryDirectory(prefix="shmkv-fuzz-") as folder:
        path = os.path.join(folder, "file")
        for _ in range(ROUNDS):
            whole = chance.choice(samples("snapshot", "backup"))
            changed, mended = change(chance, whole), chance.random() < 0.5
            data = bytearray(changed)
            if mended and len(data) >= 4096:
                mend_blocks(data)
            Path(path).write_bytes(data)
            try:
                blocks_of(path, keys)
            except REFUSALS:
                is_good = False
            else:
                is_good = True
            (verdict,) = Verifier(chance.choice((keys, Keyring.none()))).look(path)
            if not mended and data != whole and (is_good or verdict.is_good):
                raise AssertionError(f"a changed file of blocks was accepted: {verdict}")


def plain_of(data: bytes, keys: Keyring | None) -> bytes:
    """The plain log that an encrypted file gives."""
    header = unpack_file_header(data[:4096])
    cipher = keys.for_file(header.cipher, header.key_id, header.salt, "x") if keys is not None else None
    reader, pieces = FrameReader(memoryview(data), header, cipher), []
    while (piece := reader.next()) is not None:
        pieces.append(piece)
    reader.durable_behind()
    return b"".join(pieces)


def fuzz_frames(chance: random.Random, change: Change) -> None:
    """A changed encrypted log gives a beginning of its plain log, whatever its checksums say; or it is refused."""
    whole = (GOLDEN / "log-encrypted.v1").read_bytes()
    original = plain_of(whole, keyring())
    for _ in range(ROUNDS * 4):
        data = bytearray(change(chance, whole))
        if chance.random() < 0.7 and len(data) >= 4096:
            mend_frames(data)
        try:
            found = plain_of(bytes(data), keyring())
            plain_of(bytes(data), None)
        except REFUSALS:
            continue
        if not original.startswith(found):
            raise AssertionError(f"{len(found)} bytes came out that were not written")


def fuzz_manifest(chance: random.Random, change: Change) -> None:
    """A changed slot is refused, unless the change is where nothing counts."""
    for _ in range(ROUNDS * 10):
        whole = chance.choice(samples("manifest"))
        data, mended = bytearray(change(chance, whole)), chance.random() < 0.7
        if mended and len(data) >= 32:
            mend_slot(data)
        try:
            found = unpack_slot(bytes(data))
        except REFUSALS:
            continue
        if not mended and found != unpack_slot(whole):
            raise AssertionError(f"a changed slot was accepted: {found}")


def fuzz_export(chance: random.Random, change: Change) -> None:
    """Every line of a changed export is a named refusal, or an entry that can be written again."""
    (whole,) = samples("export")
    for _ in range(ROUNDS * 4):
        data = change(chance, whole)
        for read in (check_whole, ExportReader):
            try:
                lines = read(io.BytesIO(data), "x")
                for line in lines if isinstance(lines, ExportReader) else ():
                    entry_line(line.key, line.value, expires_ms=line.expires_ms, pinned=line.pinned)
            except shmkv.CorruptData:
                continue


# ---- a data directory --------------------------------------------------------------------------------------------


def make_directory(folder: Path, *, encrypted: bool) -> None:
    """A store with two snapshots, and the log that both need; in clear it has two files."""
    suffix = "-encrypted" if encrypted else ""
    for name in ("log", "snapshot"):
        (folder / name).mkdir(parents=True)
    whole_log = (GOLDEN / f"log{suffix}.v1").read_bytes()
    header = unpack_file_header(whole_log[:4096])
    logs = [whole_log] if encrypted else halves(header, whole_log[4096:])
    for number, data in enumerate(logs, header.number):
        (folder / "log" / f"{number:010d}.log").write_bytes(data)
    snapshots = [folder / "snapshot" / f"{generation:010d}.snapshot" for generation in (4, 5)]
    shutil.copyfile(GOLDEN / f"snapshot{suffix}.v1", snapshots[1])
    copy_as_generation(4, snapshots[1], snapshots[0])
    facts = []
    for path in snapshots:
        with BlockReader(Files(), str(path), keyring()) as reader:
            facts.append(facts_of(reader))
    manifest = Manifest(
        store_id=header.store_id, incarnation=header.incarnation, first_lsn=header.first_lsn,
        highest_lsn=facts[0].end_lsn, watermark=header.first_lsn, oldest_file=header.number,
        newest_file=header.number + len(logs) - 1,
        seals=((header.previous_incarnation, header.previous_end_lsn),), snapshots=tuple(facts),
    )  # fmt: skip
    for slot in (0, 1):
        (folder / f"manifest.{slot}").write_bytes(pack_slot(manifest, 7 + slot))


def halves(header: FileHeader, data: bytes) -> list[bytes]:
    """One log file as two."""
    records = [
        each
        for each in read_records(
            data, store_id=header.store_id, incarnation=header.incarnation, first_lsn=header.first_lsn
        )
        if isinstance(each, Record)
    ]
    middle = records[2].header.lsn
    second = replace(header, number=header.number + 1, first_lsn=middle, previous_incarnation=header.incarnation)
    parts = (
        (header, data[: middle - header.first_lsn]),
        (replace(second, previous_end_lsn=middle), data[middle - header.first_lsn :]),
    )
    return [(pack_file_header(head) + part).ljust(head.size_bytes, b"\0") for head, part in parts]


def copy_as_generation(generation: int, source: Path, target: Path) -> None:
    """The same snapshot as it would be had it been another one."""
    with BlockReader(Files(), str(source), keyring()) as reader, target.open("wb") as file:
        header, footer = replace(reader.header, generation=generation), reader.footer
        cipher = keyring().for_file(header.cipher, header.key_id, header.salt, str(target))
        writer = BlockWriter(Files(), file.fileno(), header, cipher=cipher)
        for block in reader.blocks():
            writer.add(block.kind, bytes(block.data), stripe=block.header.stripe, count=block.header.count)
        writer.finish(end_lsn=footer.end_lsn, highest_version=footer.highest_version, wall_ms=footer.wall_ms)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def started(folder: Path) -> set[bytes]:
    """What a cold start brings up, as entry images."""
    fds: list[int] = []
    arenas: list[_core.Arena] = []

    def make_arena(manifest: Manifest, hash_key: bytes | None) -> Any:
        fds.append(os.memfd_create("fuzz"))
        os.ftruncate(fds[-1], ARENA_BYTES)
        _core.format_arena(
            fds[-1], size_bytes=ARENA_BYTES, name="fuzz", store_id=manifest.store_id, has_log=True,
            incarnation=manifest.incarnation, first_lsn=manifest.first_lsn, hash_key=hash_key,
        )  # fmt: skip
        arenas.append(_core.Arena(fds[-1]))
        return arenas[-1]

    place = start.Place(Files(), str(folder), 1 << 20, lambda: 1, keys=keyring(), load_threads=1)
    try:
        done = start.start_cold(
            place, ring_bytes=1 << 20, accept_loss=False, make_arena=make_arena, progress=lambda *_: None
        )
        done.writer.finish_file()
        return images_of(arenas[-1])
    finally:
        for arena, fd in zip(arenas, fds, strict=True):
            arena.close()
            os.close(fd)


def images_of(arena: _core.Arena) -> set[bytes]:
    """The parts of an arena that hold something."""
    cursor, buffer, found = 0, bytearray(1 << 16), set()
    while cursor != _core.CURSOR_END:
        cursor, used, *_ = arena.fill(cursor, buffer)
        found.add(bytes(buffer[:used]))
    return found


def fuzz_start(chance: random.Random, change: Change) -> None:
    """A start on a changed directory gives all that was synced, or refuses and changes nothing."""
    with tempfile.TemporaryDirectory(prefix="shmkv-fuzz-") as scratch:
        good, folder = Path(scratch, "good"), Path(scratch, "data")
        make_directory(good, encrypted=chance.random() < 0.5)
        shutil.copytree(good, folder)
        expected = started(folder)
        for _ in range(STARTS):
            shutil.rmtree(folder)
            shutil.copytree(good, folder)
            target = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
            if chance.random() < 0.1:
                target.unlink()
            else:
                target.write_bytes(change(chance, target.read_bytes()))
            before = content(folder)
            look_at(folder)
            if content(folder) != before:
                raise AssertionError(f"looking at a directory changed it; {target.name} had been changed")
            try:
                found = started(folder)
            except REFUSALS as refusal:
                after = {name: data for name, data in content(folder).items() if name in before}
                if after != before:
                    raise AssertionError(f"a refused start changed files: {refusal}") from refusal
                continue
            if found != expected:
                raise AssertionError(f"a start on a changed {target.name} lost or invented entries")


def look_at(folder: Path) -> None:
    """Verify and show the directory; a refusal is fine."""
    for keys in (keyring(), Keyring.none()):
        try:
            list(Verifier(keys).look(str(folder)))
            list(inspection.log_records(Files(), str(folder), keys=keys))
        except REFUSALS:
            continue


TARGETS: dict[str, Callable[[random.Random, Change], None]] = {
    "blocks": fuzz_blocks,
    "frames": fuzz_frames,
    "manifest": fuzz_manifest,
    "export": fuzz_export,
    "start": fuzz_start,
}
