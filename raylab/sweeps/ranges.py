"""The values that one searched setting may take."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, model_serializer

from raylab.schema import Section

Scalar = bool | int | float | str


class Range(Section):
    """One searched setting; exactly one of the four."""

    choice: list[Scalar] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    randint: tuple[int, int] | None = Field(None, description="both ends included")

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def ends(self) -> list[Any]:
        """The values that must be valid for every value to be: all choices, or the two ends."""
        return list(getattr(self, self.kind))

    @property
    def count(self) -> float:
        """How many values it holds."""
        if self.choice is not None:
            return len(self.choice)
        return self.randint[1] - self.randint[0] + 1 if self.randint else math.inf

    def holds(self, value: Any) -> bool:
        if self.choice is not None:
            return value in self.choice
        low, high = self.ends
        return isinstance(value, int | float) and low <= value <= high

    @property
    def values(self) -> list[Any]:
        """All values of a range that can be counted."""
        if self.choice is not None:
            return self.choice
        assert self.randint is not None, "a continuous range"  # noqa: S101
        return list(range(self.randint[0], self.randint[1] + 1))

    def including(self, value: Any) -> Range:
        """This range, widened where it does not hold `value`."""
        if self.holds(value):
            return self
        if self.choice is not None:
            return Range(choice=[*self.choice, value])
        low, high = self.ends
        return Range.model_validate({self.kind: (min(low, value), max(high, value))})

    @model_serializer
    def _only_kind(self) -> dict[str, Any]:
        return {self.kind: getattr(self, self.kind)}

    def __str__(self) -> str:
        if self.choice is not None:
            return "{" + ", ".join(map(str, self.choice)) + "}"
        low, high = self.ends
        return f"{low:g} … {high:g}" + (" (log)" if self.loguniform else "")
