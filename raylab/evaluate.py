"""Judge trained models on a split, as the EPIC-KITCHENS-100 challenge does.

    python -m raylab.evaluate epic_phase2
    python -m raylab.evaluate epic_phase2 epic_phase3 --ensemble --views 5x3 --json figures.json
    python -m raylab.evaluate results/my_run/checkpoints/step_00001234 data.root=/data/epic --split val --split train
    python -m raylab.evaluate epic_phase3 --split test --submission test.zip
    python -m raylab.evaluate my_student --per-class --efficiency
    python -m raylab.evaluate --baselines tvsum data.root=/data/tvsum

Each name is a sweep or a run, whose best checkpoint is taken, or the folder of a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylab.cli import console, run_verb
from raylab.config import Experiment
from raylab.data.datasets import load_annotations, load_dataset
from raylab.errors import RaylabError
from raylab.evaluation.judgement import Judgement as Judgement  # part of what the verb offers
from raylab.evaluation.judgement import record
from raylab.evaluation.splits import changed, has_labels, open_split
from raylab.evaluation.tables import efficiency_tables, table
from raylab.models.registry import batches, find_model
from raylab.results import DEFAULT_STORAGE, Checkpoint, find_checkpoint
from raylab.schema import parse_overrides
from raylab.storage import replacing

if TYPE_CHECKING:
    from raylab.evaluation.efficiency import Efficiency
    from raylab.evaluation.judgement import Scores
    from raylab.evaluation.predictions import Predictions, Views

SPLITS = ("val", "train", "test")


def judge(
    checkpoint: str | Path | Checkpoint,
    overrides: Mapping[str, Any] | None = None,
    *,
    splits: Sequence[str] = ("val",),
    views: str = "1x1",
    workers: int = 1,
    storage: str | Path = DEFAULT_STORAGE,
) -> Judgement:
    """Judge one model.

    Args:
        checkpoint: a checkpoint, its folder, or the name of a sweep or a run.
        overrides: dotted `data.…` settings to change, e.g. `{"data.root": "/data/epic"}`.
        splits: of `val`, `train` and `test`; one without labels, as EPIC's test, is predicted and not scored.
        views: clips x crops; probabilities are averaged over them.
        workers: how many share the work; 1 works in this process, on the GPU if there is one, without Ray.
        storage: the results folder, a path or a URI.

    Returns:
        Figures and predictions; for any number of workers the same.

    Raises:
        RaylabError: there is no such checkpoint, the data is not there or has other classes, or the model cannot be
            asked about several views.
    """
    from raylab.evaluation.kinds import KINDS
    from raylab.evaluation.predictions import ONCE, Predictions, Views

    found = checkpoint if isinstance(checkpoint, Checkpoint) else find_checkpoint(checkpoint, storage)
    experiment = changed(found.experiment, overrides or {})
    kind, parsed = KINDS[experiment.task], Views.parse(views)
    if parsed != ONCE and not kind.views:
        raise RaylabError(f"--views {views}: {found.path}: the model scores every frame once: leave --views out")
    if parsed != ONCE and find_model(experiment.model.name).handcrafted:
        raise RaylabError(f"--views {views}: {experiment.model.name} judges whole files: leave --views out")
    predictions, scores = {}, {}
    for split in splits:
        dataset = open_split(experiment, found, split, parsed)
        job = _Job(found, experiment, split, parsed)
        predictions[split] = Predictions.join(_run(job, workers))
        if has_labels(dataset, split):
            scores[split] = kind.score(predictions[split], dataset, split, experiment.data)
    rows = {row["epoch"]: row for row in found.history()}
    about = {
        "checkpoint": found.path,
        "epoch": found.epoch,
        "views": views,
        "experiment": experiment.to_dict(),
    }
    history = rows[found.epoch] if found.metrics else {}
    return Judgement(found.name, kind.figure(found.heads), about, predictions, scores, history)


def ensemble(members: Sequence[Judgement], overrides: Mapping[str, Any] | None = None) -> Judgement:
    """Several models as one: the mean of their probabilities, or of their scores.

    Raises:
        RaylabError: they were judged on different clips or classes.
    """
    from raylab.evaluation.kinds import KINDS
    from raylab.evaluation.predictions import average

    experiment = changed(Experiment.parse(members[0].about["experiment"]), overrides or {})
    kind, data = KINDS[experiment.task], experiment.data
    predictions = {
        split: average([member.predictions[split] for member in members], kind.mean) for split in members[0].predictions
    }
    scores = {
        split: kind.score(predictions[split], load_dataset(data, (split,)), split, data) for split in members[0].scores
    }
    about = {"members": [member.name for member in members], "views": members[0].about["views"]}
    return Judgement("ensemble", members[0].figure, about, predictions, scores)


def references(
    checkpoint: Checkpoint, overrides: Mapping[str, Any] | None = None, *, splits: Sequence[str] = ("val",)
) -> list[Judgement]:
    """What a model's figures are to be held against: for keyframes humans, an oracle, chance, frame differences.

    Args:
        checkpoint: of the model, whose data is used.
        overrides: as for `judge`.
        splits: with labels.

    Returns:
        None for models that classify.
    """
    from raylab.evaluation.kinds import KINDS

    experiment = changed(checkpoint.experiment, overrides or {})
    kind, data = KINDS[experiment.task], experiment.data
    if kind.references is None:
        return []
    found = {split: kind.references(load_dataset(data, (split,)), split, data) for split in splits}
    return _beside(found, kind.figure(checkpoint.heads))


def baselines(dataset: str, overrides: Mapping[str, Any] | None = None) -> list[Judgement]:
    """How far annotators of frame importance agree, and what their mean and chance reach: from annotations alone.

    Args:
        dataset: `tvsum` or `kitchen_keyframes`.
        overrides: dotted `data.…` settings.

    Returns:
        `human`, `oracle` and `random`, on the videos of train and val together, as the split `all`.

    Raises:
        RaylabError: the data set is not there, or has no annotators' scores.
    """
    from raylab.evaluation.importance import FIGURE
    from raylab.evaluation.importance import references as without_pixels

    named = Experiment().override({"data.dataset": dataset, "data.sampling": "rate"}, "--baselines")
    data = changed(named, overrides or {}).data
    splits = ("train", "val")
    read = load_annotations(data, splits)
    if not read.importance:
        known = "tvsum or kitchen_keyframes"
        raise RaylabError(f"--baselines {dataset}: has no annotators who score frames: write {known}")
    return _beside({"all": without_pixels(read, splits, data)}, FIGURE)


def _beside(found: Mapping[str, Mapping[str, Scores]], figure: str) -> list[Judgement]:
    """Split → name → scores, as judgements."""
    names = dict.fromkeys(name for scores in found.values() for name in scores)
    return [
        Judgement(name, figure, {"reference": True}, {}, {split: scores[name] for split, scores in found.items()})
        for name in names
    ]


def efficiency(checkpoint: str | Path | Checkpoint, storage: str | Path = DEFAULT_STORAGE) -> list[Efficiency]:
    """What a model costs, on the GPU if there is one, with clips, batches and precision as in its training.

    Args:
        checkpoint: a checkpoint, its folder, or the name of a sweep or a run.
        storage: the results folder, a path or a URI.

    Returns:
        The model; for a student also the frozen models that it learnt from.

    Raises:
        RaylabError: there is no such checkpoint, or a frozen model's weights cannot be had.
    """
    import torch

    from raylab.evaluation.efficiency import measure
    from raylab.evaluation.predictions import precision_on

    found = checkpoint if isinstance(checkpoint, Checkpoint) else find_checkpoint(checkpoint, storage)
    experiment = found.experiment
    if find_model(experiment.model.name).handcrafted:
        raise RaylabError(f"--efficiency: {found.path}: {experiment.model.name} is no network: leave it out")
    models = {experiment.model.name: found.load_model()}
    if experiment.task == "distillation":
        from raylab.models.frozen import frozen_networks

        models = {"student": models[experiment.model.name], **frozen_networks(experiment)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = experiment.data
    return measure(models, data.frames, data.size, batches(experiment).size, device, precision_on(device, experiment))


@dataclass(frozen=True)
class _Job:
    """What each worker needs to do its share."""

    checkpoint: Checkpoint
    experiment: Experiment
    split: str
    views: Views

    def __call__(self, share: tuple[int, int]) -> list[tuple[int, Predictions]]:
        import torch

        from raylab.evaluation.handcrafted import predict_features
        from raylab.evaluation.kinds import KINDS
        from raylab.evaluation.predictions import predict
        from raylab.models.feature_classifier import FeatureClassifier

        model = self.checkpoint.load_model("cuda" if torch.cuda.is_available() else "cpu")
        dataset = open_split(self.experiment, self.checkpoint, self.split, self.views)
        if isinstance(model, FeatureClassifier):
            return predict_features(model, self.experiment, dataset, self.split, share)
        say = KINDS[self.experiment.task].say
        return predict(model, self.experiment, dataset, self.split, self.views, share, say)


def _run(job: _Job, workers: int) -> list[tuple[int, Predictions]]:
    """All batches of a split, each once, from as many workers."""
    if workers == 1:
        return job((0, 1))
    from raylab.cluster.capacity import Demand
    from raylab.cluster.connect import connect
    from raylab.cluster.spread import spread

    nodes = connect()
    demand = Demand.of(job.experiment.resources.model_copy(update={"workers": workers}), nodes).within(nodes)
    shares = [(rank, workers) for rank in range(workers)]
    return [batch for share in spread(job, shares, demand.cpus, demand.gpus) for batch in share]


def evaluate(
    checkpoints: Annotated[
        list[str] | None, typer.Argument(help="Sweeps, runs or checkpoint folders; data.… settings.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="val, train or test; may be repeated.")] = None,
    views: Annotated[str, typer.Option(help="Clips x crops of each segment, averaged, e.g. 5x3.")] = "1x1",
    together: Annotated[bool, typer.Option("--ensemble", help="Judge all models together, too.")] = False,
    parts: Annotated[bool, typer.Option("--per-class", "--per-video", help="Show every class, or video.")] = False,
    costs: Annotated[bool, typer.Option("--efficiency", help="Show sizes, and measure speed here.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Workers that share the clips.")] = 1,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write scores for the official evaluation (.pt).")] = None,
    submission: Annotated[Path | None, typer.Option(help="Write a submission to the challenge (.zip).")] = None,
    sls: Annotated[str, typer.Option(help="Supervision levels of the submission: pt,tl,td.")] = "1,3,3",
    alone: Annotated[
        str | None, typer.Option("--baselines", help="Judge no model, but annotators: tvsum, kitchen_keyframes.")
    ] = None,
    storage: Annotated[str, typer.Option(help="Results folder: a path or a URI.")] = DEFAULT_STORAGE,
) -> None:
    """Judge models: top-1 and top-5, unseen participants, tail classes, the overfitting gap, losses, efficiency.

    Keyframes: rank correlation with annotators by two protocols, MSE, precision, F1; humans and baselines beside them.

    Example: raylab evaluate epic_phase2 epic_phase3 --ensemble --views 5x3
    """
    words = checkpoints or []
    names = [word for word in words if "=" not in word]
    overrides = parse_overrides(word for word in words if "=" in word)
    if alone:
        if names:
            raise RaylabError(f"--baselines {alone}: judges annotators alone: leave out {names[0]}")
        known = baselines(alone, overrides)
        show(known, (), known[0] if parts else None, as_json)
        return
    splits = list(dict.fromkeys(split or ["val"]))
    wrong = [name for name in splits if name not in SPLITS]
    if wrong or not names:
        raise RaylabError(f"--split {wrong[0]}: write val, train or test" if wrong else "which model? Name a run")
    found = [find_checkpoint(name, storage) for name in names]
    files = [path for path in (export, submission) if path]
    levels = supervision(sls)
    if files:
        from raylab.evaluation.challenge import check_heads

        if len(found) > 1 and not together:
            raise RaylabError(f"{files[0]}: several models were named: name one, or add --ensemble")
        for checkpoint in found:
            check_heads(checkpoint.heads, files[0])
    check_alike(found)
    judged: list[Judgement] = []
    for name, checkpoint in zip(names, found, strict=True):
        own = checkpoint.name if name in (checkpoint.name, checkpoint.path) else f"{name}/{checkpoint.name}"
        alike = sum(other.name.partition(" ")[0] == own for other in judged)
        judgement = judge(checkpoint, overrides, splits=splits, views=views, workers=workers)
        spent = efficiency(checkpoint) if costs else []
        judged.append(replace(judgement, name=f"{own} ({alike + 1})" if alike else own, efficiency=spent))
    if together:
        judged.append(ensemble(judged, overrides))
    best = judged[-1] if together else judged[0]
    show(judged, references(found[0], overrides, splits=list(best.scores)), best if parts else None, as_json)
    if files:
        from raylab.evaluation.challenge import Supervision, write_scores, write_submission

        if export:
            write_scores(best.predictions[splits[0]], export)
        if submission:
            write_submission(best.predictions[splits[0]], submission, Supervision(*levels))
    for path in files:
        console.print(f"written: {path}", markup=False)


def check_alike(found: Sequence[Checkpoint]) -> None:
    """Refuse models whose figures have nothing to do with each other.

    Raises:
        RaylabError: names two of them.
    """
    from raylab.evaluation.kinds import KINDS

    first, *others = found
    for other in others:
        if KINDS[other.experiment.task] is not KINDS[first.experiment.task]:
            pair = " and ".join(f"{each.path} (task {each.experiment.task})" for each in (first, other))
            raise RaylabError(f"{pair}: judged by different figures: evaluate them one at a time")


def show(
    judged: Sequence[Judgement], beside: Sequence[Judgement], detailed: Judgement | None, as_json: Path | None
) -> None:
    """Print a table for each split, of one judgement also its parts, and what models cost; all as JSON, if wanted."""
    for name in judged[0].scores:
        console.print(table(judged, name, beside))
    if detailed:
        for name, scores in detailed.scores.items():
            for view in scores.tables():
                console.print(f"{detailed.name}, {name}:", markup=False)
                console.print(view)
    for view in efficiency_tables(judged):
        console.print(view)
    if as_json:
        write_json([*judged, *beside], as_json)
        console.print(f"written: {as_json}", markup=False)


def supervision(text: str) -> list[int]:
    """`1,3,3` as three levels.

    Raises:
        RaylabError: the text is something else.
    """
    levels = text.split(",")
    if len(levels) != 3 or any(level not in "012345" or len(level) != 1 for level in levels):
        raise RaylabError(f"--sls {text}: write three levels of 0 to 5, pretraining, labels and data, e.g. 1,3,3")
    return [int(level) for level in levels]


def write_json(judged: Sequence[Judgement], path: Path) -> None:
    """`record` as a file, whole or not at all.

    Raises:
        RaylabError: it cannot be written.
    """
    try:
        with replacing(path) as writing:
            writing.write_text(json.dumps(record(judged), indent=1), encoding="utf-8")
    except OSError as error:
        raise RaylabError(f"{path}: cannot be written ({error.strerror or error})") from None


if __name__ == "__main__":
    run_verb(evaluate)
