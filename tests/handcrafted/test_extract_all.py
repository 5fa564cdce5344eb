"""Many videos on a real cluster: in order, kept as they come, bad ones told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from films import film, texture

from raylab.handcrafted import parallel
from raylab.handcrafted.extract import HandcraftedSettings, extract
from raylab.handcrafted.measures import FEATURES
from raylab.handcrafted.parallel import extract_all

SETTINGS = HandcraftedSettings(frames=4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [film(folder / f"{n}.mp4", [texture(48, 64, 10 * n + i) for i in range(6)]) for n in range(6)]


def kept(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refuse(*_: object) -> None:
    raise AssertionError("everything is in the cache: nothing needs a cluster")


def test_in_the_order_asked_for_as_one_by_one(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = extract_all(videos, SETTINGS, tmp_path)
    assert (found.videos, found.unreadable) == (videos, {})
    assert found.values.shape == (6, len(FEATURES)) and found.values.dtype == np.float64
    np.testing.assert_allclose(found.values, [extract(video, SETTINGS) for video in videos], rtol=1e-6)

    before = kept(tmp_path)
    monkeypatch.setattr(parallel, "connect", refuse)
    again = extract_all(videos[::-1], SETTINGS, tmp_path)
    assert again.values.tobytes() == found.values[::-1].tobytes()
    assert kept(tmp_path) == before


def test_what_was_interrupted_goes_on(videos: list[Path], tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(done, total):
        for number, outcome in enumerate(done):
            if number == 3:
                raise Interrupted
            yield outcome

    with pytest.raises(Interrupted):
        extract_all(videos, SETTINGS, tmp_path, interrupt)
    assert len(kept(tmp_path)) == 3

    totals = []

    def count(done, total):
        totals.append(total)
        return done

    assert len(extract_all(videos, SETTINGS, tmp_path, count).videos) == 6
    assert totals == [3]


def test_bad_files_are_told_apart_and_tried_again(videos: list[Path], tmp_path: Path) -> None:
    words, gone = tmp_path / "words.mp4", tmp_path / "gone.mp4"
    words.write_text("not a video")
    asked = [videos[0], words, videos[1], gone, videos[0]]
    found = extract_all(asked, SETTINGS, tmp_path / "kept")
    assert found.videos == videos[:2]
    assert list(found.unreadable) == [words, gone]
    assert str(words) in found.unreadable[words] and str(gone) in found.unreadable[gone]

    words.write_bytes(videos[2].read_bytes())
    mended = extract_all(asked, SETTINGS, tmp_path / "kept")
    assert mended.videos == [videos[0], words, videos[1]]
    assert list(mended.unreadable) == [gone]


def test_no_videos_no_rows(tmp_path: Path) -> None:
    found = extract_all([], SETTINGS, tmp_path)
    assert found.values.shape == (0, len(FEATURES))
