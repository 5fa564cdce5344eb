"""The built-in data set: EPIC's layout, what the verbs look like in the decoded pixels, and safe rendering."""

from __future__ import annotations

import csv
import hashlib
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from raylab.data import kitchen, kitchen_plan
from raylab.data.kitchen import fingerprint, kitchen_root, render_frames
from raylab.data.kitchen_plan import LIMIT, NOUNS, SIZES, VERBS, digits, draw_motion, plan
from raylab.errors import RaylabError

EPIC = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "epic-kitchens-100"
FILES = {
    "EPIC_100_train.csv": "EPIC_100_uda_source_train.csv",
    "EPIC_100_validation.csv": "EPIC_100_validation.csv",
    "EPIC_100_verb_classes.csv": "EPIC_100_verb_classes.csv",
    "EPIC_100_noun_classes.csv": "EPIC_100_noun_classes.csv",
    "EPIC_100_video_info.csv": "EPIC_100_video_info.csv",
    "EPIC_100_tail_verbs.csv": "EPIC_100_tail_verbs.csv",
    "EPIC_100_tail_nouns.csv": "EPIC_100_tail_nouns.csv",
    "EPIC_100_unseen_participant_ids_validation.csv": "EPIC_100_unseen_participant_ids_validation.csv",
}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kitchen_root("tiny", tmp_path_factory.mktemp("cache"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def all_videos(size: str = "tiny") -> list[kitchen_plan.Video]:
    return [video for videos in plan(size).values() for video in videos]


def decode(path: Path, pixels: str) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format=pixels) for frame in container.decode(video=0)])


def seconds(timestamp: str) -> float:
    hours, minutes, rest = timestamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


# ---- layout


@pytest.mark.skipif(not EPIC.exists(), reason="EPIC-KITCHENS-100's annotations are not here")
@pytest.mark.parametrize(("ours", "theirs"), FILES.items())
def test_columns_and_cell_formats_are_those_of_epic(root: Path, ours: str, theirs: str) -> None:
    def shape(cell: str) -> str:
        kinds = {"list": cell.startswith("["), "time": cell.count(":") == 2, "int": cell.isdigit()}
        return next((kind for kind, holds in kinds.items() if holds), "text")

    mine, real = rows(root / ours)[0], rows(EPIC / theirs)[0]
    assert list(mine) == list(real)
    differing = {"duration", "fps"}  # whole numbers in one, fractions in the other
    assert {c: shape(v) for c, v in mine.items() if c not in differing} == {
        c: shape(v) for c, v in real.items() if c not in differing
    }
    for column in ("narration_timestamp", "start_timestamp", "stop_timestamp"):
        assert len(mine.get(column, "")) == len(real.get(column, ""))


def test_rows_files_and_plan_agree(root: Path) -> None:
    listed = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    assert listed == {Path(name) for name in FILES} | {video.path for video in all_videos()}
    for split, videos in plan("tiny").items():
        told = [(r["narration_id"], int(r["verb_class"]), int(r["noun_class"])) for r in rows(root / _csv(split))]
        assert told == [(f"{v.id}_{i}", s.verb, s.noun) for v in videos for i, s in enumerate(v.segments)]
    for head, names in (("verb", VERBS), ("noun", NOUNS)):
        classes = rows(root / f"EPIC_100_{head}_classes.csv")
        assert [(int(row["id"]), row["key"]) for row in classes] == list(enumerate(names))
        for row in rows(root / "EPIC_100_train.csv"):
            assert row[head] == names[int(row[f"{head}_class"])]
            assert row["all_nouns"] == f"['{row['noun']}']"
            assert row["all_noun_classes"] == f"[{row['noun_class']}]"


def test_timestamps_and_frames_agree_at_the_true_rate(root: Path) -> None:
    info = {row["video_id"]: row for row in rows(root / "EPIC_100_video_info.csv")}
    assert len({row["fps"] for row in info.values()}) == len(kitchen_plan.FPS)
    plans = {video.id: video for video in all_videos()}
    for name, row in info.items():
        with av.open(root / plans[name].path) as container:
            stream = container.streams.video[0]
            times = [frame.time for frame in container.decode(stream)]
            assert stream.average_rate == plans[name].fps
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert row["resolution"] == f"{stream.width}x{stream.height}"
        assert float(row["fps"]) == pytest.approx(float(plans[name].fps), abs=1e-9)
        assert len(times) == plans[name].frames
        assert times == pytest.approx([i / float(row["fps"]) for i in range(len(times))], abs=1e-3)
        assert float(row["duration"]) == pytest.approx(len(times) / float(row["fps"]))
    for row in rows(root / "EPIC_100_train.csv") + rows(root / "EPIC_100_validation.csv"):
        fps, video = float(info[row["video_id"]]["fps"]), plans[row["video_id"]]
        start, stop = seconds(row["start_timestamp"]), seconds(row["stop_timestamp"])
        assert int(row["start_frame"]) == int(start * fps) + 1
        assert int(row["stop_frame"]) == int(stop * fps) + 1 < video.frames
        assert 0.6 <= stop - start <= 1.2


@pytest.mark.parametrize("size", SIZES)
def test_float_timestamps_name_their_frame(size: str) -> None:
    for video in all_videos(size)[:60]:
        for frame in range(video.frames):
            assert int(kitchen._hundredths(frame, video.fps) / 100 * float(video.fps)) == frame


# ---- the plan


@pytest.mark.parametrize("size", SIZES)
def test_classes_are_balanced(size: str) -> None:
    for split, videos in plan(size).items():
        segments = [segment for video in videos for segment in video.segments]
        assert len(segments) == getattr(SIZES[size], split)
        for key, classes in (("verb", len(VERBS)), ("noun", len(NOUNS))):
            counts = Counter(getattr(segment, key) for segment in segments)
            assert len(counts) == classes
            assert max(counts.values()) - min(counts.values()) <= 1
        both = Counter((segment.verb, segment.noun) for segment in segments)
        assert max(both.values()) - min(len(segments) // 80, *both.values()) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_splits_share_no_digit_and_no_participant(size: str) -> None:
    train, validation = plan(size).values()
    images, classes = digits()

    def shown(videos: tuple[kitchen_plan.Video, ...]) -> set[bytes]:
        return {images[segment.image].tobytes() for video in videos for segment in video.segments}

    assert not shown(train) & shown(validation)
    assert not {v.participant for v in train} & {v.participant for v in validation}
    assert len({v.participant for v in train}) > 1
    assert len({v.id for v in train + validation}) == len(train + validation)
    assert all(classes[s.image] == s.noun for v in train + validation for s in v.segments)


@pytest.mark.parametrize("verb", range(0, len(VERBS), 2))
def test_opposite_verbs_draw_the_same_motion_backwards(verb: int) -> None:
    for seed in range(200):
        first, last = draw_motion(verb, np.random.default_rng(seed))
        assert draw_motion(verb + 1, np.random.default_rng(seed)) == (last, first)
        changed = [name for name in first._fields if getattr(first, name) != pytest.approx(getattr(last, name))]
        assert changed == [("x", "y", "size", "angle")[verb // 2]]
        assert getattr(last, changed[0]) > getattr(first, changed[0])


@pytest.mark.parametrize("verb", range(len(VERBS)))
def test_a_clip_reversed_is_a_clip_of_the_opposite_verb(verb: int) -> None:
    video = next(v for v in all_videos() if any(s.verb == verb for s in v.segments))
    index, segment = next((i, s) for i, s in enumerate(video.segments) if s.verb == verb)
    images = digits()[0][[s.image for s in video.segments]]
    turned = list(video.segments)
    turned[index] = replace(segment, verb=verb ^ 1, first=segment.last, last=segment.first)
    forward = [np.asarray(frame) for frame in render_frames(video, images)][segment.start : segment.stop]
    backward = [np.asarray(f) for f in render_frames(replace(video, segments=tuple(turned)), images)]
    np.testing.assert_array_equal(forward[::-1], backward[segment.start : segment.stop])
    assert not np.array_equal(forward[0], forward[-1])


def test_segments_stand_apart_with_background_between() -> None:
    for video in all_videos("small"):
        rest = kitchen_plan.REST_SECONDS * video.fps
        edges = [0, *(edge for s in video.segments for edge in (s.start, s.stop)), video.frames]
        assert all(b - a > 2 * rest for a, b in zip(edges[::2], edges[1::2], strict=True))


def test_a_changed_plan_needs_a_new_format() -> None:
    content = hashlib.sha256(repr(plan("tiny")).encode()).hexdigest()[:10]
    assert (fingerprint("tiny"), content) == ("3eb3c94431", "84130e18c5"), (
        "raise kitchen.FORMAT, then renew both values"
    )


# ---- the pixels


def test_decoded_frames_are_the_rendered_ones(root: Path) -> None:
    """No loss: no trace of the frames around is left in a frame, so none tells the direction of time."""
    video = all_videos()[0]
    images = digits()[0][[s.image for s in video.segments]]
    expected = [
        av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24").to_ndarray(format="yuv420p")
        for frame in render_frames(video, images)
    ]
    np.testing.assert_array_equal(decode(root / video.path, "yuv420p"), expected)


def ink(path: Path) -> np.ndarray:
    """The digit in each decoded frame: the change of grey since the first frame, which is background only."""
    frames = decode(path, "gray").astype(np.int16)
    change = np.abs(frames - frames[0])
    return np.where(change > 20, change, 0)


def moments(mask: np.ndarray) -> tuple[float, float, float]:
    """Centroid x and y, and spread, in pixels."""
    y, x = np.indices(mask.shape)
    cx, cy = (x * mask).sum() / mask.sum(), (y * mask).sum() / mask.sum()
    return cx, cy, np.sqrt((((x - cx) ** 2 + (y - cy) ** 2) * mask).sum() / mask.sum())


def turned_clockwise(first: np.ndarray, last: np.ndarray) -> float:
    """The angle in degrees that best carries the first mask onto the last, about the digit's centroid."""
    x, y, _ = moments(first)
    first_image = Image.fromarray((first / first.max() * 255).astype(np.uint8))

    def likeness(angle: int) -> float:
        moved = np.asarray(first_image.rotate(-angle, Image.Resampling.BILINEAR, center=(x, y)), dtype=float)
        shift = [round(b - a) for a, b in zip(moments(moved)[:2], moments(last)[:2], strict=True)]
        return float(np.corrcoef(np.roll(moved, shift[::-1], axis=(0, 1)).ravel(), last.ravel())[0, 1])

    return max(range(-120, 121, 10), key=likeness)


def test_decoded_pixels_show_what_the_labels_say(root: Path) -> None:
    axes = {"right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1), "grow": (2, 1), "shrink": (2, -1)}
    turns = []
    for split in ("train", "validation"):
        videos = {video.id: ink(root / video.path) for video in plan("tiny")[split]}
        for row in rows(root / _csv(split)):
            masks = videos[row["video_id"]][int(row["start_frame"]) - 1 : int(row["stop_frame"]) - 1]
            if row["verb"].startswith("turn"):
                turns.append((row["verb"] == "turn-clockwise", turned_clockwise(masks[0], masks[-1])))
                continue
            axis, sign = axes[row["verb"].rpartition("-")[2]]
            path = np.array([moments(mask) for mask in masks])
            travel = np.array([*(path[-1] - path[0])[:2] / kitchen.HEIGHT, np.log(path[-1, 2] / path[0, 2])])
            assert sign * travel[axis] > 0.25, row
            assert np.abs(np.delete(travel, axis)).max() < 0.12, row
            assert (sign * np.diff(path[::4, axis]) > 0).all(), row
    right = [(angle > 0) == clockwise and abs(angle) >= 40 for clockwise, angle in turns]
    assert np.mean(right) >= 0.9  # a round zero may look alike at several angles


def test_all_action_stays_inside_the_central_square(root: Path) -> None:
    for video in all_videos():
        _, ys, xs = np.nonzero(ink(root / video.path))
        reach = LIMIT * kitchen.HEIGHT + 2  # two pixels of chroma subsampling
        assert np.abs(xs + 0.5 - kitchen.WIDTH / 2).max() <= reach
        assert np.abs(ys + 0.5 - kitchen.HEIGHT / 2).max() <= reach


def test_the_digit_is_there_one_frame_to_either_side(root: Path) -> None:
    video = all_videos()[0]
    masks = ink(root / video.path)
    for segment in video.segments:
        shown = [masks[frame].any() for frame in (segment.start - 1, segment.stop)]
        middle_of_gap = masks[segment.start - round(0.16 * video.fps)]
        assert all(shown)
        assert not middle_of_gap.any()


# ---- rendering


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_bytes_with_any_number_of_workers(root: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    again = kitchen_root("tiny", tmp_path, workers=1, progress=lambda done, total: calls.append((done, total)))
    assert again.name == root.name == f"kitchen-tiny-{fingerprint('tiny')}"
    assert content(again) == content(root)
    assert calls == [(done, 12) for done in range(1, 13)]


def test_an_existing_folder_is_used_as_it_is(root: Path) -> None:
    assert kitchen_root("tiny", root.parent, progress=lambda *_: pytest.fail("rendered again")) == root


def test_settings_change_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint("tiny")
    assert before != fingerprint("small")
    for module, name in ((kitchen, "WIDTH"), (kitchen, "FORMAT"), (kitchen_plan, "SEED"), (kitchen_plan, "LIMIT")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, getattr(module, name) + 2)
            assert fingerprint("tiny") != before
    assert fingerprint("tiny") == before


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RAYLAB_CACHE": "{home}/a", "XDG_CACHE_HOME": "{home}/b"}, "a"),
        ({"RAYLAB_CACHE": "", "XDG_CACHE_HOME": "{home}/b"}, "b/raylab"),
        ({"RAYLAB_CACHE": "~/c"}, "c"),
        ({}, ".cache/raylab"),
    ],
)
def test_the_cache_folder_follows_the_environment(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAYLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    ready = tmp_path / expected / f"kitchen-tiny-{fingerprint('tiny')}"
    ready.mkdir(parents=True)
    assert kitchen_root("tiny") == ready


RENDER = (
    "import sys; from pathlib import Path; from raylab.data.kitchen import kitchen_root\n"
    "print(kitchen_root('tiny', Path(sys.argv[1]), 1, lambda done, total: print(done, flush=True)), flush=True)\n"
)


def start(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RENDER, str(cache)], stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_render_once(root: Path, tmp_path: Path) -> None:
    lines = [process.communicate()[0].splitlines() for process in [start(tmp_path), start(tmp_path)]]
    assert sorted(map(len, lines)) == [1, 13]  # one counts twelve videos, the other waits for it
    assert lines[0][-1] == lines[1][-1]
    assert content(Path(lines[0][-1])) == content(root)


def test_a_killed_rendering_leaves_nothing_taken_for_complete(root: Path, tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first video is there
        os.kill(process.pid, signal.SIGKILL)
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert left.suffix == ".partial"
    assert content(kitchen_root("tiny", tmp_path)) == content(root)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [root.name]


def test_an_interrupted_rendering_cleans_up(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kitchen_root("tiny", tmp_path, workers=1, progress=interrupt)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_importing_is_light() -> None:
    code = "import sys, raylab.data.kitchen; print([m for m in ('torch', 'sklearn', 'pandas') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_bad_requests_say_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(RaylabError, match="did you mean 'small'"):
        kitchen_root("smal", tmp_path)
    with pytest.raises(RaylabError, match="workers = 0"):
        kitchen_root("tiny", tmp_path, workers=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(RaylabError, match=r"file.*set RAYLAB_CACHE"):
        kitchen_root("tiny", tmp_path / "file")


def _csv(split: str) -> str:
    return f"EPIC_100_{split}.csv"
