"""What a page makes of files: right answers for good ones, clear words for bad ones, and nothing of either left."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from PIL import Image
from running_page import Page, eventually, running, videos

from raylab.errors import RaylabError
from raylab.handcrafted.extract import HandcraftedSettings, extract
from raylab.handcrafted.measures import FEATURES
from raylab.prediction.classes import Predictor
from raylab.prediction.keyframes import KeyframePredictor
from raylab.results import find_checkpoint

VIDEOS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "videos"
MB = 1_000_000


def ffmpeg(*words: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, words)], check=True, timeout=120)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Files of every bad kind, and what must be said of each."""
    folder, good = tmp_path_factory.mktemp("bad"), videos("keyframes")[0]
    content = good.read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "corrupted.mp4").write_bytes(content[: len(content) // 8] + os.urandom(3000))
    with zipfile.ZipFile(folder / "packed.mp4", "w") as archive:
        archive.write(good, "good.mp4")
    # What FFmpeg would follow to files of this machine.
    (folder / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{good}\n#EXT-X-ENDLIST\n")
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile {good}\n")
    found = {
        "empty.mp4": "is empty (0 bytes): upload it again",
        "corrupted.mp4": "cannot be read as a video",
        "packed.mp4": "is a ZIP archive, not a video: unpack it",
        "list.m3u8": "cannot be read as a video",
        "list.mp4": "cannot be read as a video",
    }
    if shutil.which("ffmpeg"):
        ffmpeg("-f", "lavfi", "-i", "sine=duration=2", folder / "sound.m4a")
        grey = "color=gray:size=64x48:rate=1/10:duration=7200"
        ffmpeg("-f", "lavfi", "-i", grey, "-c:v", "libx264", "-preset", "ultrafast", folder / "two_hours.mp4")
        found["sound.m4a"] = "has sound but no pictures"
        found["two_hours.mp4"] = "lasts 2:00:00, and this page takes up to 30:00: upload a part"
    return {name: (folder / name, said) for name, said in found.items()}


def test_keyframes_are_those_of_python(page: Page, models: Path, tmp_path: Path) -> None:
    video = videos("keyframes")[0]
    answer = page.post("keyframes", video.read_bytes(), "../../a film.mp4")
    assert answer.status_code == 200
    found, expected = answer.json(), KeyframePredictor(find_checkpoint("keyframes", models), "cpu").video(video)
    record = json.loads(json.dumps(expected.record())) | {"video": "a film.mp4", "checkpoint": "keyframes"}
    token = found.pop("token")
    assert found == record

    at = f"{page.address}/results/{token}"
    archive = zipfile.ZipFile(io.BytesIO(requests.get(f"{at}/keyframes.zip", timeout=60).content))
    written = expected.write(tmp_path)
    names = sorted(path.name for path in Path(str(written)).iterdir())
    assert sorted(archive.namelist()) == [f"a film/{name}" for name in names]
    assert json.loads(archive.read("a film/keyframes.json")) == record
    for name in expected.names:
        assert archive.read(f"a film/{name}") == (Path(str(written)) / name).read_bytes()
        assert requests.get(f"{at}/frame/{name}", timeout=60).content == archive.read(f"a film/{name}")
    thumb = Image.open(io.BytesIO(requests.get(f"{at}/thumb/0", timeout=60).content))
    assert max(thumb.size) <= 320
    assert requests.get(f"{at}/thumb/{len(expected.names)}", timeout=60).status_code == 404


def test_actions_of_a_stretch_are_those_of_python(page: Page, models: Path) -> None:
    video = videos("actions")[0]
    found = page.post("actions", video.read_bytes(), "film.mp4", start="0:00.5", stop="1.5").json()
    expected = Predictor(find_checkpoint("actions", models), "cpu").video(video, 0.5, 1.5)
    assert (found["start"], found["stop"]) == (0.5, 1.5)
    for head, guesses in expected.top.items():
        assert [guess["name"] for guess in found["top"][head]] == [guess.name for guess in guesses]
        probabilities = [guess["probability"] for guess in found["top"][head]]
        assert probabilities == pytest.approx([guess.probability for guess in guesses], rel=1e-4)
    assert len(found["top"]["action"]) == 5


@pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"no {VIDEOS}")
def test_recorded_videos_of_all_kinds(page: Page, models: Path) -> None:
    predictor = Predictor(find_checkpoint("actions", models), "cpu")
    for video in sorted(VIDEOS.iterdir()):
        with video.open("rb") as file:
            answer = page.post("actions", file, video.name)
        try:
            expected = predictor.video(video).top
        except RaylabError as error:
            assert answer.status_code == 422, str(error)
            assert answer.json()["error"].startswith(f"{video.name}: ")
        else:
            found = answer.json()["top"]
            assert [guess["name"] for guess in found["verb"]] == [guess.name for guess in expected["verb"]], video


@pytest.mark.parametrize(("model", "frames"), [(0, 8), (1, 16)])
def test_the_evidence_is_what_is_measured(page: Page, model: int, frames: int) -> None:
    video = videos("logistic")[0]
    found = page.post("labels", video.read_bytes(), "film.mp4", model=model).json()
    values = extract(video, HandcraftedSettings(frames=frames))
    assert [feature["name"] for feature in found["features"]] == [feature.name for feature in FEATURES]
    assert [feature["value"] for feature in found["features"]] == values.tolist()
    (top,) = found["top"].values()
    assert sum(guess["probability"] for guess in top) == pytest.approx(1)
    assert {guess["name"] for guess in top} == {"real", "generated"}
    if model == 0:  # its training videos' features are in the cache
        assert set(found["reference"]) == {"real", "generated"}
        assert found["towards"] == "generated"
        assert all(len(its["mean"]) == len(its["sd"]) == len(FEATURES) for its in found["reference"].values())


def test_a_pull_is_a_part_of_the_score(page: Page, models: Path) -> None:
    import numpy as np

    found = page.post("labels", videos("logistic")[0].read_bytes(), "film.mp4").json()
    last = find_checkpoint("logistic", models).load_model().pipeline[-1]
    names = find_checkpoint("logistic", models).labels["label"]
    sign = 1 if names[1] == found["towards"] else -1
    distance = sum(feature["pull"] for feature in found["features"]) + sign * float(last.intercept_[0])
    (top,) = found["top"].values()
    share = next(guess["probability"] for guess in top if guess["name"] == found["towards"])
    assert 1 / (1 + np.exp(-distance)) == pytest.approx(share)


def test_cards_say_what_the_records_say(page: Page, models: Path) -> None:
    tabs = requests.get(f"{page.address}/api/page", timeout=60).json()["tabs"]
    assert {tab: [card["name"] for card in cards] for tab, cards in tabs.items()} == {
        "actions": ["actions"],
        "keyframes": ["keyframes"],
        "labels": ["logistic", "network"],
    }
    card, checkpoint = tabs["actions"][0], find_checkpoint("actions", models)
    about = dict(card["about"])
    assert card["metrics"] == pytest.approx(checkpoint.metrics)
    assert about["Parameters"] == f"{sum(p.numel() for p in checkpoint.load_model().parameters()):,}"
    assert about["Trained on"] == "kitchen"
    assert card["classes"]["verb"]["count"] == checkpoint.heads["verb"]
    assert card["settings"]["data.frames"] == "4"
    assert str(models) not in json.dumps(tabs)


def test_twenty_uploads_at_once(page: Page, models: Path, bad: dict[str, tuple[Path, str]]) -> None:
    good = videos("keyframes")
    predictor = KeyframePredictor(find_checkpoint("keyframes", models), "cpu")
    expected = {video.name: [k.frame for k in predictor.video(video).keyframes] for video in good}
    jobs = [(path, said) for path, said in bad.values()]
    jobs += [(good[number % len(good)], "") for number in range(20 - len(jobs))]
    peak = {"server": 0, "children": 0}
    done = threading.Event()

    def measure() -> None:
        while not done.is_set():
            children = [child.memory_info().rss for child in page.process.children()]
            peak["server"] = max(peak["server"], page.process.memory_info().rss)
            peak["children"] = max(peak["children"], *children, 0)
            time.sleep(0.05)

    measuring = threading.Thread(target=measure)
    measuring.start()
    with ThreadPoolExecutor(20) as uploads:
        answers = list(uploads.map(lambda job: page.post("keyframes", job[0].read_bytes(), job[0].name), jobs))
    done.set()
    measuring.join()
    print(", ".join(f"{name}: at most {size / MB:.0f} MB" for name, size in peak.items()))
    for (path, said), answer in zip(jobs, answers, strict=True):
        if said:
            assert (answer.status_code, answer.json()["error"].startswith(f"{path.name}: {said}")) == (422, True)
        else:
            assert [k["frame"] for k in answer.json()["keyframes"]] == expected[path.name]
    assert peak["server"] < 1500 * MB
    assert peak["children"] < 3000 * MB  # --memory
    assert len(page.process.children()) == 3  # two that look at videos, one at webcams
    left = [path for path in page.files.rglob("*") if path.suffix in (".mp4", ".m4a", ".m3u8")]
    assert not left


def test_a_decoder_that_dies_takes_one_upload_with_it(page: Page, bad: dict[str, tuple[Path, str]]) -> None:
    good = videos("keyframes")[0]
    before = {child.pid for child in page.process.children()}
    with ThreadPoolExecutor(1) as uploads:
        asked = uploads.submit(page.post, "keyframes", good.read_bytes(), "killed.mp4")
        busy = [*page.process.children()]
        until = time.monotonic() + 60
        while not any(page.files.rglob("killed.mp4")) and not asked.done() and time.monotonic() < until:
            time.sleep(0.001)
        for child in busy:
            child.send_signal(signal.SIGSEGV)
        answer = asked.result()
    if answer.status_code != 200:  # it was not yet done
        assert answer.json()["error"].startswith("killed.mp4: ended the process that looked at it (SIGSEGV)")
    assert page.post("keyframes", good.read_bytes(), "next.mp4").status_code == 200
    assert before != {child.pid for child in page.process.children()}


def test_what_is_not_a_request_of_the_page_is_refused(page: Page, models: Path) -> None:
    secret = models / "actions" / "run.json"
    assert secret.is_file()
    sent = requests.Session()
    for path in (
        f"/file={secret}",
        f"/gradio_api/file={secret}",
        f"/results/../../../../../..{secret}",
        f"/results/..%2f..%2f..%2f..%2f..{str(secret).replace('/', '%2f')}",
        "/results/x/frame/..%2f..%2fkeyframes.zip",
        "/../app.py",
        "/page/../server.py",
        "/app.js/../../server.py",
    ):
        request = requests.Request("GET", page.address).prepare()
        request.url = page.address + path  # not made plain, as `requests.get` would
        assert sent.send(request, timeout=60).status_code in (400, 403, 404), path
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert requests.get(page.address, headers=headers, timeout=60).status_code == 403
    assert requests.get(page.address.replace("127.0.0.1", "localhost"), timeout=60).status_code == 200
    good = videos("actions")[0].read_bytes()
    assert "no model for nothing" in page.post("nothing", good, "a.mp4").json()["error"]
    assert "there is no model 7" in page.post("actions", good, "a.mp4", model=7).json()["error"]
    assert "start x: write seconds" in page.post("actions", good, "a.mp4", start="x").json()["error"]
    listening = [c for c in page.process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


@pytest.mark.slow
def test_a_file_that_is_too_large_or_one_too_many_is_refused(models: Path) -> None:
    options = ("--megabytes", 1, "--jobs", 1, "--waiting", 0)
    with running(models, *options, tabs=("--keyframes", "keyframes")) as page:
        said = "large.mp4: has 2 MB, and this page takes up to 1 MB: upload a part of it"
        sized = page.post("keyframes", bytes(2 * MB), "large.mp4")
        assert (sized.status_code, sized.json()["error"].startswith(said)) == (422, True)
        unsized = page.post("keyframes", iter([bytes(300_000)] * 6), "large.mp4")
        assert "large.mp4: has 1 MB" in unsized.json()["error"]
        arriving = threading.Event()

        def slowly() -> Iterator[bytes]:
            yield videos("keyframes")[0].read_bytes()
            arriving.wait(60)

        with ThreadPoolExecutor(1) as uploads:
            first = uploads.submit(page.post, "keyframes", slowly(), "first.mp4")
            eventually(lambda: any(page.files.rglob("first.mp4")))
            second = page.post("keyframes", b"", "second.mp4")
            arriving.set()
            assert (second.status_code, "second.mp4: no place is free" in second.json()["error"]) == (503, True)
            assert first.result().status_code == 200
        child = page.process.children()[0]  # what leaves while it is looked at, is not looked at any more
        child.suspend()
        with pytest.raises(requests.Timeout):
            requests.post(f"{page.address}/api/keyframes?name=left.mp4", data=b"x" * 99, timeout=1)
        eventually(lambda: not child.is_running())
        eventually(lambda: not any(page.files.rglob("left.mp4")))
        assert page.post("keyframes", videos("keyframes")[0].read_bytes(), "next.mp4").status_code == 200
