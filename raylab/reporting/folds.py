"""The models of a cross-validated sweep over its folds.

What is found lies in `comparison/` of the sweep's folder:

| file | content |
|---|---|
| `folds.csv` | one row for each model and fold: figures, seconds, bytes of memory |
| `models.csv` | one row a model: means and standard deviations |
| `tests.csv` | one row for each figure and pair of models |
| `scores.csv` | what each model says of each clip that it was not trained on |

Of a sweep that still runs, what has finished is compared.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.table import Table

from raylab.errors import RaylabError
from raylab.evaluation.comparison import SCORES, Comparison, plus_minus
from raylab.results import DEFAULT_STORAGE, Checkpoint, locate
from raylab.sweeps.folder import SweepFolder

if TYPE_CHECKING:
    from raylab.storage import Folder

FOLDER = "comparison"


def comparison(name: str | Path | SweepFolder, storage: str | Path = DEFAULT_STORAGE) -> Comparison:
    """Compare the models of a sweep over its folds, and write what was found beside its trials.

    Args:
        name: a sweep's name under `storage`, or the path or URI of its folder.
        storage: the results folder, a path or a URI.

    Raises:
        RaylabError: there is no such sweep, it is not a cross-validation, or no trial of it has finished.
    """
    sweep = name if isinstance(name, SweepFolder) else SweepFolder(locate(name, storage))
    if not sweep.exists() or not sweep.space.cross_validated:
        raise RaylabError(f"{sweep.folder}: is no cross-validation: name a sweep that searches data.fold, such as aura")
    folds = sweep.folds()
    if folds.empty:
        raise RaylabError(f"{sweep.folder}: no trial has finished yet")
    compared = Comparison.of(folds, sweep.space.experiment.data.folds, _scores(sweep, folds))
    for name in ("folds", "models", "tests"):
        (sweep.folder / FOLDER).write_text(f"{name}.csv", getattr(compared, name).to_csv(index=False))
    return compared


def figure_of(sweep: SweepFolder) -> str:
    """What its models are judged by first: `accuracy`."""
    return sweep.space.search.metric.removeprefix("val/")


def _scores(sweep: SweepFolder, folds: pd.DataFrame) -> pd.DataFrame:
    """What the best checkpoint of each trial says of its fold: read where it was written before, else found out."""
    folder = sweep.folder / FOLDER
    if sweep.space.experiment.task != "classification":
        return pd.DataFrame(columns=list(SCORES))
    jobs = []
    for row in folds.itertuples():
        run = sweep.run(str(row.trial))
        best = run.best(sweep.space.search.metric, sweep.space.search.mode)
        if best:
            jobs.append(_Job(Checkpoint.open(best.folder, run.name), str(row.model), int(row.fold)))
    known = _read(folder)
    kept = known[known["checkpoint"].isin([job.key for job in jobs])]
    missing = [job for job in jobs if job.key not in set(kept["checkpoint"])]
    if missing:
        found = list(_judge(missing, sweep))
        kept = pd.concat([*([kept] if len(kept) else []), *found], ignore_index=True)
        order = {job.key: place for place, job in enumerate(jobs)}
        kept = kept.sort_values("checkpoint", key=lambda keys: keys.map(order), kind="stable", ignore_index=True)
        folder.write_text("scores.csv", kept.to_csv(index=False))
    return kept


def _read(folder: Folder) -> pd.DataFrame:
    try:
        return pd.read_csv(io.StringIO(folder.read_text("scores.csv")), dtype={"clip": str, "model": str})
    except FileNotFoundError:
        return pd.DataFrame(columns=[*SCORES, "checkpoint"])


def _judge(jobs: list[_Job], sweep: SweepFolder) -> Iterable[pd.DataFrame]:
    from raylab.cluster.capacity import Demand
    from raylab.cluster.connect import connect
    from raylab.cluster.spread import spread

    nodes = connect()
    demand = Demand.of(sweep.space.experiment.resources.model_copy(update={"workers": 1}), nodes).within(nodes)
    return spread(_Job.__call__, jobs, demand.cpus, demand.gpus)


@dataclass(frozen=True)
class _Job:
    """A checkpoint to be judged on the fold that it was not trained on."""

    checkpoint: Checkpoint
    model: str
    fold: int

    @property
    def key(self) -> str:
        """Which checkpoint of which trial."""
        return f"{self.checkpoint.run}/{self.checkpoint.folder.name}"

    def __call__(self) -> pd.DataFrame:
        from raylab.data.datasets import load_dataset
        from raylab.evaluate import judge
        from raylab.tasks.classification import only_head, positive_class

        experiment, labels = self.checkpoint.experiment, self.checkpoint.labels
        head = only_head(labels)
        positive = positive_class(labels[head], experiment.classification.positive)
        if positive is None:
            return pd.DataFrame(columns=[*SCORES, "checkpoint"])
        said = judge(self.checkpoint).predictions["val"]
        clips = load_dataset(experiment.data, ("val",)).splits["val"].clips
        given = {clip.id: clip.labels[head] == positive for clip in clips}
        logs = said.values[head].astype(float)
        return pd.DataFrame(
            {
                "model": self.model,
                "fold": self.fold,
                "clip": said.ids,
                "positive": [given[id] for id in said.ids],
                "score": logs[:, positive] - logs[:, 1 - positive],
                "checkpoint": self.key,
            }
        )


def tables(compared: Comparison, figure: str) -> list[Table]:
    """One line a model, the best mean in bold; and the paired tests of `figure`."""
    models = compared.models
    view = Table("model", "folds", *(f"{name} %" for name in compared.figures), "seconds", "memory MB")
    view.title = "mean ± standard deviation over folds"
    best = {name: models[f"{name}_mean"].max() for name in compared.figures}
    for row in models.to_dict("records"):
        cells = []
        for name in compared.figures:
            text = plus_minus(row[f"{name}_mean"], row[f"{name}_std"], 100)
            cells.append(f"[bold]{text}[/]" if len(models) > 1 and row[f"{name}_mean"] == best[name] else text)
        costs = (plus_minus(row[f"{name}_mean"], row[f"{name}_std"], scale, 0) for name, scale in COST_UNITS.items())
        view.add_row(str(row["model"]), str(row["folds"]), *cells, *costs)
    tests = compared.tests[compared.tests["figure"] == figure]
    if tests.empty:
        return [view]
    pairs = Table("a", "b", "folds", "a - b", "t", "p", "p (Holm)")
    pairs.title = f"{figure}: corrected resampled t-test (Nadeau & Bengio 2003), two-sided, {len(tests)} pairs"
    for row in tests.to_dict("records"):
        numbers = (f"{100 * row['difference']:+.2f}", f"{row['t']:.2f}", f"{row['p']:.3f}", f"{row['p_holm']:.3f}")
        pairs.add_row(row["a"], row["b"], str(row["folds"]), *numbers)
    return [view, pairs]


COST_UNITS = {"seconds": 1.0, "memory": 1e-6}
