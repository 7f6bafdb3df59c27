"""docs/formats.md is enough to read the files: a reader written from that page alone finds what is in the golden ones.

It shares nothing with shmkv but the CRC, on purpose: what it needs to know must stand in the document.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shmkv.segment._core import crc32c
from tests.golden import make

GOLDEN = Path(__file__).parent
U16, U32, U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")


def u16(data: bytes, at: int) -> int:
    return int(U16.unpack_from(data, at)[0])


def u32(data: bytes, at: int) -> int:
    return int(U32.unpack_from(data, at)[0])


def u64(data: bytes, at: int) -> int:
    return int(U64.unpack_from(data, at)[0])


def up(size_bytes: int) -> int:
    return -(-size_bytes // 8) * 8


def cipher_of(key_id: bytes, salt: bytes) -> AESGCM:
    """The key of a file, from the master key in the folder."""
    master = bytes.fromhex((GOLDEN / "key").read_text().strip())
    assert HKDF(SHA256(), 16, None, b"key id").derive(master) == key_id
    return AESGCM(HKDF(SHA256(), 32, salt, b"shmkv file aes-256-gcm").derive(master))


def entry_of(body: bytes, *, is_put: bool) -> tuple[Any, ...]:
    """(key, value, type, namespace, expires_ms, pinned) of an entry body, and its length."""
    value_bytes, key_bytes, namespace = u32(body, 0), u16(body, 4), u16(body, 6)
    kind, flags, at, expires_ms = body[8], body[9], 12, 0
    assert u16(body, 10) == 0
    if flags & 2:
        expires_ms, at = u64(body, 12), 20
    key, at = body[at : at + key_bytes], at + up(key_bytes)
    value = body[at : at + value_bytes] if is_put else b""
    return (key, value, kind, namespace, expires_ms, bool(flags & 1)), at + value_bytes


def records_of(log: bytes, seed: int, first_lsn: int) -> Iterator[tuple[int, Any]]:
    """(kind, content) of the records of a plain log, up to the zeros behind them."""
    at = 0
    while at < len(log) and u32(log, at):
        length, kind, count = u32(log, at), log[at + 28], u16(log, at + 30)
        assert length >= 32
        assert length % 8 == 0
        assert u64(log, at + 8) == first_lsn + at
        assert crc32c(log[at : at + 4] + log[at + 8 : at + 32], seed) == u32(log, at + 4)
        assert log[at + 29] == 0
        body, body_crc = log[at + 32 : at + length], u32(log, at + 24)
        if kind in (1, 2):
            entry, used = entry_of(body, is_put=kind == 1)
            assert crc32c(body[:used]) == body_crc
            assert body[used:] == bytes(up(used) - used)
            yield kind, (kind, *entry)
        elif kind == 7:
            table, items, place = body[: 16 * count], [], 16 * count
            assert crc32c(table) == body_crc
            for row in range(0, 16 * count, 16):
                item_bytes, item_crc, item_kind, spare = struct.unpack_from("<IIII", table, row)
                item = body[place : place + item_bytes]
                assert crc32c(item) == item_crc
                assert spare == 0
                items.append((item_kind, *entry_of(item, is_put=item_kind == 1)[0]))
                place += up(item_bytes)
            yield kind, items
        else:
            assert crc32c(body) == body_crc or kind == 5
            yield kind, count if kind == 5 else struct.unpack("<QQ", body)
        at += length


def expected_records() -> list[tuple[int, Any]]:
    """The golden records in the same shape."""

    def shape(entry: Any) -> tuple[Any, ...]:
        return (entry.kind, entry.key, entry.value, entry.type, entry.namespace, entry.expires_ms, entry.pinned)

    single = [
        (7 if len(each) > 1 else each[0].kind, list(map(shape, each)) if len(each) > 1 else shape(each[0]))
        for each in make.RECORDS
    ]
    return [*single, (5, 3), (8, (make.MARK.wall_ms, make.MARK.durable_lsn))]


@pytest.mark.parametrize("name", ["log.v1", "log-encrypted.v1"])
def test_the_log(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    assert data[:8] == b"SHMKVLOG"
    assert (u32(data, 8), u32(data, 12)) == (1, 4096)
    assert data[16:32] == make.STORE_ID
    assert [u64(data, at) for at in range(32, 88, 8)] == [
        3, make.FIRST_LSN, 17, 2, make.LOG_HEADER.previous_end_lsn, make.WALL_MS, len(data),
    ]  # fmt: skip
    assert u32(data, 92) == 0
    assert data[144:4092] == bytes(3948)
    assert crc32c(data[:4092]) == u32(data, 4092)
    seed = crc32c(data[16:40])
    if u32(data, 88) == 0:
        assert data[96:144] == bytes(48)
        plain = data[4096:]
    else:
        plain = b"".join(frames_of(data, seed))
    assert list(records_of(plain, seed, make.FIRST_LSN)) == expected_records()


def frames_of(data: bytes, seed: int) -> Iterator[bytes]:
    """The plain log in an encrypted file."""
    assert u32(data, 88) == 1
    cipher, at, lsn = cipher_of(data[96:112], data[112:144]), 4096, make.FIRST_LSN
    while u32(data, at):
        length, first_lsn, raw_bytes = u32(data, at), u64(data, at + 8), u32(data, at + 28)
        assert length == up(32 + raw_bytes + 16)
        assert first_lsn == lsn
        assert crc32c(data[at : at + 4] + data[at + 8 : at + 32], seed) == u32(data, at + 4)
        sealed = data[at + 32 : at + 32 + raw_bytes + 16]
        assert crc32c(sealed) == u32(data, at + 24)
        assert not any(data[at + 32 + raw_bytes + 16 : at + length])
        associated = data[16:56] + data[at : at + 4] + data[at + 8 : at + 24] + data[at + 28 : at + 32]
        yield cipher.decrypt(first_lsn.to_bytes(12, "little"), sealed, associated)
        at, lsn = at + length, lsn + raw_bytes
    assert not any(data[at:])


@pytest.mark.parametrize("name", [name for name in make.FILES if name.startswith(("snapshot", "backup"))])
def test_a_file_of_blocks(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    is_backup = name.startswith("backup")
    assert data[:8] == (b"SHMKVBAK" if is_backup else b"SHMKVSNP")
    assert (u32(data, 8), u32(data, 12)) == (1, 4096)
    assert data[16:32] == make.STORE_ID
    assert [u64(data, at) for at in range(32, 64, 8)] == [3, 0 if is_backup else 5, make.FIRST_LSN, make.WALL_MS]
    assert crc32c(data[:4092]) == u32(data, 4092)
    blocks = list(blocks_of(data))
    kinds = [kind for kind, *_ in blocks]
    assert kinds[0] == 1
    assert kinds[-1] == 4
    info, footer = msgpack.unpackb(blocks[0][2]), msgpack.unpackb(blocks[-1][2])
    assert (info["name"], info["hash_key"], info["stripes"]) == ("golden", make.HASH_KEY, 16)
    images = [image for kind, _, raw in blocks if kind == 2 for image in images_of(raw)]
    expected = {
        (version, each.key, each.value, each.type, each.namespace, each.expires_ms, each.pinned)
        for version, each in make.IMAGES
    }
    assert set(images) == expected
    assert sum(count for kind, count, _ in blocks if kind == 2) == footer["entries"] == len(images)
    assert footer["blocks"] == len(blocks) - 1
    assert footer["raw_bytes"] == sum(len(raw) for *_, raw in blocks[:-1])
    logs = b"".join(raw for kind, _, raw in blocks if kind == 3)
    assert list(records_of(logs, crc32c(data[16:40]), make.FIRST_LSN)) == (expected_records() if is_backup else [])
    assert (footer["end_lsn"], footer["log_end_lsn"]) == (make.END_LSN, make.END_LSN if is_backup else 0)


def blocks_of(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, count, raw bytes) of each block."""
    cipher = cipher_of(data[72:88], data[88:120]) if u32(data, 64) else None
    seed, at, digest, index = crc32c(data[16:40] + data[48:64]), 4096, 0, 0
    while at < len(data):
        head = data[at : at + 48]
        stored_bytes, raw_bytes, kind, flags, count = u32(head, 0), u32(head, 4), head[24], head[25], u32(head, 28)
        stored = data[at + 48 : at + 48 + stored_bytes]
        assert u64(head, 8) == index
        assert head[32:40] == bytes(8)
        assert crc32c(stored) == u32(head, 40)
        assert crc32c(head[:44], seed) == u32(head, 44)
        assert not any(data[at + 48 + stored_bytes : at + 48 + up(stored_bytes)])
        raw, nonce = stored, index.to_bytes(12, "little")
        if kind == 4:
            raw = stored[:raw_bytes]
            assert msgpack.unpackb(raw)["digest"] == digest
            if cipher is not None:
                assert cipher.decrypt(nonce, stored[raw_bytes:], head[4:40] + raw) == b""
        elif cipher is not None:
            raw = cipher.decrypt(nonce, stored, head[4:40])
        if flags & 1:
            raw = zstandard.decompress(raw)
        assert len(raw) == raw_bytes
        digest = crc32c(head[44:48] + head[40:44], digest)
        yield kind, count, raw
        at, index = at + 48 + up(stored_bytes), index + 1
    assert kind == 4


def images_of(raw: bytes) -> Iterator[tuple[Any, ...]]:
    """(version, key, value, type, namespace, expires_ms, pinned) of each entry image."""
    at = 0
    while at < len(raw):
        entry, used = entry_of(raw[at + 12 :], is_put=True)
        assert crc32c(raw[at + 12 : at + 12 + used]) == u32(raw, at + 8)
        yield (u64(raw, at), *entry)
        at += up(12 + used)


@pytest.mark.parametrize(("name", "counter"), [("manifest.v1", 41), ("manifest-snapshots.v1", 42)])
def test_the_manifest(name: str, counter: int) -> None:
    data = (GOLDEN / name).read_bytes()
    assert data[:8] == b"SHMKVMAN"
    assert (u32(data, 8), u64(data, 16)) == (1, counter)
    body = data[32 : 32 + u32(data, 12)]
    assert crc32c(data[:24] + body) == u32(data, 24)
    found = msgpack.unpackb(body)
    assert (found["store_id"], found["incarnation"], found["disowned"]) == (make.STORE_ID, 3, [[9, 11]])
    assert [each["generation"] for each in found["snapshots"]] == ([] if name == "manifest.v1" else [4, 5])


def test_the_export() -> None:
    first, *entries, last = (GOLDEN / "export.v1").read_bytes().decode().removesuffix("\n").split("\n")
    assert json.loads(first) == {"format": "shmkv export", "version": 1, "store": "golden", "wall_ms": make.WALL_MS}
    assert json.loads(last) == {"entries": len(entries)}
    found = [json.loads(line) for line in entries]
    assert found[0] == {"key": "text", "value": "grüß Gott\n"}
    assert found[2]["pinned"] is True
    assert base64.b64decode(found[2]["value"]["$bytes"]) == b"\x00\x01\xfe"
    assert found[1]["value"] == [
        1, {"$int": "-0x20000000000000"}, {"$int": "0x10000000000000000"}, 1.5, -0.0, {"$float": "inf"}, True, None,
    ]  # fmt: skip
    assert found[3]["value"]["$b"] == {"$dict": [["$c", {}]]}
    assert found[4]["value"] == {"$dict": [[1, "one"], [{"$tuple": [2, {"$bytes": "Mw=="}]}, None], [None, 4.25]]}
    assert found[6]["value"] == {"$tuple": [{"$decimal": "1.50"}, {"$uuid": "00000000-0000-0000-0000-000000000007"}]}
