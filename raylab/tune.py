"""Sweep an experiment's hyperparameters.

    python -m raylab.tune --list
    python -m raylab.tune epic_phase2 data.root=$VSC_SCRATCH/epic resources.workers=4
    python -m raylab.tune epic_phase2 --demo
    python -m raylab.tune epic_phase3 --from epic_phase2
    python -m raylab.tune my_space.yaml search.trials=50

The same command again resumes the sweep; `--fresh` sets the old one aside and starts anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from raylab.cli import console, run_verb
from raylab.errors import RaylabError
from raylab.models.registry import batches
from raylab.preflight import preflight
from raylab.results import DEFAULT_STORAGE, how_to_load, locate
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.ranges import Range
from raylab.sweeps.space import SearchSpace, shipped
from raylab.train import measure_features
from raylab.training.runfolder import ENDED, set_aside

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    space: SearchSpace | str,
    overrides: list[str] | None = None,
    *,
    demo: bool = False,
    start: str | Path | None = None,
    name: str | None = None,
    storage: str | Path = DEFAULT_STORAGE,
    fresh: bool = False,
    quiet: bool = False,
) -> pd.DataFrame:
    """Run or resume a sweep on the cluster at hand, or on this machine.

    Args:
        space: a search space, or the name or path of its file.
        overrides: `setting=value` words, as on the command line.
        demo: run it small, on the built-in data set, under the name `…_demo`.
        start: another sweep, whose best trial to search around: see `SearchSpace.starting_from`. Resumed, a sweep keeps
            what it took when it began.
        name: the sweep's name, by default that of its file.
        storage: where sweeps live: a path or a URI such as `s3://bucket/results`.
        fresh: set an existing sweep of that name aside and start anew.
        quiet: show no progress.

    Returns:
        The leaderboard (see `SweepFolder.leaderboard`).

    Raises:
        RaylabError: something would keep the trials from running: files, names, values, resources.
    """
    parent = Folder.open(storage)
    chosen = choose(space, overrides or [], demo, name, start, parent, fresh)
    preflight(chosen.trial({}), parent, chosen.variants)
    from raylab.cluster.connect import connect, dashboard_url
    from raylab.dashboard import show_events
    from raylab.provenance import provenance
    from raylab.report import after_sweep
    from raylab.sweeps.display import Watch
    from raylab.sweeps.sweep import run_sweep
    from raylab.sweeps.tables import leaderboard_table
    from raylab.training.interrupt import saving

    folder = SweepFolder(parent / chosen.name)
    with folder.locked():
        if fresh:
            set_aside(parent, chosen.name)
        folder.create(chosen, provenance(chosen.experiment.data))
        nodes = connect()
        measured = measure_features(chosen.variants)
        if quiet:
            with saving(folder.runs):
                run_sweep(chosen, folder, nodes)
            after_sweep(folder, show=False)
            return folder.leaderboard()
        console.print(introduction(chosen, folder), markup=False)
        console.print(f"Ray dashboard: {dashboard_url() or 'not running'}")
        console.print(f"TensorBoard: {show_events(folder.folder / 'trials').text}", markup=False)
        console.print(f"with the study, now or later: raylab dashboard {folder.folder}", markup=False)
        if measured:
            console.print(f"handcrafted features of {measured:,} videos")
        with saving(folder.runs):
            run_sweep(chosen, folder, nodes, lambda *progress: Watch(console, *progress))
        board = folder.leaderboard()
        console.print(leaderboard_table(board, chosen))
        after_sweep(folder)
        return board


def choose(
    space: SearchSpace | str,
    overrides: list[str],
    demo: bool = False,
    name: str | None = None,
    start: str | Path | None = None,
    storage: Folder | None = None,
    fresh: bool = False,
) -> SearchSpace:
    """The sweep that is meant: its file, its demo if wanted, what it starts from, the overrides, the name."""
    chosen = SearchSpace.load(space) if isinstance(space, str) else space
    if demo:
        chosen = chosen.for_demo()
    chosen = chosen.model_copy(update={"name": name}) if name else chosen
    if start and storage:
        row = f"from_{Path(start).name}"
        begun = SweepFolder(storage / chosen.name)
        known = begun.space if begun.exists() and not fresh else None
        taken = known.taken if known and row in known.documented else best_values(start, storage)
        chosen = chosen.starting_from(taken, row)
    return chosen.override(overrides) if overrides else chosen


def best_values(name: str | Path, storage: Folder) -> dict[str, Any]:
    """The searched settings of the best trial of a sweep that has ended: dotted setting → value.

    Raises:
        RaylabError: there is no such sweep, or no trial of it has ended with a result.
    """
    found = SweepFolder(locate(name, storage))
    if not found.exists():
        raise RaylabError(f"--from {name}: {found.folder} is a single run: name a sweep")
    space = found.space
    board = found.leaderboard()
    ended = board[board["state"].isin(ENDED) & board[space.search.metric].notna()]
    if ended.empty:
        raise RaylabError(
            f"--from {name}: no trial of {found.folder} has ended with a result yet: run that sweep first"
        )
    experiment = found.run(ended["trial"].iloc[0]).experiment
    return {path: experiment.get(path) for path in space.space}


def introduction(space: SearchSpace, folder: SweepFolder) -> str:
    """What is about to run, in words; a demo says what it is not."""
    experiment, search = space.experiment, space.search
    data, train = experiment.data, experiment.train
    size, accumulate = batches(experiment)
    own = data.batch_size is None and "model.name" in space.space
    batch = "of its own" if own else f"{size} × {experiment.resources.workers} workers × {accumulate}"
    stopping = "none stopped early" if search.scheduler == "none" else f"{search.scheduler} after {search.grace_epochs}"
    model = "of its own" if "model.name" in space.space else experiment.model.name
    searched = space.space | ({"model.name": Range(choice=list(space.models))} if space.models else {})
    lines = [
        f"{space.name}: {space.description}",
        f"{space.trials} trials, {len(space.documented)} of them documented; {train.length} epochs, "
        f"{stopping}; best by {search.metric} ({search.mode})",
        f"model {model}, {data.frames} frames of {data.size}×{data.size}, batch {batch}",
        f"searching {', '.join(f'{path} {values}' for path, values in searched.items())}",
        f"results in {folder.folder}",
    ]
    if space.taken:
        taken = ", ".join(f"{path} {value}" for path, value in space.taken.items())
        lines.insert(1, f"{next(iter(space.documented))}: {taken}")
    if data.dataset.startswith("kitchen"):
        lines.insert(
            1,
            f"Demo: the built-in synthetic data set ({data.kitchen}) and tiny models without pretrained weights. "
            "Its figures say nothing about real videos.",
        )
    return "\n".join(lines)


def listing() -> Table:
    """Every shipped sweep with its size, metric and source."""
    table = Table("sweep", "trials", "documented", "space", "metric", "source")
    for name in shipped():
        space = SearchSpace.load(name)
        size = f"{len(space.space)} settings, {space.size}"
        metric = f"{space.search.metric} ({space.search.mode})"
        table.add_row(name, str(space.trials), str(len(space.documented)), size, metric, space.source)
    return table


def tune(
    space: Annotated[str | None, typer.Argument(help="A shipped sweep's name, or the path of a YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, e.g. search.trials=50.")] = None,
    list_sweeps: Annotated[bool, typer.Option("--list", help="Show every shipped sweep.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Small, on the built-in data set.")] = False,
    start: Annotated[str | None, typer.Option("--from", help="Search around the best trial of this sweep.")] = None,
    name: Annotated[str | None, typer.Option(help="The sweep's name.")] = None,
    storage: Annotated[str, typer.Option(help="Results folder: a path or a URI.")] = DEFAULT_STORAGE,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set an existing sweep aside and start anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, fetch weights, train nothing.")] = False,
) -> None:
    """Sweep hyperparameters; the same command again resumes.

    Example: raylab tune epic_phase2 data.root=/data/epic resources.workers=4
    """
    if list_sweeps:
        console.print(listing())
        return
    if space is None:
        raise RaylabError(f"which sweep? One of {', '.join(shipped())}, or the path of a YAML file; see --list")
    parent = Folder.open(storage)
    chosen = choose(space, overrides or [], demo, name, start, parent, fresh)
    if dry_run:
        console.print(preflight(chosen.trial({}), parent, chosen.variants), markup=False)
        return
    try:
        board = sweep(chosen, storage=storage, fresh=fresh)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
        raise typer.Exit(130) from None
    scored = board[chosen.search.metric].notna()
    if not scored.any():
        console.print("[bold red]no trial succeeded[/]; the causes are in the table")
        raise typer.Exit(1)
    console.print(f"best: {board['trial'].iloc[0]}. Load its model in Python:")
    console.print(f"    {how_to_load(chosen.name, storage)}", markup=False)


if __name__ == "__main__":
    run_verb(tune)
