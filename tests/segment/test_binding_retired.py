"""What a handle does when its arena has ended: it goes on in the next one, or says why it cannot."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from shmkv import errors
from shmkv.segment import _core
from tests.segment.conftest import mapped, wait_until


def test_the_base_class_cannot_attach_anew(segment: Any) -> None:
    db = segment.store()
    db["key"] = 1
    segment.arena.retire()
    for call in (
        lambda: db["key"],
        lambda: db.set("key", 2),
        lambda: db.get_many(["key"]),
        lambda: db._scan(0, False),
        db.clear,
    ):
        with pytest.raises(errors.StoreUnavailable):
            call()


class Following(_core.Store):
    """Attaches anew to `next_fd`."""

    next_fd: int
    calls: int = 0

    def _reattach(self) -> int:
        self.calls += 1
        return os.dup(self.next_fd)


def test_a_handle_goes_on_in_the_next_arena_of_its_store(make_segment: Any) -> None:
    old, new = make_segment(), make_segment(incarnation=2)
    calls = {
        "get": lambda db: db.get("key"),
        "[]": lambda db: db["key"],
        "in": lambda db: "key" in db and db["key"],
        "set": lambda db: db.set("key", "new") and db["key"],
        "get_many": lambda db: db.get_many(["key"])["key"],
        "set_many": lambda db: db.set_many({"key": "new"}) or db["key"],
        "_entry": lambda db: db._entry("key")[0],
        "delete": lambda db: db.delete("none") or db["key"],
        "_scan": lambda db: db._scan(0, True) and db["key"],
        "len": lambda db: len(db) == 1 and db["key"],
        "_stats": lambda db: db._stats()["items"] == 1 and db["key"],
    }
    stores = {name: old.store(Following) for name in calls}
    for store in stores.values():
        store.next_fd = new.fd
        store["key"] = "old"
    old.arena.retire()
    new.store()["key"] = "new"
    for name, store in stores.items():
        assert calls[name](store) == "new", name
        assert (store.calls, store.incarnation) == (1, 2)
    assert mapped(old.fd) == 1
    assert os.getpid() in {slot["pid"] for slot in new.arena.slots()}


def test_an_arena_of_another_store_or_the_same_again_is_not_taken(make_segment: Any) -> None:
    old, other = make_segment(), make_segment(incarnation=2)
    stranger = os.memfd_create("stranger", os.MFD_CLOEXEC)
    os.posix_fallocate(stranger, 0, 8 << 20)
    _core.format_arena(
        stranger,
        size_bytes=8 << 20,
        name="test",
        store_id=b"x" * 16,
        incarnation=3,
        first_lsn=_core.LSN_GAP,
        has_log=False,
    )
    db = old.store(Following)
    old.arena.retire()
    for fd, text in ((old.fd, "no new one"), (stranger, "another store")):
        db.next_fd = fd
        with pytest.raises(errors.StoreUnavailable, match=text):
            db.get("key")
    db.next_fd = other.fd
    assert db.get("key") is None
    os.close(stranger)


def test_errors_of_the_hook_pass_through_and_it_may_close_the_handle(segment: Any) -> None:
    class Failing(_core.Store):
        def _reattach(self) -> int:
            raise RuntimeError("not now")

    class Closing(Following):
        def _reattach(self) -> int:
            self.close()
            return super()._reattach()

    failing, closing, wrong = segment.store(Failing), segment.store(Closing), segment.store(Following)
    closing.next_fd = segment.fd
    wrong.next_fd = 999_999
    segment.arena.retire()
    with pytest.raises(RuntimeError, match="not now"):
        failing["key"] = 1
    with pytest.raises((ValueError, errors.StoreUnavailable)):
        closing.get("key")
    with pytest.raises(OSError, match="Bad file descriptor"):
        wrong.get("key")


def test_many_threads_follow_to_the_next_arena_together(make_segment: Any) -> None:
    old, new = make_segment(), make_segment(incarnation=2)
    db = old.store(Following, lock_timeout_s=30)
    db.next_fd = new.fd
    failures: list[BaseException] = []
    goal = threading.Event()

    def work() -> None:
        try:
            while not goal.is_set():
                db.incr("count")
                db["large"] = b"x" * 70_000
                db.get("large")
                if db.incarnation == 2 and db.incr("rounds") > 200:
                    goal.set()
        except BaseException as error:
            failures.append(error)
            goal.set()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: (db.get("count") or 0) > 50, "the threads to work")
    old.arena.retire()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert mapped(old.fd) == 1
