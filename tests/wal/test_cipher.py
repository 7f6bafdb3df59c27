"""Keys and ciphers: each source gives its keys or says what is wrong, no message shows a key, and a wrong key is told
from damage by its id."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shmkv.errors import CorruptData, WrongKey
from shmkv.wal import cipher
from shmkv.wal.cipher import AES_256_GCM, BadTag, Keyring, KeySettings, UnusableKey, key_id_of, parse_keys

OLD, NEW = bytes(range(32)), bytes(range(32, 64))


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def refusal(settings: KeySettings) -> str:
    with pytest.raises(UnusableKey) as caught:
        Keyring.load(settings)
    for key in (OLD, NEW):
        assert key.hex() not in str(caught.value)
    return str(caught.value)


# ---- derivation --------------------------------------------------------------------------------------------------


def test_keys_are_derived_as_rfc_5869_says() -> None:
    # Appendix A.1, with its key of 22 bytes.
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    info, salt = bytes(range(0xF0, 0xFA)), bytes(range(13))
    assert cipher._hkdf(b"\x0b" * 22, salt, info, 42).hex() == expected


def test_ids_and_file_keys_stay_what_they_are() -> None:
    # Files of older versions are opened by them.
    assert key_id_of(OLD).hex() == "9618c5c6d9427bcff6beae165dc4560c"
    file = Keyring((OLD,)).for_file(AES_256_GCM, key_id_of(OLD), bytes(32), "log")
    assert file is not None
    assert file.seal(7, b"text", b"place").hex() == "a61d49665b83c8eeabba6440cb07641e2fec981b"


def test_every_new_file_has_its_own_salt_and_key() -> None:
    ring = Keyring((OLD,))
    made = [ring.for_new_file() for _ in range(20)]
    assert len({salt for _, _, salt, _ in made}) == 20
    sealed = {file.seal(1, b"same", b"") for _, _, _, file in made if file is not None}
    assert len(sealed) == 20


# ---- opening -----------------------------------------------------------------------------------------------------


def test_whatever_is_changed_is_a_bad_tag() -> None:
    _, _, _, file = Keyring((OLD,)).for_new_file("0000000001.log")
    assert file is not None
    sealed = file.seal(9, b"some text", b"place")
    assert len(sealed) == len(b"some text") + cipher.TAG_BYTES
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(BadTag, match=r"0000000001\.log.*number 9"):
            file.open(9, changed, b"place")
    for nonce, associated in ((8, b"place"), (9, b"other")):
        with pytest.raises(CorruptData):
            file.open(nonce, sealed, associated)


def test_a_file_of_another_key_names_file_and_ids() -> None:
    kind, key_id, salt, _ = Keyring((OLD,)).for_new_file()
    with pytest.raises(WrongKey) as caught:
        Keyring((NEW,)).for_file(kind, key_id, salt, "/data/log/1.log")
    assert "/data/log/1.log" in str(caught.value)
    assert key_id_of(OLD).hex() in str(caught.value)
    assert key_id_of(NEW).hex() in str(caught.value)
    with pytest.raises(WrongKey, match="no key is configured"):
        Keyring.none().for_file(kind, key_id, salt, "/data/log/1.log")


def test_old_keys_open_old_files_and_the_first_key_seals_new_ones() -> None:
    kind, key_id, salt, before = Keyring((OLD,)).for_new_file()
    assert before is not None
    ring = Keyring((NEW, OLD))
    assert ring.current_id == key_id_of(NEW)
    assert ring.for_new_file()[1] == key_id_of(NEW)
    again = ring.for_file(kind, key_id, salt, "log")
    assert again is not None
    assert again.open(1, before.seal(1, b"text", b""), b"") == b"text"


def test_without_keys_files_stay_in_clear() -> None:
    ring = Keyring.load(KeySettings())
    assert not ring.is_on
    assert ring.for_new_file() == (0, bytes(16), bytes(32), None)
    assert ring.for_file(0, bytes(16), bytes(32), "log") is None


def test_an_unknown_cipher_is_no_wrong_key() -> None:
    with pytest.raises(CorruptData, match="cipher 9"):
        Keyring((OLD,)).for_file(9, key_id_of(OLD), bytes(32), "log")


def test_a_ring_shows_ids_and_never_keys() -> None:
    ring = Keyring((OLD, NEW))
    text = f"{ring!r} {ring!s} {ring.for_new_file()[3]!r}"
    assert key_id_of(OLD).hex() in text
    assert OLD.hex() not in text
    assert repr(OLD) not in text


# ---- sources -----------------------------------------------------------------------------------------------------


def test_a_key_is_hex_or_base64_and_comments_do_not_count() -> None:
    text = f"# current\n{NEW.hex()}\n\n  {base64.b64encode(OLD).decode()} # until the end of the year\n"
    assert parse_keys(text.encode(), "here") == (NEW, OLD)
    assert parse_keys(base64.urlsafe_b64encode(bytes([255] * 32)), "here") == (bytes([255] * 32),)
    assert parse_keys(f"{OLD.hex().upper()} {NEW.hex()} {OLD.hex()}".encode(), "here") == (OLD, NEW)


@pytest.mark.parametrize("text", ["", "# nothing\n", OLD.hex()[:-2], OLD.hex() + "00", "z" * 64, "password", "\udcff"])
def test_what_is_no_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(UnusableKey, match="openssl rand -hex 32") as caught:
        parse_keys(text.encode(errors="surrogateescape"), "key_file 'x'")
    assert not text.strip("# \n") or text not in str(caught.value).replace("'x'", "")


def test_a_key_file_is_read(tmp_path: Path) -> None:
    assert Keyring.load(KeySettings(file=key_file(tmp_path, f"{NEW.hex()}\n{OLD.hex()}\n"))).ids == (
        key_id_of(NEW),
        key_id_of(OLD),
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o660])
def test_a_key_file_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, OLD.hex(), mode)
    assert f"chmod 600 {path}" in refusal(KeySettings(file=path))


def test_a_missing_key_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(KeySettings(file=str(tmp_path / "none")))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "no ordinary file" in refusal(KeySettings(file=str(tmp_path / "pipe")))


def test_a_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_KEY", OLD.hex())
    assert Keyring.load(KeySettings(environment="STORE_KEY")).current_id == key_id_of(OLD)
    monkeypatch.delenv("STORE_KEY")
    assert "STORE_KEY" in refusal(KeySettings(environment="STORE_KEY"))


def test_a_command_is_run_without_a_shell(tmp_path: Path) -> None:
    path = key_file(tmp_path, OLD.hex())
    assert Keyring.load(KeySettings(command=f"cat {path}")).current_id == key_id_of(OLD)
    spaced = tmp_path / "a b;c"
    spaced.write_text(NEW.hex())
    assert Keyring.load(KeySettings(command=f"cat '{spaced}'")).current_id == key_id_of(NEW)
    assert "exit code 1" in refusal(KeySettings(command=f"cat {path} | cat"))


def test_a_command_that_fails_says_what_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "exit code 3" in refusal(KeySettings(command="sh -c 'exit 3'"))
    assert "No such file" in refusal(KeySettings(command="/no/such/program --token secret"))
    assert "secret" not in refusal(KeySettings(command="/no/such/program --token secret"))
    assert "holds no key" in refusal(KeySettings(command="true"))
    assert "no command line" in refusal(KeySettings(command="cat 'unfinished"))
    assert "more than" in refusal(KeySettings(command="head -c 100000 /dev/zero"))
    monkeypatch.setattr(cipher, "COMMAND_TIMEOUT_S", 0.05)
    assert "within 0.05 s" in refusal(KeySettings(command="sleep 10"))


def test_a_credential_is_read_from_the_folder_of_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cipher.CREDENTIALS_DIRECTORY, raising=False)
    assert "LoadCredential=key" in refusal(KeySettings(credential="key"))
    monkeypatch.setenv(cipher.CREDENTIALS_DIRECTORY, str(tmp_path))
    key_file(tmp_path, OLD.hex(), 0o440)
    assert Keyring.load(KeySettings(credential="key")).current_id == key_id_of(OLD)
    assert "slash" in refusal(KeySettings(credential="../key"))


def test_two_sources_are_refused(tmp_path: Path) -> None:
    text = refusal(KeySettings(file=key_file(tmp_path, OLD.hex()), environment="STORE_KEY"))
    assert "key_file" in text
    assert "key_environment" in text


@pytest.mark.parametrize("setting", ["file", "environment", "command", "credential"])
def test_a_key_in_place_of_its_source_is_not_repeated(setting: str) -> None:
    assert "holds a key itself" in refusal(KeySettings(**{setting: OLD.hex()}))


def test_reload_takes_the_new_keys_or_keeps_the_old_ones(tmp_path: Path) -> None:
    path = Path(key_file(tmp_path, OLD.hex()))
    ring = Keyring.load(KeySettings(file=str(path)))
    path.write_text(f"{NEW.hex()}\n{OLD.hex()}\n")
    ring.reload()
    assert ring.ids == (key_id_of(NEW), key_id_of(OLD))
    path.write_text("half a k")
    with pytest.raises(UnusableKey):
        ring.reload()
    assert ring.ids == (key_id_of(NEW), key_id_of(OLD))


# ---- imports -----------------------------------------------------------------------------------------------------


def test_cryptography_is_imported_only_for_a_key() -> None:
    code = (
        "import sys; from shmkv.wal.cipher import Keyring, KeySettings; import shmkv.wal.start\n"
        "ring = Keyring.load(KeySettings()); ring.for_new_file(); ring.for_file(0, b'', b'', '')\n"
        "sys.exit('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.kdf.hkdf", None)
    with pytest.raises(UnusableKey, match=r"pip install shmkv\[crypto\]"):
        Keyring((OLD,))
