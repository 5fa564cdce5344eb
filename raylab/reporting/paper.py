"""Charts and tables for a paper: PNG and PDF, CSV and LaTeX."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pandas as pd

from raylab.reporting.chart import Chart, Series, known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150


def draw(chart: Chart) -> Figure:
    """A chart as a figure of matplotlib's."""
    from matplotlib.figure import Figure  # without pyplot: no display, no state shared with a user's own figures
    from matplotlib.ticker import PercentFormatter

    drawing = Figure(figsize=(7, 7 * chart.height / 700), layout="constrained")
    axes = drawing.add_subplot()
    if chart.heat:
        _heat(axes, chart)
    for series in chart.series:
        _SERIES[series.kind](axes, series)
    axes.set(xlabel=plain(chart.x), ylabel=plain(chart.y), title=plain(chart.title))
    if chart.log_x:
        axes.set_xscale("log")
    for axis in chart.share:
        getattr(axes, f"{axis}axis").set_major_formatter(PercentFormatter(1.0))
    if any(series.kind == "bars" for series in chart.series):
        axes.invert_yaxis()
    if any(series.kind == "box" for series in chart.series):
        places = range(1, len(chart.series) + 1)
        axes.set_xticks(places, [plain(series.name) for series in chart.series], rotation=30, ha="right")
    elif chart.legend and len(chart.series) > 1:
        axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return drawing


def files(figure: Figure, name: str) -> dict[str, bytes]:
    """The name of a file → its content: a picture, and one that can be enlarged."""
    found = {}
    for kind in ("png", "pdf"):
        content = io.BytesIO()
        metadata = {"CreationDate": None} if kind == "pdf" else None
        figure.savefig(content, format=kind, dpi=DPI, metadata=metadata)
        found[f"{name}.{kind}"] = content.getvalue()
    return found


def table_files(table: pd.DataFrame, name: str) -> dict[str, bytes]:
    """A table as CSV, at full precision, and as LaTeX for the package booktabs, with four digits."""
    latex = table.rename(columns=str).map(_cell)
    style = latex.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    kinds = "".join("r" if pd.api.types.is_numeric_dtype(table[column]) else "l" for column in table.columns)
    text = style.to_latex(hrules=True, column_format=kinds)
    return {f"{name}.csv": table.to_csv(index=False).encode(), f"{name}.tex": text.encode()}


def plain(text: str) -> str:
    """Text in which a dollar sign is one, and begins no formula."""
    return text.replace("$", r"\$")


def _line(axes: Axes, series: Series) -> None:
    style: dict[str, Any] = {"color": series.colour, "linestyle": ":" if series.dash else "-", "linewidth": 1.4}
    (line,) = axes.plot(_gaps(series.x), _gaps(series.y), label=plain(series.name), **style)
    if series.symbol:
        line.set(marker="x" if series.symbol == "x" else "o", markersize=4)
    if series.band:
        axes.fill_between(series.x, *series.band, color=series.colour, alpha=0.12, linewidth=0)


def _points(axes: Axes, series: Series) -> None:
    area = [size**2 for size in series.size] if series.size else 24
    marker = "x" if series.symbol == "x" else "o"
    axes.scatter(series.x, series.y, s=area, color=series.colour, alpha=0.8, marker=marker, label=plain(series.name))
    if series.error:
        half = [value if known(value) else 0.0 for value in series.error]
        axes.errorbar(series.x, series.y, yerr=half, fmt="none", ecolor=series.colour, elinewidth=1)


def _bars(axes: Axes, series: Series) -> None:
    axes.barh([plain(str(y)) for y in series.y], _gaps(series.x), color=series.colour, label=plain(series.name))


def _box(axes: Axes, series: Series) -> None:
    place = len([line for line in axes.collections if line.get_gid() == "box"]) + 1
    values = [value for value in series.y if known(value)]
    axes.boxplot([values], positions=[place], widths=0.5, showfliers=False)
    axes.scatter([place] * len(values), values, s=16, color=series.colour, alpha=0.6).set_gid("box")


_SERIES = {"line": _line, "points": _points, "bars": _bars, "box": _box}


def _heat(axes: Axes, chart: Chart) -> None:
    heat = chart.heat
    assert heat is not None  # noqa: S101 - for the type checker; `draw` has looked
    axes.imshow(heat.values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(heat.columns)), [plain(name) for name in heat.columns], rotation=45, ha="right")
    axes.set_yticks(range(len(heat.rows)), [plain(name) for name in heat.rows])
    for at, (values, counts) in enumerate(zip(heat.values, heat.counts, strict=True)):
        for column, (value, count) in enumerate(zip(values, counts, strict=True)):
            if count:
                colour = "white" if value > 0.5 else "black"
                axes.text(column, at, str(count), ha="center", va="center", fontsize=7, color=colour)


def _gaps(values: Any) -> list[Any]:
    return [value if known(value) else float("nan") for value in values]


def _cell(value: Any) -> str:
    if not known(value):
        return "--"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
