"""One line of the bench's table.

Why here: every row is made by another file, and all are shown and saved alike.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured, and its limit: None = for information; `at_least` says which side of it is good."""

    name: str
    title: str
    measured: float
    limit: float | None
    unit: str
    at_least: bool
    compared: str

    @property
    def good(self) -> bool:
        """Whether it is within its limit."""
        if self.limit is None:
            return True
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    @property
    def shown(self) -> str:
        """The measured number, with its unit."""
        return show(self.measured, self.unit)

    @property
    def shown_limit(self) -> str:
        """The limit, with its side."""
        if self.limit is None:
            return ""
        return f"{'>=' if self.at_least else '<='} {show(self.limit, self.unit)}"


def show(number: float, unit: str) -> str:
    """A ratio with two digits behind the point, anything else as a whole number."""
    return f"{number:.2f}x" if unit == "x" else f"{number:,.0f} {unit}"
