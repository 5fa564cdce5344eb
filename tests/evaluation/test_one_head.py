"""A model with one head, on the labelled folder: no action, a test split with labels, losses of any kind."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from raylab.evaluate import Judgement, ensemble, judge
from raylab.evaluation.judgement import record
from raylab.evaluation.tables import table
from raylab.results import find_checkpoint

LABELLED = {
    "data.dataset": "kitchen_labelled",
    "data.max_clips": 16,
    "train.epochs": 1,
    "train.monitor": "val/label_top1",
}
LOSSES = {"loss": 2.5, "classification_loss": 1.5, "feature_loss": 0.25, "asymmetric_loss": 0.125}


@pytest.fixture(scope="module")
def storage(tmp_path_factory, small_experiment, train_run) -> Path:
    """Results with one run of one epoch."""
    folder = tmp_path_factory.mktemp("results")
    train_run(folder / "run", small_experiment.override(LABELLED))
    return folder


@pytest.fixture(scope="module")
def judged(storage: Path) -> Judgement:
    return judge("run", splits=("train", "val", "test"), storage=storage)


def rendered(*judgements: Judgement) -> str:
    screen = io.StringIO()
    Console(file=screen, width=120).print(table(judgements, "val"))
    return screen.getvalue()


def test_every_split_is_scored_by_the_one_head(judged: Judgement, storage: Path) -> None:
    assert {split: scores.clips for split, scores in judged.scores.items()} == {"train": 16, "val": 16, "test": 16}
    for scores in judged.scores.values():
        assert list(scores.figures()) == ["label_top1", "label_top5", "class_mean/label"]
    measured = find_checkpoint("run", storage).metrics
    for name in ("label_top1", "label_top5"):
        assert judged.scores["val"].accuracy[name] == pytest.approx(measured[f"val/{name}"], abs=1e-7)


def test_the_gap_is_that_of_the_one_head(judged: Judgement) -> None:
    train, val = (judged.scores[split].accuracy["label_top1"] for split in ("train", "val"))
    assert judged.gap() == ("same views", train - val)
    alone = replace(judged, scores={"val": judged.scores["val"]})
    assert alone.gap() == ("while training", judged.history["gap/label_top1"])
    (row,) = record([alone])
    assert row["gap"] == {"label_top1": judged.history["gap/label_top1"], "measured": "while training"}


def test_a_student_shows_its_losses_and_its_gap_while_training(judged: Judgement) -> None:
    history = {f"val/{name}": value for name, value in LOSSES.items()}
    history |= {
        "train/loss": 9.0,
        "gap/loss": 6.5,
        "val/accuracy": 0.5,
        "val/class_accuracy": 0.5,
        "gap/accuracy": 0.25,
    }
    student = replace(judged, name="student", scores={"val": judged.scores["val"]}, history=history)
    assert student.gap() == ("while training", 0.25)
    (row,) = record([student])
    assert row["losses"] == {"total": 2.5, "classification": 1.5, "feature": 0.25, "asymmetric": 0.125}
    assert row["gap"] == {"label_top1": 0.25, "measured": "while training"}
    together = ensemble([student, student])
    lines = {
        line.split(" │ ")[0].strip("│ "): line.strip("│ ").split(" │ ")[1:]
        for line in rendered(student, together).splitlines()
    }
    assert [cell.strip() for cell in lines["loss/feature, while training"]] == ["0.25", "–"]
    assert [cell.strip() for cell in lines["gap/label_top1, while training"]] == ["25.00", "–"]
    assert "action" not in "".join(lines)


def test_a_student_is_judged(tmp_path: Path, small_student, train_run) -> None:
    train_run(tmp_path / "student", small_student)
    found = judge("student", storage=tmp_path)
    measured = find_checkpoint("student", tmp_path).metrics
    assert found.scores["val"].accuracy["label_top1"] == pytest.approx(measured["val/accuracy"], abs=1e-7)
    assert found.scores["val"].class_mean["label"] == pytest.approx(measured["val/class_accuracy"], abs=1e-6)
    assert found.losses().keys() == {"total", "classification", "feature", "attention", "asymmetric"}
    assert found.losses()["feature"] == measured["val/feature_loss"]
    assert found.gap() == ("while training", found.history["gap/accuracy"])


def test_the_command(storage: Path, tmp_path: Path, cli) -> None:
    figures = tmp_path / "figures.json"
    output = cli("run", "--split", "test", "--per-class", "--json", figures, "--storage", storage)
    (row,) = json.loads(figures.read_text())
    assert row["splits"]["test"]["figures"].keys() == {"label_top1", "label_top5", "class_mean/label"}
    assert sum(each["clips"] for each in row["splits"]["test"]["classes"]["label"]) == 16
    assert "test: 16 clips" in output
    assert "run, test:" in output
    assert "move-left" in output
    assert "action" not in output
