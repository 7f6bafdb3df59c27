"""What `import shmkv` gives, what it costs, and what it must not load."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shmkv
from shmkv import errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shmkv"

BUILT_INS = {
    "KeyNotFound": KeyError, "StoreNotFound": FileNotFoundError, "StoreExists": FileExistsError,
    "StoreUnavailable": ConnectionError,
    "InvalidName": ValueError, "ReadOnly": PermissionError, "MemoryLimitExceeded": MemoryError,
    "KeyTooLarge": ValueError,
    "ValueTooLarge": ValueError, "TransactionConflict": RuntimeError, "LockTimeout": TimeoutError,
    "LogStalled": TimeoutError,
    "DiskFull": OSError, "DurabilityUnknown": RuntimeError, "CorruptData": ValueError,
    "IncompatibleStore": ValueError, "WrongKey": ValueError,
    "UnknownCodec": ValueError,
}  # fmt: skip

HEAVY = {"numpy", "click", "rich", "psutil", "msgspec", "msgpack", "asyncio", "subprocess", "multiprocessing",
         "decimal", "uuid", "zoneinfo",
         "tomllib", "json", "logging", "socket", "shmkv.values", "shmkv.arrays", "shmkv.codecs", "shmkv.stats",
         "shmkv.supervisor", "shmkv.wal"}  # fmt: skip


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", shmkv.__all__)
def test_every_exported_name_is_there_and_documented(name: str) -> None:
    value = getattr(shmkv, name)
    assert name in dir(shmkv)
    assert inspect.getdoc(value)


@pytest.mark.parametrize("name", BUILT_INS)
def test_every_error_is_a_shmkv_error_and_the_built_in_that_fits(name: str) -> None:
    kind = getattr(shmkv, name)
    assert issubclass(kind, shmkv.ShmkvError)
    assert issubclass(kind, BUILT_INS[name])


def test_no_error_is_missing() -> None:
    defined = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.ShmkvError)
    }
    assert defined <= set(shmkv.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        shmkv.no_such_thing  # noqa: B018


@pytest.mark.parametrize("name", shmkv.__all__)
def test_no_module_has_an_exported_name_that_importing_it_would_replace(name: str) -> None:
    assert not (PACKAGE / f"{name}.py").exists()
    assert not (PACKAGE / name).exists()


def test_import_loads_nothing_heavy() -> None:
    loaded = set(
        run("import sys; before = set(sys.modules); import shmkv; print(*(set(sys.modules) - before))").split()
    )
    assert loaded & HEAVY == set()


def test_import_is_fast() -> None:
    program = "import time; begun = time.process_time(); import shmkv; print(time.process_time() - begun)"
    assert min(float(run(program)) for _ in range(5)) < 0.06


def test_numbers_and_texts_need_no_codec(launched: object) -> None:
    program = (
        "import sys, shmkv\n"
        "db = shmkv.attach(sys.argv[1])\n"
        "db.update({'a': 1, 'b': 'text', 'c': b'bytes', 'd': None, 'e': 1.5, 'f': True})\n"
        "db.incr('a', 0.5); list(db.items()); db.modify('a', abs)\n"
        "sys.exit('msgpack' in sys.modules)"
    )
    store = launched()  # type: ignore[operator]
    subprocess.run([sys.executable, "-c", program, store.name], cwd=ROOT, check=True)


def test_public_signatures_are_those_of_the_manual() -> None:
    assert str(inspect.signature(shmkv.attach)).startswith(
        "(name: 'str', timeout: 'float | timedelta' = 5.0, read_only: 'bool' = False"
    )
    assert list(inspect.signature(shmkv.Store.get).parameters) == ["self", "key", "default"]
    assert list(inspect.signature(shmkv.Store.set).parameters) == [
        "self", "key", "value", "ttl", "expires_at", "keep_ttl", "if_absent", "if_present", "if_version", "pin",
        "durability"
    ]  # fmt: skip
    assert list(inspect.signature(shmkv.Store.incr).parameters) == ["self", "key", "amount", "initial", "ttl"]
    assert list(inspect.signature(shmkv.Store.modify).parameters) == ["self", "key", "function", "default", "ttl"]
    assert list(inspect.signature(shmkv.Store.scan).parameters) == ["self", "prefix", "match"]
    assert list(inspect.signature(shmkv.launch).parameters)[:5] == [
        "name",
        "memory",
        "data_dir",
        "expected_items",
        "eviction",
    ]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)


def test_typing_examples_hold(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--cache-dir",
        str(tmp_path),
        "--config-file",
        str(ROOT / "pyproject.toml"),
        str(ROOT / "tests/typing/api.py"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
