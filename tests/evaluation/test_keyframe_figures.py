"""Keyframe models judged: by annotators, beside humans and baselines, with one worker or two."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from raylab.config import DataConfig, Experiment
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_annotations, load_dataset
from raylab.errors import RaylabError
from raylab.evaluate import baselines, ensemble, judge, references
from raylab.evaluation.importance import frame_differences, score
from raylab.evaluation.predictions import Predictions
from raylab.results import find_checkpoint
from raylab.tasks.importance_metrics import FIGURES

TVSUM = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "tvsum"
BESIDE = ["human", "oracle", "random", "frame difference"]


@pytest.fixture(scope="session")
def small_keyframes(small_experiment: Experiment) -> Experiment:
    """Trains in seconds on one core."""
    return small_experiment.override(
        {
            "task": "keyframes",
            "model.name": "resnet50_dual_attention",
            "model.drop_path": 0.0,
            "data.dataset": "kitchen_keyframes",
            "data.sampling": "rate",
            "data.frames": 20,
            "data.batch_size": 2,
            "train.epochs": 1,
            "train.cache": False,
        }
    )


@pytest.fixture(scope="module")
def storage(tmp_path_factory, small_keyframes: Experiment, train_run) -> Path:
    """Results with two runs of one epoch, of different models."""
    folder = tmp_path_factory.mktemp("results")
    train_run(folder / "first", small_keyframes)
    train_run(folder / "second", small_keyframes.override({"model.name": "efficientnet_b0_dual_attention"}))
    return folder


def test_figures_are_those_that_training_measured(storage: Path) -> None:
    found = judge("first", storage=storage)
    measured = find_checkpoint("first", storage).metrics
    figures = found.scores["val"].figures()
    assert list(figures) == list(FIGURES)
    for name in FIGURES:
        assert figures[name] == pytest.approx(measured[f"val/{name}"], abs=1e-6)
    assert found.figure == "spearman_mean"
    assert found.gap() == ("while training", found.history["gap/spearman_mean"])
    assert found.losses()["ranking"] == measured["val/ranking_loss"]
    values = found.predictions["val"].values["importance"]
    assert (values.dtype, values.shape) == (np.float32, (found.scores["val"].clips, 20))


def test_two_workers_find_what_one_does(storage: Path) -> None:
    alone = judge("first", storage=storage)
    together = judge("first", storage=storage, workers=2)
    assert together.scores == alone.scores
    assert together.predictions["val"].ids == alone.predictions["val"].ids
    for name, values in alone.predictions["val"].values.items():
        assert np.array_equal(together.predictions["val"].values[name], values)


def test_models_are_compared_beside_humans_and_baselines(storage: Path, tmp_path: Path, monkeypatch, cli) -> None:
    monkeypatch.setattr("raylab.evaluation.efficiency.SECONDS", 1e-6)
    figures = tmp_path / "figures.json"
    words = ("--ensemble", "--per-video", "--efficiency", "--json", figures, "--storage", storage)
    output = cli("first", "second", *words)
    judged = {row["name"]: row for row in json.loads(figures.read_text())}
    assert list(judged) == ["first", "second", "ensemble", *BESIDE]
    for row in judged.values():
        split = row["splits"]["val"]
        assert list(split["figures"]) == list(FIGURES)
        for name in FIGURES:
            of_videos = [video[name] for video in split["videos"]]
            assert split["figures"][name] == pytest.approx(np.mean(of_videos))
    assert judged["oracle"]["splits"]["val"]["figures"]["spearman_mean"] == pytest.approx(1)
    assert [name for name, row in judged.items() if row.get("reference")] == BESIDE
    costs = [judged[name]["efficiency"][0] for name in ("first", "second")]
    assert [row["name"] for row in costs] == ["resnet50_dual_attention", "efficientnet_b0_dual_attention"]
    assert all(row["peak_bytes"] >= row["bytes"] > 0 < row["seconds"] for row in costs)
    for text in ("kendall_annotators", "frame difference", "ensemble, val:", "20 × 32²", "ms, one clip"):
        assert text in output


def test_the_mean_of_two_models_is_judged(storage: Path) -> None:
    members = [judge(name, storage=storage) for name in ("first", "second")]
    together = ensemble(members).predictions["val"].values["importance"]
    both = [member.predictions["val"].values["importance"] for member in members]
    np.testing.assert_allclose(together, np.mean(both, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["first", "--views", "2x1"], "the model scores every frame once: leave --views out"),
        (["first", "--split", "test"], "split test: TVSum has train and val"),
        (["first", "--submission", "x.zip"], r"x\.zip: the challenge's files hold 97 verbs"),
        (["first", "--baselines", "tvsum"], "--baselines tvsum: judges annotators alone: leave out first"),
        (["--baselines", "kitchen", "data.kitchen=tiny"], "--baselines kitchen: has no annotators who score frames"),
        (["--baselines", "tvsum", "data.root=/nowhere"], "/nowhere"),
        (["--baselines", "tvsum", "model.dropout=0"], r"model\.dropout: a trained model's settings stay"),
    ],
)
def test_what_cannot_be_judged_is_said(storage: Path, words: list[str], message: str, cli) -> None:
    with pytest.raises(RaylabError, match=message):
        cli(*words, "--storage", storage)


def test_models_of_other_tasks_are_not_in_one_table(
    storage: Path, tmp_path: Path, small_experiment: Experiment, train_run, cli
) -> None:
    train_run(tmp_path / "action", small_experiment.override({"data.max_clips": 8, "train.epochs": 1}))
    with pytest.raises(RaylabError, match=r"\(task keyframes\) and .*\(task action\): judged by different figures"):
        cli(storage / "first", tmp_path / "action")


def kitchen() -> DataConfig:
    changes = {"data.dataset": "kitchen_keyframes", "data.kitchen": "tiny", "data.sampling": "rate"}
    sizes = {"data.frames": 20, "data.size": 32, "data.batch_size": 3, "data.loader_workers": 0}
    return Experiment().override(changes | sizes).data


def test_what_changes_most_is_scored_highest() -> None:
    data = kitchen()
    dataset = load_dataset(data, ("val",))
    found = frame_differences(dataset, "val", data)
    assert found.ids == [clip.id for clip in dataset.splits["val"].clips]
    clips = ClipDataset.of(dataset, "val", data)
    for at in (0, len(clips) - 1):
        batch = clips.__getitems__([at])
        video = batch["video"][0][batch["mask"][0]].double() / 255
        expected = [(video[i] - video[i - 1]).abs().mean().item() for i in range(1, len(video))]
        row = found.values["importance"][at]
        assert row[1 : len(video)] == pytest.approx(expected, abs=1e-6)
        assert row[0] == row[1]
        assert not row[len(video) :].any()


def test_what_the_mean_annotator_says_is_the_oracle() -> None:
    data = kitchen()
    dataset = load_annotations(data, ("val",))
    clips = dataset.splits["val"].clips
    rows = np.zeros((len(clips), data.frames), np.float32)
    for row, clip in zip(rows, clips, strict=True):
        part = dataset.importance[clip.video].mean[round(clip.start * data.fps) :][: data.frames]
        row[: len(part)] = part
    everything = score(Predictions([clip.id for clip in clips], {"importance": rows}), dataset, "val", data)
    oracle = next(
        row
        for row in baselines("kitchen_keyframes", {"data.kitchen": "tiny", "data.frames": 20})
        if row.name == "oracle"
    )
    by_video = {row["video"]: row for row in oracle.scores["all"].videos}
    assert everything.left_out == 0
    for row in everything.videos:
        assert row == pytest.approx(by_video[row["video"]])
    some = score(Predictions([clips[0].id], {"importance": rows[:1]}), dataset, "val", data)
    assert (some.clips, some.left_out, len(some.videos)) == (1, len(clips) - 1, 1)


def test_references_of_a_model_are_those_of_its_split(storage: Path) -> None:
    found = references(find_checkpoint("first", storage))
    assert [row.name for row in found] == BESIDE
    read = load_annotations(kitchen(), ("val",))
    for row in found:
        assert [video["video"] for video in row.scores["val"].videos] == list(read.splits["val"].clips.videos)


@pytest.mark.skipif(not TVSUM.is_dir(), reason="TVSum's annotations are not here")
def test_tvsum_agrees_with_what_was_published(cli, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    output = cli("--baselines", "tvsum", f"data.root={TVSUM}", "--json", figures)
    assert "all: 50 videos" in output
    found = {row["name"]: row["splits"]["all"]["figures"] for row in json.loads(figures.read_text())}
    published = {"human": (0.177, 0.204), "oracle": (0.378, 0.473), "random": (0, 0)}
    assert found.keys() == published.keys()
    for name, (tau, rho) in published.items():
        assert found[name]["kendall_annotators"] == pytest.approx(tau, abs=0.002)
        assert found[name]["spearman_annotators"] == pytest.approx(rho, abs=0.002)
        assert not any(math.isnan(value) for value in found[name].values())
