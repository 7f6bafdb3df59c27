"""The rule of the tour: what may be in the store after a kill, and what may not."""

import pytest
from harness.tour_ledger import NEVER, Ledger, Progress, Step


def ledger_after(steps: int, tasks: list[tuple[int, int]]) -> tuple[Ledger, Progress]:
    ledger, progress = Ledger(files=2), Progress(tasks)
    order = [Step.CONTENT, Step.FACTS, Step.COUNT]
    for number in range(steps):
        ledger.acknowledge(progress, tasks[number // 3][0], order[number % 3])
    return ledger, progress


def test_only_the_acknowledged_generation_is_allowed() -> None:
    ledger, _ = ledger_after(1, [(0, 3)])
    assert ledger.allowed(0, Step.CONTENT) == {3}
    assert ledger.allowed(0, Step.FACTS) == {NEVER}


def test_after_a_death_what_was_in_flight_is_allowed_too() -> None:
    ledger, progress = ledger_after(1, [(0, 3)])
    ledger.died(progress)
    assert ledger.allowed(0, Step.FACTS) == {NEVER, 3}
    assert ledger.allowed(0, Step.CONTENT) == {3}


def test_what_a_check_saw_may_not_change_back() -> None:
    ledger, progress = ledger_after(1, [(0, 3)])
    ledger.died(progress)
    assert ledger.saw(0, Step.FACTS, 3)
    assert not ledger.saw(0, Step.FACTS, NEVER)


def test_a_generation_that_nobody_wrote_is_wrong() -> None:
    ledger, progress = ledger_after(2, [(0, 3)])
    ledger.died(progress)
    assert not ledger.saw(0, Step.CONTENT, 2)


@pytest.mark.parametrize(("counter", "good"), [(0, False), (1, True), (2, True), (3, False)])
def test_the_counter_is_bounded_by_acknowledgements_and_deaths(counter: int, good: bool) -> None:
    ledger, progress = ledger_after(5, [(0, 0), (1, 0)])
    ledger.died(progress)
    assert ledger.counter_is_good(counter) is good


def test_a_replacement_begins_with_the_task_in_flight() -> None:
    _, progress = ledger_after(4, [(0, 0), (1, 0)])
    assert progress.rest() == [(1, 0)]


def test_an_acknowledgement_out_of_order_is_refused() -> None:
    ledger, progress = ledger_after(1, [(0, 0)])
    with pytest.raises(ValueError, match="next was FACTS of file 0"):
        ledger.acknowledge(progress, 0, Step.COUNT)
