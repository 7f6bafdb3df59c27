"""Iteration: what is selected, what is promised while others write; and what a full store does."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest

import shmkv


def test_scan_selects_by_prefix_and_glob(db: shmkv.Store) -> None:
    keys = ["user:1", "user:2", "user:10", "users", "User:1", "other", "", "a*b", "a]b", "naïve", "line\nfeed"]
    db.update(dict.fromkeys([*keys, b"user:\xff", b"\xff"], 1))
    assert set(db.scan(prefix="user:")) == {"user:1", "user:2", "user:10", b"user:\xff"}
    assert set(db.scan(prefix="")) == set(db)
    assert set(db.scan(prefix=b"\xff")) == {b"\xff"}
    assert set(db.scan(prefix="naï".encode()[:-1])) == {"naïve"}
    assert set(db.scan(match="user:?")) == {"user:1", "user:2", b"user:\xff"}
    assert set(db.scan(match="user:[0-1]*")) == {"user:1", "user:10"}
    assert set(db.scan(match="[uU]ser:1")) == {"user:1", "User:1"}
    assert set(db.scan(match="[^u]*")) == set(keys) - {"", "user:1", "user:2", "user:10", "users"} | {b"\xff"}
    assert set(db.scan(match=r"a\*b")) == {"a*b"}
    assert set(db.scan(match="a[]]b")) == set()
    assert set(db.scan(match=r"a[\]]b")) == {"a]b"}
    assert set(db.scan(match="*")) == set(db)
    assert set(db.scan(match="")) == {""}
    assert set(db.scan(match="line*feed")) == {"line\nfeed"}
    assert set(db.scan(match="na?ve")) == {"naïve"}
    assert set(db.scan(prefix="user", match="*s")) == {"users"}
    assert set(db.scan(match=b"user:\xff")) == {b"user:\xff"}
    for wrong in (1, None.__class__, ["a"]):
        with pytest.raises(TypeError):
            db.scan(match=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            db.scan(prefix=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1024"):
        db.scan(match="x" * 1025)


def test_a_key_that_is_there_all_the_time_comes_exactly_once(db: shmkv.Store) -> None:
    steady = {f"steady {number}" for number in range(5000)}
    db.update(dict.fromkeys(steady, 0))
    done = threading.Event()

    def disturb() -> None:
        rng = random.Random(1)
        while not done.is_set():
            number = rng.randrange(5000)
            db[f"moving {number}"] = b"x" * rng.randrange(200)
            db.delete(f"moving {rng.randrange(5000)}")
            db[f"steady {number}"] = b"y" * rng.randrange(100)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(10):
            for walk in (iter(db), (key for key, _ in db.items())):
                seen = list(walk)
                assert len(seen) == len(set(seen))
                assert steady <= set(seen)
    finally:
        done.set()
        thread.join()


def test_the_store_may_be_changed_inside_of_an_iteration(db: shmkv.Store) -> None:
    db.update({f"k{number}": number for number in range(2000)})
    for key in db:
        del db[key]
    assert len(db) == 0
    db.update({f"k{number}": number for number in range(500)})
    for number, (key, value) in enumerate(db.items()):
        assert db.pop(key) == value
        db[f"new {number % 10}"] = 1
        assert number < 5000


def fits(db: shmkv.Store, key: str, value: bytes) -> bool:
    try:
        db[key] = value
    except shmkv.MemoryLimitExceeded:
        return False
    return True


def wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 12
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_a_full_store_says_so_and_goes_on(db: shmkv.Store) -> None:
    with pytest.raises(shmkv.MemoryLimitExceeded, match="free"):
        for number in range(2000):
            db[f"k{number}"] = b"x" * 100_000
    count = len(db)
    assert count > 100
    db["k0"] = b"y" * 100_000
    assert all(len(value) == 100_000 for value in db.values())
    assert db.pop("k1") == b"x" * 100_000
    db["k1"] = b"z" * 99_000
    db.clear()
    assert len(db) == 0
    # The space of what was cleared comes back when its stripe is swept.
    wait_until(lambda: fits(db, "after", b"x" * 100_000), "space after clear")
    assert len(db) == 1
