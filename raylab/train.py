"""Train one experiment.

    python -m raylab.train epic_phase2 model.dropout=0.4
    python -m raylab.train epic_phase2 --config config3 resources.workers=4
    python -m raylab.train my_experiment.yaml --dry-run

The same command again goes on where the run stopped.
"""

from __future__ import annotations

import hashlib
import json
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from raylab.cli import console, run_verb
from raylab.config import Experiment
from raylab.errors import RaylabError, unknown_name
from raylab.models.registry import find_model
from raylab.preflight import preflight
from raylab.results import DEFAULT_STORAGE, Run, how_to_load
from raylab.schema import parse_overrides, read_yaml
from raylab.storage import Folder
from raylab.sweeps.space import SearchSpace, find
from raylab.training.runfolder import RunFolder, decisive, set_aside


def fit(
    experiment: Experiment,
    name: str | None = None,
    storage: str | Path = DEFAULT_STORAGE,
    fresh: bool = False,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Train one experiment on the cluster at hand, or on this machine.

    Args:
        experiment: what to train.
        name: the run's name; by default its model and a fingerprint of its settings, so that the same
            experiment finds its own run again and goes on with it.
        storage: where runs live: a path or a URI such as `s3://bucket/results`.
        fresh: set an existing run of that name aside and start anew.
        show: called with each epoch's row of metrics as it appears.

    Raises:
        RaylabError: the experiment cannot run: files, names, values, resources.
        TrainingFailed: training itself failed.
        KeyboardInterrupt: Ctrl-C, or SIGTERM once the run has saved; the same call goes on from there.
    """
    folder = Folder.open(storage)
    preflight(experiment, folder)
    from raylab.cluster.capacity import Demand
    from raylab.cluster.connect import connect
    from raylab.provenance import provenance
    from raylab.training.interrupt import saving
    from raylab.training.trainer import TrainingFailed, launch

    run = RunFolder(folder / (name or default_name(experiment)))
    if fresh:
        set_aside(folder, run.name)
    run.create(experiment, made=lambda: provenance(experiment.data))
    nodes = connect()
    demand = Demand.of(experiment.resources, nodes).within(nodes)
    measure_features([experiment])
    try:
        with saving(lambda: [run]), following(run, show) if show else nullcontext():
            launch(run, demand)
    except TrainingFailed as error:
        run.fail(str(error), "".join(traceback.format_exception(error)))
        raise
    return Run.read(run)


def measure_features(experiments: Iterable[Experiment]) -> int:
    """Compute, on all CPUs of the cluster, the handcrafted features that runs will need; the number of videos.

    Raises:
        RaylabError: a video cannot be read.
    """
    needed = [e.data for e in experiments if find_model(e.model.name).handcrafted]
    if not needed:
        return 0
    from raylab.handcrafted.clips import prepare

    return prepare(needed)


@contextmanager
def following(run: RunFolder, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Inside, `show` is called with each new row of the run's history."""
    over = threading.Event()
    seen = len(run.history())

    def follow() -> None:
        nonlocal seen
        ended = False
        while not ended:
            ended = over.wait(timeout=1.0)  # after the end, one last look
            rows = run.history()
            for row in rows[seen:]:
                show(row)
            seen = len(rows)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def default_name(experiment: Experiment) -> str:
    """Model, data set and a fingerprint of every setting that decides the result."""
    content = json.dumps(decisive(experiment), sort_keys=True).encode()
    return f"{experiment.model.name}-{experiment.data.dataset}-{hashlib.sha256(content).hexdigest()[:8]}"


def load_experiment(
    name: str, config: str | None = None, demo: bool = False, changes: Mapping[str, Any] | None = None
) -> Experiment:
    """The base experiment of a sweep, or one of its configurations by name, or an experiment's own file.

    Args:
        name: a sweep's, or the path of a file.
        config: a documented configuration, or one point of a cross-validation, as `vit_gru-fold2`.
        demo: take the sweep's demo.
        changes: dotted settings to replace.

    Raises:
        RaylabError: there is no such sweep, file or configuration.
    """
    path = find(name)
    if "space" not in (data := read_yaml(path)):
        if config or demo:
            raise RaylabError(f"{path} is one experiment: it has neither documented configurations nor a demo")
        return Experiment.parse(data, str(path)).override(changes or {})
    space = SearchSpace.load(name)
    space = space.for_demo() if demo else space
    if config is not None and config not in space.rows:
        raise unknown_name("configuration", config, space.rows)
    chosen = {**(space.rows[config] if config else {}), **(changes or {})}
    # Twice: what a value brings with it follows the changes, and the changes have the last word.
    return space.trial({path: chosen[path] for path in chosen if path in space.space}).override(changes or {})


def summary(row: dict[str, Any], metric: str) -> str:
    """One epoch in one line."""
    training = row[f"train/{metric.removeprefix('val/')}"]
    return (
        f"epoch {row['epoch']}: loss {row['train/loss']:.4f}, {metric} {row[metric]:.4f} (train {training:.4f}, "
        f"best {row['best']:.4f}), {row['clips_per_second']:.1f} clips/s, {row['data_wait']:.0%} waiting for data"
    )


def train(
    experiment: Annotated[str, typer.Argument(help="A sweep's name, or a YAML file of a sweep or an experiment.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, e.g. optim.lr=1e-4.")] = None,
    config: Annotated[str | None, typer.Option(help="A documented configuration, e.g. config3.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Small, on the built-in data set.")] = False,
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    storage: Annotated[str, typer.Option(help="Results folder: a path or a URI.")] = DEFAULT_STORAGE,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set an existing run aside and start anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, fetch weights, train nothing.")] = False,
) -> None:
    """Train one experiment on as many workers as `resources.workers` says.

    Example: raylab train epic_phase2 model.dropout=0.4 resources.workers=4
    """
    changes: dict[str, Any] = parse_overrides(overrides or [])
    chosen = load_experiment(experiment, config, demo, changes)
    if dry_run:
        console.print(preflight(chosen, Folder.open(storage)), markup=False)
        return
    from raylab.training.trainer import TrainingFailed

    console.print(f"training {name or default_name(chosen)} → {storage}", markup=False)
    try:
        run = fit(chosen, name, storage, fresh, show=lambda row: console.print(summary(row, chosen.monitor)))
    except TrainingFailed as error:
        console.print(f"[bold red]failed:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
        raise typer.Exit(130) from None
    console.print(f"{run.state} after {run.epochs} epochs, {run.seconds:.0f} s; best {run.metric} = {run.best:.4f}")
    console.print(f"load it: {how_to_load(run.name, storage)}", markup=False)


if __name__ == "__main__":
    run_verb(train)
