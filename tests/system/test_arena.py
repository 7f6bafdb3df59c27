"""Bad luck of the shared memory: its header damaged or of another layout, its name removed under running writers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import shmkv
from shmkv import paths
from shmkv.segment import _core
from tests.conftest import Places, Supervised, wait_until
from tests.system.programs import Program, check_written, numbers, writer

Start = Callable[..., Supervised]
PAGE_BYTES = 4096


def killed(places: Places, store: Supervised, kill_all: Callable[..., None]) -> None:
    kill_all("-m shmkv.")
    store.end()
    wait_until(lambda: not places.processes("-m shmkv."), "the end of the children")


def has_new_arena(name: str, old_inode: int | None) -> bool:
    return paths.object_inode(name) not in (None, old_inode)


def change_header(name: str, copy: int, change: Callable[[bytearray], None]) -> None:
    with Path(paths.object_path(name)).open("r+b") as file:
        file.seek(copy * PAGE_BYTES)
        page = bytearray(file.read(PAGE_BYTES))
        change(page)
        file.seek(copy * PAGE_BYTES)
        file.write(page)


def flip(page: bytearray) -> None:
    page[16] ^= 0x40


def next_layout(page: bytearray) -> None:
    """The header as a newer version would write it: the checksum lies behind all that it covers."""
    length = next(
        at for at in range(64, PAGE_BYTES - 4, 4)
        if any(page[at : at + 4]) and int.from_bytes(page[at : at + 4], "little") == _core.crc32c(bytes(page[:at]))
    )  # fmt: skip
    page[8:12] = (_core.LAYOUT_VERSION + 1).to_bytes(4, "little")
    page[length : length + 4] = _core.crc32c(bytes(page[:length])).to_bytes(4, "little")


@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_copy_of_the_header_is_survived(
    places: Places, supervised: Start, kill_all: Callable[..., None], copy: int
) -> None:
    name = places.name()
    store = supervised(name)
    with shmkv.attach(name) as db:
        db.update({f"k{number}": number for number in range(100)})
        change_header(name, copy, flip)
        with shmkv.attach(name) as other:
            assert other["k99"] == 99
        killed(places, store, kill_all)
        supervised(name)
        assert len(db) == 100
        db["after"] = 1
        assert db["after"] == 1
    with shmkv.attach(name) as db:
        assert len(db) == 101


def test_a_store_whose_header_is_lost_comes_back_from_its_log(
    places: Places, supervised: Start, kill_all: Callable[..., None]
) -> None:
    name = places.name()
    store = supervised(name, "--durability", "always")
    with shmkv.attach(name) as db:
        db.update({f"k{number}": number for number in range(100)})
    for copy in (0, 1):
        change_header(name, copy, flip)
    with pytest.raises(shmkv.CorruptData, match="header"):
        shmkv.attach(name, timeout=1)
    killed(places, store, kill_all)
    store = supervised(name, ready=False)
    assert "(cold" in store.ready_line()
    with shmkv.attach(name) as db:
        assert dict(db.items()) == {f"k{number}": number for number in range(100)}
    # Of the ring nothing could be saved, and that is said even if, as here, it was empty.
    code, lines = store.stop()
    assert code == 0
    assert f"the header of {paths.object_path(name)} is damaged" in lines


def test_an_arena_of_another_layout_is_named_and_replaced_from_the_log(
    places: Places, supervised: Start, kill_all: Callable[..., None]
) -> None:
    name = places.name()
    store = supervised(name)
    with shmkv.attach(name) as db:
        db.update({f"k{number}": number for number in range(100)})
        db.sync(timeout=10)
    killed(places, store, kill_all)
    for copy in (0, 1):
        change_header(name, copy, next_layout)
    with pytest.raises(shmkv.IncompatibleStore, match=f"{_core.LAYOUT_VERSION + 1}.*{_core.LAYOUT_VERSION}"):
        shmkv.attach(name, timeout=1)
    inode = paths.object_inode(name)
    supervised(name)
    assert paths.object_inode(name) != inode
    with shmkv.attach(name) as db:
        assert dict(db.items()) == {f"k{number}": number for number in range(100)}


def test_writers_go_on_in_the_next_arena_when_the_name_is_removed_and_no_acknowledged_write_is_lost(
    places: Places, supervised: Start, program: Callable[..., Program]
) -> None:
    name = places.name()
    store = supervised(name)
    writers = {own: program(writer, name, own) for own in ("a", "b", "c")}
    for each in writers.values():
        each.wait_for(100)
    for _ in range(2):
        inode = paths.object_inode(name)
        os.unlink(paths.object_path(name))
        wait_until(partial(has_new_arena, name, inode), "a new arena")
        for each in writers.values():
            each.more(100)
    counts = {own: len(numbers(each.kill())) for own, each in writers.items()}
    with shmkv.attach(name) as db:
        for own, count in counts.items():
            check_written(db, own, count)
    assert store.stop()[0] == 0
    supervised(name)
    with shmkv.attach(name) as db:
        for own, count in counts.items():
            check_written(db, own, count)


def test_writers_of_a_memory_only_store_that_loses_its_name_stop_with_an_error(
    places: Places, supervised: Start, program: Callable[..., Program]
) -> None:
    name = places.name()
    store = supervised(name, "--memory-only")
    writers = [program(writer, name, own, timeout_s=0.3) for own in ("a", "b")]
    for each in writers:
        each.wait_for(100)
    with shmkv.attach(name, timeout=0.2) as db:
        os.unlink(paths.object_path(name))
        code, _ = store.end()
        assert code == 1
        with pytest.raises(shmkv.StoreUnavailable):
            db["k"] = 1
    # They wait for a successor until their timeout, and acknowledge nothing meanwhile.
    said = [each.end()[0][-1] for each in writers]
    assert said == ["StoreUnavailable"] * 2


def test_writers_without_servers_and_without_a_name_are_told_and_go_on_in_the_next_arena(
    places: Places, supervised: Start, program: Callable[..., Program], kill_all: Callable[..., None]
) -> None:
    name = places.name()
    store = supervised(name, "--lag-limit", "0.3s")
    client = program(writer, name, log_timeout_s=0.3)
    client.wait_for(100)
    with shmkv.attach(name, log_timeout=0.3, timeout=0.3) as db:
        db["mine"] = 1
        db.sync(timeout=10)
        killed(places, store, kill_all)
        os.unlink(paths.object_path(name))
        assert client.end()[0][-1] == "StoreUnavailable"
        acknowledged = len(numbers(client.lines))
        with pytest.raises(shmkv.StoreUnavailable, match=r"was removed while no server of the store ran; .*reads"):
            db["k"] = 1
        check_written(db, "w", acknowledged)
        # The next store is another arena. What only the old one took is not in it, which is said once.
        supervised(name)
        with pytest.raises(shmkv.StoreUnavailable, match=r"was removed.* another arena.* from now on this handle uses"):
            db["k"] = 1
        assert db["mine"] == 1
        assert 100 <= len(db) - 1 <= acknowledged + 1
        check_written(db, "w", len(db) - 1)
        db["k"] = 2
        with shmkv.attach(name) as new:
            assert new["k"] == 2


def test_writers_without_servers_stop_at_the_lag_limit_and_go_on_with_the_next(
    places: Places, supervised: Start, kill_all: Callable[..., None]
) -> None:
    name = places.name()
    store = supervised(name, "--lag-limit", "0.3s")
    with shmkv.attach(name, log_timeout=0.3) as db:
        db["k"] = 1
        killed(places, store, kill_all)
        with pytest.raises(shmkv.LogStalled):
            wait_until(lambda: not db.set("k", 2), "the lag limit")
        supervised(name)
        db["k"] = 3


def stop_at_the_limit(db: shmkv.Store) -> str:
    """Write until that is refused: what was said."""
    with pytest.raises(shmkv.StoreUnavailable) as refused:
        wait_until(lambda: not db.set("number", 0), "the lag limit")
    return str(refused.value)


def test_a_memory_only_store_without_servers_stops_its_writers_at_the_lag_limit(
    places: Places, supervised: Start, kill_all: Callable[..., None]
) -> None:
    name = places.name()
    store = supervised(name, "--memory-only", "--lag-limit", "0.3s")
    with shmkv.attach(name, log_timeout=0.3) as db:
        db["k"] = 1
        killed(places, store, kill_all)
        assert "has had no keeper for" in stop_at_the_limit(db)
        assert db["k"] == 1
        supervised(name, "--memory-only", "--lag-limit", "0.3s")
        wait_until(lambda: places.processes("shmkv.supervisor.keeper"), "a keeper")
        with shmkv.attach(name) as patient:
            patient["k"] = 2
        assert db["k"] == 2


def test_a_writer_of_a_memory_only_store_waits_for_the_next_servers(
    places: Places, supervised: Start, program: Callable[..., Program], kill_all: Callable[..., None]
) -> None:
    name = places.name()
    store = supervised(name, "--memory-only", "--lag-limit", "0.3s")
    client = program(writer, name, log_timeout_s=15)
    client.wait_for(100)
    killed(places, store, kill_all)
    while client.read(0.5):
        continue
    supervised(name, "--memory-only", "--lag-limit", "0.3s")
    client.more(100)
    acknowledged = len(numbers(client.kill()))
    with shmkv.attach(name) as db:
        check_written(db, "w", acknowledged)


def test_writers_of_a_memory_only_store_without_servers_and_without_a_name_are_told(
    places: Places, supervised: Start, kill_all: Callable[..., None]
) -> None:
    name = places.name()
    store = supervised(name, "--memory-only", "--lag-limit", "0.3s")
    with shmkv.attach(name, log_timeout=0.3) as db:
        db["k"] = 1
        killed(places, store, kill_all)
        os.unlink(paths.object_path(name))
        assert "was removed while no server of the store ran" in stop_at_the_limit(db)
        supervised(name, "--memory-only")
        assert "belongs to another store" in stop_at_the_limit(db)
        assert db["k"] == 1
