import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from raylab.config import DataConfig
from raylab.data.clips import Annotations
from raylab.data.datasets import load_dataset
from raylab.data.epic import VideoInfo, find_sources, read_annotations, read_classes, read_video_info
from raylab.errors import RaylabError

CLASSES = {"verb": 97, "noun": 300}
VIDEOS = {"P01_01": VideoInfo(duration=100.0, fps=60.0)}
ROW = {
    "narration_id": "P01_01_0",
    "participant_id": "P01",
    "video_id": "P01_01",
    "narration_timestamp": "00:00:01.089",
    "start_timestamp": "00:00:01.00",
    "stop_timestamp": "00:00:03.50",
    "start_frame": "60",
    "stop_frame": "210",
    "narration": "open door",
    "verb": "open",
    "verb_class": "3",
    "noun": "door",
    "noun_class": "8",
    "all_nouns": "['door']",
    "all_noun_classes": "[8]",
}


def write(path: Path, rows: Sequence[Mapping[str, str]], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(*videos: str) -> list[dict[str, str]]:
    return [
        {**ROW, "narration_id": f"{video}_0", "video_id": video, "participant_id": video[:3], "narration": f"see {i}"}
        for i, video in enumerate(videos)
    ]


def write_annotations(
    folder: Path, train: Sequence[str] = ("P01_01", "P02_02"), val: Sequence[str] = ("P01_03",)
) -> Path:
    write(folder / "EPIC_100_train.csv", rows_of(*train))
    write(folder / "EPIC_100_validation.csv", rows_of(*val))
    for name, n in (("verb", 97), ("noun", 300)):
        write(folder / f"EPIC_100_{name}_classes.csv", [{"id": str(i), "key": f"{name}{i}"} for i in range(n)])
    return folder


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0")
    return path


def read(path: Path, *rows: Mapping[str, str], videos: Mapping[str, VideoInfo] | None = VIDEOS) -> Annotations:
    return read_annotations(write(path / "EPIC_100_train.csv", rows), CLASSES, videos)


# One row at a time.


def test_a_row_becomes_a_clip(tmp_path: Path) -> None:
    annotations = read(tmp_path, {**ROW, "start_timestamp": "01:02:03.25", "stop_timestamp": "01:02:04"}, videos=None)
    (clip,) = annotations.clips
    assert (clip.id, clip.video, clip.group) == ("P01_01_0", "P01_01", "P01")
    assert (clip.start, clip.stop, clip.start_frame, clip.stop_frame) == (3723.25, 3724.0, 60, 210)
    assert clip.labels == {"verb": 3, "noun": 8}
    assert annotations.summary() == "1 clip"


def test_columns_are_found_by_name_after_a_byte_order_mark(tmp_path: Path) -> None:
    plain = read(tmp_path / "plain", ROW)
    backwards = write(tmp_path / "EPIC_100_train.csv", [dict(reversed(ROW.items()))], encoding="utf-8-sig")
    forwards = write(tmp_path / "EPIC_100_validation.csv", [ROW], encoding="utf-8-sig")
    assert read_annotations(backwards, CLASSES).clips == plain.clips
    assert read_annotations(forwards, CLASSES).clips == plain.clips


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"start_timestamp": "1.5"}, "unreadable", "start_timestamp '1.5' is not a time HH:MM:SS.sss"),
        ({"stop_timestamp": "00:61:00.00"}, "unreadable", "stop_timestamp '00:61:00.00' is not a time"),
        ({"stop_timestamp": ""}, "unreadable", "stop_timestamp '' is not a time"),
        ({"start_frame": "12.5"}, "unreadable", "start_frame '12.5' is not a whole number"),
        ({"start_frame": "0"}, "unreadable", "start_frame 0: extracted frames are numbered from 1"),
        ({"noun_class": "-1"}, "unreadable", "noun_class '-1' is not a whole number"),
        ({"verb_class": "97"}, "of unknown class", "verb_class 97 is not among 0 to 96"),
        ({"noun_class": "300"}, "of unknown class", "noun_class 300 is not among 0 to 299"),
        ({"stop_timestamp": "00:00:01.00"}, "empty", "stop_timestamp 1.000 s is not after start_timestamp 1.000 s"),
        ({"stop_timestamp": "00:00:00.50"}, "empty", "stop_timestamp 0.500 s is not after"),
        ({"stop_frame": "60"}, "empty", "stop_frame 60 is not after start_frame 60"),
        ({"narration_id": "P01_01_9"}, "duplicate", "narration_id 'P01_01_9' stands already in line 2"),
        ({"video_id": "../../etc"}, "unsafely named", "video_id '../../etc' is not a plain name"),
        ({"video_id": ".."}, "unsafely named", "video_id '..' is not a plain name"),
        ({"video_id": "/etc/passwd"}, "unsafely named", "video_id '/etc/passwd' is not a plain name"),
        ({"participant_id": "P01/.."}, "unsafely named", "participant_id 'P01/..' is not a plain name"),
        ({"narration_id": ""}, "unsafely named", "narration_id '' is not a plain name"),
        (
            {"start_timestamp": "00:01:40.00", "stop_timestamp": "00:01:41.00"},
            "past the end",
            "start_timestamp 100.000 s is past the end of P01_01 (100.000 s)",
        ),
    ],
)
def test_bad_rows_are_rejected_with_their_line(tmp_path: Path, changes: dict[str, str], kind: str, reason: str) -> None:
    good = {**ROW, "narration_id": "P01_01_9", "start_timestamp": "00:00:02.00", "start_frame": "120"}
    annotations = read(tmp_path, good, {**ROW, **changes}, {**ROW, "narration_id": "P01_01_10"})

    assert [clip.id for clip in annotations.clips] == ["P01_01_9", "P01_01_10"]
    (issue,) = annotations.rejected
    assert (issue.line, issue.kind) == (3, kind)
    assert reason in issue.reason
    assert str(issue).startswith(f"{tmp_path / 'EPIC_100_train.csv'}:3: ")
    assert annotations.summary() == f"2 clips, 1 {kind}"
    assert not annotations.odd


def test_a_duplicate_keeps_the_first_row(tmp_path: Path) -> None:
    annotations = read(tmp_path, ROW, {**ROW, "verb_class": "5"})
    assert [clip.labels["verb"] for clip in annotations.clips] == [3]


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        (
            {"start_frame": "91", "verb_class": "5"},
            "with frame numbers off",
            "start_frame 91 is 31.0 frames from start_timestamp 1.000 s × 60.00 fps",
        ),
        ({"stop_timestamp": "00:01:41.00"}, "clamped", "stop_timestamp 101.000 s clamped to the end of P01_01"),
        ({"video_id": "P01_02"}, "without video info", "video_id 'P01_02' is not in EPIC_100_video_info.csv"),
        ({}, "repeated", "same video, times and labels as line 2"),
    ],
)
def test_odd_rows_are_kept_and_listed(tmp_path: Path, changes: dict[str, str], kind: str, reason: str) -> None:
    annotations = read(tmp_path, ROW, {**ROW, "narration_id": "P01_01_1", **changes})
    assert len(annotations.clips) == 2
    assert not annotations.rejected
    (issue,) = annotations.odd
    assert (issue.line, issue.kind) == (3, kind)
    assert reason in issue.reason
    assert annotations.clips[1].stop == (100.0 if kind == "clamped" else 3.5)


def test_thirty_frames_apart_is_not_odd(tmp_path: Path) -> None:
    assert not read(tmp_path, {**ROW, "start_frame": "90"}).odd


def test_without_video_info_times_are_not_checked(tmp_path: Path) -> None:
    annotations = read(tmp_path, {**ROW, "stop_timestamp": "09:00:00.00", "start_frame": "200"}, videos=None)
    assert annotations.clips[0].stop == 9 * 3600
    assert not annotations.odd


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    good, spread, bad = rows_of("P01_01", "P01_02", "P01_03")
    path = write(tmp_path / "a.csv", [good, {**spread, "narration": "two\nlines"}, {**bad, "verb_class": "x"}])
    header, first, second, rest, third = path.read_text().splitlines()
    path.write_text("\n".join([header, first, "", second, rest, third, third + ",surplus", "P01"]) + "\n")

    annotations = read_annotations(path, CLASSES)
    assert [clip.video for clip in annotations.clips] == ["P01_01", "P01_02"]
    assert [(issue.line, issue.reason) for issue in annotations.rejected] == [
        (6, "verb_class 'x' is not a whole number of 0 or more"),
        (7, "16 cells where the header has 15"),
        (8, "1 cells where the header has 15"),
    ]


# Whole files.


@pytest.mark.parametrize("column", ["video_id", "stop_timestamp", "start_frame", "verb_class"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(RaylabError, match=rf"EPIC_100_train\.csv: no column {column}; its columns: "):
        read(tmp_path, {name: value for name, value in ROW.items() if name != column})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column narration_id, "),
        (b"\xff\xfe\x00,b", "not UTF-8 text"),
        (b'narration_id,"open\nP01_01_0,x\n', "a.csv:1: not CSV"),
    ],
)
def test_files_that_are_not_csv(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(RaylabError, match=message):
        read_annotations(path, CLASSES)


def test_an_open_quote_names_the_row_it_begins_in(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", rows_of("P01_01", "P01_02", "P01_03"))
    path.write_text(path.read_text().replace("see 1", '"see 1'))
    with pytest.raises(RaylabError, match=r"a\.csv:3: not CSV"):
        read_annotations(path, CLASSES)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RaylabError, match=r"absent\.csv: cannot be read \(No such file or directory\)"):
        read_annotations(tmp_path / "absent.csv", CLASSES)


@pytest.mark.parametrize(
    ("ids", "found"),
    [((0, 1, 3), "found id 3, not 2"), ((0, 1, 1), "found id 1, not 2"), ((1, 2), "found id 1, not 0")],
)
def test_class_ids_have_no_holes(tmp_path: Path, ids: tuple[int, ...], found: str) -> None:
    path = write(tmp_path / "classes.csv", [{"id": str(i), "key": "k"} for i in ids])
    with pytest.raises(RaylabError, match=rf"classes\.csv: class ids must be 0 to n - 1, each once: {found}"):
        read_classes(path)


def test_class_names_are_ordered_by_id(tmp_path: Path) -> None:
    path = write(tmp_path / "classes.csv", [{"key": "put", "id": "1"}, {"key": "take", "id": "0"}])
    assert read_classes(path) == ["take", "put"]


@pytest.mark.parametrize("duration", ["0", "nan", "inf", "long"])
def test_video_info_must_be_positive(tmp_path: Path, duration: str) -> None:
    path = write(tmp_path / "info.csv", [{"video_id": "P01_01", "duration": duration, "fps": "50.0"}])
    with pytest.raises(RaylabError, match=rf"info\.csv:2: duration '{duration}' is not a positive number"):
        read_video_info(path)


# Folders.


@pytest.mark.parametrize("folder", ["", "annotations", "epic-kitchens-100-annotations"])
def test_annotations_are_found_under_the_root(tmp_path: Path, folder: str) -> None:
    write_annotations(tmp_path / folder)
    for video in ("P01_01", "P02_02", "P01_03"):
        put(tmp_path / "videos" / f"{video}.MP4")

    dataset = load_dataset(DataConfig(root=str(tmp_path)))
    assert {split: [clip.video for clip in a.clips] for split, a in dataset.splits.items()} == {
        "train": ["P01_01", "P02_02"],
        "val": ["P01_03"],
    }
    assert dataset.heads == {"verb": 97, "noun": 300}
    assert dataset.labels["noun"][299] == "noun299"
    assert dataset.sources == {v: tmp_path / "videos" / f"{v}.MP4" for v in ("P01_01", "P01_03", "P02_02")}


def test_annotations_elsewhere_with_video_info(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "elsewhere", train=["P01_01"], val=["P01_01"])
    write(annotations / "EPIC_100_video_info.csv", [{"video_id": "P01_01", "duration": "3.0", "fps": "60.0"}])
    write_annotations(tmp_path / "root", train=["P09_09"])
    put(tmp_path / "root" / "videos" / "P01_01.MP4")

    dataset = load_dataset(DataConfig(root=str(tmp_path / "root"), annotations=str(annotations)))
    assert [clip.stop for clip in dataset.splits["train"].clips] == [3.0]
    assert dataset.splits["val"].summary() == "1 clip, 1 clamped"


@pytest.mark.parametrize(
    ("files", "kind", "expected"),
    [
        (["videos/P01_01.MP4"], "auto", "videos/P01_01.MP4"),
        (["P01/videos/P01_01.MP4"], "auto", "P01/videos/P01_01.MP4"),
        (["P01/videos/P01_01.mp4"], "videos", "P01/videos/P01_01.mp4"),
        (["P01/rgb_frames/P01_01/frame_0000000001.jpg"], "auto", "P01/rgb_frames/P01_01"),
        (["rgb_frames/P01_01/frame_0000000001.jpg"], "frames", "rgb_frames/P01_01"),
        (["frames/P01_01/frame_0000000001.jpg"], "auto", "frames/P01_01"),
        (["videos/P01_01.MP4", "frames/P01_01/frame_0000000001.jpg"], "auto", "videos/P01_01.MP4"),
        (["videos/P01_01.MP4", "frames/P01_01/frame_0000000001.jpg"], "frames", "frames/P01_01"),
        (["videos/P01_02.MP4", "frames/P01_01/frame_0000000001.jpg"], "auto", "frames/P01_01"),
    ],
)
def test_layouts(tmp_path: Path, files: list[str], kind: str, expected: str) -> None:
    for name in files:
        put(tmp_path / name)
    config = DataConfig(root=str(tmp_path), source=kind)
    assert find_sources(config, {"P01_01": "P01"}) == {"P01_01": tmp_path / expected}


@pytest.mark.parametrize(
    "files", [["videos/P01_01.MP4.part"], ["frames/P01_01/readme.txt"], ["frames/P01_01"], ["P02/videos/P01_01.MP4"]]
)
def test_what_is_not_a_source(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        put(tmp_path / name)
    with pytest.raises(RaylabError, match="1 of 1 videos are missing: P01_01"):
        find_sources(DataConfig(root=str(tmp_path)), {"P01_01": "P01"})


def test_links(tmp_path: Path) -> None:
    real = tmp_path / "real"
    put(real / "shared" / "P01_01.MP4")
    (real / "videos").mkdir()
    (real / "videos" / "P01_01.MP4").symlink_to(real / "shared" / "P01_01.MP4")
    (real / "videos" / "P01_02.MP4").symlink_to(real / "shared" / "gone.MP4")
    root = tmp_path / "root"
    root.symlink_to(real)

    config = DataConfig(root=str(root))
    assert find_sources(config, {"P01_01": "P01"}) == {"P01_01": root / "videos" / "P01_01.MP4"}
    with pytest.raises(RaylabError, match="1 of 2 videos are missing: P01_02"):
        find_sources(config, {"P01_01": "P01", "P01_02": "P01"})


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "videos").symlink_to(tmp_path / "videos")
    with pytest.raises(RaylabError, match=r"videos: cannot be listed \(Too many levels of symbolic links\)"):
        find_sources(DataConfig(root=str(tmp_path)), {"P01_01": "P01"})


def test_an_escaping_video_never_becomes_a_source(tmp_path: Path) -> None:
    root = write_annotations(tmp_path / "root", train=["P01_01"], val=["P01_01"])
    put(root / "videos" / "P01_01.MP4")
    put(tmp_path / "secret.MP4")
    escaping = {**ROW, "narration_id": "P01_01_1", "video_id": "../../secret"}
    write(root / "EPIC_100_train.csv", [*rows_of("P01_01"), escaping])

    dataset = load_dataset(DataConfig(root=str(root)))
    assert list(dataset.sources) == ["P01_01"]
    assert dataset.splits["train"].summary() == "1 clip, 1 unsafely named"


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [f"P{p:02}_{i:02}" for p in range(1, 4) for i in range(1, 30)]
    for video in videos:
        put(tmp_path / video[:3] / "videos" / f"{video}.MP4")
    listed: Counter[str] = Counter()
    scandir = os.scandir

    def counting(path: str) -> object:
        listed[str(path)] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    assert len(find_sources(DataConfig(root=str(tmp_path)), {video: video[:3] for video in videos})) == len(videos)
    assert listed == {str(tmp_path / place): 1 for place in ("videos", "P01/videos", "P02/videos", "P03/videos")}


def test_no_annotations_anywhere(tmp_path: Path) -> None:
    with pytest.raises(RaylabError) as error:
        load_dataset(DataConfig(root=str(tmp_path)))
    message = str(error.value)
    for folder in (tmp_path, tmp_path / "annotations", tmp_path / "epic-kitchens-100-annotations"):
        for name in ("train", "validation", "verb_classes", "noun_classes"):
            assert f"  {folder / f'EPIC_100_{name}.csv'}\n" in message
    for remedy in ("data.root=PATH", "data.annotations=PATH", "--demo"):
        assert remedy in message


def test_one_annotation_file_missing(tmp_path: Path) -> None:
    write_annotations(tmp_path / "annotations")
    absent = tmp_path / "annotations" / "EPIC_100_noun_classes.csv"
    absent.unlink()
    with pytest.raises(RaylabError) as error:
        load_dataset(DataConfig(root=str(tmp_path)))
    assert [line.strip() for line in str(error.value).splitlines()[1:-1]] == [str(absent)]


def test_missing_videos(tmp_path: Path) -> None:
    videos = [f"P01_{i:02}" for i in range(1, 21)]
    write_annotations(tmp_path, train=videos, val=["P02_01"])
    for video in [*videos[:8], "P02_01"]:
        put(tmp_path / "P01" / "videos" / f"{video}.MP4")
    with pytest.raises(RaylabError) as error:
        load_dataset(DataConfig(root=str(tmp_path)))
    message = str(error.value)
    assert message.startswith("13 of 21 videos are missing: P01_09, P01_10, P01_11, P01_12, P01_13, …\n")
    assert f"  {tmp_path}/videos/<video_id>.MP4\n" in message
    assert f"  {tmp_path}/<participant_id>/videos/<video_id>.MP4\n" in message
    assert f"  {tmp_path}/<participant_id>/rgb_frames/<video_id>/frame_0000000001.jpg\n" in message
    assert "data.source=auto" in message
    assert "data.root=PATH" in message
    assert "--demo" in message


def test_max_clips_are_spread_over_each_split(tmp_path: Path) -> None:
    write_annotations(tmp_path, train=[f"P01_{i:02}" for i in range(10)], val=["P02_01", "P02_02"])
    for video in ("P01_00", "P01_03", "P01_06", "P02_01", "P02_02"):
        put(tmp_path / "videos" / f"{video}.MP4")
    dataset = load_dataset(DataConfig(root=str(tmp_path), max_clips=3))
    assert [clip.video for clip in dataset.splits["train"].clips] == ["P01_00", "P01_03", "P01_06"]
    assert [clip.video for clip in dataset.splits["val"].clips] == ["P02_01", "P02_02"]


def test_a_split_without_clips_is_an_error(tmp_path: Path) -> None:
    write_annotations(tmp_path)
    path = write(tmp_path / "EPIC_100_validation.csv", [{**ROW, "verb_class": "97"}])
    with pytest.raises(RaylabError) as error:
        load_dataset(DataConfig(root=str(tmp_path)))
    assert str(error.value).startswith(f"{path}: no clips; rows rejected: 1, the first: {path}:2: verb_class 97")


def test_reading_needs_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys, raylab.data.epic, raylab.data.sampling; print({'torch', 'pandas', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
