"""The task of classification: its loss, its figures, and that these are exact over workers and restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from raylab.config import Experiment
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.preflight import check_classes, check_task
from raylab.storage import Folder
from raylab.tasks import build_task
from raylab.tasks.classification import ClassificationMetrics, ClassificationTask, figures, only_head, positive_class
from raylab.training.loop import Trainer, Worker, train
from raylab.training.runfolder import RunFolder

NAMES = ["generated", "real"]
CPU = Worker(torch.device("cpu"))


@pytest.fixture
def experiment(small_experiment: Experiment) -> Experiment:
    """32 clips, half of them generated, and a network small enough for seconds."""
    sections = small_experiment.to_dict()
    data = {**sections["data"], "dataset": "kitchen_aura", "max_clips": 48, "split": "stratified", "folds": 3}
    model = {"name": "naive_cnn", "scale": "tiny", "pretrained": False, "dropout": 0.2}
    return Experiment.parse(
        {"task": "classification", "model": model, "data": data, "optim": {"lr": 1e-3}, "train": sections["train"]}
    )


def build(experiment: Experiment, names: Sequence[str] = NAMES, **changes: Any) -> ClassificationTask:
    torch.manual_seed(0)
    task = build_task(experiment.override(changes), {"label": names})
    assert isinstance(task, ClassificationTask)
    return task


def batch(clips: int = 6) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(clips, 4, 3, 32, 32, generator=generator)
    return {"video": video, "labels": {"label": torch.arange(clips) % 2}, "ids": [str(clip) for clip in range(clips)]}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_binary_cross_entropy_of_one_logit(experiment: Experiment, smoothing: float) -> None:
    task = build(experiment, **{"loss.label_smoothing": smoothing}).eval()
    output = task(clips := batch())
    pair = task.predict(clips["video"])["label"]
    assert not pair[:, 0].any()
    targets = clips["labels"]["label"] * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(pair[:, 1], targets)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.losses["label_loss"], expected.detach())


def test_of_three_classes_it_is_cross_entropy(experiment: Experiment) -> None:
    task = build(experiment, ["a", "b", "c"]).eval()
    output = task(clips := batch())
    assert output.predictions["label"].shape == (6, 3)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.predictions["label"], clips["labels"]["label"]))
    assert task.metric_names == ["accuracy", "precision", "recall", "f1"]


@pytest.mark.parametrize(
    ("names", "chosen", "positive"),
    [
        (["generated", "real"], None, 0),
        (["animated", "generated"], None, 1),
        (["cat", "dog"], None, 1),
        (["generated", "real"], "real", 1),
        (["cat", "dog"], "cat", 0),
        (["cat", "dog", "generated"], None, None),
    ],
)
def test_the_positive_class_is_what_is_to_be_detected(
    names: list[str], chosen: str | None, positive: int | None
) -> None:
    assert positive_class(names, chosen) == positive


def test_a_positive_class_that_cannot_be_is_refused() -> None:
    with pytest.raises(RaylabError, match=r"classification\.positive.*did you mean 'generated'"):
        positive_class(NAMES, "generatde")
    with pytest.raises(RaylabError, match=r"classification\.positive = a: of 3 classes .*null"):
        positive_class(["a", "b", "c"], "a")


def test_two_heads_are_refused() -> None:
    with pytest.raises(RaylabError, match=r"has 2 \(verb, noun\): set data.dataset=metadata, or task=action"):
        only_head({"verb": [], "noun": []})


def test_preflight_refuses_what_does_not_fit(experiment: Experiment) -> None:
    dataset = load_dataset(experiment.data)
    check_classes(experiment, dataset)
    with pytest.raises(RaylabError, match=r"classification\.positive"):
        check_classes(experiment.override({"classification.positive": "fake"}), dataset)
    foreign = Experiment().override({"classification.positive": "real"})
    with pytest.raises(RaylabError, match="classification: means nothing to the task action: set task=classification"):
        check_task(foreign, {})


def drawn(clips: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that say something of the labels, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (clips,), generator=generator)
    return torch.randn(clips, classes, generator=generator) + F.one_hot(labels, classes), labels


def measured(logits: Tensor, labels: Tensor, positive: int | None) -> ClassificationMetrics:
    metric = ClassificationMetrics("label", logits.shape[1], positive, len(labels))
    for part in torch.arange(len(labels)).split(7):
        metric.update({"label": logits[part], "clip": part}, {"label": labels[part]})
    return metric


def numbers(metric: ClassificationMetrics) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("positive", [0, 1])
def test_two_classes_are_judged_as_by_scikit_learn(positive: int) -> None:
    logits, labels = drawn(100, 2)
    given, said = labels == positive, logits.argmax(1) == positive
    precision, recall, f1, _ = precision_recall_fscore_support(given, said, average="binary")
    scores = logits[:, positive] - logits[:, 1 - positive]
    expected = {
        "accuracy": accuracy_score(given, said),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "roc_auc": roc_auc_score(given, scores),
    }
    assert numbers(measured(logits, labels, positive)) == pytest.approx(expected, abs=1e-12)
    assert 0.6 < expected["roc_auc"] < 1


def test_more_classes_are_judged_by_their_mean() -> None:
    logits, labels = drawn(100, 4)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, logits.argmax(1), average="macro")
    accuracy = accuracy_score(labels, logits.argmax(1))
    found = numbers(measured(logits, labels, None))
    assert found == pytest.approx({"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}, abs=1e-12)


def test_figures_of_nothing_are_zero_and_not_undefined() -> None:
    assert set(figures(np.zeros((2, 2), np.int64), 0).values()) == {0.0}
    never_said = figures(np.array([[0, 3], [0, 5]]), 0)
    assert never_said == {"accuracy": 5 / 8, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    absent = figures(np.array([[2, 0, 0], [1, 3, 0], [0, 0, 0]]), None)  # a class that neither occurs nor is predicted
    assert absent["recall"] == pytest.approx((1 + 3 / 4) / 2)


def test_scores_that_a_sigmoid_would_make_equal_are_told_apart() -> None:
    margin = torch.tensor([100.0, 101.0, 102.0, 103.0])
    pair = torch.stack([torch.zeros(4), margin], 1)
    assert len(set(margin.sigmoid().tolist())) == 1
    assert numbers(measured(pair, torch.tensor([0, 0, 1, 1]), 1))["roc_auc"] == 1
    assert numbers(measured(pair, torch.tensor([0, 0, 1, 1]), 0))["roc_auc"] == 1
    assert numbers(measured(pair, torch.tensor([1, 1, 0, 0]), 1))["roc_auc"] == 0


def test_one_class_alone_has_no_roc() -> None:
    found = numbers(measured(torch.randn(4, 2), torch.ones(4, dtype=torch.long), 1))
    assert np.isnan(found.pop("roc_auc"))
    assert not any(map(np.isnan, found.values()))


def summed(metrics: Sequence[ClassificationMetrics]) -> dict[str, Tensor]:
    """What a checkpoint holds of them: the sums over workers."""
    return {name: torch.stack([m.state_dict()[name] for m in metrics]).sum(0) for name in metrics[0].state_dict()}


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_sums_over_workers_and_a_restart_change_no_bit(workers: int, classes: int) -> None:
    positive = 0 if classes == 2 else None
    logits, labels = drawn(50, classes)
    whole = measured(logits, labels, positive)

    def share(metrics: Sequence[ClassificationMetrics], clips: range) -> None:
        for rank, metric in enumerate(metrics):
            part = torch.arange(clips.start + rank, clips.stop, len(metrics))
            metric.update({"label": logits[part], "clip": part}, {"label": labels[part]})

    before = [ClassificationMetrics("label", classes, positive, 50) for _ in range(workers)]
    share(before, range(20))
    after = [ClassificationMetrics("label", classes, positive, 50) for _ in range(workers + 1)]  # another number
    after[0].load_state_dict(summed(before))
    share(after, range(20, 50))
    joined = after[0]
    joined.load_state_dict(summed(after))
    assert numbers(joined) == numbers(whole)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in joined.state_dict().items())


def test_clips_have_places_whatever_the_split(experiment: Experiment) -> None:
    task, dataset = build(experiment), load_dataset(experiment.data)
    task.watch(dataset)
    ids = {split: dataset.splits[split].clips.column("id").to_pylist() for split in ("train", "val")}
    places = {}
    for split, of_split in ids.items():
        clips = batch(len(of_split)) | {"ids": of_split}
        places[split] = set(task.eval()(clips).predictions["clip"].tolist())
        assert len(places[split]) == len(of_split)
    assert places["train"] | places["val"] == set(range(len(ids["train"]) + len(ids["val"])))


class Stopped(Exception):
    pass


class StoppedAfterOneStep(Trainer):
    """Its process ends in the midst of an epoch, after a checkpoint."""

    def save(self, metrics: dict[str, float]) -> None:
        super().save(metrics)
        raise Stopped


def without_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    timed = {"seconds", "clips_per_second", "data_wait", "memory"}
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def test_a_run_stopped_in_an_epoch_ends_with_the_figures_of_one_undisturbed(
    tmp_path: Path, experiment: Experiment
) -> None:
    experiment = experiment.override({"train.checkpoint_minutes": 1e-9, "data.batch_size": 4})
    dataset = load_dataset(experiment.data)
    runs = [RunFolder(Folder.open(tmp_path / name)) for name in ("whole", "stopped")]
    for run in runs:
        run.create(experiment)
    with suppress(Stopped):
        StoppedAfterOneStep(experiment, dataset, runs[1], CPU).train_epoch()
    latest = runs[1].latest()
    assert latest is not None
    assert latest.step == 1
    for run in runs:
        train(experiment, dataset, run, CPU, lambda row: None)
    whole, stopped = (without_times(run.history()) for run in runs)
    assert whole == stopped
    assert {"train/roc_auc", "val/f1", "val/precision", "val/recall", "val/accuracy"} <= whole[0].keys()
    assert whole[-1]["train/roc_auc"] not in (0, 0.5)
    best = max(whole, key=lambda row: row["val/accuracy"])
    assert best["epoch"] == whole[-1]["best_epoch"]  # what decides unless told otherwise
