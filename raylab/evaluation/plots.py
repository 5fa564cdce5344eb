"""Plots of a comparison."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from raylab.evaluation.comparison import Comparison, mean_roc

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(comparison: Comparison, figure: str) -> dict[str, bytes]:
    """The name of a file → a PNG: `roc` where scores are known, `folds` and `cost`.

    Args:
        comparison: to show.
        figure: that models are judged by first; it is shown over folds and against cost.
    """
    plots: dict[str, Callable[[Axes], None]] = {
        "folds.png": lambda axes: _folds(axes, comparison, figure),
        "cost.png": lambda axes: _cost(axes, comparison, figure),
    }
    if len(comparison.scores):
        plots["roc.png"] = lambda axes: _roc(axes, comparison)
    return {name: _render(plot) for name, plot in plots.items()}


def _render(plot: Callable[[Axes], None]) -> bytes:
    from matplotlib.figure import Figure  # without pyplot: no display, no state shared with a user's own figures

    drawing = Figure(figsize=(7, 5), layout="constrained")
    axes = drawing.add_subplot()
    plot(axes)
    axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    drawing.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _roc(axes: Axes, comparison: Comparison) -> None:
    """Means over folds, with a band of one standard deviation."""
    grid = np.linspace(0, 1, 201)
    for model, scores in comparison.scores.groupby("model", sort=False):
        mean, deviation = mean_roc(scores, grid)
        (line,) = axes.plot(grid, mean, label=str(model))
        band = (np.clip(mean - deviation, 0, 1), np.clip(mean + deviation, 0, 1))
        axes.fill_between(grid, *band, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC, mean over folds ± deviation")
    axes.legend(loc="lower right", frameon=False)


def _folds(axes: Axes, comparison: Comparison, figure: str) -> None:
    """A box for each model, and a point for each fold."""
    by_model = comparison.folds.groupby("model", sort=False)[figure]
    groups = {str(model): values.dropna().to_numpy() for model, values in by_model}
    axes.boxplot(list(groups.values()), showfliers=False)
    for place, values in enumerate(groups.values(), start=1):
        axes.plot(np.full(len(values), place), values, "o", color="C0", alpha=0.6, markersize=4)
    axes.set_xticks(range(1, len(groups) + 1), list(groups), rotation=30, ha="right")
    axes.set(ylabel=figure, title=f"{figure} over folds")


def _cost(axes: Axes, comparison: Comparison, figure: str) -> None:
    """Mean figure against mean seconds of training; the area of a point is the memory held."""
    models = comparison.models
    memory = models["memory_mean"].to_numpy(float)
    largest = max(float(memory.max()), 1.0)
    for number, row in enumerate(models.to_dict("records")):
        colour = f"C{number}"  # as in the ROC
        at = row["seconds_mean"], row[f"{figure}_mean"]
        deviation = np.nan_to_num(row[f"{figure}_std"])
        area = 30 + 170 * row["memory_mean"] / largest
        axes.scatter(*at, s=area, color=colour, alpha=0.7, zorder=2, label=str(row["model"]))
        axes.errorbar(*at, yerr=deviation, fmt="none", ecolor=colour, elinewidth=1)
    axes.set_xscale("log")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(
        xlabel="seconds of training, mean over folds (log)",
        ylabel=f"{figure}, mean ± standard deviation",
        title=f"{figure} against cost (area: peak memory)",
    )
