"""What was captured in the last seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Captured(Generic[T]):
    """One thing, its number, counted from 1, and when it came, on the clock of `time.monotonic`."""

    number: int
    at: float
    thing: T


class Recent(Generic[T]):
    """The newest things of a stream: older ones are let go, and nothing waits in a queue.

    Args:
        window: seconds that are kept.
        most: things kept, whatever the window.

    Attributes:
        count: things captured so far.
    """

    def __init__(self, window: float, most: int) -> None:
        self._window = window
        self._kept: deque[Captured[T]] = deque(maxlen=most)
        self.count = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, thing: T, now: float) -> None:
        self.count += 1
        self._kept.append(Captured(self.count, now, thing))
        while now - self._kept[0].at > self._window:
            self._kept.popleft()

    def evenly(self, number: int) -> list[Captured[T]]:
        """So many of them, evenly spaced over the window, the last the newest; some twice if there are fewer."""
        places = np.rint(np.linspace(0, len(self._kept) - 1, number)).astype(int)
        return [self._kept[place] for place in places]

    @property
    def rate(self) -> float:
        """Things a second in the window."""
        if len(self._kept) < 2:
            return 0.0
        return (len(self._kept) - 1) / max(self._kept[-1].at - self._kept[0].at, 1e-9)
