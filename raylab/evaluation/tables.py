"""Figures of models for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from raylab.evaluation.judgement import Judgement, Scores

Row = Mapping[str, Any]


def table(judged: Sequence[Judgement], split: str, beside: Sequence[Judgement] = ()) -> Table:
    """One column a model, the best of each line in bold; what stands `beside` them for comparison, to the right."""
    columns = [*judged, *beside]
    found = [judgement.scores[split] for judgement in columns]
    left_out = f", {found[0].left_out:,} unreadable left out" if found[0].left_out else ""
    view = Table(f"{split}: {found[0].extent}{left_out}", *(escape(judgement.name) for judgement in columns))
    lines = [scores.figures() for scores in found]
    for name in dict.fromkeys(name for line in lines for name in line):
        values = [line.get(name, math.nan) for line in lines]
        cells = [_figure(scores, value) for scores, value in zip(found, values, strict=True)]
        best = _best(values[: len(judged)], least=name in found[0].less)
        view.add_row(name, *(f"[bold]{cell}[/]" if at == best else cell for at, cell in enumerate(cells)))
    more = [_while_training(judgement) if split == "val" else {} for judgement in columns]
    for name in dict.fromkeys(name for line in more for name in line):
        view.add_row(name, *(line.get(name, "–") for line in more))
    return view


def _best(values: Sequence[float], least: bool) -> int | None:
    """Which of several is best, if they can be told apart from nan."""
    known = [at for at, value in enumerate(values) if not math.isnan(value)]
    if len(values) < 2 or not known:
        return None
    return (min if least else max)(known, key=lambda at: values[at])


def _while_training(judgement: Judgement) -> dict[str, str]:
    """Row → cell, of what the split alone does not tell: the gap, which both splits may give, and the losses."""
    way, gap = judgement.gap()
    gaps = {} if math.isnan(gap) else {f"gap/{judgement.figure}, {way}": _figure(judgement.scores["val"], gap)}
    return gaps | {f"loss/{name}, while training": f"{value:.4g}" for name, value in judgement.losses().items()}


def class_tables(classes: Mapping[str, Sequence[Row]]) -> list[Table]:
    """Of each head every class that occurs, the most frequent first."""
    views = []
    for head, rows in classes.items():
        view = Table(head, "clips", "top-1 %")
        for row in sorted(rows, key=lambda row: -row["clips"]):
            view.add_row(f"{row['class']} {escape(row['name'])}", f"{row['clips']:,}", _percent(row["top1"]))
        views.append(view)
    return views


def video_table(videos: Sequence[Row]) -> Table:
    """Every video with its figures, in the order of the split."""
    names = [name for name, value in videos[0].items() if isinstance(value, float)]
    view = Table("video", "category", "frames", *names)
    for row in videos:
        figures = (_decimal(row[name]) for name in names)
        view.add_row(escape(row["video"]), escape(row["category"]), f"{row['samples']:,}", *figures)
    return view


def efficiency_tables(judged: Sequence[Judgement]) -> list[Table]:
    """One line for each model that is involved, and one table for all that were measured under the same conditions."""
    rows = [(judgement.name, row) for judgement in judged for row in judgement.efficiency]
    largest = max((row.parameters for _, row in rows), default=0)
    views: dict[str, Table] = {}
    for run, row in rows:
        columns = ("run", "model", "parameters", "of the largest", "MB", "GFLOPs a clip", "clips/s")
        alone = ("ms, one clip", "MB at most, one clip")
        view = views.setdefault(
            row.conditions, Table(*columns, *alone, title=escape(row.conditions), title_justify="left")
        )
        sizes = (f"{row.parameters / 1e6:.2f}M", f"{_percent(row.parameters / largest)} %", f"{row.bytes / 1e6:.1f}")
        costs = (_short(value) for value in (row.clips_per_second, 1e3 * row.seconds, row.peak_bytes / 1e6))
        view.add_row(escape(run), escape(row.name), *sizes, f"{row.flops / 1e9:.2f}", *costs)
    return list(views.values())


def _short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _figure(scores: Scores, value: float) -> str:
    return _percent(value) if scores.percent else _decimal(value)


def _decimal(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"
