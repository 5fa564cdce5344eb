"""A model's answers for videos, from the command and from Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.evaluate import judge
from raylab.predict import seconds
from raylab.prediction.classes import Predictor
from raylab.results import find_checkpoint
from raylab.storage import Folder
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder

VIDEOS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "videos"


@pytest.fixture(scope="module")
def predictor(storage: Path) -> Predictor:
    return Predictor(find_checkpoint("run", storage), "cpu", top=3)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raylab.predict", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_segment_gets_the_answer_that_the_evaluation_gives(predictor: Predictor, storage: Path) -> None:
    judged = judge("run", storage=storage).predictions["val"]
    dataset = load_dataset(predictor.experiment.data, ("val",))
    for index, clip in enumerate(list(dataset.splits["val"].clips)[:3]):
        answer = predictor.video(dataset.sources[clip.video], clip.start, clip.stop)
        assert (answer.start, answer.stop) == (clip.start, clip.stop)
        for head, values in judged.values.items():
            best = torch.tensor(values[index]).exp().topk(3)
            names = [dataset.labels[head][at] for at in best.indices]
            assert [guess.name for guess in answer.top[head]] == names
            assert [guess.probability for guess in answer.top[head]] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_an_action_is_a_verb_and_a_noun(predictor: Predictor, video: Path) -> None:
    top = predictor.video(video).top
    assert list(top) == ["verb", "noun", "action"]
    assert top["action"][0].name == f"{top['verb'][0].name} {top['noun'][0].name}"
    assert top["action"][0].probability == pytest.approx(top["verb"][0].probability * top["noun"][0].probability)
    assert [guess.probability for guess in top["action"]] == sorted(
        (guess.probability for guess in top["action"]), reverse=True
    )


def test_one_head_makes_no_action(tmp_path: Path, small_experiment, video: Path) -> None:
    experiment = small_experiment.override(
        {"data.dataset": "kitchen_labelled", "data.max_clips": 8, "train.epochs": 1, "train.monitor": "val/label_top1"}
    )
    found = RunFolder(Folder.open(tmp_path / "run"))
    found.create(experiment)
    train(experiment, load_dataset(experiment.data), found, Worker(torch.device("cpu")), lambda row: None)
    checkpoint = find_checkpoint("run", tmp_path)
    top = Predictor(checkpoint, "cpu", top=9).video(video).top
    assert list(top) == ["label"]
    assert sorted(guess.name for guess in top["label"]) == checkpoint.labels["label"]  # all eight
    assert sum(guess.probability for guess in top["label"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("start", "stop", "message"),
    [(99.0, None, r"--start 99: .*\.MP4 ends at"), (1.0, 1.0, "--stop 1: not after --start 1"), (2.0, 1.0, "--stop 1")],
)
def test_a_stretch_that_is_not_there_is_named(
    predictor: Predictor, video: Path, start: float, stop: float | None, message: str
) -> None:
    with pytest.raises(RaylabError, match=message):
        predictor.video(video, start, stop)


@pytest.mark.parametrize(("text", "value"), [("75.5", 75.5), ("1:15.5", 75.5), ("01:00:00.25", 3600.25), (None, None)])
def test_times(text: str | None, value: float | None) -> None:
    assert seconds(text, "--start") == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1:2:3:4", "1e3"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(RaylabError, match=r"--stop .*: write seconds, or HH:MM:SS\.sss"):
        seconds(text, "--stop")


def test_the_command_goes_on_past_a_bad_file_and_says_so(storage: Path, video: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    copy = shutil.copy(video, tmp_path / "copy.mp4")
    result = run(
        "run", tmp_path / "text.mp4", video, copy, "--start", "0:0.5", "--top", 2, "--json", "-", "--storage", storage
    )
    assert result.returncode == 1
    assert "text.mp4" in result.stderr
    first, second = json.loads(result.stdout)  # and nothing else
    assert (first["video"], first["start"], first["top"]) == (str(video), 0.5, second["top"])
    assert {head: len(guesses) for head, guesses in first["top"].items()} == {"verb": 2, "noun": 2, "action": 2}


def test_bad_input_ends_with_code_2(storage: Path, video: Path) -> None:
    result = run("run", "--storage", storage)
    assert (result.returncode, result.stderr.strip()) == (2, "error: give videos, or --webcam, one of the two")


@pytest.mark.skipif(not VIDEOS.exists(), reason="the real videos are not here")
@pytest.mark.parametrize("path", sorted(VIDEOS.glob("*.*")) if VIDEOS.exists() else [], ids=lambda path: path.name)
def test_real_files(predictor: Predictor, path: Path) -> None:
    if path.name == "corrupted.mp4":
        with pytest.raises(RaylabError, match=r"corrupted\.mp4"):
            predictor.video(path)
        return
    answer = predictor.video(path)
    assert answer.stop > 0
    assert sum(guess.probability for guess in answer.top["verb"]) <= 1 + 1e-6
