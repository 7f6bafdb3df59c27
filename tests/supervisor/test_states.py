"""The tables of supervision: every case that can happen is listed, and what must never happen is not reachable."""

from itertools import product

import pytest

from shmkv.supervisor.states import (
    CHILD_TABLE,
    STORE_TABLE,
    Child,
    ChildDo,
    ChildEvent,
    Do,
    Event,
    Exit,
    Phase,
    backoff_s,
    child_event_of_exit,
    child_step,
    next_failures,
    store_step,
)


def run(state: Child, *events: ChildEvent) -> tuple[Child, list[ChildDo]]:
    actions = []
    for event in events:
        state, action = child_step(state, event)
        actions.append(action)
    return state, actions


def test_every_state_has_a_row() -> None:
    assert set(CHILD_TABLE) == set(Child)
    assert set(STORE_TABLE) == set(Phase)


def test_a_child_that_dies_is_started_again_after_its_back_off() -> None:
    state, actions = run(
        Child.DOWN,
        ChildEvent.START,
        ChildEvent.READY,
        ChildEvent.DIED,
        ChildEvent.DUE,
        ChildEvent.READY,
        ChildEvent.STOP,
        ChildEvent.DIED,
    )
    assert state is Child.DOWN
    assert actions == [
        ChildDo.SPAWN, ChildDo.ANNOUNCE, ChildDo.SCHEDULE, ChildDo.SPAWN, ChildDo.ANNOUNCE, ChildDo.ASK, ChildDo.ENDED,
    ]  # fmt: skip


@pytest.mark.parametrize("event", list(ChildEvent))
def test_a_process_is_spawned_only_where_none_exists(event: ChildEvent) -> None:
    for state in Child:
        if event in CHILD_TABLE[state] and CHILD_TABLE[state][event][1] is ChildDo.SPAWN:
            assert state in (Child.DOWN, Child.WAITING)


def test_a_child_with_a_process_has_an_answer_to_every_end() -> None:
    ends = (ChildEvent.DIED, ChildEvent.REFUSED, ChildEvent.STOP, ChildEvent.LATE)
    for state, event in product((Child.BOOTING, Child.UP, Child.STOPPING), ends):
        assert event in CHILD_TABLE[state]


def test_the_end_of_a_child_is_never_missed_in_any_state_with_a_process() -> None:
    for state, code in product((Child.BOOTING, Child.UP, Child.STOPPING), (0, 1, 65, 73, 75, 78, -9, -11)):
        event = child_event_of_exit(state, code)
        if event is ChildEvent.FINISHED:
            assert state is Child.BOOTING
            assert code == 0
        assert child_step(state, event)[0] in (Child.DOWN, Child.WAITING)


@pytest.mark.parametrize("code", [Exit.DAMAGED_LOG, Exit.CANNOT_CREATE, Exit.BAD_CONFIG])
def test_exit_codes_that_a_restart_cannot_help_end_the_child_for_good(code: Exit) -> None:
    assert child_step(Child.UP, child_event_of_exit(Child.UP, code)) == (Child.DOWN, ChildDo.GIVE_UP)


def test_an_unknown_case_raises_instead_of_doing_something() -> None:
    with pytest.raises(KeyError):
        child_step(Child.DOWN, ChildEvent.READY)
    with pytest.raises(KeyError):
        store_step(Phase.OPENING, Event.HELPERS_GONE)


def test_the_persister_is_asked_to_stop_only_after_the_helpers_are_gone() -> None:
    for phase, row in STORE_TABLE.items():
        for event, (_, action) in row.items():
            if action is Do.STOP_PERSISTER:
                # While it starts there are no helpers yet.
                assert event is Event.HELPERS_GONE or phase is Phase.STARTING


def test_a_store_is_announced_only_when_its_persister_is_ready_or_it_has_none() -> None:
    for row in STORE_TABLE.values():
        for event, (_, action) in row.items():
            if action is Do.ANNOUNCE:
                assert event in (Event.PERSISTER_READY, Event.OPENED_WITHOUT_LOG)


@pytest.mark.parametrize("why", [Event.LOST, Event.SWITCH])
def test_a_lost_or_switched_arena_goes_the_whole_way_down_and_opens_again(why: Event) -> None:
    phase, actions = Phase.SERVING, []
    for event in (why, Event.HELPERS_GONE, Event.PERSISTER_GONE, Event.AGAIN):
        phase, action = store_step(phase, event)
        actions.append(action)
    assert phase is Phase.OPENING
    assert actions == [Do.STOP_HELPERS, Do.STOP_PERSISTER, Do.FINISH, Do.OPEN]


def test_a_stop_is_accepted_in_every_phase_that_waits() -> None:
    for phase in Phase:
        # OPENING does not wait: signals are delivered after it.
        assert phase is Phase.OPENING or Event.STOP in STORE_TABLE[phase]


def test_back_off_doubles_from_a_tenth_to_half_a_minute() -> None:
    assert [backoff_s(failures) for failures in (0, 1, 2, 3, 9, 10, 1000)] == [0.0, 0.1, 0.2, 0.4, 25.6, 30.0, 30.0]


def test_a_child_that_lived_long_enough_starts_over() -> None:
    assert next_failures(7, 59.9) == 8
    assert next_failures(7, 60.0) == 1
