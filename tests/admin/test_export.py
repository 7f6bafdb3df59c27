"""`export` and `import`: what goes out comes in; nothing that was cut off or changed does."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmkv
from shmkv.admin import command_export, command_import
from shmkv.admin.export_file import ExportReader, check_whole, entry_line, first_line, last_line
from shmkv.admin.progress import Silent
from tests.admin.test_admin import Start, admin, document
from tests.admin.test_portable import VALUES
from tests.conftest import ROOT, Places

Launch = Callable[..., Any]


def entries_of(store: shmkv.Store) -> dict[Any, Any]:
    """Key to (stored value, expiry, flags, size)."""
    from shmkv.values import encode

    return {key: (encode(found[0]), *found[2:]) for key in store if (found := store._entry(key)) is not None}


def exported(store: shmkv.Store) -> bytes:
    stream = io.BytesIO()
    command_export.write(store, stream, Silent())
    return stream.getvalue()


def load(store: shmkv.Store, data: bytes, *, skip_existing: bool = False) -> command_import.Counts:
    return command_import.load(store, ExportReader(io.BytesIO(data), "x"), Silent(), skip_existing=skip_existing)


def export_of(*entries: bytes) -> bytes:
    return b"".join((first_line("x", 1), *entries, last_line(len(entries))))


def test_everything_comes_back_with_expiry_to_the_ms_and_pin(launched: Launch) -> None:
    db = launched(memory="64MB")
    for number, value in enumerate(VALUES):
        expires_at = 4e9 + number / 1000 if number % 2 else None
        db.set(f"key {number}", value, pin=number % 3 == 0, expires_at=expires_at)
    db.set_many({"": "empty", b"\xff\xfe": 1, b"text": 2, "\0\n": 3})
    before = entries_of(db)
    data = exported(db)
    db.clear()
    assert load(db, data) == command_import.Counts(imported=len(before))
    assert entries_of(db) == before


def test_an_expired_entry_is_left_out(launched: Launch) -> None:
    db = launched()
    data = export_of(entry_line("old", 1, expires_ms=1000), entry_line("new", 2))
    assert load(db, data) == command_import.Counts(imported=1, expired=1)
    assert dict(db) == {"new": 2}


def test_existing_keys_keep_their_value_or_get_the_new_one(launched: Launch) -> None:
    db = launched()
    data = export_of(entry_line("a", "file"), entry_line("b", "file"))
    db.update({"a": "store", "c": "store"})
    assert load(db, data, skip_existing=True) == command_import.Counts(imported=1, skipped=1)
    assert dict(db) == {"a": "store", "b": "file", "c": "store"}
    assert load(db, data) == command_import.Counts(imported=2)
    assert dict(db) == {"a": "file", "b": "file", "c": "store"}


def test_the_last_of_two_lines_with_one_key_wins(launched: Launch) -> None:
    db = launched()
    load(db, export_of(entry_line("a", 1), entry_line("a", 2, expires_ms=4_000_000_000_000), entry_line("a", 3)))
    assert dict(db) == {"a": 3}
    assert db.ttl("a") is None


def test_a_line_that_the_store_refuses_is_named(launched: Launch) -> None:
    db = launched()
    too_long = entry_line("k" * 70000, 1)
    with pytest.raises(Exception, match=r"x, line 3: .*65,?535.*1 entries were set and stay"):
        load(db, export_of(entry_line("a", 1), too_long, entry_line("b", 1)))
    assert dict(db) == {"a": 1}


WHOLE = export_of(entry_line("a", 1), entry_line("b", [2, (3,)], pinned=True), entry_line(b"\xff", "x", expires_ms=5))


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_truncated_file_is_refused_wherever_it_ends(length: int) -> None:
    with pytest.raises(shmkv.CorruptData, match=r"cut off|no export"):
        check_whole(io.BytesIO(WHOLE[:length]), "x")
    with pytest.raises(shmkv.CorruptData, match=r"x, line \d+: .*cut off|no export"):
        list(ExportReader(io.BytesIO(WHOLE[:length]), "x"))


def test_a_whole_file_is_whole() -> None:
    assert check_whole(io.BytesIO(WHOLE), "x") == 3
    assert [line[1:5] for line in ExportReader(io.BytesIO(WHOLE), "x")] == [
        ("a", 1, 0, False), ("b", [2, (3,)], 0, True), (b"\xff", "x", 5, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "line 3"), (b"{}", "no 'key'"), (b"[]", "object"), (b"5", "object"), (b'{"key":1,"value":1}', "int"),
        (b'{"key":"a"}', "no 'value'"), (b'{"key":"a","value":1,"more":2}', "more"),
        (b'{"key":"a","value":NaN}', "NaN"),
        (b'{"key":"a","value":1}{}', "more behind"), (b'{"key":"a","value":1,"expires_ms":-1}', "expires_ms"),
        (b'{"key":"a","value":1,"expires_ms":true}', "expires_ms"), (b'{"key":"a","value":1,"pinned":1}', "pinned"),
        (b'{"key":"a","value":"\xff"}', "utf-8"), (b'{"key":"a","value":"\\uD800"}', "surrogate"),
        (b'{"key":"\\ud800","value":1}', "surrogate"),
        (b'{"key":"a","value":' + b"[" * 9999 + b"]" * 9999 + b"}", "recursion"),
        (b'{"entries":1}', "more behind the last line"), (b'{"entries":2}', "2 entries, but 1"),
        (b'{"entries":true}', "True"),
        (b'{"key":"a","value":' + b"1" * 5000 + b"}", "4300"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_with_its_number(line: bytes, problem: str) -> None:
    data = b"".join((first_line("x", 1), entry_line("a", 1), line, b"\n", last_line(2)))
    with pytest.raises(shmkv.CorruptData, match=r"^x, line [34]: ") as caught:
        list(ExportReader(io.BytesIO(data), "x"))
    assert problem in str(caught.value)


def test_a_newer_version_is_refused_by_its_number() -> None:
    with pytest.raises(shmkv.CorruptData, match="version 2"):
        ExportReader(io.BytesIO(b'{"format":"shmkv export","version":2}\n'), "x")


def test_a_file_without_lines_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(1 << 40)
    with (tmp_path / "large").open("rb") as stream, pytest.raises(shmkv.CorruptData, match="no export"):
        ExportReader(stream, "large")


def test_values_of_codecs_that_the_command_does_not_have_pass_through(launched: Launch) -> None:
    db = launched()
    made = "import shmkv\nclass P: pass\nshmkv.register_codec(P, 'test.export', lambda p: b'data', lambda d: P())\n"
    fill = f"{made}db = shmkv.attach({db.name!r}); db['p'] = P(); db['q'] = [(P(),)]"
    subprocess.run([sys.executable, "-c", fill], cwd=ROOT, check=True, timeout=60)
    data = exported(db)
    assert b'{"key":"p","value":{"$codec":["test.export","ZGF0YQ=="]}}' in data
    db.clear()
    load(db, data)
    see = f"{made}db = shmkv.attach({db.name!r}); assert type(db['p']) is P and type(db['q'][0][0]) is P"
    subprocess.run([sys.executable, "-c", see], cwd=ROOT, check=True, timeout=60)


# ---- as commands -------------------------------------------------------------------------------------------------


def test_from_one_store_to_another_by_file_and_by_pipe(places: Places, supervised: Start, tmp_path: Path) -> None:
    old, new, third = places.name("old"), places.name("new"), places.name("third")
    for name in (old, new, third):
        supervised(name, "--memory-only")
    with shmkv.attach(old) as db:
        db.set_many({f"key {number}": (number, str(number)) for number in range(5000)})
        db.set("soon", 1, ttl=1000)
        content = entries_of(db)
    file = tmp_path / "out.jsonl"
    assert document("-s", old, "export", str(file), "--json")["entries"] == 5001
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.glob("out*")] == ["out.jsonl"]
    done = document("-s", new, "import", str(file), "--json")
    assert (done["imported"], done["skipped"], done["expired"]) == (5001, 0, 0)
    run = f"{sys.executable} -m shmkv.admin.cli -s"
    command = f"{run} {new} export - | {run} {third} import -"
    subprocess.run(command, shell=True, cwd=ROOT, check=True, timeout=60, capture_output=True)
    for name in (new, third):
        with shmkv.attach(name) as db:
            assert entries_of(db) == content


def test_a_store_with_entries_needs_a_decision(places: Places, supervised: Start, tmp_path: Path) -> None:
    name = places.name()
    supervised(name, "--memory-only")
    file = tmp_path / "file.jsonl"
    file.write_bytes(WHOLE)
    admin("-s", name, "set", "a", "mine")
    refusal = admin("-s", name, "import", str(file), check=1).stderr
    assert "--replace" in refusal
    assert "--skip-existing" in refusal
    assert admin("-s", name, "get", "a").stdout == "mine\n"
    admin("-s", name, "import", str(file), "--replace", "--skip-existing", check=2)
    assert "2 were there already" not in admin("-s", name, "import", str(file), "--skip-existing").stdout
    assert admin("-s", name, "get", "a").stdout == "mine\n"
    assert "1 had expired" in admin("-s", name, "import", str(file), "--replace").stdout
    assert admin("-s", name, "get", "a").stdout == "1\n"


def test_a_truncated_file_changes_nothing(places: Places, supervised: Start, tmp_path: Path) -> None:
    name = places.name()
    supervised(name, "--memory-only")
    file = tmp_path / "file.jsonl"
    file.write_bytes(WHOLE[:-3])
    assert "cut off" in admin("-s", name, "import", str(file), check=1).stderr
    assert json.loads(admin("-s", name, "keys", "--json").stdout) == []
    assert "no export" in admin("-s", name, "import", str(ROOT / "README.md"), check=1).stderr
    assert "No such file" in admin("-s", name, "import", str(tmp_path / "none"), check=1).stderr


def test_a_failed_export_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file, old = tmp_path / "file.jsonl", export_of()
    file.write_bytes(old)
    with pytest.raises(ZeroDivisionError), command_export.output(str(file)) as stream:
        stream.write(b"new")
        raise ZeroDivisionError
    assert file.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["file.jsonl"]
    with command_export.output(str(file)) as stream:
        stream.write(b"new")
    assert file.read_bytes() == b"new"
    with command_export.output("/dev/null") as stream:
        stream.write(b"new")
    with pytest.raises(FileExistsError, match="no export"), command_export.output(str(file)):
        pytest.fail("the work began")
    assert file.read_bytes() == b"new"


@pytest.mark.slow
def test_memory_stays_flat(launched: Launch, tmp_path: Path) -> None:
    db = launched(memory="400MB")
    for start in range(0, 300000, 1000):
        db.set_many({f"key {number}": "x" * 500 for number in range(start, start + 1000)})
    file, peak = str(tmp_path / "file"), []
    for command in (["export", file], ["import", file, "--replace"]):
        began_s = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "shmkv.admin.cli", "-s", db.name, *command], cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert 300000 / (time.monotonic() - began_s) > 10000
        peak.append(usage.ru_maxrss * 1024 - os.stat(f"/dev/shm/shmkv.{db.name}").st_size)
    # What is mapped of the store counts, too; of the file, 150 MB, nearly nothing may.
    assert max(peak) < 60 << 20, peak
