"""Everything that can be checked before a cluster starts, cheapest first: names, files, storage, decoding, weights."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from raylab.config import Experiment
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.models.registry import find_model
from raylab.storage import Folder

DECODER_MODULES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}


def preflight(experiment: Experiment, storage: Folder, trials: Iterable[Experiment] = ()) -> str:
    """Check an experiment and the trials made of it.

    Args:
        experiment: its data set and weights are looked at once.
        storage: where results are to be written.
        trials: variants of it, e.g. a sweep's documented configurations.

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
    dataset = load_dataset(data)
    clips = len(dataset.splits["train"].clips)
    for variant in variants:
        batch = variant.data.batch_size * variant.resources.workers
        if batch > clips:
            raise RaylabError(
                f"data.batch_size = {variant.data.batch_size} × resources.workers = {variant.resources.workers} "
                f"is more than the {clips} training clips: lower one of them"
            )

    storage.check_writable()

    # These import torch and timm, which takes seconds, so they come last.
    from raylab.data.dataset import ClipDataset
    from raylab.models.weights import resolve_weights

    for split in dataset.splits.values():
        ClipDataset(split.clips[:1], dataset.sources, data)[0]  # the decoder works, and so does the first clip
    weights = resolve_weights(experiment.model)
    lines = [f"{split}: {annotations.summary()}" for split, annotations in dataset.splits.items()]
    classes = ", ".join(f"{count} {head} classes" for head, count in dataset.heads.items())
    lines += [f"{classes}; {len(dataset.sources)} videos", f"weights: {weights or 'random'}"]
    return "\n".join(lines)
