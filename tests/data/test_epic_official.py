"""The reader against the published EPIC-KITCHENS-100 files."""

from collections import Counter
from pathlib import Path

import pytest

from raylab.data.epic import VideoInfo, read_annotations, read_classes, read_video_info

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
OFFICIAL = SHARED / "epic-kitchens-100"
official = pytest.mark.skipif(not OFFICIAL.exists(), reason="the official EPIC-KITCHENS-100 files are not here")

CLASSES = {"verb": 97, "noun": 300}


@official
@pytest.mark.parametrize(
    ("name", "clips", "rejected", "odd"),
    [
        ("EPIC_100_validation.csv", 9_668, {}, {"with frame numbers off": 2_560, "clamped": 1}),
        ("EPIC_100_uda_source_train.csv", 16_115, {}, {"with frame numbers off": 7_042, "repeated": 2}),
    ],
)
def test_official_annotations(name: str, clips: int, rejected: dict[str, int], odd: dict[str, int]) -> None:
    videos = read_video_info(OFFICIAL / "EPIC_100_video_info.csv")
    annotations = read_annotations(OFFICIAL / name, CLASSES, videos)

    assert len(annotations.clips) == clips
    assert Counter(issue.kind for issue in annotations.rejected) == rejected
    assert Counter(issue.kind for issue in annotations.odd) == odd
    for clip in annotations.clips:
        assert 0 <= clip.start < clip.stop <= videos[clip.video].duration
        assert 1 <= clip.start_frame < clip.stop_frame


@official
def test_official_first_row_and_clamped_row() -> None:
    videos = read_video_info(OFFICIAL / "EPIC_100_video_info.csv")
    path = OFFICIAL / "EPIC_100_validation.csv"
    annotations = read_annotations(path, CLASSES, videos)

    first = annotations.clips[0]
    assert (first.id, first.video, first.group) == ("P01_11_0", "P01_11", "P01")
    assert (first.start, first.stop, first.start_frame, first.stop_frame) == (0.0, 1.89, 1, 113)
    assert first.labels == {"verb": 0, "noun": 2}
    clamped = next(issue for issue in annotations.odd if issue.kind == "clamped")
    assert path.read_text().splitlines()[clamped.line - 1].startswith("P29_05_563,")
    assert next(clip for clip in annotations.clips if clip.id == "P29_05_563").stop == videos["P29_05"].duration


@official
def test_official_classes_and_videos() -> None:
    verbs = read_classes(OFFICIAL / "EPIC_100_verb_classes.csv")
    nouns = read_classes(OFFICIAL / "EPIC_100_noun_classes.csv")
    assert (len(verbs), verbs[0], verbs[3]) == (97, "take", "open")
    assert (len(nouns), nouns[0], nouns[1]) == (300, "tap", "spoon")
    videos = read_video_info(OFFICIAL / "EPIC_100_video_info.csv")
    assert len(videos) == 700
    assert videos["P01_02"] == VideoInfo(duration=502.134967, fps=59.9400599400599)
