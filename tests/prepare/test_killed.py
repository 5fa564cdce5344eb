"""Preparations that are killed, and the memory that they take."""

import os
import random
import re
import signal
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import ray
from PIL import Image
from place import Place, start, wait_for

from raylab import prepare
from raylab.cluster.spread import spread
from raylab.data.clips import Clip, ClipTable
from raylab.data.store.build import Building
from raylab.data.store.manifest import StoreSettings

REPEATS = 15  # 64 shards


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_experiment):
    """The content of a store whose making nothing disturbed."""
    place = Place(tmp_path_factory.mktemp("undisturbed"), small_experiment, repeats=REPEATS)
    prepare.make_store(place.experiment.data, StoreSettings(frames=(4,)))
    return content(place)


def content(place):
    """Every file of a store but its lock and its notes on the videos (their paths and times)."""
    files = {path.relative_to(place.store).as_posix(): path for path in place.store.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in ("preparing.lock", "sources.arrow")}


def finished(place):
    return len(list(place.store.glob("parts/*.arrow")))


@pytest.mark.slow
@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_a_command_killed_again_and_again_ends_with_the_very_files_of_one_undisturbed(
    run, tmp_path, small_experiment, undisturbed, kill
):
    place = Place(tmp_path, small_experiment, repeats=REPEATS)
    left = []
    for _ in range(5):
        more = finished(place) + 1
        process = start(place.file)
        wait_for(lambda more=more: finished(place) >= more, process)
        time.sleep(random.uniform(0, 0.2))
        left += psutil.Process(process.pid).children(recursive=True)
        kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert place.manifest is None
    assert run("prepare", place.file)[0] == 0
    assert content(place) == undisturbed
    for process in left:  # Ray's own agents outlive a killed driver by a minute
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.slow
def test_worker_processes_killed_at_random_are_replaced_and_leave_nothing(tmp_path, small_experiment, undisturbed):
    place = Place(tmp_path, small_experiment, repeats=REPEATS)
    process = start(place.file, environment={"RAY_ADDRESS": ray.get_runtime_context().gcs_address})
    killed = []
    for _ in range(5):
        more = finished(place) + 1
        wait_for(lambda more=more: finished(place) >= more and working(), process)
        time.sleep(random.uniform(0, 0.1))
        for victim in working()[:1]:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
                killed.append(victim)
    assert process.wait(timeout=300) == 0
    assert killed
    assert content(place) == undisturbed


def working():
    """The cluster's processes that are at a piece of work."""
    return [child for child in psutil.Process().children(recursive=True) if "ray::_call" in " ".join(cmdline(child))]


def cmdline(process):
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


@pytest.mark.slow
def test_a_clip_of_five_minutes_takes_hardly_more_memory_than_one_of_three_seconds(tmp_path):
    video = tmp_path / "video.mp4"
    encode_minutes(video, 5)
    building = Building(tmp_path / "store", StoreSettings(fps=10.0), "pyav")
    building.folder.mkdir()

    def peak(piece):
        assert building.write(piece) == (1, 0)
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

    peaks, sizes = [], []
    for stop in (3.0, 300.0):
        clips = ClipTable.of([Clip(f"to {stop}", "video", 0.0, stop, 1, int(25 * stop) + 1, {"verb": 0})])
        plan = building.plan(clips, [f"{stop:016}".encode()], {"video": video})
        peaks += spread(peak, plan)
        sizes += [building.seal().shards[name].bytes for name in plan.pieces]
    print(f"peak memory {peaks} MiB, shards {sizes} bytes")
    assert sizes[1] > 90 * sizes[0]
    assert peaks[1] < 1.5 * peaks[0]


def encode_minutes(path, minutes):
    """25 frames of 456 × 256 pixels a second: a cloudy texture that moves."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (32, 57, 3), dtype=np.uint8)).resize((456, 256))
    texture = np.asarray(coarse) // 2 + rng.integers(0, 12, (256, 456, 1), dtype=np.uint8)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = 456, 256, "yuv420p"
        for number in range(25 * 60 * minutes):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, number, axis=1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
