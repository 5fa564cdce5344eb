"""Show what sweeps and runs have found.

    python -m raylab.report epic_phase2                     results/epic_phase2/report.html
    python -m raylab.report epic_phase1 epic_phase2         both on one page: results/report.html
    python -m raylab.report epic_phase2 --watch 60          written anew every minute, until the sweep is over
    python -m raylab.report epic_phase2 --no-judge          of what is known, without asking the best model

The page is one file: it opens from a disk, without a network. `report/` beside it has the same charts as PNG and PDF,
and the same tables as CSV and LaTeX. A sweep that ends has its report already; of one that runs, what is known so far
is shown. Of a cross-validation, models are compared over its folds (`raylab.reporting.folds`).
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from raylab.cli import console, run_verb
from raylab.reporting import content
from raylab.reporting.charts import best_curves
from raylab.reporting.content import Plot, Report, Section
from raylab.reporting.folds import tables
from raylab.reporting.interactive import figure
from raylab.reporting.page import render
from raylab.reporting.subject import Subject
from raylab.reporting.tables import Table
from raylab.results import DEFAULT_STORAGE, compare, locate
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder

log = logging.getLogger(__name__)

PAGE, FOLDER, CONTENTS = "report.html", "report", "contents.json"


def write(
    names: str | Path | Sequence[str | Path],
    storage: str | Path = DEFAULT_STORAGE,
    output: str | Path | None = None,
    judge: bool | None = None,
    *,
    cluster: bool = False,
    refresh: float | None = None,
) -> tuple[list[Report], Folder]:
    """Write `report.html` and `report/`.

    Args:
        names: sweeps and runs, by name under `storage` or by the path or URI of their folders.
        storage: the results folder, a path or a URI.
        output: the folder to write to; by default the folder of the sweep or run, of several the storage.
        judge: whether the best model of each is asked about its validation clips, which takes as long as one epoch's
            validation; None: where there is a GPU, or clips are few. What it said is kept.
        cluster: ask it as a job of the cluster that this process has joined.
        refresh: seconds after which a browser that shows a sweep that is not over loads it again.

    Returns:
        What was written, and the folder.

    Raises:
        RaylabError: one is not there, or a file of it is damaged.
    """
    chosen = [names] if isinstance(names, str | Path) else list(names)
    folders = [locate(name, storage) for name in chosen]
    default = folders[0] if len(folders) == 1 else Folder.open(storage)
    target = Folder.open(output) if output else default
    reports = [content.report(Subject.read(folder), judge, cluster) for folder in folders]
    overview = _overview(reports) if len(reports) > 1 else None
    waiting = refresh if any(not report.subject.over for report in reports) else None
    with target.new_folder(FOLDER, seal=CONTENTS) as filling:
        captions = {}
        for report in reports:
            prefix = f"{report.subject.name}_" if overview else ""
            for name, file in report.files.items():
                (filling / f"{prefix}{name}").write_bytes(file)
                captions[f"{prefix}{name}"] = report.captions[name]
        Folder.open(filling).write_json(CONTENTS, captions)
    target.write_text(PAGE, render(reports, overview, waiting))
    return reports, target


def _overview(reports: Sequence[Report]) -> Section:
    """The best of each side by side."""
    known = [report for report in reports if report.subject.best]
    section = Section("overview", "Side by side")
    section.lines += [f"{report.subject.name}: no result yet." for report in reports if report not in known]
    if known:
        table = compare([str(report.subject.folder) for report in known])
        table["name"] = [report.subject.name for report in known]
        section.tables.append(Table.of("overview", "The best of each", table))
        chart = best_curves([report.subject for report in known])
        section.plots.append(Plot(chart.name, chart.title, chart.about, figure(chart)))
    return section


def _again(names: Sequence[str], storage: str) -> str:
    where = "" if storage == DEFAULT_STORAGE else f" --storage {shlex.quote(storage)}"
    return f"raylab report {shlex.join(names)}{where}"


def after_sweep(sweep: SweepFolder, show: bool = True) -> None:
    """The report of a sweep that has just ended, in its folder. What goes wrong is said, and is not the sweep's end."""
    try:
        (made,), target = write(str(sweep.folder), cluster=True)
    except Exception as error:  # whatever it is, the trials are there
        again = _again([sweep.name], str(sweep.folder).rpartition("/")[0])
        log.warning("the sweep has ended, but its report could not be written (%s); try again: %s", error, again)
        return
    if show:
        _show([made], target)


def _show(reports: Sequence[Report], target: Folder) -> None:
    for report in reports:
        if report.compared:
            for view in tables(report.compared, report.subject.figure):
                console.print(view)
    console.print(f"written: {target / PAGE}", markup=False)


def report(
    names: Annotated[list[str], typer.Argument(help="Sweeps and runs, by name or folder.")],
    storage: Annotated[str, typer.Option(help="Results folder: a path or a URI.")] = DEFAULT_STORAGE,
    output: Annotated[str | None, typer.Option(help="Where to write; by default beside what it is about.")] = None,
    judge: Annotated[
        bool | None, typer.Option("--judge/--no-judge", help="Ask the best model about the validation clips.")
    ] = None,
    watch: Annotated[
        float | None, typer.Option(min=1, help="Write anew every so many seconds until all is over.")
    ] = None,
) -> None:
    """Write a page of charts and tables about sweeps and runs.

    Example: raylab report epic_phase2
    """
    while True:
        written, target = write(names, storage, output, judge, refresh=watch)
        if watch is None or all(made.subject.over for made in written):
            break
        console.print(f"written: {target / PAGE}; again in {watch:g} s, until Ctrl-C", markup=False)
        try:
            time.sleep(watch)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    _show(written, target)


if __name__ == "__main__":
    run_verb(report)
