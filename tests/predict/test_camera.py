"""A file played as a camera: frames are let go, never queued, when the model is slower."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from raylab.data.camera import Camera
from raylab.errors import RaylabError
from raylab.prediction.classes import Predictor
from raylab.results import find_checkpoint

COUNT, FPS = 60, 30


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames whose brightness tells their number: 4 levels each, from 10 on."""
    path = tmp_path_factory.mktemp("camera") / "recorded.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "4", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        for number in range(COUNT):
            grey = np.full((48, 64, 3), 10 + 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames: torch.Tensor) -> list[int]:
    """Which frames these are, counted from 1."""
    return [round((frame.float().mean().item() - 10) / 4) + 1 for frame in frames]


class Gate:
    """Lets a file's frames through one by one, in place of a clock."""

    def __init__(self) -> None:
        self.open = threading.Semaphore(0)
        self.closed = False

    def __call__(self, seconds: float) -> bool:
        self.open.acquire()
        return self.closed

    def let(self, frames: int) -> None:
        self.open.release(frames)


def captured(camera: Camera, count: int) -> None:
    """Wait for so many frames."""
    while camera.count < count:
        assert camera.latest(1, after=camera.count) is not None


def test_a_slow_model_always_gets_the_newest_window(recorded: Path) -> None:
    gate = Gate()
    gate.let(1)
    with Camera(str(recorded), side=16, window=1e9, wait=gate) as camera:
        shot = camera.latest(4)
        assert (shot.number, numbers(shot.frames)) == (1, [1, 1, 1, 1])
        gate.let(30)  # while the model is busy
        captured(camera, 31)
        shot = camera.latest(4, after=shot.number)
        assert (shot.number, numbers(shot.frames)) == (31, [1, 11, 21, 31])
        assert shot.frames.shape == (4, 3, 16, 16)
        assert shot.frames.dtype == torch.uint8
        gate.let(1)
        assert camera.latest(2, after=31).number == 32  # the next answer is about the next frame: no queue is left
        gate.closed = True
        gate.let(1)
        assert camera.latest(2, after=32) is None
    assert not camera._thread.is_alive()


def test_frames_older_than_the_window_are_let_go(recorded: Path) -> None:
    gate = Gate()
    gate.let(COUNT)
    with Camera(str(recorded), side=16, window=0.0, wait=gate) as camera:
        captured(camera, COUNT)
        shot = camera.latest(4, after=COUNT - 1)
    assert numbers(shot.frames) == [COUNT] * 4
    assert len(camera._frames) == 1


def test_a_recording_ends(recorded: Path) -> None:
    gate = Gate()
    gate.let(COUNT)
    with Camera(str(recorded), side=16, wait=gate) as camera:
        last = 0
        while shot := camera.latest(2, after=last):
            assert shot.number > last
            last = shot.number
    assert last == COUNT


def test_leaving_early_ends_the_thread(recorded: Path) -> None:
    with Camera(str(recorded), side=16) as camera:  # at its own speed: two seconds
        assert camera.latest(1).number >= 1
    assert not camera._thread.is_alive()
    assert camera.count < COUNT


@pytest.mark.parametrize("source", ["/dev/no-such-camera", "absent.mp4", "text.mp4"])
def test_what_cannot_be_opened_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(RaylabError, match=rf"--webcam {source}: cannot be opened"):
        Camera(source, side=16)


def test_a_model_that_is_too_slow_skips_frames(storage: Path, recorded: Path) -> None:
    predictor = Predictor(find_checkpoint("run", storage), "cpu")
    gate = Gate()
    gate.let(1)
    with Camera(str(recorded), side=predictor.experiment.data.side, wait=gate) as camera:
        seen = []
        for sighting in predictor.camera(camera):
            seen.append((sighting.frame, sighting.skipped))
            gate.let(10)  # ten frames come while the model answers
            if camera.count < COUNT - 10:
                captured(camera, 1 + 10 * len(seen))
    assert seen[:4] == [(1, 0), (11, 9), (21, 9), (31, 9)]
    assert sum(1 + skipped for _, skipped in seen) == seen[-1][0] == COUNT
    assert list(sighting.top) == ["verb", "noun", "action"]
    assert sighting.latency > 0


def test_the_command_writes_a_line_of_json_for_each_answer(storage: Path, recorded: Path) -> None:
    words = ["run", "--webcam", recorded, "--json", "-", "--window", 1, "--top", 2, "--storage", storage]
    command = [sys.executable, "-m", "raylab.predict", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    sightings = [json.loads(line) for line in result.stdout.splitlines()]
    assert sightings[-1]["frame"] == COUNT
    assert [s["frame"] for s in sightings] == sorted({s["frame"] for s in sightings})
    assert sum(1 + s["skipped"] for s in sightings) == COUNT
    assert all(len(s["top"]["action"]) == 2 for s in sightings)
