"""What stands in a report: sections of charts, tables and lines."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from raylab.errors import RaylabError
from raylab.evaluation.comparison import Comparison, plus_minus
from raylab.reporting import charts, interactive, paper, study, tables
from raylab.reporting.chart import Chart
from raylab.reporting.folds import comparison
from raylab.reporting.judged import Judged, judged, of_folds
from raylab.reporting.subject import Subject
from raylab.reporting.tables import Table, cell, duration
from raylab.sweeps.folder import SweepFolder


@dataclass(frozen=True)
class Plot:
    """A chart on the page.

    Attributes:
        name: unique in its report.
        title, about: see `Chart`.
        figure: of Plotly's.
        wide: the least width at which it can be read, in pixels.
    """

    name: str
    title: str
    about: str
    figure: interactive.Figure
    wide: int = 0


@dataclass
class Section:
    """A part of the page under one heading."""

    name: str
    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lines or self.tables or self.plots)


@dataclass
class Report:
    """All that is said of one sweep or run.

    Attributes:
        subject: what it is about.
        facts: what it comes to: a short text and what it is.
        sections: in order; empty ones are left out.
        compared: of a cross-validation.
        files: for papers: name → content.
        captions: name → what it shows.
    """

    subject: Subject
    facts: list[tuple[str, str]]
    sections: list[Section] = field(default_factory=list)
    compared: Comparison | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)

    def add(self, section: Section, shown: Iterable[Chart] = (), listed: Iterable[Table] = ()) -> None:
        """A section with charts and tables, which are drawn and written for papers too."""
        for chart in shown:
            section.plots.append(Plot(chart.name, chart.title, chart.about, interactive.figure(chart)))
            self.keep(paper.files(paper.draw(chart), chart.name), chart.title)
        for table in listed:
            section.tables.append(table)
            self.keep(paper.table_files(table.frame, table.name), table.title)
        if section:
            self.sections.append(section)

    def keep(self, files: dict[str, bytes], caption: str) -> None:
        self.files |= files
        self.captions |= dict.fromkeys(files, caption)


def report(subject: Subject, judge: bool | None = None, cluster: bool = False) -> Report:
    """Everything that is known of a sweep or a run; what is not there is said in a line.

    Args:
        subject: what it is about.
        judge: whether the best checkpoint is asked about the validation clips (`judged.judged`).
        cluster: whether that is a job of the cluster at hand.
    """
    made = Report(subject, facts(subject))
    if not subject.trials:
        made.add(Section("leaderboard", "Leaderboard", ["No trial has begun yet."]))
        made.add(Section("provenance", "Provenance"), listed=[tables.provenance(subject)] if subject.space else [])
        return made
    board = Section("leaderboard", "Leaderboard" if subject.space else "Result")
    made.add(board, listed=[tables.leaderboard(subject)])
    curves = Section("curves", "Learning curves")
    if not any(trial.history for trial in subject.trials):
        curves.lines.append("No epoch has ended yet.")
    made.add(curves, charts.curves(subject))
    made.compared = _folds(made, subject)
    if made.compared:
        made.facts[: len(_best_facts(subject))] = _fold_facts(made.compared, subject)
    _search(made, subject)
    made.add(Section("gap", "Training and validation"), charts.gap(subject))
    _best(made, subject, judge, cluster)
    made.add(Section("cost", "Cost"), charts.cost(subject), [tables.costs(subject)] if subject.space else [])
    _documented(made, subject)
    made.add(Section("provenance", "Provenance"), listed=[tables.provenance(subject)])
    return made


def facts(subject: Subject) -> list[tuple[str, str]]:
    """What it comes to, in a few figures."""
    states: dict[str, int] = {}
    for trial in subject.trials:
        states[trial.state] = states.get(trial.state, 0) + 1
    found = _best_facts(subject)
    seconds = sum(trial.seconds for trial in subject.trials if not math.isnan(trial.seconds))
    hours = sum(trial.gpu_hours for trial in subject.trials if not math.isnan(trial.gpu_hours))
    on_cpus = all("demand" in trial.info and not trial.gpu_hours for trial in subject.trials if trial.history)
    time = (
        (f"{hours:.1f} GPU hours", "of training")
        if hours
        else (duration(seconds), "of training" + ", on CPUs" * on_cpus)
    )
    found.append(time)
    if subject.space:
        known = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        found.append((f"{len(subject.trials)} of {subject.space.trials} trials", known or "none yet"))
    elif subject.trials:
        trial = subject.trials[0]
        found.append((f"{trial.last.get('epoch', 0)} of {trial.experiment.train.length} epochs", trial.state))
    return found


def _best_facts(subject: Subject) -> list[tuple[str, str]]:
    best = subject.best
    if best is None:
        return []
    where = f"{subject.metric}, epoch {best.last['best_epoch']}" + (f" of {best.name}" if subject.space else "")
    found = [(cell(float(best.best[subject.metric]), subject.share), where)]
    gap = best.best.get(f"gap/{subject.figure}")
    if gap is not None:
        text = f"{100 * gap:+.1f} points" if subject.share else f"{gap:+.3g}"
        found.append((text, "training less validation, there"))
    return found


def _fold_facts(compared: Comparison, subject: Subject) -> list[tuple[str, str]]:
    """The best fold of a model says little of it: its mean does."""
    figure = subject.figure
    if figure not in compared.figures:
        return []
    best = compared.models.loc[compared.models[f"{figure}_mean"].idxmax()]
    scale, unit = (100, " %") if subject.share else (1, "")
    text = plus_minus(best[f"{figure}_mean"], best[f"{figure}_std"], scale) + unit
    return [(text, f"{figure} of {best['model']}, mean ± deviation over folds")]


def _folds(made: Report, subject: Subject) -> Comparison | None:
    if not subject.cross_validated:
        return None
    section = Section("folds", "Models over folds")
    try:
        compared = comparison(SweepFolder(subject.folder))
    except RaylabError as error:
        section.lines.append(f"Nothing to compare: {error}")
        made.add(section)
        return None
    share = "" if not subject.share else tuple(f"{name}{end}" for name in compared.figures for end in ("_mean", "_std"))
    listed = [Table.of("models", "Mean and standard deviation over folds", compared.models, share=share)]
    if len(compared.tests):
        tests = compared.tests[compared.tests["figure"] == subject.figure]
        title = f"{subject.figure}: corrected resampled t-test (Nadeau & Bengio 2003), two-sided"
        listed.append(Table.of("tests", title, tests))
    made.add(section, charts.folds(compared, subject.figure), listed)
    return compared


def _search(made: Report, subject: Subject) -> None:
    section = Section("search", "Search")
    found, reason = study.plots(subject)
    for plot in found:
        section.plots.append(Plot(plot.name, plot.title, plot.about, plot.interactive, plot.wide))
        made.keep(plot.files, plot.title)
    if reason:
        section.lines.append(reason[0].upper() + reason[1:])
    made.add(section)


def _best(made: Report, subject: Subject, judge: bool | None, cluster: bool) -> None:
    section = Section("best", "The best model")
    found: Judged | None
    if subject.cross_validated:
        found = of_folds(made.compared, subject) if made.compared else None
        reason = "" if found else "What models say of single clips is not known."
        what = "over all folds, of clips that it was not trained on"
    else:
        found, reason = judged(subject, judge, cluster)
        what = f"after epoch {found.epoch}, of validation clips" if found else ""
    if found is None:
        section.lines.append(reason[0].upper() + reason[1:])
        made.add(section)
        return
    section.lines.append(f"{found.trial}, {what}: {found.clips:,}.")
    shown = list(charts.judgement(found))
    made.add(section, shown, [tables.figures(found, subject.share)])


def _documented(made: Report, subject: Subject) -> None:
    section = Section("documented", "As documented")
    if subject.space and subject.space.published and tables.synthetic(subject):
        section.lines.append(
            "Published figures are left out: these are of the built-in data set, which says nothing about real videos."
        )
    made.add(section, listed=tables.documented(subject))
