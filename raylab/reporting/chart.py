"""A chart as plain data, which the page and a paper show alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3a9bd6", "#7a5cc4", "#6b8e23")
"""Told apart by most who are colour-blind (after Okabe and Ito), on white and on near-black."""
MUTED, BAD = "#8a919c", "#c8322b"

Kind = Literal["line", "points", "bars", "box"]
Symbol = Literal["circle", "x"]


@dataclass(frozen=True)
class Series:
    """One entry of a legend.

    Attributes:
        name: as the legend has it.
        x, y: of its points; None in both breaks a line. Of bars, x is how long they are and y are their names.
        kind: how it is drawn; a `box` stands at the name `x[0]`, for all y.
        colour: `#rrggbb`.
        dash: whether a line is broken.
        symbol: of points; None: a line without.
        hover: what is said of each point.
        error: half the length of the bar at each point.
        size: of each point, as a diameter in pixels.
        band: the lower and the upper edge of what is shaded around a line.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[Any]
    kind: Kind = "line"
    colour: str = PALETTE[0]
    dash: bool = False
    symbol: Symbol | None = None
    hover: Sequence[str] = ()
    error: Sequence[float] = ()
    size: Sequence[float] = ()
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Heat:
    """A matrix in colours.

    Attributes:
        columns, rows: names; the first row stands on top.
        values: rows × columns, in [0, 1].
        counts: what is written on each.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Chart:
    """Series, or one matrix, over two axes.

    Attributes:
        name: of its files, unique in a report.
        title: what is shown, in a few words.
        about: how to read it, in a sentence.
        x, y: what the axes mean, with units.
        log_x: whether the x-axis is logarithmic.
        height: in pixels.
        share: whether figures along the axes are parts of a whole: `x`, `y`, `xy` or none.
    """

    name: str
    title: str
    about: str
    x: str
    y: str
    series: Sequence[Series] = ()
    heat: Heat | None = None
    log_x: bool = False
    height: int = 420
    share: str = ""
    legend: bool = field(default=True)


def colours(names: Iterable[str]) -> dict[str, str]:
    """Name → colour, the palette over and over."""
    return {name: PALETTE[at % len(PALETTE)] for at, name in enumerate(names)}


def joined(lines: Iterable[tuple[Sequence[Any], Sequence[Any], str]]) -> tuple[list[Any], list[Any], list[str]]:
    """Many lines (x, y, name) as one, with gaps between them: x, y, and the name at each point."""
    x: list[Any] = []
    y: list[Any] = []
    names: list[str] = []
    for its_x, its_y, name in lines:
        x += [*its_x, None]
        y += [*its_y, None]
        names += [*[name] * len(its_x), ""]
    return x, y, names


def known(value: Any) -> bool:
    """Whether a value is there: neither None nor nan nor infinite."""
    return value is not None and (not isinstance(value, float) or math.isfinite(value))
