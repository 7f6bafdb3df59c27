"""Encrypted values: nobody without the key sees or changes them, and a wrong key is told from damage."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import aead

import shmkv
from shmkv import codecs, encryption, values
from shmkv.codecs import UnknownCodec
from shmkv.encryption import Encrypted, encrypt_values
from shmkv.errors import CorruptData, WrongKey
from shmkv.values import TYPE_CUSTOM, decode, encode

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
PREFIX = 1 + len(encryption.CODEC_NAME)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> codecs.CodecRegistry:
    fresh = codecs.CodecRegistry()
    monkeypatch.setattr(codecs, "REGISTRY", fresh)
    monkeypatch.setattr(values, "REGISTRY", fresh)
    encrypt_values(KEY)
    return fresh


@pytest.mark.parametrize(
    "value", [None, True, 7, -1.5, b"bytes", "text", [1, (2, {"k": 3})], {1: 2}, 1 << 100, Encrypted("twice")]
)
def test_every_value_comes_back_and_is_nowhere_in_clear(value: Any) -> None:
    kind, data = encode(Encrypted(value))
    assert kind == TYPE_CUSTOM
    assert decode(kind, data) == Encrypted(value)
    assert type(decode(kind, data).value) is type(value)
    nested = encode({"list": [Encrypted(value)]})
    assert decode(*nested) == {"list": [Encrypted(value)]}


def test_content_and_key_are_not_shown() -> None:
    data = encode(Encrypted("4929 0000 1111"))[1]
    assert b"4929" not in data
    assert repr(Encrypted("4929")) == "Encrypted(<str>)"
    assert KEY not in data


def test_equal_values_look_different() -> None:
    assert len({encode(Encrypted("same"))[1] for _ in range(100)}) == 100


def test_every_changed_byte_is_noticed() -> None:
    kind, data = encode(Encrypted("a secret"))
    for at in range(PREFIX, len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises((CorruptData, WrongKey)):
            decode(kind, bytes(changed))
    for length in range(PREFIX, len(data)):
        with pytest.raises(CorruptData):
            decode(kind, data[:length])


def test_another_key_is_a_wrong_key_with_both_ids() -> None:
    stored = encode(Encrypted("a secret")), encode([Encrypted("a secret")])
    encrypt_values(OTHER)
    for kind, data in stored:
        with pytest.raises(WrongKey, match="9618c5c6d9427bcff6beae165dc4560c"):
            decode(kind, data)


def test_older_keys_open_and_the_first_one_seals() -> None:
    kind, data = encode(Encrypted("old"))
    encrypt_values(OTHER, KEY)
    assert decode(kind, data).value == "old"
    new = encode(Encrypted("new"))
    encrypt_values(OTHER.hex())
    assert decode(*new).value == "new"


def test_without_a_key_the_codec_is_named(registry: codecs.CodecRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, data = encode(Encrypted("a secret"))
    monkeypatch.setattr(values, "REGISTRY", codecs.CodecRegistry())
    with pytest.raises(UnknownCodec, match=encryption.CODEC_NAME.replace(".", r"\.")):
        decode(kind, data)
    with pytest.raises(TypeError, match="Encrypted"):
        encode(Encrypted("a secret"))


@pytest.mark.parametrize("key", ["", "abc", "z" * 64, b"short", bytes(33), 7, None, KEY.hex() + "00"])
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises(ValueError, match="openssl rand -hex 32"):
        encrypt_values(key)


def test_without_the_better_cipher_the_other_one_is_used_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with_siv = encode(Encrypted("siv"))
    assert with_siv[1][PREFIX] == encryption.AES_256_GCM_SIV
    monkeypatch.delattr(aead, "AESGCMSIV")
    monkeypatch.setattr(encryption, "GCM_LIMIT", 3)
    encrypt_values(KEY)
    made = [encode(Encrypted(number)) for number in range(3)]
    assert {data[PREFIX] for _, data in made} == {encryption.AES_256_GCM}
    assert [decode(*one).value for one in made] == [0, 1, 2]
    with pytest.raises(WrongKey, match="sealed 3 values"):
        encode(Encrypted(3))
    with pytest.raises(CorruptData, match="cipher 2"):
        decode(*with_siv)


def test_values_in_a_store_are_sealed_in_its_memory() -> None:
    with shmkv.launch() as db:
        db["card"] = Encrypted({"number": "4929 0000 1111"})
        db["open"] = "visible text"
        assert db["card"].value["number"] == "4929 0000 1111"
        with open(f"/dev/shm/shmkv.{db.name}", "rb") as memory:
            content = memory.read()
        assert b"visible text" in content
        assert b"4929 0000 1111" not in content
        assert pickle.loads(pickle.dumps(db))["card"] == db["card"]
