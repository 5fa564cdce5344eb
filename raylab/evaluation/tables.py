"""Figures of models for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from raylab.evaluation.judgement import Judgement
    from raylab.evaluation.scores import Scores


def table(judged: Sequence[Judgement], split: str) -> Table:
    """One column a model, the best of each line in bold."""
    found = [judgement.scores[split] for judgement in judged]
    left_out = f", {found[0].left_out:,} unreadable left out" if found[0].left_out else ""
    view = Table(f"{split}: {found[0].clips:,} clips{left_out}", *(escape(judgement.name) for judgement in judged))
    lines = [scores.figures() for scores in found]
    for name in dict.fromkeys(name for line in lines for name in line):
        view.add_row(name, *_cells([line.get(name, math.nan) for line in lines]))
    more = [_while_training(judgement) if split == "val" else {} for judgement in judged]
    for name in dict.fromkeys(name for line in more for name in line):
        view.add_row(name, *(line.get(name, "–") for line in more))
    return view


def _while_training(judgement: Judgement) -> dict[str, str]:
    """Row → cell, of what the split alone does not tell: the gap, which both splits may give, and the losses."""
    way, gap = judgement.gap()
    gaps = {} if math.isnan(gap) else {f"gap/{judgement.figure}, {way}": _percent(gap)}
    return gaps | {f"loss/{name}, while training": f"{value:.4g}" for name, value in judgement.losses().items()}


def class_table(scores: Scores, head: str) -> Table:
    """Every class that occurs, the most frequent first."""
    view = Table(head, "clips", "top-1 %")
    for row in sorted(scores.classes[head], key=lambda row: -row["clips"]):
        view.add_row(f"{row['class']} {escape(row['name'])}", f"{row['clips']:,}", _percent(row["top1"]))
    return view


def efficiency_tables(judged: Sequence[Judgement]) -> list[Table]:
    """One line for each model that is involved, and one table for all that were measured under the same conditions."""
    rows = [(judgement.name, row) for judgement in judged for row in judgement.efficiency]
    largest = max((row.parameters for _, row in rows), default=0)
    views: dict[str, Table] = {}
    for run, row in rows:
        columns = ("run", "model", "parameters", "of the largest", "GFLOPs a clip", "clips/s")
        view = views.setdefault(row.conditions, Table(*columns, title=escape(row.conditions), title_justify="left"))
        sizes = (f"{row.parameters / 1e6:.2f}M", f"{_percent(row.parameters / largest)} %", f"{row.flops / 1e9:.2f}")
        speed = row.clips_per_second
        view.add_row(escape(run), escape(row.name), *sizes, f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}")
    return list(views.values())


def _cells(values: Sequence[float]) -> list[str]:
    best = max((value for value in values if not math.isnan(value)), default=math.nan)
    texts = [_percent(value) for value in values]
    return [f"[bold]{t}[/]" if len(values) > 1 and v == best else t for t, v in zip(texts, values, strict=True)]


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"
