"""The tables of a sweep or a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raylab.reporting.chart import known
from raylab.reporting.judged import Judged
from raylab.reporting.subject import Subject
from raylab.sweeps.tables import heading, number

HIDDEN = ("error", "clips_per_second", "gpu_hours", "seconds")


@dataclass(frozen=True)
class Table:
    """A table, as data and as it is shown.

    Attributes:
        name: of its files, unique in a report.
        title: what it has.
        frame: at full precision.
        heads: of the columns that are shown.
        rows: their cells as text.
        numeric: which columns are set to the right.
        notes: row → what is said under it.
    """

    name: str
    title: str
    frame: pd.DataFrame
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    notes: dict[int, str]

    @classmethod
    def of(
        cls, name: str, title: str, frame: pd.DataFrame, hidden: Sequence[str] = (), share: str | tuple[str, ...] = ""
    ) -> Table:
        """A table whose columns are all shown but some; those that end in `share` are parts of a whole."""
        shown = [column for column in frame.columns if column not in hidden]
        rows = [
            [cell(value, bool(share) and str(column).endswith(share)) for column, value in zip(shown, row, strict=True)]
            for row in frame[shown].itertuples(index=False)
        ]
        numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in shown]
        heads = [heading(str(column)).replace("\n", " ").replace("_", " ") for column in shown]
        return cls(name, title, frame, heads, rows, numeric, {})


def cell(value: Any, share: bool = False) -> str:
    """A cell as text: per cent of a part of a whole, else four digits, a dash for what is not known."""
    if share and isinstance(value, float) and known(value):
        return f"{100 * value:.2f} %"
    if isinstance(value, list | tuple):
        return "–".join(cell(part, share) for part in value)
    return number(value)


def duration(seconds: float) -> str:
    """Time as people say it: `45 s`, `12 min`, `3.4 h`."""
    if math.isnan(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def leaderboard(subject: Subject) -> Table:
    """All trials, best first, a failed one with its cause."""
    board = subject.board()
    share = subject.figure if subject.share else ""
    table = Table.of("leaderboard", "Leaderboard", board, HIDDEN, share)
    times = [duration(trial.seconds) for trial in subject.trials]
    rows = [[str(at), *row, time] for at, (row, time) in enumerate(zip(table.rows, times, strict=True), start=1)]
    notes = {at: trial.error for at, trial in enumerate(subject.trials) if trial.error}
    heads, numeric = ["#", *table.heads, "time"], [True, *table.numeric, True]
    return Table(table.name, table.title, board, heads, rows, numeric, notes)


def costs(subject: Subject) -> Table:
    """What each trial took, beside its metric."""
    columns = ["trial", subject.metric, "seconds", "gpu_hours", "clips_per_second", "epochs"]
    board = subject.board()[columns]
    hidden = ["gpu_hours"] if not (board["gpu_hours"] > 0).any() else []
    return Table.of("cost", "Cost", board, hidden, subject.figure if subject.share else "")


def figures(judged: Judged, share: bool) -> Table:
    """What the best checkpoint is worth."""
    rows = [{"figure": name, "value": math.nan if value is None else value} for name, value in judged.figures.items()]
    return Table.of("figures", "Figures", pd.DataFrame(rows), share="value" if share else "")


def documented(subject: Subject) -> list[Table]:
    """The documented configurations and figures, beside what was found here."""
    space = subject.space
    if space is None:
        return []
    found = []
    by_name = {trial.name: trial for trial in subject.trials}
    share = subject.figure if subject.share else ""
    rows = []
    for name, values in space.documented.items():
        trial = by_name.get(name)
        best = trial.best if trial else {}
        ours = {part: best.get(part, math.nan) for part in (subject.metric, f"train/{subject.figure}")}
        rows.append({"configuration": name, **values, "state": trial.state if trial else "not begun", **ours})
    if rows:
        found.append(Table.of("documented", "Documented configurations", pd.DataFrame(rows), share=share))
    rows = []
    for name, its in ({} if synthetic(subject) else space.published).items():
        trial = by_name.get(name, subject.best)
        for figure, value in its.items():
            low, high = value if isinstance(value, list) else (value, value)
            here = trial.best.get(figure, math.nan) if trial else math.nan
            published = (
                cell(low, subject.share) if low == high else f"{cell(low, subject.share)} – {cell(high, subject.share)}"
            )
            rows.append(
                {
                    "published": name,
                    "figure": figure,
                    "value": published,
                    "ours": here,
                    "trial": trial.name if trial else "",
                }
            )
    if rows:
        found.append(Table.of("published", "Published figures", pd.DataFrame(rows), share="ours" if share else ""))
    return found


def synthetic(subject: Subject) -> bool:
    """Whether it is about the built-in data, whose figures cannot be compared with any of real videos."""
    return bool(subject.trials) and subject.trials[0].experiment.data.dataset.startswith("kitchen")


def provenance(subject: Subject) -> Table:
    """What made it."""
    info = subject.info
    versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())
    data = info.get("data", {})
    experiment = subject.space.experiment if subject.space else subject.trials[0].experiment
    rows = {
        "command": info.get("command", "not recorded"),
        "started": subject.started or "not recorded",
        "versions": versions or "not recorded",
        "seed": str(experiment.seed),
        "fold seed": str(experiment.data.fold_seed) if experiment.data.split != "official" else "",
        "data": f"{experiment.data.dataset}, {experiment.data.root}",
        "annotations": data.get("annotations", "not recorded"),
        "clips": ", ".join(f"{split} {count:,}" for split, count in data.items() if isinstance(count, int)),
        "model": experiment.model.name if not subject.space or "model.name" not in subject.space.space else "searched",
        "source": subject.space.source if subject.space else "",
        "folder": str(subject.folder),
    }
    for again in info.get("resumed", []):
        changed = again.get("data") not in (None, info.get("data"))
        rows[f"went on {again.get('started', '')}"] = again.get("command", "") + " – on other data" * changed
    frame = pd.DataFrame([{"what": what, "value": value} for what, value in rows.items() if value])
    return Table.of("provenance", "What made this", frame)
