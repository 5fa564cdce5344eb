"""The charts of a sweep or a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from raylab.evaluation.comparison import Comparison, mean_roc
from raylab.reporting.chart import BAD, MUTED, PALETTE, Chart, Heat, Series, Symbol, colours, joined
from raylab.reporting.judged import Judged
from raylab.reporting.subject import Subject, Trial

NAMED = 6  # trials with a line of their own
CLASSES = 20  # of one confusion matrix, and of one chart of bars


def curves(subject: Subject) -> Iterator[Chart]:
    """The metric of every trial over epochs, and the losses of the best one."""
    trials = [trial for trial in subject.trials if trial.history]
    if not trials:
        return
    named = trials[:NAMED]
    rest = [trial for trial in trials[NAMED:] if trial.state != "failed"]
    series = []
    for title, dash, group in (
        ("other trials", False, [trial for trial in rest if trial.state != "stopped"]),
        ("others, stopped early", True, [trial for trial in rest if trial.state == "stopped"]),
    ):
        if group:
            x, y, hover = joined((*trial.column(subject.metric), trial.name) for trial in group)
            series.append(Series(f"{title} ({len(group)})", x, y, colour=MUTED, dash=dash, hover=hover))
    for trial, colour in zip(named, PALETTE, strict=False):
        x, y = trial.column(subject.metric)
        stopped = trial.state == "stopped"
        title = f"{trial.name}, {trial.state}" if trial.state != "finished" else trial.name
        series.append(Series(title, x, y, colour=colour, dash=stopped, hover=[trial.name] * len(x), symbol="circle"))
    ends = [trial for trial in trials if trial.state in ("stopped", "failed")]
    for title, state, colour in (("stopped here", "stopped", MUTED), ("failed here", "failed", BAD)):
        its = [trial for trial in ends if trial.state == state]
        if its:
            last = [(trial.last["epoch"], trial.last.get(subject.metric, math.nan), trial.name) for trial in its]
            x, y, hover = (list(values) for values in zip(*last, strict=True))
            series.append(Series(f"{title} ({len(its)})", x, y, "points", colour, symbol="x", hover=hover))
    about = "Each line is a trial. " if len(trials) > 1 else ""
    dotted = "Dotted: stopped early, at the cross." if any(trial.state == "stopped" for trial in trials) else ""
    share = "y" if subject.share else ""
    yield Chart("curves", f"{subject.metric} over epochs", about + dotted, "epoch", subject.metric, series, share=share)
    yield from losses(named[0])


def best_curves(subjects: Sequence[Subject]) -> Chart:
    """Of several, the metric of the best trial of each."""
    series = []
    for subject, colour in zip(subjects, colours(subject.name for subject in subjects).values(), strict=True):
        best = subject.best
        if best:
            x, y = best.column(subject.metric)
            metric = "" if len({other.metric for other in subjects}) == 1 else f", {subject.metric}"
            series.append(
                Series(f"{subject.name}{metric}", x, y, colour=colour, symbol="circle", hover=[best.name] * len(x))
            )
    share = "y" if all(subject.share for subject in subjects) else ""
    metrics = ", ".join(dict.fromkeys(subject.metric for subject in subjects))
    return Chart(
        "best_curves", "The best trial of each", "Validation over epochs.", "epoch", metrics, series, share=share
    )


def losses(trial: Trial) -> Iterator[Chart]:
    """Of one trial, losses of training and validation."""
    if len(trial.history) < 2 or "train/loss" not in trial.last or "val/loss" not in trial.last:
        return
    series = [
        Series(part, *trial.column(f"{part}/loss"), colour=colour, symbol="circle", dash=part == "train")
        for part, colour in (("train", PALETTE[1]), ("val", PALETTE[0]))
    ]
    about = "Where validation turns up while training falls on, the model has begun to learn by heart."
    yield Chart("losses", f"Loss of {trial.name}", about, "epoch", "loss", series)


def gap(subject: Subject) -> Iterator[Chart]:
    """Training against validation, a point for each trial."""
    train = f"train/{subject.figure}"
    trials = [trial for trial in subject.trials if subject.metric in trial.best and train in trial.best]
    if len(trials) < 2:
        if trials:
            yield from _gap_of_one(subject, trials[0], train)
        return
    series = []
    for title, colour, group in (
        ("best", PALETTE[1], trials[:1]),
        ("finished", PALETTE[0], [t for t in trials[1:] if t.state != "stopped"]),
        ("stopped", MUTED, [t for t in trials[1:] if t.state == "stopped"]),
    ):
        if group:
            x, y = [t.best[train] for t in group], [t.best[subject.metric] for t in group]
            symbol: Symbol = "x" if title == "stopped" else "circle"
            series.append(Series(title, x, y, "points", colour, symbol=symbol, hover=[t.name for t in group]))
    every = [value for line in series for value in (*line.x, *line.y)]
    ends = [min(every), max(every)]
    series.append(Series("no gap", ends, ends, colour=MUTED, dash=True))
    about = "Each point is a trial at its best epoch. Right of the line it does better in training than in validation."
    share = "xy" if subject.share else ""
    yield Chart("gap", "Training against validation", about, train, subject.metric, series, share=share)


def _gap_of_one(subject: Subject, trial: Trial, train: str) -> Iterator[Chart]:
    series = [
        Series(name, *trial.column(name), colour=colour, symbol="circle", dash=name == train)
        for name, colour in ((train, PALETTE[1]), (subject.metric, PALETTE[0]))
    ]
    about = "What lies between the lines is the gap between training and validation."
    share = "y" if subject.share else ""
    yield Chart("gap", "Training against validation", about, "epoch", subject.figure, series, share=share)


def cost(subject: Subject) -> Iterator[Chart]:
    """The metric against what it took; the trials that none beats at both are joined."""
    trials = [trial for trial in subject.trials if subject.metric in trial.best and trial.seconds > 0]
    if len(trials) < 2:
        return
    on_gpus = all(trial.gpu_hours > 0 for trial in trials)
    spent = [trial.gpu_hours if on_gpus else trial.seconds / 60 for trial in trials]
    value = [trial.best[subject.metric] for trial in trials]
    sign = 1 if subject.mode == "max" else -1
    order = sorted(range(len(trials)), key=lambda at: (spent[at], -sign * value[at]))
    front: list[int] = []
    for at in order:
        if not front or sign * value[at] > sign * value[front[-1]]:
            front.append(at)
    hover = [f"{trial.name}, {trial.speed:.1f} clips/s" for trial in trials]
    series = [
        Series("trials", spent, value, "points", PALETTE[0], hover=hover),
        Series(
            "none is better and cheaper", [spent[at] for at in front], [value[at] for at in front], colour=PALETTE[1]
        ),
    ]
    about = "Each point is a trial. Those on the line are beaten by none that took less."
    unit = "GPU hours" if on_gpus else "minutes of training"
    wide = max(spent) > 20 * min(spent)
    share = "y" if subject.share else ""
    title = "What results cost"
    yield Chart("cost", title, about, unit + " (log)" * wide, subject.metric, series, log_x=wide, share=share)


def judgement(judged: Judged) -> Iterator[Chart]:
    """Confusion and accuracies of classes, or what each video's frames are worth."""
    for head, pairs in judged.confusion.items():
        names = judged.names[head]
        yield _confusion(head, names, pairs)
        yield _classes(head, names, pairs)
    if judged.videos:
        rows = sorted(judged.videos, key=lambda row: -(row.get("spearman_mean") or -1))
        shown, cut = (
            (rows, "") if len(rows) <= 2 * CLASSES else ([*rows[:CLASSES], *rows[-CLASSES:]], ", best and worst")
        )
        bars = Series(
            "spearman_mean", [row.get("spearman_mean") for row in shown], [row["video"] for row in shown], "bars"
        )
        about = f"Rank correlation of predicted and mean importance, a bar for each validation video{cut}."
        height = 140 + 20 * len(shown)
        yield Chart("videos", "Videos", about, "Spearman's rho", "", [bars], height=height, legend=False)


def _confusion(head: str, names: Sequence[str], pairs: Sequence[Sequence[int]]) -> Chart:
    clips: dict[int, int] = {}
    wrong: dict[int, int] = {}
    for true, said, count in pairs:
        clips[true] = clips.get(true, 0) + count
        if true != said:
            for place in (true, said):
                wrong[place] = wrong.get(place, 0) + count
    occurring = sorted({place for true, said, _ in pairs for place in (true, said)})
    chosen = sorted(sorted(occurring, key=lambda place: -wrong.get(place, 0))[:CLASSES])
    places = {place: at for at, place in enumerate(chosen)}
    counts = np.zeros((len(chosen), len(chosen)), int)
    for true, said, count in pairs:
        if true in places and said in places:
            counts[places[true], places[said]] += count
    totals = np.array([max(clips.get(place, 0), 1) for place in chosen])
    titles = _apart([names[place] for place in chosen])
    heat = Heat(titles, titles, (counts / totals[:, None]).tolist(), counts.tolist())
    about = "Rows are what a clip shows, columns what it was taken for; colours are parts of a row, numbers are clips."
    if len(chosen) < len(occurring):
        about += f" The {len(chosen)} of {len(occurring)} classes that are confused most."
    height = 220 + 26 * len(chosen)
    return Chart(f"confusion_{head}", f"Confusion: {head}", about, "taken for", "shows", heat=heat, height=height)


def _classes(head: str, names: Sequence[str], pairs: Sequence[Sequence[int]]) -> Chart:
    clips: dict[int, int] = {}
    right: dict[int, int] = {}
    for true, said, count in pairs:
        clips[true] = clips.get(true, 0) + count
        right[true] = right.get(true, 0) + count * (true == said)
    order = sorted(clips, key=lambda place: (-clips[place], place))
    shown = order[:CLASSES]
    titles = _apart([f"{names[place]} ({clips[place]})" for place in shown])
    bars = Series("top-1", [right[place] / clips[place] for place in shown], titles, "bars")
    about = "The part of a class's clips that is right; in brackets how many there are, the most first."
    if len(shown) < len(order):
        about += f" The {len(shown)} most frequent of {len(order)} classes."
    title, height = f"Accuracy of classes: {head}", 140 + 22 * len(shown)
    return Chart(f"classes_{head}", title, about, "top-1 accuracy", "", [bars], height=height, share="x", legend=False)


def _apart(names: Sequence[str]) -> list[str]:
    """Names that are alike, numbered: an axis would put them in one place."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} [{seen[name]}]")
    return found


def folds(compared: Comparison, figure: str) -> Iterator[Chart]:
    """Of a cross-validation: ROC curves where scores are known, figures over folds, and against cost.

    Args:
        compared: to show.
        figure: that models are judged by first.
    """
    colour = colours(compared.models["model"].astype(str))
    if len(compared.scores):
        grid = np.linspace(0, 1, 201)
        lines = []
        for model, scores in compared.scores.groupby("model", sort=False):
            mean, deviation = mean_roc(scores, grid)
            band = (np.clip(mean - deviation, 0, 1).tolist(), np.clip(mean + deviation, 0, 1).tolist())
            lines.append(Series(str(model), grid.tolist(), mean.tolist(), colour=colour[str(model)], band=band))
        lines.append(Series("by chance", [0, 1], [0, 1], colour=MUTED, dash=True))
        about = "Means over folds; the bands are one standard deviation."
        yield Chart("roc", "ROC", about, "false positive rate", "true positive rate", lines, share="xy")
    if figure not in compared.figures:
        return
    boxes = [
        Series(str(model), [str(model)], its[figure].tolist(), "box", colour[str(model)])
        for model, its in compared.folds.groupby("model", sort=False)
    ]
    about = "A point for each fold, over the box of their quartiles."
    yield Chart("folds", f"{figure} over folds", about, "", figure, boxes, share="y", legend=False)
    yield _dear(compared, figure, colour)


def _dear(compared: Comparison, figure: str, colour: dict[str, str]) -> Chart:
    largest = max(float(compared.models["memory_mean"].max()), 1.0)
    points = []
    for row in compared.models.to_dict("records"):
        known: dict[str, Any] = {"hover": [f"{row['memory_mean'] / 1e6:,.0f} MB"]}
        known["error"] = [float(np.nan_to_num(row[f"{figure}_std"]))]
        known["size"] = [6 + 14 * math.sqrt(row["memory_mean"] / largest)]
        name = str(row["model"])
        at = [row["seconds_mean"]], [row[f"{figure}_mean"]]
        points.append(Series(name, *at, "points", colour[name], **known))
    about = "Means over folds ± standard deviation; the area of a point is the memory that was held at most."
    x, y = "seconds of training (log)", figure
    return Chart("fold_cost", f"{figure} against cost", about, x, y, points, log_x=True, share="y")
