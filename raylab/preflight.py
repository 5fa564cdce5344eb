"""Everything that can be checked before a cluster starts, cheapest first: names, files, storage, decoding, weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from operator import attrgetter

from raylab.config import Experiment
from raylab.data.clips import Dataset
from raylab.data.datasets import load_dataset
from raylab.data.splits import unequal
from raylab.errors import RaylabError
from raylab.models.registry import batches, build_model, find_model
from raylab.storage import Folder

DECODER_MODULES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}
OWN = {"distillation": "distill", "keyframes": "keyframes", "classification": "classification"}
"""Task → the section of an experiment that is its own."""


def preflight(experiment: Experiment, storage: Folder, trials: Iterable[Experiment] = ()) -> str:
    """Check an experiment and the trials made of it.

    Args:
        experiment: its data set and weights are looked at once.
        storage: where results are to be written.
        trials: variants of it, e.g. those of a sweep: `SearchSpace.variants`.

    Returns:
        What was found, as text.

    Raises:
        RaylabError: the first thing that would stop a run.
    """
    variants = [experiment, *trials]
    for variant in variants:
        entry = find_model(variant.model.name)
        entry.check(variant.model)
        if entry.task != variant.task:
            raise RaylabError(f"model.name = {entry.name}: made for task {entry.task}, not for {variant.task}")
    data = experiment.data
    if find_spec(DECODER_MODULES[data.decoder]) is None:
        raise RaylabError(f"data.decoder = {data.decoder}: not installed: pip install {DECODER_MODULES[data.decoder]}")
    which = attrgetter("frames", "size", "sampling", "fps", "split", "folds", "fold", "fold_seed")
    asked = {which(variant.data): variant.data for variant in reversed(variants)}
    datasets = {key: load_dataset(wanted) for key, wanted in asked.items()}  # a named store must serve every one
    dataset = datasets[which(data)]
    stored = dataset.stored.get("train")
    for variant in variants:
        its = datasets[which(variant.data)]
        check_data(variant, its)
        clips = len(its.stored["train"].chosen if its.stored else its.splits["train"].clips)
        size = 1 if find_model(variant.model.name).handcrafted else batches(variant).size
        if size * variant.resources.workers > clips:
            raise RaylabError(
                f"data.batch_size = {size} × resources.workers = {variant.resources.workers} "
                f"is more than the {clips} training clips: lower one of them"
            )

    storage.check_writable()

    # These import torch and timm, which takes seconds, so they come last.
    from raylab.data.dataset import ClipDataset
    from raylab.models.weights import resolve_weights

    lines = check_structures(variants, dataset.heads)
    for split, found in dataset.splits.items():
        clips_of_split = ClipDataset.of(dataset, split, data)
        if not len(clips_of_split):
            raise RaylabError(
                f"{split}: none of the {len(found.clips):,} clips can be read: see the clip store's manifest"
            )
        clips_of_split[0]  # the decoder works, and so does the first clip
        left_out = len(found.clips) - len(clips_of_split)
        lines.append(f"{split}: {found.summary()}" + (f", {left_out:,} unreadable" if left_out else ""))
    lines.append(", ".join(f"{count} {head} classes" for head, count in dataset.heads.items()))
    if data.split == "stratified":
        lines += unequal({variant.data.fold: datasets[which(variant.data)] for variant in variants})
    if stored:
        stored.store.check_sources()
        lines.append(f"frames: clip store {stored.store.folder}")
    else:
        lines += [f"not from the clip store {refusal}" for refusal in dataset.refusals]
        lines.append(
            f"frames: {len(dataset.sources)} videos, by {data.decoder}; `raylab prepare` makes training faster"
        )
    for variant in variants:
        lines += check_task(variant, {split: len(found.clips) for split, found in dataset.splits.items()})
        check_classes(variant, dataset)
    starts = {(v.model.name, v.model.scale, v.model.encoder, v.model.pretrained): v.model for v in variants}
    weights = dict.fromkeys(str(resolve_weights(model) or "random") for model in starts.values())
    lines.append(f"weights: {', '.join(weights)}")
    return "\n".join(dict.fromkeys(lines))


def check_structures(experiments: Iterable[Experiment], heads: Mapping[str, int]) -> list[str]:
    """Build every network without its weights, put a clip through it, and check the stages it is to go through.

    Returns:
        A line for each that could not be tried: somebody's own model may do what only real numbers allow.

    Raises:
        RaylabError: a setting does not fit a model, it does not take such clips, or has not the parts that are fixed.
    """
    import torch

    from raylab.training.stages import check_stages

    networks = [e for e in experiments if not find_model(e.model.name).handcrafted]
    lines = []
    for model, stages, frames, size in dict.fromkeys(
        (e.model, e.train.stages, e.data.frames, e.data.size) for e in networks
    ):
        with torch.device("meta"), torch.no_grad():
            structure = build_model(model, heads, pretrained=False).eval()
            try:
                structure(torch.empty(1, frames, 3, size, size))
            except RaylabError:
                raise
            except Exception as error:
                lines.append(f"{model.name}: not tried with {frames} frames of {size} × {size}: {error}")
        check_stages(structure, stages or ())
    return lines


def check_task(experiment: Experiment, clips: Mapping[str, int]) -> list[str]:
    """Check what one task has and others have not.

    Args:
        experiment: to be run.
        clips: `train` and `val` → how many there are.

    Returns:
        What was found, a line each.

    Raises:
        RaylabError: a setting means nothing to the task, or a network it learns from cannot be had or does not fit.
    """
    for task, section in OWN.items():
        value = getattr(experiment, section)
        if experiment.task != task and value != type(value)():
            raise RaylabError(f"{section}: means nothing to the task {experiment.task}: set task={task}, or remove it")
    if experiment.task == "keyframes" and experiment.loss != type(experiment.loss)():
        raise RaylabError(
            "loss: means nothing to the task keyframes: set keyframes.ranking_weight and keyframes.mse_weight in its "
            "place"
        )
    if experiment.task != "distillation":
        return []
    if experiment.loss.weights:
        raise RaylabError("loss.weights: there is one head: set distill.classification_weight in their place")
    from raylab.models.frozen import check_sources

    return check_sources(experiment, clips)


def check_data(experiment: Experiment, dataset: Dataset) -> None:
    """Check that a data set has what a task learns from: scores of frames, or classes of clips.

    Raises:
        RaylabError: it has the other, or its frames are not sampled so that each gets one score.
    """
    task, data = experiment.task, experiment.data
    if (task == "keyframes") != bool(dataset.importance):
        has = "classes of clips" if dataset.labels else "scores of frames"
        fit = {"action": "epic", "keyframes": "tvsum"}.get(task, "labelled")
        raise RaylabError(
            f"data.dataset = {data.dataset}: has {has}, nothing for the task {task}: set data.dataset={fit}"
        )
    if task == "keyframes" and data.sampling != "rate":
        raise RaylabError(f"data.sampling = {data.sampling}: scores are of frames at data.fps: set data.sampling=rate")


def check_classes(experiment: Experiment, dataset: Dataset) -> None:
    """Check that the task classification gets one head, and that its positive class is one of it.

    Raises:
        RaylabError: it does not, or is not.
    """
    if experiment.task == "classification":
        from raylab.tasks.classification import only_head, positive_class

        names = dataset.labels[only_head(dataset.labels)]
        positive_class(names, experiment.classification.positive)
