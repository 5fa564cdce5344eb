"""Pictures about a video: a contact sheet of some of its frames, a curve over its time."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5
WIDTHS, HEIGHTS = (160, 240), (32, 320)  # least and most of a tile's picture, pixels
CAPTION, GAP = 22, 8  # pixels: height, distance
PAPER, INK = "white", "black"


def timestamp(seconds: float) -> str:
    """`00:01:15.500`, to the millisecond."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}.{thousandths:03}"


def counted(things: Sequence[object], name: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def tile(picture: Image.Image, caption: str) -> Image.Image:
    """A picture reduced, over its caption. Pictures of one size make tiles of one size."""
    width = _within(picture.width, WIDTHS)
    height = _within(round(width * picture.height / picture.width), HEIGHTS)
    small = picture.copy()
    small.thumbnail((width, height))
    made = Image.new("RGB", (width, height + CAPTION), PAPER)
    made.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    middle = (width // 2, height + CAPTION // 2)
    ImageDraw.Draw(made).text(middle, caption, INK, ImageFont.load_default(14), anchor="mm")
    return made


def contact_sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles of one size, row by row; at least one."""
    columns = min(COLUMNS, len(tiles))
    width, height = tiles[0].width + GAP, tiles[0].height + GAP
    sheet = Image.new("RGB", (columns * width + GAP, ceil(len(tiles) / columns) * height + GAP), PAPER)
    for number, made in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(made, (GAP + column * width, GAP + row * height))
    return sheet


def curve(
    seconds: Sequence[float], importance: NDArray[np.float32], marked: tuple[Sequence[float], Sequence[float]]
) -> Figure:
    """The importance of samples over time.

    Args:
        seconds: (N,).
        importance: (N,).
        marked: seconds and importance of keyframes.

    Returns:
        1200 × 320 pixels; `savefig` writes it. It belongs to no window and to no list of figures.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(seconds, importance, linewidth=1)
    label = f"{counted(marked[0], 'keyframe')} of {counted(seconds, 'sample')}"
    axes.plot(*marked, "o", markersize=4, clip_on=False, label=label)
    low, high = float(importance.min()), float(importance.max())
    margin = max(0.05 * (high - low), 0.005)
    axes.set(xlabel="time", ylabel="importance", ylim=(low - margin, high + margin))
    axes.set_xlim(seconds[0], max(seconds[-1], seconds[0] + 1))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_formatter(lambda tick, _: timestamp(max(tick, 0)).removeprefix("00:").removesuffix(".000"))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, frameon=False)
    return figure


def _within(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])
