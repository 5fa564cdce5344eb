"""The verb: models from their folders, one worker or several, and the files it writes."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raylab.errors import RaylabError
from raylab.evaluate import judge
from raylab.evaluation.challenge import Supervision, write_scores, write_submission
from raylab.evaluation.predictions import FLOOR, Predictions, bound
from raylab.results import find_checkpoint


@pytest.fixture(scope="module")
def storage(tmp_path_factory, small_experiment, train_run) -> Path:
    """Results with two runs of one epoch, of 21 clips each split."""
    folder = tmp_path_factory.mktemp("results")
    for name, seed in (("first", 0), ("second", 1)):
        train_run(folder / name, small_experiment.override({"data.max_clips": 21, "train.epochs": 1, "seed": seed}))
    return folder


def test_figures_are_those_that_training_measured(storage: Path) -> None:
    found = judge("first", storage=storage)
    measured = find_checkpoint("first", storage).metrics
    for name in ("verb_top1", "verb_top5", "noun_top1", "noun_top5", "action_top1"):
        assert found.scores["val"].accuracy[name] == pytest.approx(measured[f"val/{name}"], abs=1e-7)
    assert found.scores["val"].clips == 21
    assert found.gap() == ("while training", found.history["gap/action_top1"])
    assert found.losses() == {
        "total": measured["val/loss"],
        "verb": measured["val/verb_loss"],
        "noun": measured["val/noun_loss"],
    }


def test_a_checkpoint_amid_an_epoch_has_no_figures_of_the_epoch_before(storage: Path) -> None:
    amid = replace(find_checkpoint("first", storage), metrics={})
    found = judge(amid, {"data.max_clips": 5})
    assert found.losses() == {}
    assert math.isnan(found.gap()[1])


def test_two_workers_find_what_one_does(storage: Path) -> None:
    alone = judge("first", storage=storage)  # 21 clips in batches of 8: two for one worker, one for the other
    together = judge("first", storage=storage, workers=2)
    assert together.scores == alone.scores
    assert together.predictions["val"].ids == alone.predictions["val"].ids
    for head, values in alone.predictions["val"].values.items():
        assert np.array_equal(together.predictions["val"].values[head], values)


def test_models_are_compared_and_put_together(storage: Path, tmp_path: Path, cli) -> None:
    figures = tmp_path / "new" / "figures.json"
    output = cli("first", "second", "first", "--ensemble", "--per-class", "--json", figures, "--storage", storage)
    assert "val: 21 clips" in output
    judged = json.loads(figures.read_text())
    assert [row["name"] for row in judged] == ["first", "second", "first (2)", "ensemble"]
    first, second, again, ensemble = (row["splits"]["val"]["figures"] for row in judged)
    assert first == again
    assert ensemble["noun_top5"] not in (None, first["noun_top5"] + second["noun_top5"])
    assert {"action_top5", "unseen/action_top1", "tail/verb_top1", "class_mean/noun"} <= first.keys()
    assert judged[0]["checkpoint"] == find_checkpoint("first", storage).path
    assert sum(row["clips"] for row in judged[0]["splits"]["val"]["classes"]["verb"]) == 21
    assert "gap/action_top1, while training" in output
    assert "loss/noun, while training" in output
    assert judged[0]["losses"]["noun"] == find_checkpoint("first", storage).metrics["val/noun_loss"]
    assert judged[0]["efficiency"] == []


def test_both_splits_give_the_gap(storage: Path, tmp_path: Path, cli) -> None:
    figures = tmp_path / "figures.json"
    output = cli(
        "first", "--split", "val", "--split", "train", "--views", "2x1", "--json", figures, "--storage", storage
    )
    (judged,) = json.loads(figures.read_text())
    train, val = (judged["splits"][split]["figures"]["action_top1"] for split in ("train", "val"))
    assert judged["gap"] == {"action_top1": pytest.approx(train - val), "measured": "same views"}
    assert "train: 21 clips" in output


def test_a_checkpoint_is_found_by_its_own_folder(storage: Path, cli) -> None:
    folder = find_checkpoint("first", storage).path
    assert "val: 5 clips" in cli(folder, "data.max_clips=5", "data.store=false")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frist"], "did you mean 'first'"),
        (["first", "model.dropout=0.1"], r"model\.dropout: a trained model's settings stay"),
        (["first", "--views", "3"], "--views 3: write clips x crops"),
        (["first", "--split", "dev"], "--split dev: write val, train or test"),
        (["first", "--split", "test"], r"EPIC_100_test_timestamps\.csv"),
        (
            ["first", "--export", "x.pt"],
            r"x\.pt: the challenge's files hold 97 verbs, 300 nouns, but .* 8 verbs, 10 nouns",
        ),
        (["first", "second", "--submission", "x.zip"], r"x\.zip: several models were named"),
        (["first", "--sls", "1,2"], "--sls 1,2: write three levels"),
        (["data.max_clips=3"], "which model"),
    ],
)
def test_what_cannot_be_judged_is_said(storage: Path, words: list[str], message: str, cli) -> None:
    with pytest.raises(RaylabError, match=message):
        cli(*words, "--storage", storage)


def test_other_classes_are_refused(storage: Path, tmp_path: Path) -> None:
    import shutil

    from raylab.data.kitchen import kitchen_root

    root = tmp_path / "epic"
    shutil.copytree(kitchen_root("tiny"), root)
    names = root / "EPIC_100_noun_classes.csv"
    names.write_text(names.read_text().replace("seven", "sieben"))
    with pytest.raises(RaylabError, match=r"trained for other noun classes than those of data\.dataset = epic"):
        judge("first", {"data.dataset": "epic", "data.root": str(root)}, storage=storage)


def challenge() -> Predictions:
    rng = np.random.default_rng(0)
    logs = {}
    for head, classes in (("verb", 97), ("noun", 300)):
        p = rng.dirichlet(np.full(classes, 0.05), size=7)
        with np.errstate(divide="ignore"):
            logs[head] = bound(np.log(p))
    return Predictions([f"P01_01_{i}" for i in range(7)], logs)


def test_scores_in_the_official_form(tmp_path: Path) -> None:
    made = challenge()
    write_scores(made, tmp_path / "scores.pt")
    read = torch.load(tmp_path / "scores.pt", weights_only=False)
    assert read.keys() == {"verb_output", "noun_output", "narration_id"}
    for head, classes in (("verb", 97), ("noun", 300)):
        values = read[f"{head}_output"]
        assert (values.dtype, values.shape) == (np.float32, (7, classes))
        assert (values >= FLOOR).all()
        assert (values <= 0).all()
        assert np.array_equal(values, made.values[head])
    assert read["narration_id"].tolist() == made.ids


def test_a_submission_in_the_official_form(tmp_path: Path) -> None:
    made = challenge()
    write_submission(made, tmp_path / "test.zip", Supervision(2, 3, 4))
    with zipfile.ZipFile(tmp_path / "test.zip") as archive:
        assert archive.namelist() == ["test.json"]
        content = json.loads(archive.read("test.json"))
    results = content.pop("results")
    assert content == {"version": "0.2", "challenge": "action_recognition", "sls_pt": 2, "sls_tl": 3, "sls_td": 4}
    assert list(results) == made.ids
    assert results["P01_01_3"].keys() == {"verb", "noun"}
    assert list(results["P01_01_3"]["verb"]) == [str(index) for index in range(97)]
    assert results["P01_01_3"]["noun"]["299"] == float(made.values["noun"][3, 299])


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RaylabError, match=r"file/x\.pt: cannot be written"):
        write_scores(challenge(), tmp_path / "file" / "x.pt")
