"""Keyframes of videos of every kind, from the command and from Python."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import raylab
from raylab.config import Experiment
from raylab.data.datasets import load_dataset
from raylab.data.video import probe, read_frames
from raylab.errors import RaylabError
from raylab.evaluate import judge
from raylab.evaluation.memory import peak_bytes
from raylab.models.registry import build_model
from raylab.prediction import keyframes as module
from raylab.prediction.keyframes import KeyframePredictor, Keyframes, choose
from raylab.prediction.pictures import timestamp
from raylab.results import Checkpoint, find_checkpoint

VIDEOS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "videos"
FRAMES = 12  # of a window, so that most videos have several


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment().override(
        {
            "task": "keyframes",
            "model.name": "resnet50_dual_attention",
            "model.scale": "tiny",
            "model.pretrained": False,
            "data.dataset": "kitchen_keyframes",
            "data.kitchen": "tiny",
            "data.sampling": "rate",
            "data.frames": FRAMES,
            "data.size": 32,
            "data.loader_workers": 0,
            "train.precision": "fp32",
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> Checkpoint:
    """A checkpoint of random weights, which tell frames apart all the same."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_file(build_model(experiment.model, {}).state_dict(), folder / "model.safetensors")
    (folder / "experiment.json").write_text(json.dumps(experiment.to_dict()))
    (folder / "labels.json").write_text("{}")
    (folder / "training.json").write_text('{"progress": {"history": []}}')
    (folder / "checkpoint.json").write_text('{"epoch": 3, "step": 30, "metrics": {}}')
    return find_checkpoint(folder)


@pytest.fixture(scope="module")
def predictor(checkpoint: Checkpoint) -> KeyframePredictor:
    return KeyframePredictor(checkpoint, "cpu")


@pytest.fixture(scope="module")
def reel(experiment: Experiment) -> Path:
    """The longest of the built-in videos held out."""
    return max(load_dataset(experiment.data, ("val",)).sources.values(), key=lambda path: probe(path).duration)


def film(path: Path, count: int, fps: int = 10, width: int = 64, height: int = 48, codec: str = "libx264") -> Path:
    """A video of stripes that move."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "10", "preset": "ultrafast", "threads": "1"})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if codec == "libx264" else "yuv420p"
        across = np.arange(width)
        for number in range(count):
            row = (128 + 100 * np.sin((across + 3 * number) * (0.1 + 0.01 * (number % 40)))).astype(np.uint8)
            picture = np.broadcast_to(row[None, :, None], (height, width, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return path


def check(found: Keyframes, folder: Path) -> dict:
    """Everything in a folder agrees with everything else; the record."""
    record = json.loads((folder / "keyframes.json").read_text())
    files = [keyframe["file"] for keyframe in record["keyframes"]]
    others = ["contact_sheet.jpg", "importance.png", "keyframes.json"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, *others])
    assert files == sorted(files)
    info = probe(record["video"])
    for keyframe in record["keyframes"]:
        assert timestamp(keyframe["seconds"]) == keyframe["timestamp"]
        assert keyframe["timestamp"].replace(":", "-") in keyframe["file"]
        with Image.open(folder / keyframe["file"]) as picture:
            assert picture.size == (info.width, info.height)
    for name in others[:2]:
        with Image.open(folder / name) as picture:
            picture.load()
    scores = record["samples"]["importance"]
    assert len(scores) == len(record["samples"]["seconds"]) == math.ceil(info.duration * record["fps"] - 1e-6)
    best = sorted(record["keyframes"], key=lambda keyframe: keyframe["rank"])
    assert [keyframe["rank"] for keyframe in best] == list(range(1, len(best) + 1))
    assert [keyframe["importance"] for keyframe in best] == sorted(scores, reverse=True)[: len(best)]
    assert record == json.loads(json.dumps(found.record()))
    return record


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raylab.predict", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_scores_are_those_of_the_evaluation(checkpoint: Checkpoint, predictor: KeyframePredictor) -> None:
    judged = judge(checkpoint).predictions["val"]
    dataset = load_dataset(checkpoint.experiment.data, ("val",))
    for video, path in list(dataset.sources.items())[:2]:
        rows = [row for id, row in zip(judged.ids, judged.values["importance"], strict=True) if id.startswith(video)]
        found = predictor.video(path)
        assert len(found.importance) == len(dataset.importance[video].picks) > FRAMES
        np.testing.assert_allclose(found.importance, np.concatenate(rows)[: len(found.importance)], atol=1e-5)
        assert found.frames == dataset.importance[video].picks.tolist()


def test_a_folder_holds_the_keyframes(predictor: KeyframePredictor, reel: Path, tmp_path: Path) -> None:
    found = predictor.video(reel)
    folder = found.write(tmp_path / "new" / "out")
    assert folder.local == tmp_path / "new" / "out" / reel.stem
    record = check(found, folder.local)
    assert len(record["keyframes"]) == int(0.15 * len(record["samples"]["seconds"])) > 1
    assert (record["model"], record["epoch"], record["fps"]) == ("resnet50_dual_attention", 3, 2.0)
    assert record["checkpoint"] == predictor.checkpoint.path
    times = [keyframe["seconds"] for keyframe in record["keyframes"]]
    assert times == sorted(times)
    for keyframe, wanted in zip(record["keyframes"], read_frames(reel, times), strict=True):
        with Image.open(folder.local / keyframe["file"]) as picture:
            seen = np.asarray(picture.convert("RGB"), np.float32)
        assert np.abs(seen - wanted.permute(1, 2, 0).numpy()).mean() < 4  # JPEG


def test_the_most_important_are_chosen_and_ties_go_to_the_earlier() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.9, 0.2, 0.5, 0.0], np.float32)
    assert choose(scores, list(range(7)), 0.6) == [1, 3, 2, 5]
    assert choose(scores, list(range(7)), 0.0) == [1]
    assert choose(scores, list(range(7)), 1.0) == [1, 3, 2, 5, 4, 0, 6]


def test_a_frame_on_screen_at_several_samples_is_one_keyframe(predictor: KeyframePredictor, tmp_path: Path) -> None:
    assert choose(np.array([0.3, 0.9, 0.8, 0.7], np.float32), [0, 1, 1, 2], 1.0) == [1, 3, 0]
    found = KeyframePredictor(predictor.checkpoint, "cpu", share=0.5).video(film(tmp_path / "slow.mp4", 20, fps=1))
    assert len(found.seconds) == 40
    assert len({keyframe.frame for keyframe in found.keyframes}) == len(found.keyframes) == 10


def test_frames_are_counted_where_their_rate_varies(predictor: KeyframePredictor, tmp_path: Path) -> None:
    path = tmp_path / "varies.mkv"
    shown = [0, 100, 200, 900, 1000, 1900, 2000, 2050, 2100, 2900]  # milliseconds
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = tick = Fraction(1, 1000)
        for number, at in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = predictor.video(path, stop=2.6)
    assert found.seconds == [0, 0.5, 1, 1.5, 2, 2.5]
    assert found.frames == [0, 2, 4, 4, 6, 8]
    levels = [round(frame.float().mean().item() / 20) for frame in read_frames(path, found.seconds)]
    assert levels == found.frames


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("one.mp4", {"count": 1}),
        ("one.mkv", {"count": 1}),
        ("one.avi", {"count": 1, "codec": "mpeg4"}),
        ("short.mp4", {"count": 3}),
        ("exact.mp4", {"count": 60}),  # one window, to the frame
        ("narrow.mp4", {"count": 30, "width": 6, "height": 250}),
        ("odd.mkv", {"count": 30, "width": 33, "height": 17}),
        ("long.avi", {"count": 150, "codec": "mpeg4"}),
    ],
)
def test_any_length_and_size(predictor: KeyframePredictor, tmp_path: Path, name: str, make: dict) -> None:
    found = predictor.video(film(tmp_path / name, **make))
    check(found, found.write(tmp_path / "out").local)


def test_a_stream_without_times_is_refused(predictor: KeyframePredictor, tmp_path: Path) -> None:
    with pytest.raises(RaylabError, match=r"raw\.h264: states no times or frame rate; wrap it"):
        predictor.video(film(tmp_path / "raw.h264", 30))


def test_a_stretch_of_a_video(predictor: KeyframePredictor, reel: Path) -> None:
    found = predictor.video(reel, 3.25, 5.0)
    assert found.seconds == [3.25, 3.75, 4.25, 4.75]
    with pytest.raises(RaylabError, match=r"--start 999: .* ends at"):
        predictor.video(reel, 999)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_memory_does_not_grow_with_the_video(predictor: KeyframePredictor, tmp_path: Path) -> None:
    short, long = (film(tmp_path / f"{count}.mp4", count, fps=2, width=640, height=480) for count in (40, 800))
    peaks = []
    for path in (short, short, long):

        def find(path: Path = path) -> None:
            predictor.video(path).write(tmp_path / "out")

        peaks.append(peak_bytes(find, torch.device("cpu")))
    held = (800 - 40) * 640 * 480 * 3  # what all frames would take more
    assert peaks[2] - peaks[1] < held / 10


def test_videos_of_one_name_stay_apart(predictor: KeyframePredictor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = [tmp_path / folder / name for folder, name in (("a", "clip.mp4"), ("b", "clip.mp4"), ("a", "clip.mkv"))]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        film(path, 20 + 10 * number)
    for _ in range(2):  # the second time they replace their own
        written = [predictor.video(path).write(out).name for path in paths]
        assert written == ["clip", "clip-2", "clip-3"]
    assert sorted(path.name for path in out.iterdir()) == written
    records = [json.loads((out / name / "keyframes.json").read_text()) for name in written]
    assert [record["video"] for record in records] == [str(path) for path in paths]


def test_what_was_there_is_replaced_whole_or_left_alone(predictor: KeyframePredictor, tmp_path: Path) -> None:
    video, out = film(tmp_path / "clip.mp4", 100), tmp_path / "out"
    (out / "clip").mkdir(parents=True)
    (out / "clip" / "mine.txt").write_text("not keyframes")
    many = KeyframePredictor(predictor.checkpoint, "cpu", share=0.5).video(video)
    assert many.write(out).name == "clip-2"
    few = predictor.video(video)
    assert few.write(out).name == "clip-2"
    check(few, out / "clip-2")
    assert [path.name for path in (out / "clip").iterdir()] == ["mine.txt"]


def test_a_folder_appears_whole_or_not_at_all(
    predictor: KeyframePredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = predictor.video(film(tmp_path / "clip.mp4", 60))
    (tmp_path / "clip.mp4").unlink()  # before its keyframes are read
    with pytest.raises(RaylabError, match=r"clip\.mp4: cannot be read"):
        found.write(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_contact_sheet_shows_the_most_important(
    predictor: KeyframePredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = KeyframePredictor(predictor.checkpoint, "cpu", share=1.0).video(film(tmp_path / "clip.mp4", 200))
    sizes = []
    for most in (100, 7, 2):
        monkeypatch.setattr(module, "TILES", most)
        with Image.open(found.write(tmp_path / "out").local / "contact_sheet.jpg") as sheet:
            sizes.append(sheet.size)
    width, height = 160 + 8, 120 + 22 + 8  # of a tile, with what parts it from the next
    grids = [(5, 8), (5, 2), (2, 1)]
    assert sizes == [(columns * width + 8, rows * height + 8) for columns, rows in grids]


def test_the_command_goes_on_past_bad_files_and_names_them(checkpoint: Checkpoint, reel: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(reel.read_bytes()[:2000])
    copy = shutil.copy(reel, tmp_path / reel.name)
    words = [tmp_path / "text.mp4", reel, cut, tmp_path / "none.mp4", copy, reel]
    result = run(checkpoint.path, *words, "--keyframes", tmp_path / "out", "--share", 0.1, "--json", "-")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("3 of 5 videos failed: ")  # the last is the second again
    for name in ("text.mp4", "cut.mp4", "none.mp4"):
        assert f"{name}: " in result.stderr
        assert name in result.stderr.splitlines()[-1]
    first, second = json.loads(result.stdout)  # and nothing else
    assert [Path(each["folder"]).name for each in (first, second)] == [reel.stem, f"{reel.stem}-2"]
    assert len(first["keyframes"]) == int(0.1 * len(first["samples"]["seconds"]))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [reel.stem, f"{reel.stem}-2"]


def test_the_command_says_where(checkpoint: Checkpoint, tmp_path: Path) -> None:
    video = film(tmp_path / "clip [a] $x$.mp4", 60)
    result = run(checkpoint.path, video, "--keyframes", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{video}: 1 keyframe of 12 samples → {tmp_path / 'out' / video.stem}\n"
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keyframes", "{out}", "--webcam", "auto"], "leave --webcam out"),
        (["a.mp4", "--keyframes", "{out}", "--top", "3"], "--top 3: counts classes"),
        (["a.mp4", "--share", "0.3"], "--share 0.3: is of keyframes: add --keyframes FOLDER"),
        (["a.mp4"], "scores the frames of videos, and names no classes: add --keyframes FOLDER"),
        (["--webcam", "auto"], "scores the frames of videos, and names no classes: add --keyframes FOLDER"),
        (["a.mp4", "--keyframes", "{file}"], "is a file: name a folder"),
    ],
)
def test_what_does_not_go_together_is_said(
    checkpoint: Checkpoint, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    result = run(checkpoint.path, *(word.format(out=tmp_path / "out", file=tmp_path / "file") for word in words))
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_of_classes_has_no_keyframes(storage: Path) -> None:
    with pytest.raises(RaylabError, match=r"names classes \(task action\).*leave --keyframes out"):
        raylab.KeyframePredictor(find_checkpoint("run", storage))


def test_scores_that_are_no_numbers_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    predictor = KeyframePredictor(checkpoint, "cpu")
    with torch.no_grad():
        next(predictor.model.parameters()).fill_(math.nan)
    with pytest.raises(RaylabError, match="scores that are no numbers"):
        predictor.video(film(tmp_path / "clip.mp4", 20))


@pytest.mark.skipif(not VIDEOS.exists(), reason="the real videos are not here")
@pytest.mark.parametrize("path", sorted(VIDEOS.glob("*.*")) if VIDEOS.exists() else [], ids=lambda path: path.name)
def test_real_files(predictor: KeyframePredictor, path: Path, tmp_path: Path) -> None:
    if path.name == "corrupted.mp4":
        with pytest.raises(RaylabError, match=r"corrupted\.mp4"):
            predictor.video(path)
        return
    found = predictor.video(path)
    check(found, found.write(tmp_path).local)
