"""What must be in the store: kept by the parent from acknowledgements alone.

Why here: a pure state machine, so that the rule "what may be there after a kill" is tested without a kill.

Invariants:
  I1  A key may hold what was acknowledged last, or what a writer that died had in flight; nothing else.
  I2  What a check has seen is from then on acknowledged: it may not change back.
  I3  acknowledged increments <= counter <= acknowledged + deaths of processes that increment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

NEVER = -1  # the generation of a key that was never written


class Step(IntEnum):
    """What a worker does, in this order for each file, and acknowledges one by one; then what readers tell."""

    CONTENT = 0
    FACTS = 1
    COUNT = 2
    CHECKED = 3  # a reader verified a value
    WRONG = 4  # a reader found a value that is not what was written


WRITER_STEPS = (Step.CONTENT, Step.FACTS, Step.COUNT)
Task = tuple[int, int]  # file, generation


@dataclass(slots=True)
class Progress:
    """How far one writer came through its tasks."""

    tasks: list[Task]
    done: int = 0
    step: Step = Step.CONTENT

    def acknowledge(self, index: int, step: Step) -> Task:
        """The next step was done; returns its task. ValueError for any other step than the next."""
        task = self.tasks[self.done]
        if (task[0], self.step) != (index, step):
            raise ValueError(
                f"acknowledged {step.name} of file {index}, but next was {self.step.name} of file {task[0]}"
            )
        if step is Step.COUNT:
            self.done, self.step = self.done + 1, Step.CONTENT
        else:
            self.step = Step(step + 1)
        return task

    def in_flight(self) -> tuple[Task, Step] | None:
        """What may have been half done when the writer died."""
        return (self.tasks[self.done], self.step) if self.done < len(self.tasks) else None

    def rest(self) -> list[Task]:
        """What a replacement has to do, beginning with the task in flight."""
        return self.tasks[self.done :]


@dataclass(slots=True)
class Ledger:
    """Expected generations of all keys, and bounds of the counter."""

    files: int
    acknowledged: dict[tuple[int, Step], int] = field(default_factory=dict)
    open: dict[tuple[int, Step], set[int]] = field(default_factory=dict)
    writes: int = 0
    increments: int = 0
    deaths: int = 0

    def acknowledge(self, progress: Progress, index: int, step: Step) -> None:
        """A writer says that a step is done."""
        task = progress.acknowledge(index, step)
        if step is Step.COUNT:
            self.increments += 1
            return
        self.writes += 1
        self.acknowledged[task[0], step] = task[1]
        self.open.pop((task[0], step), None)

    def died(self, progress: Progress | None) -> None:
        """A process that increments died; `progress` if it was a writer."""
        self.deaths += 1
        flight = progress.in_flight() if progress is not None else None
        if flight is not None and flight[1] is not Step.COUNT:
            (index, generation), step = flight
            self.open.setdefault((index, step), set()).add(generation)

    def allowed(self, index: int, step: Step) -> set[int]:
        """Generations that a key may hold."""
        return {self.acknowledged.get((index, step), NEVER)} | self.open.get((index, step), set())

    def saw(self, index: int, step: Step, generation: int) -> bool:
        """A check read this generation: whether it may be; it is acknowledged from now on."""
        good = generation in self.allowed(index, step)
        self.acknowledged[index, step] = generation
        self.open.pop((index, step), None)
        return good

    def counter_is_good(self, counter: int) -> bool:
        """I3."""
        return self.increments <= counter <= self.increments + self.deaths
