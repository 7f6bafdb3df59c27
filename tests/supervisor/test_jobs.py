"""The bookkeeping of jobs: each ends in exactly one way, whoever dies; a restore is done when its data is served."""

from __future__ import annotations

from typing import Any, cast

import pytest

from shmkv.supervisor.child import ManagedChild
from shmkv.supervisor.control import RequestRefused
from shmkv.supervisor.jobs import KEPT_JOBS, Jobs
from shmkv.supervisor.lines import Message
from shmkv.supervisor.states import Child


class Pipe:
    """The command pipe of a persister."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.listens = True

    def send(self, command: Message) -> bool:
        self.sent.append(command)
        return self.listens


class Desk:
    """Jobs of a store whose persister is a pipe; `told`: what followers got."""

    def __init__(self, memory_bytes: int = 1 << 20) -> None:
        persister = ManagedChild("persister")
        self.pipe = Pipe()
        persister.process = cast(Any, self.pipe)
        persister.state = Child.UP
        self.persister = persister
        self.serving = True
        self.told: list[tuple[str, Message, bool]] = []
        self.jobs = Jobs(persister, memory_bytes, lambda: self.serving)
        self.jobs.publish_to(lambda job, event, last: self.told.append((job, event, last)))

    def start(self, kind: str = "snapshot", **arguments: Any) -> str:
        return str(self.jobs.on_start({"do": "start_job", "kind": kind, "follow": True, **arguments})["job"])

    def says(self, job: str, state: str, kind: str = "snapshot", **fields: Any) -> Message:
        return {"event": "job", "job": job, "kind": kind, "state": state, **fields}

    def ends_of(self, job: str) -> list[str]:
        return [event["state"] for each, event, last in self.told if each == job and last]


def test_a_job_goes_to_the_persister_with_its_arguments_and_nothing_else() -> None:
    desk = Desk()
    job = desk.start("backup", path="/x", compression="zstd")
    assert desk.pipe.sent == [{"do": "job", "job": job, "kind": "backup", "path": "/x", "compression": "zstd"}]
    assert desk.jobs.on_look({"job": job}) == {
        "job": job, "kind": "backup", "state": "running", "done_bytes": 0, "of_bytes": 0,
    }  # fmt: skip


def test_followers_hear_the_way_and_the_end_once() -> None:
    desk = Desk()
    job = desk.start()
    desk.jobs.heard(desk.says(job, "running", done_bytes=5, of_bytes=10))
    desk.jobs.heard(desk.says(job, "done", result={"generation": 3}))
    desk.jobs.heard(desk.says(job, "failed", error="too late"))
    desk.jobs.persister_ended("killed")
    assert [(event["state"], last) for _, event, last in desk.told] == [("running", False), ("done", True)]
    assert desk.jobs.on_look({"job": job, "follow": True})["result"] == {"generation": 3}
    assert "follow" not in desk.jobs.on_look({"job": job, "follow": True})


@pytest.mark.parametrize("end", ["persister_ended", "store_ended"])
def test_a_death_ends_every_job_that_runs(end: str) -> None:
    desk = Desk()
    first, second = desk.start(), desk.start("backup", path="/x")
    getattr(desk.jobs, end)(*(["was killed"] if end == "persister_ended" else []))
    assert desk.ends_of(first) == desk.ends_of(second) == ["failed"]
    assert desk.jobs.running() == []


def test_a_restore_is_done_only_when_its_data_is_served() -> None:
    desk = Desk()
    job = desk.start("restore", path="/x")
    assert desk.jobs.is_restored(desk.says(job, "done", "restore", result={"generation": 7}), serving=True)
    assert desk.jobs.restored_generation == 7
    assert desk.jobs.on_look({"job": job})["state"] == "running"
    # The persister ends on the way: that is no news.
    desk.jobs.persister_ended("it was asked to end")
    assert desk.ends_of(job) == []
    desk.jobs.know_snapshots([{"generation": 7}])
    desk.jobs.store_serves()
    assert desk.ends_of(job) == ["done"]
    assert desk.jobs.restored_generation is None


def test_a_switch_that_did_not_take_place_is_a_failed_restore() -> None:
    desk = Desk()
    job = desk.start("restore", path="/x")
    desk.jobs.is_restored(desk.says(job, "done", "restore", result={"generation": 7}), serving=True)
    desk.jobs.know_snapshots([{"generation": 6}])
    desk.jobs.store_serves()
    assert desk.ends_of(job) == ["failed"]
    assert "the store holds the old data" in desk.jobs.on_look({"job": job})["error"]


def test_an_ordinary_snapshot_of_the_restored_number_is_a_failed_restore() -> None:
    desk = Desk()
    job = desk.start("restore", path="/x")
    result = {"generation": 7, "end_lsn": 800, "entries": 3, "size_bytes": 9000}
    desk.jobs.is_restored(desk.says(job, "done", "restore", result=result), serving=True)
    desk.jobs.know_snapshots([{**result, "end_lsn": 960, "entries": 4}])
    desk.jobs.store_serves()
    assert desk.ends_of(job) == ["failed"]


def test_restored_data_that_comes_while_the_store_stops_replaces_nothing() -> None:
    desk = Desk()
    job = desk.start("restore", path="/x")
    assert not desk.jobs.is_restored(desk.says(job, "done", "restore", result={"generation": 7}), serving=False)
    assert desk.ends_of(job) == ["failed"]


def test_two_restores_do_not_run_at_once() -> None:
    desk = Desk()
    desk.start("restore", path="/x")
    with pytest.raises(RequestRefused, match="another restore runs"):
        desk.start("restore", path="/y")


def test_a_restore_needs_room_for_two_arenas_and_says_so_in_numbers() -> None:
    desk = Desk(1 << 60)
    with pytest.raises(RequestRefused, match=r"needs 1048576 TiB .* is free. Stop the store") as refused:
        desk.start("restore", path="/x")
    assert refused.value.kind == "MemoryLimitExceeded"
    assert desk.pipe.sent == []
    desk.start("backup", path="/x")


def test_what_can_not_be_done_is_refused_at_once() -> None:
    desk = Desk()
    with pytest.raises(RequestRefused, match="unknown job 'dance'"):
        desk.start("dance")
    desk.serving = False
    with pytest.raises(RequestRefused, match="starting or stopping"):
        desk.start()
    desk.serving, desk.persister.state = True, Child.BOOTING
    with pytest.raises(RequestRefused, match="being restarted"):
        desk.start()
    desk.persister.state, desk.pipe.listens = Child.UP, False
    with pytest.raises(RequestRefused, match="does not listen"):
        desk.start()
    with pytest.raises(RequestRefused, match="memory only") as refused:
        Jobs(None, 0, lambda: True).on_start({"kind": "snapshot"})
    assert refused.value.kind == "IncompatibleStore"
    with pytest.raises(RequestRefused, match="unknown job '1-1'"):
        desk.jobs.on_look({"job": "1-1"})


def test_the_newest_two_snapshots_are_known_also_those_that_nobody_asked_for() -> None:
    desk = Desk()
    desk.jobs.know_snapshots([{"generation": 1}])
    for generation in (2, 3):
        desk.jobs.heard(desk.says(f"periodic-{generation}", "done", result={"generation": generation}))
    desk.jobs.heard(desk.says("other-4", "done", "backup", result={"size_bytes": 1, "snapshot": {"generation": 4}}))
    assert [each["generation"] for each in desk.jobs.snapshots] == [3, 4]


def test_what_ended_is_forgotten_in_the_end() -> None:
    desk = Desk()
    running = desk.start()
    for number in range(3 * KEPT_JOBS):
        desk.jobs.heard(desk.says(f"periodic-{number}", "done", result={"generation": number}))
    status = desk.jobs.status()
    assert len(status) == KEPT_JOBS + 1
    assert running in [event["job"] for event in status]
