"""Values that are encrypted in memory too: sealed before they reach the arena, opened where they are read.

    from shmkv.encryption import Encrypted, encrypt_values

    encrypt_values(key)                                  # in every process that writes or reads them
    db["card"] = Encrypted({"number": "4929 0000"})      # memory, log, snapshots, backups and sockets see it sealed
    db["card"].value                                     # {"number": "4929 0000"}

Why here: the settings key_file and its like encrypt files; whoever may attach reads the memory all the same. This is
for values that not every attached process, and no export or dump of the memory, may show.

Why no nonce is a danger: it is 96 random bits from the kernel, so also in forked children. With AES-GCM-SIV, which is
used where the library has it, two equal ones would show no more than that two values are equal; with AES-GCM this
module refuses to seal more than 2^32 values under one key in one process.

Invariants:
  I1  A value is opened only by the key that its bytes name; another one is WrongKey, changed bytes are CorruptData.
  I2  Neither a key nor a sealed value's content is in a representation or a message.
  I3  What is sealed is not tied to the store's key under which it lies: who may write to the store can swap two.
"""

from __future__ import annotations

import itertools
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from shmkv import values
from shmkv.codecs import register_codec
from shmkv.errors import CorruptData, WrongKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV

CODEC_NAME: Final = "shmkv.encrypted"
AES_256_GCM, AES_256_GCM_SIV = 1, 2
KEY_BYTES, KEY_ID_BYTES, NONCE_BYTES, TAG_BYTES = 32, 16, 12, 16
GCM_LIMIT: Final = 1 << 32

_PREFIX: Final = struct.Struct(f"<B{KEY_ID_BYTES}s{NONCE_BYTES}s")
_ID_INFO, _VALUE_INFO = b"key id", b"shmkv value aes-256"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, repr=False)
class Encrypted(Generic[T]):
    """A value that is stored sealed; `value` may be of any type that the store takes."""

    value: T

    def __repr__(self) -> str:
        return f"Encrypted(<{type(self.value).__name__}>)"


def encrypt_values(key: bytes | str, *older: bytes | str) -> None:
    """Let this process store and read `Encrypted` values; `older` keys only open what they sealed.

    A key is 32 random bytes, or their 64 hex digits (`openssl rand -hex 32`), and may be that of the data directory.
    Calling it again changes the keys. Raises ValueError for what is no key, ImportError without `cryptography`
    (`pip install shmkv[crypto]`).
    """
    box = _Box(tuple(_key_of(each) for each in (key, *older)))
    register_codec(Encrypted, CODEC_NAME, box.seal, box.open)


class _Box:
    """Seals with the first key, opens with any."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self._ciphers = {_derive(key, _ID_INFO, KEY_ID_BYTES): _Ciphers(key) for key in keys}
        self._current = _derive(keys[0], _ID_INFO, KEY_ID_BYTES)
        self._sealed = itertools.count(1)

    def seal(self, wrapped: Encrypted[Any]) -> bytes:
        kind, data = values.encode(wrapped.value)
        ciphers = self._ciphers[self._current]
        if ciphers.siv is None and next(self._sealed) > GCM_LIMIT:
            raise WrongKey(
                f"this process has sealed {GCM_LIMIT} values with one key; with more of them its random nonces may "
                "repeat: give encrypt_values a new key as its first, or install cryptography 42 or newer"
            )
        used = AES_256_GCM if ciphers.siv is None else AES_256_GCM_SIV
        prefix = _PREFIX.pack(used, self._current, os.urandom(NONCE_BYTES))
        aead = ciphers.gcm if ciphers.siv is None else ciphers.siv
        return prefix + aead.encrypt(prefix[-NONCE_BYTES:], bytes((kind,)) + data, prefix)

    def open(self, stored: bytes) -> Encrypted[Any]:
        from cryptography.exceptions import InvalidTag

        if len(stored) < _PREFIX.size + 1 + TAG_BYTES:
            raise CorruptData(f"an encrypted value of {len(stored)} bytes is too short to be one; write it anew")
        used, key_id, nonce = _PREFIX.unpack_from(stored)
        ciphers = self._ciphers.get(key_id)
        if ciphers is None:
            had = ", ".join(known.hex() for known in self._ciphers)
            raise WrongKey(
                f"the value is sealed with key {key_id.hex()}; this process has {had}: add it to encrypt_values"
            )
        aead = {AES_256_GCM: ciphers.gcm, AES_256_GCM_SIV: ciphers.siv}.get(used)
        if aead is None:
            raise CorruptData(f"the value is sealed with cipher {used}, which this process does not have")
        try:
            plain = aead.decrypt(nonce, stored[_PREFIX.size :], stored[: _PREFIX.size])
        except InvalidTag:
            raise CorruptData("an encrypted value was changed after it was sealed; write it anew") from None
        return Encrypted(values.decode(plain[0], plain[1:]))


class _Ciphers:
    """What one key makes; siv None = the library has no AES-GCM-SIV."""

    def __init__(self, key: bytes) -> None:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.ciphers import aead

        value_key = _derive(key, _VALUE_INFO, KEY_BYTES)
        self.gcm: AESGCM = aead.AESGCM(value_key)
        self.siv: AESGCMSIV | None = None
        if hasattr(aead, "AESGCMSIV"):
            try:
                self.siv = aead.AESGCMSIV(_derive(key, _VALUE_INFO + b" siv", KEY_BYTES))
            except UnsupportedAlgorithm:
                self.siv = None


def _derive(key: bytes, info: bytes, length: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(key)


def _key_of(key: bytes | str) -> bytes:
    if isinstance(key, str):
        try:
            key = bytes.fromhex(key)
        except ValueError:
            raise ValueError(f"a key as text is {2 * KEY_BYTES} hex digits; make one: openssl rand -hex 32") from None
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        size = len(key) if isinstance(key, bytes) else type(key).__name__
        raise ValueError(f"a key is {KEY_BYTES} random bytes, not {size}; make one: openssl rand -hex 32")
    return key
