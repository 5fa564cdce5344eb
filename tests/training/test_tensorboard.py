"""What TensorBoard shows of a run, read back from its event file, for every task."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.fit import fit
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder
from raylab.training.samples import SAID, TRUE, WIDTH, SampleClips, curves, strip, verdict

CPU = Worker(torch.device("cpu"))
MACHINE = {"clips_per_second", "data_wait", "grad_norm", "memory", "seconds", "best"}
# Of another model, without what `small_experiment` says of its own.
OTHER_MODEL = {
    "model.scale": "tiny",
    "model.encoder": None,
    "model.temporal_layers": None,
    "model.temporal_width": None,
    "model.dim_feedforward": None,
    "model.drop_path": 0.0,
}
# Task → what its experiment has besides; the parts whose rates are shown; its losses; some of its metrics.
TASKS = {
    "action": (
        {"model.frozen_blocks": 1},
        {"lr/encoder", "lr/temporal", "lr/heads"},
        {"loss", "verb_loss", "noun_loss"},
        {"verb_top1", "noun_top5", "action_top1"},
    ),
    "classification": (
        {
            "model.name": "naive_cnn",
            **OTHER_MODEL,
            "data.dataset": "kitchen_aura",
            "data.split": "stratified",
            "data.folds": 2,
        },
        {"lr/encoder", "lr/heads"},
        {"loss", "label_loss"},
        {"accuracy", "precision", "recall", "f1", "roc_auc"},
    ),
    "distillation": (
        {},
        {"lr/student", "lr/projections"},
        {"loss", "classification_loss", "feature_loss", "attention_loss", "asymmetric_loss"},
        {"accuracy", "class_accuracy"},
    ),
    "keyframes": (
        {
            "model.name": "efficientnet_b0_dual_attention",
            **OTHER_MODEL,
            "data.dataset": "kitchen_keyframes",
            "data.sampling": "rate",
            "data.frames": 12,
            "data.batch_size": 2,
            "keyframes.mse_weight": 1.0,
            "train.cache": False,
        },
        {"lr/encoder", "lr/head"},
        {"loss", "ranking_loss", "mse_loss"},
        {"spearman_mean", "kendall_mean", "f1"},
    ),
}


def events_of(folder):
    events = EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0})
    events.Reload()
    return events


def scalars(events, name):
    return {scalar.step: scalar.value for scalar in events.Scalars(name)}


def decoded(image):
    return Image.open(io.BytesIO(image.encoded_image_string))


@pytest.fixture(scope="module", params=TASKS)
def trained(request, tmp_path_factory, small_experiment, small_student):
    """Two epochs of a task: its experiment, rows and events, and what was to be shown."""
    settings, *shown = TASKS[request.param]
    base = small_student if request.param == "distillation" else small_experiment
    experiment = base.override({"task": request.param, "data.max_clips": 16, "train.epochs": 2, **settings})
    folder = tmp_path_factory.mktemp(request.param)
    run, rows = RunFolder(Folder.open(folder)), []
    run.create(experiment)
    train(experiment, load_dataset(experiment.data), run, CPU, rows.append)
    return experiment, rows, events_of(folder), shown


def test_every_figure_of_an_epoch_is_there_under_its_name(trained):
    _, rows, events, (_, losses, metrics) = trained
    wanted = {f"{split}/{name}" for split in ("train", "val", "gap") for name in losses | metrics} | MACHINE
    assert wanted <= set(events.Tags()["scalars"])
    for name in wanted:
        assert scalars(events, name) == pytest.approx({row["step"]: row[name] for row in rows}), name
    assert all(0 <= row["data_wait"] <= 1 and row["clips_per_second"] > 0 and row["memory"] > 0 for row in rows)
    for name in losses:
        assert [row[f"gap/{name}"] for row in rows] == pytest.approx(
            [row[f"train/{name}"] - row[f"val/{name}"] for row in rows]
        )


def test_every_part_of_the_model_has_a_learning_rate(trained):
    experiment, rows, events, (rates, _, _) = trained
    assert {name for name in events.Tags()["scalars"] if name.startswith("lr")} == rates
    for name in rates:
        seen = scalars(events, name)
        assert set(seen) == set(range(1, rows[-1]["step"] + 1))  # train.log_steps is 1
        assert seen[rows[-1]["step"]] == pytest.approx(rows[-1]["lr"], abs=1e-9)
        assert 0 < max(seen.values()) <= experiment.optim.lr


def test_hyperparameters_are_there(trained):
    experiment, _, events, _ = trained
    assert "_hparams_/experiment" in events.summary_metadata
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"optim.lr" in data
    assert experiment.model.name.encode() in data


def test_sample_clips_are_the_same_in_every_epoch(trained):
    experiment, rows, events, _ = trained
    assert experiment.train.sample_clips == 4
    assert events.Tags()["images"] == [f"clips/{n}" for n in range(4)]
    for name in events.Tags()["images"]:
        shown = events.Images(name)
        assert [image.step for image in shown] == [row["step"] for row in rows]
        first, second = (decoded(image) for image in shown)
        assert first.size == second.size == (WIDTH, first.height)
        frames = (0, 0, WIDTH, 96)
        assert first.crop(frames).tobytes() == second.crop(frames).tobytes()
        assert len(first.crop(frames).getcolors(100_000)) > 100  # pixels of a video
        assert first.crop((0, 104, WIDTH, first.height)).getextrema() != ((255, 255),) * 3
        assert len(shown[0].encoded_image_string) < 40_000


def test_a_run_without_them_is_the_same_run(tmp_path, rows_of, small_experiment):
    experiment = small_experiment.override({"data.max_clips": 16, "train.epochs": 2, "model.dropout": 0.5})
    assert rows_of(experiment) == rows_of(experiment.override({"train.sample_clips": 0}))
    assert not events_of(tmp_path / "run1").Tags()["images"]
    assert events_of(tmp_path / "run0").Tags()["images"]


def test_a_stages_last_epoch_has_its_clips_and_only_the_rates_of_what_it_trains(tmp_path, rows_of, small_experiment):
    stages = [{"epochs": 1, "lr": 1e-3, "freeze": "encoder"}, {"epochs": 1, "lr": 1e-4}]
    settings = {"train.stages": stages, "model.frozen_blocks": None, "data.max_clips": 16}
    rows = rows_of(small_experiment.override({**settings, "train.cache": str(tmp_path / "kept")}))
    events = events_of(tmp_path / "run0")
    assert [image.step for image in events.Images("clips/0")] == [row["step"] for row in rows]
    assert min(scalars(events, "lr/heads")) == 1
    assert min(scalars(events, "lr/encoder")) == rows[0]["step"] + 1


def test_clips_are_those_that_this_worker_validates(small_experiment):
    dataset = load_dataset(small_experiment.data)
    order = [clip.id for clip in dataset.splits["val"].clips]
    samples = SampleClips(small_experiment, dataset, [[8, 9], [16, 17]])
    assert list(samples.places) == [order[place] for place in (8, 9, 16, 17)]
    assert not samples.pictures()  # nothing has been said of them
    fewer = small_experiment.override({"train.sample_clips": 2})
    assert list(SampleClips(fewer, dataset, [[8, 9], [16, 17]]).places) == [order[8], order[16]]


def test_a_picture_says_what_is_true_what_was_said_and_how_probable():
    names = ["take", "open"]
    sure, unsure = (torch.tensor(p).numpy() for p in ([0.75, 0.25], [0.4, 0.6]))
    assert verdict("verb", names, 0, sure) == ("verb: take — right, 0.75", TRUE)
    text, colour = verdict("verb", names, 0, unsure)
    assert text == "verb: take, 0.40 — predicted open, 0.60"
    assert colour != TRUE


def test_a_strip_is_of_frames_in_their_order():
    video = torch.arange(16, dtype=torch.uint8).mul(15).view(16, 1, 1, 1).expand(16, 3, 40, 40)
    made = strip(video)
    middles = [made.getpixel((4 + column * 100 + 48, 50))[0] for column in range(8)]
    assert middles == [2 * 15 * column for column in range(8)]
    alone = strip(video[:1])
    assert alone.size == made.size
    assert alone.getpixel((148, 50)) == (255, 255, 255)


@pytest.mark.parametrize("count", [1, 2, 60])
def test_curves_are_drawn_over_their_own_range(count):
    true, said = torch.linspace(0.2, 0.9, count).numpy(), torch.full((count,), 0.5).numpy()
    made = curves("video@0", true, said)
    colours = {colour for _, colour in made.getcolors(100_000)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (TRUE, SAID)} <= colours


def test_a_classifier_of_features_has_figures_too(tmp_path, small_experiment):
    settings, _, losses, metrics = TASKS["classification"]
    features = {"model.name": "logistic_regression", "model.scale": "full", "model.pretrained": True}
    experiment = small_experiment.override({"task": "classification", **settings, **features})
    run, rows = RunFolder(Folder.open(tmp_path)), []
    run.create(experiment)
    fit(experiment, load_dataset(experiment.data), run, rows.append)
    events = events_of(tmp_path)
    for name in {f"{split}/{name}" for split in ("train", "val", "gap") for name in losses | metrics}:
        assert scalars(events, name) == pytest.approx({1: rows[0][name]})
    assert not events.Tags()["images"]
