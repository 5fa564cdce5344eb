"""The keyframes task: its loss, what it sees, what it measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from raylab.config import Experiment
from raylab.data.clips import Annotations, ClipTable, Dataset
from raylab.data.importance import Importance, window_scores
from raylab.data.windows import windows
from raylab.errors import RaylabError
from raylab.models.dual_attention import ImportanceModel
from raylab.preflight import check_data, check_task
from raylab.tasks import build_task
from raylab.tasks.importance_metrics import FIGURES
from raylab.tasks.keyframes import KeyframesTask

FPS, FRAMES, RATE = 2.0, 6, 10.0


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def experiment(**changes: Any) -> Experiment:
    return Experiment().override(
        {
            "task": "keyframes",
            "model.name": "efficientnet_b0_dual_attention",
            "model.scale": "tiny",
            "model.pretrained": False,
            "model.dropout": 0.0,
            "data.dataset": "kitchen_keyframes",
            "data.sampling": "rate",
            "data.frames": FRAMES,
            "data.fps": FPS,
            "train.cache": False,
            **{path.replace("__", "."): value for path, value in changes.items()},
        }
    )


def task(**changes: Any) -> KeyframesTask:
    built = build_task(experiment(**changes), {})
    assert isinstance(built, KeyframesTask)
    return built


@pytest.fixture
def dataset() -> Dataset:
    """Two videos of 15 and 7 samples, three annotators each; every video in both splits."""
    random = np.random.default_rng(0)
    importance, clips = {}, []
    for video, samples in {"long": 15, "short": 7}.items():
        frames = int(samples * RATE / FPS)
        importance[video] = Importance(
            scores=random.random((3, samples)).astype(np.float32),
            shots=np.array([[at, at + 4] for at in range(0, frames, 5)]),
            frames=frames,
            picks=np.arange(samples) * 5,
        )
        clips += windows(video, frames / RATE, RATE, FPS, FRAMES)
    split = Annotations(ClipTable.of(clips))
    return Dataset(splits={"train": split, "val": split}, labels={}, importance=importance)


def batch(dataset: Dataset, of: list[int] | None = None) -> dict[str, Any]:
    """The windows of these numbers, all by default, with random pixels."""
    clips = dataset.splits["val"].clips
    numbers = torch.arange(len(clips)) if of is None else torch.tensor(of)
    targets = torch.from_numpy(window_scores(clips, dataset.importance, FPS, FRAMES))[numbers]
    lengths = torch.tensor([round((clip.stop - clip.start) * FPS) for clip in clips])[numbers]
    return {
        "video": torch.randn(len(numbers), FRAMES, 3, 32, 32),
        "mask": torch.arange(FRAMES) < lengths[:, None],
        "labels": {"importance": targets, "window": numbers},
        "ids": [clips[int(number)].id for number in numbers],
    }


def test_windows_are_those_expected(dataset: Dataset) -> None:
    assert batch(dataset)["mask"].sum(1).tolist() == [6, 6, 3, 6, 1]


def test_the_loss_is_one_minus_spearman_in_the_hard_limit(dataset: Dataset) -> None:
    given, model = batch(dataset), task(keyframes__softness=1e-7).eval()
    output = model(given)
    scores, targets = output.predictions["importance"], given["labels"]["importance"]
    assert scores.shape == (5, FRAMES)
    each = [
        spearmanr(score[mask], target[mask]).statistic if mask.sum() > 1 else 0.0
        for score, target, mask in zip(scores.numpy(), targets.numpy(), given["mask"].numpy(), strict=True)
    ]
    assert output.loss.item() == pytest.approx(1 - np.mean(each), abs=1e-5)
    assert output.losses.keys() == {"ranking_loss"} == set(model.loss_names)


def test_terms_are_weighed(dataset: Dataset) -> None:
    given, weighed = batch(dataset), task(keyframes__ranking_weight=0.5, keyframes__mse_weight=3.0).eval()
    output = weighed(given)
    scores, mask = output.predictions["importance"], given["mask"]
    squares = (scores - given["labels"]["importance"]).square()
    mse = torch.stack([row[kept].mean() for row, kept in zip(squares, mask, strict=True)]).mean()
    torch.testing.assert_close(output.losses["mse_loss"], mse)
    torch.testing.assert_close(output.loss, 0.5 * output.losses["ranking_loss"] + 3 * mse)
    assert weighed.loss_names == ["ranking_loss", "mse_loss"] == list(output.losses)


def test_no_weight_leaves_nothing_to_learn() -> None:
    with pytest.raises(RaylabError, match="keyframes: every weight is 0"):
        task(keyframes__ranking_weight=0)


def test_a_model_of_another_task_is_refused() -> None:
    with pytest.raises(RaylabError, match=r"model\.name = resnet18_avg"):
        build_task(experiment().override({"model.name": "resnet18_avg"}), {"verb": ["a"]})


def test_padding_changes_neither_loss_nor_gradient(dataset: Dataset) -> None:
    model = task(keyframes__mse_weight=1.0).train()
    given = batch(dataset)
    found = []
    for noise in (0.0, 50.0):
        model.zero_grad()
        video = torch.where(given["mask"][..., None, None, None], given["video"], noise)
        labels = {**given["labels"], "importance": given["labels"]["importance"] + noise * ~given["mask"]}
        output = model({**given, "video": video, "labels": labels})
        output.loss.backward()
        found.append([output.loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_windows_weigh_alike_whatever_the_batch(dataset: Dataset) -> None:
    model, given = task(keyframes__mse_weight=1.0).eval(), batch(dataset)
    whole = model(given).loss
    each = [model({key: _row(value, i) for key, value in given.items()}).loss for i in range(len(given["ids"]))]
    torch.testing.assert_close(whole, torch.stack(each).mean())


def _row(value: Any, at: int) -> Any:
    if isinstance(value, dict):
        return {key: _row(inner, at) for key, inner in value.items()}
    return value[at : at + 1]


@pytest.mark.parametrize("constant", [0.0, 0.5])
def test_windows_whose_frames_are_all_the_same_teach_nothing(dataset: Dataset, constant: float) -> None:
    model, given = task().train(), batch(dataset, [0])
    given["labels"]["importance"] = torch.full((1, FRAMES), constant)
    output = model(given)
    assert output.loss.item() == 1
    output.loss.backward()
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("mse_weight", [0.0, 1.0])
def test_it_learns(dataset: Dataset, mse_weight: float) -> None:
    model, given = task(keyframes__mse_weight=mse_weight).train(), batch(dataset)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(given).loss.backward()
        optimizer.step()
    output = model(given)
    assert output.losses["ranking_loss"] < 0.35  # the window of one frame always costs a fifth
    if mse_weight:
        assert output.losses["mse_loss"] < 0.02


def test_features_that_are_kept_stand_for_the_pixels(dataset: Dataset) -> None:
    model, given = task().eval(), batch(dataset)
    assert isinstance(model.model, ImportanceModel)
    with torch.no_grad():
        features = model.encode(given["video"], given["mask"])
        expected = model(given).predictions["importance"]
        known: dict[str, Any] = {key: value for key, value in given.items() if key != "video"}
        known |= {"missing": [], "keys": given["ids"], "outputs": {"encoder/features": features}}
        model._kept = object()  # type: ignore[assignment] - nothing is missing, so nothing is asked of it
        assert torch.equal(model(known).predictions["importance"], expected)


def test_metrics_of_a_perfect_and_of_any_model(dataset: Dataset) -> None:
    model, given = task(), batch(dataset)
    model.watch(dataset)
    for split in ("train", "val"):
        metric = model.metrics(split)
        metric.update({"importance": given["labels"]["importance"]}, given["labels"])
        figures: dict[str, Tensor] = metric.compute()
        assert list(figures) == model.metric_names == list(FIGURES)
        assert figures["spearman_mean"].item() == pytest.approx(1)
        assert figures["mse"].item() == pytest.approx(0)
        metric.reset()
        metric.update(model.eval()(given).predictions, given["labels"])
        assert all(value.isfinite() for value in metric.compute().values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "action"}, r"data\.dataset = kitchen_keyframes: .* for the task action: set data\.dataset=epic"),
        ({"data.sampling": "uniform"}, r"data\.sampling = uniform: .*: set data\.sampling=rate"),
    ],
)
def test_data_that_has_not_what_the_task_learns_from(dataset: Dataset, changes: dict[str, Any], message: str) -> None:
    check_data(experiment(), dataset)
    with pytest.raises(RaylabError, match=message):
        check_data(experiment().override(changes), dataset)


def test_data_without_scores_of_frames(dataset: Dataset) -> None:
    classes = Dataset(splits=dataset.splits, labels={"verb": ["a"]})
    check_data(Experiment(), classes)
    with pytest.raises(RaylabError, match=r"has classes of clips, nothing for the task keyframes: set .*=tvsum"):
        check_data(experiment(), classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.label_smoothing": 0.1}, r"loss: .* task keyframes: set keyframes\.ranking_weight"),
        ({"distill.temperature": 1.0}, r"distill: means nothing to the task keyframes"),
        ({"task": "action", "keyframes.softness": 1.0}, r"keyframes: means nothing .* action: set task=keyframes"),
    ],
)
def test_settings_of_other_tasks_are_refused(changes: dict[str, Any], message: str) -> None:
    check_task(experiment(), {"train": 1, "val": 1})
    with pytest.raises(RaylabError, match=message):
        check_task(experiment().override(changes), {"train": 1, "val": 1})
