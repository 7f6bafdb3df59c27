"""A handle outlives restarts: its next call attaches anew by name, waits for that, or says why it cannot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmkv


def maps() -> list[str]:
    return Path("/proc/self/maps").read_text().splitlines()


def later(seconds: float, work: Callable[[], None]) -> threading.Thread:
    thread = threading.Timer(seconds, work)
    thread.start()
    return thread


def test_a_handle_outlives_a_restart_and_sees_the_same_data(launched: Any, places: Any) -> None:
    name, data = places.name(), places.state / "data"
    first = launched(name, data_dir=data)
    writer, reader = shmkv.attach(name), shmkv.attach(name, read_only=True)
    writer.update({f"k{number}": [number] for number in range(1000)})
    walk = iter(writer)
    next(walk)
    life = writer.incarnation
    first.close()
    with pytest.raises(ValueError, match="closed"):
        first["k1"]
    second = launched(name, data_dir=data)
    assert writer["k1"] == [1]
    assert reader["k999"] == [999]
    assert writer.incarnation == reader.incarnation == second.incarnation > life
    assert len(writer) == 1000
    with pytest.raises(shmkv.StoreUnavailable, match="restarted"):
        list(walk)
    writer["new"] = 1
    assert second["new"] == reader["new"] == 1
    assert writer.last_lsn == writer.entry("new").version  # type: ignore[union-attr]
    assert dict(writer.items()) == dict(second.items())
    writer.close()
    reader.close()


@pytest.mark.parametrize(
    "use",
    [lambda db: db.set("a", 1), lambda db: db.get("a"), lambda db: "a" in db, lambda db: db.update(b=1),
     lambda db: db.incr("n", 0.5), lambda db: list(db), lambda db: db.entry("a"),
     lambda db: db.pop("a"), lambda db: db.modify("a", lambda value: value), lambda db: db.get_many(["a"]),
     lambda db: db.clear(), lambda db: db.popitem(),
     lambda db: db.append("t", "x"), lambda db: db.delete_many(["a"])],
)  # fmt: skip
def test_the_first_call_after_a_restart_may_be_any(use: Any, hand_made: Any, places: Any) -> None:
    name = places.name()
    old = hand_made(name)
    old.format()
    old.say("READY")
    with shmkv.attach(name) as db:
        old.retire()
        old.remove()
        new = hand_made(name)
        new.format(incarnation=2)
        new.say("READY")
        with shmkv.attach(name) as other:
            other["a"] = 5
        use(db)
        assert db.incarnation == 2


def test_popitem_goes_on_after_a_restart(hand_made: Any, places: Any) -> None:
    name = places.name()
    old = hand_made(name)
    old.format()
    old.say("READY")
    with shmkv.attach(name) as db:
        db.update({str(number): b"x" * 100 for number in range(3000)})
        for _ in range(2000):
            db.popitem()
        restart_as(name, old, hand_made)
        with shmkv.attach(name) as other:
            other["a"] = 1
        assert db.popitem() == ("a", 1)
        assert db.incarnation == 2


def test_many_threads_meet_every_restart_and_none_is_left_waiting(hand_made: Any, places: Any) -> None:
    name = places.name()
    arena = hand_made(name)
    arena.format()
    arena.say("READY")
    done = threading.Event()
    errors: list[BaseException] = []
    with shmkv.attach(name, timeout=5) as db:

        def work() -> None:
            try:
                while not done.is_set():
                    begun = time.monotonic()
                    db.incr("n")
                    assert time.monotonic() - begun < 3
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for incarnation in range(2, 12):
            arena = restart_as(name, arena, hand_made, incarnation)
            time.sleep(0.03)
        done.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert db.incr("n") > 1
        assert db.incarnation == 11


def restart_as(name: str, old: Any, hand_made: Any, incarnation: int = 2) -> Any:
    """End the arena and make the next one under its name."""
    old.retire()
    old.remove()
    new = hand_made(name)
    new.format(incarnation=incarnation)
    new.say("READY")
    return new


def test_a_call_waits_for_the_successor_without_stopping_other_threads(hand_made: Any, places: Any) -> None:
    name = places.name()
    old = hand_made(name)
    old.format()
    old.say("READY")
    db = shmkv.attach(name, timeout=10)
    old.retire()
    old.remove()

    def restart() -> None:
        new = hand_made(name)
        new.format(incarnation=2)
        time.sleep(0.1)
        new.say("READY")

    thread = later(0.2, restart)
    results: list[Any] = []
    users = [threading.Thread(target=lambda: results.append(db.set("a", 1))) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(10)
    assert results == [True] * 4
    assert db["a"] == 1
    thread.join()
    db.close()


def test_a_store_that_does_not_come_back_is_unavailable_after_the_timeout(launched: Any) -> None:
    owner = launched()
    db = shmkv.attach(owner.name, timeout=0.2)
    db["a"] = 1
    owner.close()
    for use in (lambda: db["a"], lambda: db.set("a", 2), lambda: list(db)):
        begun = time.monotonic()
        with pytest.raises(shmkv.StoreUnavailable, match=r"within 0.2 s"):
            use()
        assert 0.15 < time.monotonic() - begun < 2
    db.close()


def test_another_store_under_the_same_name_is_not_taken_for_the_old_one(launched: Any, places: Any) -> None:
    name = places.name()
    first = launched(name)
    db = shmkv.attach(name, timeout=1)
    first.close()
    launched(name)
    with pytest.raises(shmkv.StoreUnavailable, match="another store"):
        db["a"] = 1
    db.close()


def test_close_works_when_the_store_is_gone(launched: Any) -> None:
    owner = launched()
    db = shmkv.attach(owner.name, timeout=5)
    owner.close()
    begun = time.monotonic()
    db.close()
    assert time.monotonic() - begun < 1
    assert not [line for line in maps() if f"shmkv.{owner.name}" in line]
