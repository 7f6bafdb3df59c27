"""Keys and ciphers of the files on disk: where keys come from, and what seals the bytes of one file.

Why here: log, snapshots and backups must agree on how a file is tied to a key, and on what is said when the key is not
the right one. Why no nonce is used twice: frame.py for the log, block.py for files of blocks.

Invariants:
  I1  A master key encrypts nothing: each file has its own key, HKDF-SHA256 of the master key and of 32 random bytes
      that stand in the file's header block. Whoever makes a file makes its salt.
  I2  A key is recognised by its id, never by trying: another key than the file's is WrongKey, and a bad tag under the
      right key is CorruptData.
  I3  No key, and no text that a key was read from, is in a message, a representation or an argument of a process.
  I4  `cryptography` is imported only where a key is used.
"""

from __future__ import annotations

import binascii
import os
import stat
from collections.abc import Callable, Collection

from shmkv.dataclass import dataclass
from shmkv.errors import CorruptData, WrongKey

KEY_BYTES = 32
KEY_ID_BYTES = 16
SALT_BYTES = 32
TAG_BYTES = 16
NONCE_BYTES = 12

CLEAR, AES_256_GCM = 0, 1

SOURCE_LIMIT_BYTES = 64 << 10
COMMAND_TIMEOUT_S = 30.0
CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"

NO_KEY_ID = bytes(KEY_ID_BYTES)
NO_SALT = bytes(SALT_BYTES)
_ID_INFO = b"key id"
_FILE_INFO = b"shmkv file aes-256-gcm"


class UnusableKey(WrongKey):
    """A source of keys that gives none: it is missing, open to others, or holds something else."""


class KeySourceFailed(UnusableKey):
    """A key command that failed or hung: it may work the next time."""


class BadTag(CorruptData):
    """Sealed bytes that were changed, or that belong elsewhere: the key is right, the authentication tag is not."""


@dataclass(frozen=True, slots=True)
class KeySettings:
    """Where the keys come from; at most one of the four is set, "" = not this one.

    file: path of a file that only its owner can read. environment: name of a variable. command: a command line, run
    without a shell, that prints the keys. credential: name of a systemd credential.
    """

    file: str = ""
    environment: str = ""
    command: str = ""
    credential: str = ""

    @property
    def chosen(self) -> tuple[tuple[str, str], ...]:
        """(setting, value) of those that are set."""
        values = (
            ("key_file", self.file), ("key_environment", self.environment),
            ("key_command", self.command), ("key_credential", self.credential),
        )  # fmt: skip
        return tuple((name, value) for name, value in values if value)


class FileCipher:
    """Seals and opens pieces of one file with that file's own key; safe to use from several threads."""

    __slots__ = ("_aead", "_encrypt_into", "_invalid", "path")

    def __init__(self, file_key: bytes, path: str = "") -> None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._aead = AESGCM(file_key)
        # Older versions of the library have none.
        self._encrypt_into = getattr(self._aead, "encrypt_into", None)
        self._invalid = InvalidTag
        self.path = path

    def seal(self, nonce: int, data: bytes | bytearray | memoryview, associated: bytes) -> bytes:
        """Ciphertext and tag of data, TAG_BYTES longer than it; the same nonce must never come again for this file."""
        return self._aead.encrypt(nonce.to_bytes(NONCE_BYTES, "little"), data, associated)

    def seal_into(self, nonce: int, data: memoryview, associated: bytes, target: memoryview) -> None:
        """The same, into a buffer of exactly that size: half the cost, because no fresh memory is touched."""
        if self._encrypt_into is None:
            target[:] = self.seal(nonce, data, associated)
        else:
            self._encrypt_into(nonce.to_bytes(NONCE_BYTES, "little"), data, associated, target)

    def open(self, nonce: int, data: bytes | bytearray | memoryview, associated: bytes) -> bytes:
        """The data that seal was given. Raises BadTag, which is CorruptData."""
        try:
            return self._aead.decrypt(nonce.to_bytes(NONCE_BYTES, "little"), data, associated)
        except self._invalid:
            raise BadTag(
                f"{self.path or 'sealed data'}: the piece with number {nonce} was changed after it was written, or "
                "belongs to another place: its authentication tag does not match, though the key is the right one"
            ) from None


class Keyring:
    """The master keys of a store, the current one first; a ring without keys leaves new files in clear."""

    def __init__(
        self,
        keys: tuple[bytes, ...] = (),
        *,
        settings: KeySettings | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._settings = settings
        self._random = random
        self._keys = _by_id(keys)

    def __repr__(self) -> str:
        return f"Keyring({', '.join(key_id.hex() for key_id in self.ids) or 'no key'})"

    @staticmethod
    def none() -> Keyring:
        """A ring without keys."""
        return Keyring()

    @staticmethod
    def load(settings: KeySettings) -> Keyring:
        """The ring that the settings lead to; one without keys if none is set.

        Raises UnusableKey, which names the source and the remedy. Blocks while a key command runs, up to
        COMMAND_TIMEOUT_S.
        """
        return Keyring(read_keys(settings), settings=settings) if settings.chosen else Keyring()

    @property
    def file(self) -> str:
        """Path of the file that the keys come from, "" if they come from elsewhere."""
        return "" if self._settings is None else self._settings.file

    def reload(self, needed: Collection[bytes] = ()) -> None:
        """Read the source again: files that are made from now on use the key that is first there now.

        needed: ids of keys that must be among them. Raises UnusableKey; the ring is then as before. Blocks as load
        does.
        """
        if self._settings is None:
            raise UnusableKey(
                "no key is configured: set key_file (or another of the key settings) and restart the store"
            )
        found = _by_id(read_keys(self._settings))
        missing = [key_id.hex() for key_id in needed if key_id not in found]
        if missing:
            raise UnusableKey(
                f"{self._settings.chosen[0][0]} does not give the keys {', '.join(missing)} any more, but files of the "
                "store still need them: put them back behind the new one until a rotation says that they are not used"
            )
        self._keys = found

    @property
    def is_on(self) -> bool:
        """Whether new files are encrypted."""
        return bool(self._keys)

    @property
    def ids(self) -> tuple[bytes, ...]:
        """Ids of the keys, the current one first."""
        return tuple(self._keys)

    @property
    def current_id(self) -> bytes:
        """Id of the key for new files, zeros without keys."""
        return next(iter(self._keys), NO_KEY_ID)

    def for_new_file(self, path: str = "") -> tuple[int, bytes, bytes, FileCipher | None]:
        """(cipher, key id, salt, FileCipher) for the header block of a file that is made now; its salt is new."""
        for key_id, key in self._keys.items():
            salt = self._random(SALT_BYTES)
            return AES_256_GCM, key_id, salt, FileCipher(_file_key(key, salt), path)
        return CLEAR, NO_KEY_ID, NO_SALT, None

    def for_file(self, cipher: int, key_id: bytes, salt: bytes, path: str) -> FileCipher | None:
        """What opens that file, None if it is in clear. Raises WrongKey; CorruptData for an unknown cipher."""
        if cipher == CLEAR:
            return None
        if cipher != AES_256_GCM:
            raise CorruptData(
                f"{path} is encrypted with cipher {cipher}; this program knows {AES_256_GCM} (AES-256-GCM)"
            )
        key = self._keys.get(key_id)
        if key is None:
            had = ", ".join(known.hex() for known in self._keys)
            raise WrongKey(
                f"{path} is encrypted with key {key_id.hex()}, but "
                + (f"only {had} is configured" if had else "no key is configured")
                + "; add that key, on a line of its own, to what key_file, key_environment, key_command or "
                "key_credential leads to"
            )
        return FileCipher(_file_key(key, salt), path)


def _by_id(keys: tuple[bytes, ...]) -> dict[bytes, bytes]:
    return {key_id_of(key): key for key in keys}


def key_id_of(key: bytes) -> bytes:
    """What names a master key in file headers and messages; tells nothing about it."""
    return _hkdf(key, None, _ID_INFO, KEY_ID_BYTES)


def _file_key(key: bytes, salt: bytes) -> bytes:
    return _hkdf(key, salt, _FILE_INFO, KEY_BYTES)


def _hkdf(key: bytes, salt: bytes | None, info: bytes, length: int) -> bytes:
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as missing:
        raise UnusableKey(
            f"a key is configured, but encryption needs a package that is not here ({missing}): "
            "pip install shmkv[crypto]"
        ) from None
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


# ---- sources -----------------------------------------------------------------------------------------------------


def read_keys(settings: KeySettings) -> tuple[bytes, ...]:
    """The keys of the one source that is set, the current one first. Raises UnusableKey."""
    chosen = settings.chosen
    if len(chosen) != 1:
        names = " and ".join(name for name, _ in chosen) or "none"
        raise UnusableKey(
            f"{names} of the settings for keys are set; keys come from exactly one place: set one of them"
        )
    setting, value = chosen[0]
    if _parse_key(value.encode()) is not None:
        raise UnusableKey(
            f"{setting} holds a key itself, not the place of one; settings are shown in many places: take it out, make "
            "a new key, and put that where the setting then leads to"
        )
    place = f"{setting} {value!r}" if setting != "key_command" else setting
    text = _READERS[setting](value, place)
    if len(text) > SOURCE_LIMIT_BYTES:
        raise UnusableKey(f"{place} gives more than {SOURCE_LIMIT_BYTES} bytes; it should give one key a line")
    return parse_keys(text, place)


def parse_keys(text: bytes, place: str) -> tuple[bytes, ...]:
    """Keys out of lines: 64 hex digits or base64 of 32 bytes; what follows a # does not count."""
    keys: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.split(b"#")[0].split():
            key = _parse_key(word)
            if key is None:
                raise UnusableKey(
                    f"line {number} of {place} is no key: it has {len(word)} characters; a key is {KEY_BYTES} random "
                    f"bytes, as {2 * KEY_BYTES} hex digits or in base64: make one with `openssl rand -hex {KEY_BYTES}`"
                )
            keys.append(key)
    if not keys:
        raise UnusableKey(f"{place} holds no key; make one with `openssl rand -hex {KEY_BYTES}`")
    return tuple(dict.fromkeys(keys))


def _parse_key(word: bytes) -> bytes | None:
    try:
        if len(word) == 2 * KEY_BYTES:
            return binascii.unhexlify(word)
        key = binascii.a2b_base64(word.translate(bytes.maketrans(b"-_", b"+/")), strict_mode=True)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None


def read_keys_of_file(path: str) -> bytes:
    """The content of a key file, checked as at a start. Raises UnusableKey."""
    place = f"key_file {path!r}"
    text = _read_file(path, place)
    parse_keys(text, place)
    return text


def _read_file(path: str, place: str) -> bytes:
    return _read_private(path, place, lambda mode: stat.S_IMODE(mode) & 0o077 == 0)


def _read_credential(name: str, place: str) -> bytes:
    directory = os.environ.get(CREDENTIALS_DIRECTORY)
    if not directory:
        raise UnusableKey(
            f"{place} is set, but ${CREDENTIALS_DIRECTORY} is not: give the unit LoadCredential={name}:/path/to/key "
            f"or LoadCredentialEncrypted={name}"
        )
    if "/" in name or name in (".", ".."):
        raise UnusableKey(f"{place} is no name of a credential: it must not hold a slash")
    # systemd guards the folder; an access list that it puts on the file shows as group permission.
    return _read_private(os.path.join(directory, name), place, lambda _mode: True)


def _read_private(path: str, place: str, is_private: Callable[[int], bool]) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UnusableKey(f"{place} cannot be read: {error.strerror}; check the path and who owns it") from None
    with open(fd, "rb") as file:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise UnusableKey(f"{place} is no ordinary file; name the file that holds the key")
        if not is_private(mode):
            raise UnusableKey(
                f"{place} can be read or changed by others (mode {stat.S_IMODE(mode):04o}); run `chmod 600 {path}`, "
                "and if others may have seen it, change the key"
            )
        return file.read(SOURCE_LIMIT_BYTES + 1)


def _read_environment(name: str, place: str) -> bytes:
    text = os.environb.get(os.fsencode(name))
    if text is None:
        raise UnusableKey(f"{place} names a variable that is not in the environment of the supervisor")
    return text


def _read_command(command: str, place: str) -> bytes:
    import shlex
    import subprocess

    try:
        words = shlex.split(command)
    except ValueError as problem:
        raise UnusableKey(f"{place} is no command line: {problem}") from None
    if not words:
        raise UnusableKey(f"{place} is empty")
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise KeySourceFailed(
            f"{place} ({words[0]}) gave no key within {COMMAND_TIMEOUT_S:g} s and was ended; run it by hand to see why"
        ) from None
    except OSError as error:
        raise UnusableKey(f"{place} ({words[0]}) cannot be run: {error.strerror}") from None
    if done.returncode:
        raise KeySourceFailed(
            f"{place} ({words[0]}) failed with exit code {done.returncode}; run it by hand to see why"
        )
    return done.stdout


_READERS: dict[str, Callable[[str, str], bytes]] = {
    "key_file": _read_file,
    "key_environment": _read_environment,
    "key_command": _read_command,
    "key_credential": _read_credential,
}
