"""The labelled folder: rows of the lists, paths that stay under the root, whole videos as clips."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raylab.config import DataConfig
from raylab.data import labelled
from raylab.data.clips import ClipTable, Dataset
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset, stores_folder
from raylab.data.footage import frames_at_rate, positions, read_positions
from raylab.data.labelled import annotation_files, find_sources, read_dataset
from raylab.data.store.build import Building
from raylab.data.store.manifest import StoreSettings
from raylab.data.store.sources import look, write_seen
from raylab.data.store.verify import Comparison, suspects
from raylab.errors import RaylabError

VIDEOS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "videos"
FPS = 25


def write(folder: Path, **lists: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in lists.items():
        (folder / f"{split}.csv").write_text(rows, encoding="utf-8")
    return folder


def read(folder: Path, splits: Sequence[str] = ("train", "val"), max_clips: int | None = None) -> Dataset:
    config = DataConfig(root=str(folder), max_clips=max_clips)
    return read_dataset(annotation_files(config, splits), config)


def labels(dataset: Dataset, split: str) -> dict[str, str]:
    """Clip id → class name."""
    return {clip.id: dataset.labels["label"][clip.labels["label"]] for clip in dataset.splits[split].clips}


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0")


def encode(path: Path, count: int, first: int = 0) -> Path:
    """Grey frames, the first of level 10 + 4 · `first`, 4 levels brighter from one to the next."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "4", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        for number in range(first, first + count):
            grey = np.full((48, 64, 3), 10 + 4 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


# Rows.


def test_a_row_becomes_a_clip_of_the_whole_video(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, train="videos/video1.mp4 B-1\nvideos/video2.mp4 A\n"), ["train"])
    clip = dataset.splits["train"].clips[0]
    assert (clip.id, clip.video, clip.group) == ("videos/video1.mp4",) * 3
    assert (clip.start, clip.stop, clip.start_frame, clip.stop_frame) == (0.0, math.inf, 1, 2)
    assert clip.labels == {"label": 1}
    assert (dataset.labels, dataset.heads) == ({"label": ["A", "B-1"]}, {"label": 2})
    assert dataset.splits["train"].summary() == "2 clips"


@pytest.mark.parametrize(
    ("row", "video", "label"),
    [
        ("videos/video1.mp4 A", "videos/video1.mp4", "A"),
        ("videos/video1.mp4 B-1", "videos/video1.mp4", "B-1"),
        ("my videos/a  b.mp4\t \t12", "my videos/a  b.mp4", "12"),
        ("  a.mp4   A \t", "a.mp4", "A"),
        ("./videos//./a.mp4 A", "videos/a.mp4", "A"),
        ("vidéos/手.mp4 naïve", "vidéos/手.mp4", "naïve"),
        ("recorded at 3.05\u202fPM.mov A", "recorded at 3.05\u202fPM.mov", "A"),
        ("videos/..a/b...mp4 ..", "videos/..a/b...mp4", ".."),
        ("a,b.mp4 'A,1'", "a,b.mp4", "'A,1'"),
        ("C:/a.mp4 \\1", "C:/a.mp4", "\\1"),
    ],
)
def test_the_label_is_the_last_word(tmp_path: Path, row: str, video: str, label: str) -> None:
    assert labels(read(write(tmp_path, train=row), ["train"]), "train") == {video: label}


WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"], exclude_characters="/\\"), min_size=1, max_size=6)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(PATHS, WORDS, min_size=1, max_size=5), st.sampled_from([" ", "\t", "  \t"]))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, str], space: str) -> None:
    assume(not next(iter(rows)).startswith("\ufeff"))  # a byte order mark
    folder = write(
        tmp_path_factory.mktemp("lists"), train="\n\n".join(f"{path}{space}{word}" for path, word in rows.items())
    )
    dataset = read(folder, ["train"])
    assert labels(dataset, "train") == rows
    assert dataset.labels["label"] == sorted(set(rows.values()))


AWKWARD = st.text(st.sampled_from("./\\~ab \t\n\r\0\x1b\x85\u2028é"), max_size=24)


@settings(deadline=None, max_examples=200)
@given(AWKWARD)
def test_no_path_leads_out_of_the_root(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    rows, rejected = labelled._read_list(write(tmp_path_factory.mktemp("lists"), train=text) / "train.csv")
    for video in rows:
        assert os.path.normpath(f"/root/{video}") == f"/root/{video}"
        assert not set(video) & set("\\\0\x1b\x85\t\n\r")
    assert len(rows) + len(rejected) <= len(text.strip())


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ("videos/c.mp4", "without label", "'videos/c.mp4' stands alone"),
        ("/etc/passwd A", "unsafely named", "path '/etc/passwd' is not a path under the root"),
        ("//etc/passwd A", "unsafely named", "path '//etc/passwd' is not"),
        ("../c.mp4 A", "unsafely named", "path '../c.mp4' is not"),
        ("videos/../../c.mp4 A", "unsafely named", "path 'videos/../../c.mp4' is not"),
        ("videos/.. A", "unsafely named", "path 'videos/..' is not"),
        ("./ A", "unsafely named", "path './' is not"),
        ("..\\c.mp4 A", "unsafely named", "path '..\\\\c.mp4' is not"),
        ("c\0.mp4 A", "unsafely named", "path 'c\\x00.mp4' is not"),
        ("c\td.mp4 A", "unsafely named", "path 'c\\td.mp4' is not"),
        ("c\x1b[31m.mp4 A", "unsafely named", "path 'c\\x1b[31m.mp4' is not"),
        ("c.mp4 A\x1b", "unsafely named", "label 'A\\x1b' has control characters"),
        ("c.mp4 a", "of unknown class", "label 'a' is not in train.csv"),
        ("videos/b.mp4 A", "duplicate", "path 'videos/b.mp4' stands already in line 2"),
        ("videos//b.mp4 B", "duplicate", "path 'videos/b.mp4' stands already in line 2"),
    ],
)
def test_bad_rows_are_rejected_with_their_line(tmp_path: Path, row: str, kind: str, reason: str) -> None:
    write(tmp_path, train="videos/a.mp4 A\nvideos/e.mp4 B\n", val=f"\nvideos/b.mp4 A\n\n{row}\nd.mp4 B\n")
    val = read(tmp_path).splits["val"]
    assert [clip.id for clip in val.clips] == ["videos/b.mp4", "d.mp4"]
    (issue,) = val.rejected
    assert (issue.file, issue.line, issue.kind) == (str(tmp_path / "val.csv"), 4, kind)
    assert reason in issue.reason
    assert val.summary() == f"2 clips, 1 {kind}"
    assert not val.odd


def test_a_video_in_two_lists_is_odd(tmp_path: Path) -> None:
    write(tmp_path, train="a.mp4 A\nb.mp4 B\n", val="./b.mp4 A\nc.mp4 A\n", test="a.mp4 A\nc.mp4 B\n")
    dataset = read(tmp_path, ["train", "val", "test"])
    odd = {
        split: [(issue.line, issue.kind, issue.reason) for issue in found.odd]
        for split, found in dataset.splits.items()
    }
    assert odd == {
        "train": [],
        "val": [(1, "also in train", "path 'b.mp4' stands in line 2 of train.csv")],
        "test": [(1, "also in train", "path 'a.mp4' stands in line 1 of train.csv")],
    }
    assert labels(dataset, "val") == {"b.mp4": "A", "c.mp4": "A"}


def test_a_byte_order_mark_and_any_line_ends_are_read(tmp_path: Path) -> None:
    plain = read(write(tmp_path, train="a b.mp4 A\n\n  \nc.mp4 B"), ["train"])
    (tmp_path / "train.csv").write_bytes("\ufeffa b.mp4 A\r\n\r\n\t\r\nc.mp4 B\r\n".encode())
    assert read(tmp_path, ["train"]) == plain


@pytest.mark.parametrize("splits", [["train"], ["val"], ["test", "val"], ["val", "train", "test"]])
@pytest.mark.parametrize("max_clips", [None, 1])
def test_the_class_names_are_those_of_train(tmp_path: Path, splits: list[str], max_clips: int | None) -> None:
    write(tmp_path, train="a.mp4 b\nb.mp4 a\nc.mp4 10\nd.mp4 9\n../e.mp4 f\n", val="f.mp4 a\n", test="g.mp4 b\n")
    dataset = read(tmp_path, splits, max_clips)
    assert dataset.labels == {"label": ["10", "9", "a", "b"]}
    first = {split: read.clips[0].labels["label"] for split, read in dataset.splits.items()}
    assert first == {split: {"train": 3, "val": 2, "test": 3}[split] for split in splits}


def test_max_clips_takes_evenly_spaced_ones(tmp_path: Path) -> None:
    write(tmp_path, train="".join(f"{i}.mp4 A\n" for i in range(10)))
    assert [clip.id for clip in read(tmp_path, ["train"], 4).splits["train"].clips] == [
        f"{i}.mp4" for i in (0, 2, 5, 7)
    ]
    assert len(read(tmp_path, ["train"], 11).splits["train"].clips) == 10


# Files.


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"val": b"a.mp4 A\n"}, r"not found; looked for\n  .*/train\.csv\nset data\.root=PATH"),
        ({"train": b"a.mp4 A\n"}, r"not found; looked for\n  .*/val\.csv\nset data\.root=PATH"),
        ({"train": b"a.mp4 A\n", "val": b"\n"}, r"val\.csv: no clips; rows rejected: 0; a row is a path, white space"),
        (
            {"train": b"a.mp4,A\n", "val": b"a.mp4,A\n"},
            r"train\.csv: no clips; rows rejected: 1, the first: .*train\.csv:1: 'a\.mp4,A' stands alone",
        ),
        ({"train": b"\xff\xfea\0", "val": b"a.mp4 A\n"}, r"train\.csv: not UTF-8 text"),
    ],
)
def test_lists_that_will_not_do_are_named(tmp_path: Path, lists: Mapping[str, bytes], message: str) -> None:
    for split, content in lists.items():
        (tmp_path / f"{split}.csv").write_bytes(content)
    with pytest.raises(RaylabError, match=message):
        read(tmp_path)


def test_lists_may_stand_in_another_folder(tmp_path: Path) -> None:
    write(tmp_path / "lists", train="videos/a b.mp4 A\n", val="c.mp4 A\n")
    root = tmp_path / "root"
    put(root / "videos" / "a b.mp4", root / "c.mp4")
    config = DataConfig(dataset="labelled", root=str(root), annotations=str(tmp_path / "lists"))
    dataset = load_dataset(config)
    assert dataset.sources == {"c.mp4": root / "c.mp4", "videos/a b.mp4": root / "videos" / "a b.mp4"}
    again = load_dataset(config)  # from the cache
    assert again.splits["train"].clips.path is not None
    assert (again.splits, again.labels) == (dataset.splits, {"label": ["A"]})
    assert again.splits["val"].clips[0].stop == math.inf
    with pytest.raises(RaylabError, match=r"test\.csv"):
        load_dataset(config, ["test"])


def test_missing_videos_are_counted_and_named(tmp_path: Path) -> None:
    put(tmp_path / "videos" / "7.mp4")
    (tmp_path / "videos" / "8.mp4").mkdir()
    videos = [f"videos/{i}.mp4" for i in range(9)]
    with pytest.raises(RaylabError) as error:
        find_sources(DataConfig(root=str(tmp_path)), {video: video for video in videos})
    said = str(error.value)
    assert said.startswith(f"8 of 9 videos are missing: {', '.join(videos[:5])}, …\nlooked for under {tmp_path}\n")
    assert "set data.root=PATH" in said
    with pytest.raises(RaylabError, match=r"^1 of 1 videos are missing: long"):
        find_sources(DataConfig(root=str(tmp_path)), {"long/a.mp4": ""})


def test_extracted_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RaylabError, match=r"data\.source = frames: .* set data\.source=videos"):
        find_sources(DataConfig(root=str(tmp_path), source="frames"), {"a.mp4": "a.mp4"})


def test_links_under_the_root_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "disk" / "a.mp4")
    root = tmp_path / "root"
    root.mkdir()
    (root / "videos").symlink_to(tmp_path / "disk")
    (root / "b.mp4").symlink_to(tmp_path / "disk" / "a.mp4")
    (root / "c.mp4").symlink_to("c.mp4")
    assert set(find_sources(DataConfig(root=str(root)), {"videos/a.mp4": "", "b.mp4": ""})) == {"videos/a.mp4", "b.mp4"}
    with pytest.raises(RaylabError, match="videos are missing: d"):
        find_sources(DataConfig(root=str(root)), {"b.mp4": "", "d.mp4": ""})


def test_clips_can_be_divided_by_video(tmp_path: Path) -> None:
    videos = [f"{i}.mp4" for i in range(9)]
    put(*(tmp_path / video for video in videos))
    write(tmp_path, train="".join(f"{v} A\n" for v in videos[:6]), val="".join(f"{v} A\n" for v in videos[6:]))
    validated: list[str] = []
    for fold in range(3):
        config = DataConfig(dataset="labelled", root=str(tmp_path), split="participant", folds=3, fold=fold)
        train, val = ({clip.id for clip in read.clips} for read in load_dataset(config).splits.values())
        assert train | val == set(videos)
        assert not train & val
        validated += val
    assert sorted(validated) == videos


# Frames.


def shown(dataset: ClipDataset) -> dict[str, list[int]]:
    """Clip id → the numbers of the pictures."""
    samples = [dataset[index] for index in range(len(dataset))]
    return {s["id"]: ((s["video"].float().mean((1, 2, 3)) - 10) / 4).round().int().tolist() for s in samples}


@pytest.mark.parametrize("rule", [{"frames": (4,)}, {"fps": 12.5}])
def test_a_clip_store_holds_the_frames_of_the_videos(tmp_path: Path, rule: dict[str, object]) -> None:
    encode(tmp_path / "my videos" / "a b.mp4", 21)
    encode(tmp_path / "my videos" / "c.mp4", 9, first=30)
    encode(tmp_path / "d.mp4", 1, first=40)
    write(tmp_path, train="my videos/a b.mp4 A\nd.mp4 B-1\n", val="my videos/c.mp4 A\nd.mp4 B-1\n")
    config = DataConfig(dataset="labelled", root=str(tmp_path), frames=4, size=28)
    recorded = load_dataset(config)
    assert recorded.splits["val"].summary() == "2 clips, 1 also in train"

    store = StoreSettings.model_validate({"short_side": 32, **rule})
    building = Building(stores_folder(config) / store.name, store, config.decoder)
    clips = ClipTable.of([clip for split in recorded.splits.values() for clip in split.clips])
    seen = look(recorded.sources, {})
    keys = [store.content_key(seen[clip.video].fingerprint, clip) for clip in clips]
    building.folder.mkdir(parents=True)
    for piece in building.plan(clips, keys, recorded.sources):
        assert building.write(piece) == (4, 0)
    write_seen(building.folder, seen)
    manifest = building.seal(clips)
    assert (manifest.clips, manifest.unreadable) == (3, [])
    assert not len(building.plan(clips, keys, recorded.sources))
    comparison = Comparison(building, recorded.sources)
    assert [fault for suspect in suspects(building, manifest) for fault in comparison.faults(suspect)] == []

    stored = load_dataset(config)
    assert set(stored.stored) == {"train", "val"}
    directly = {split: shown(ClipDataset.of(recorded, split, config)) for split in recorded.splits}
    assert directly["train"] == {"my videos/a b.mp4": [0, 7, 13, 20], "d.mp4": [40] * 4}
    read = {split: shown(ClipDataset.of(stored, split, config)) for split in stored.splits}
    assert read == directly if "frames" in rule else read["train"]["my videos/a b.mp4"] == [0, 6, 14, 20]


@pytest.mark.skipif(not VIDEOS.exists(), reason="the real videos are not here")
def test_a_real_video_is_read_whole(tmp_path: Path) -> None:
    at = tmp_path / "my videos" / "on the road.mp4"
    at.parent.mkdir()
    shutil.copy(VIDEOS / "bikes.mp4", at)
    write(tmp_path, train="my videos/on the road.mp4 cycling\n")
    dataset = load_dataset(DataConfig(dataset="labelled", root=str(tmp_path)), ["train"])
    (clip,) = dataset.splits["train"].clips
    source = dataset.sources[clip.video]
    with av.open(at) as container:
        frames = list(container.decode(video=0))
        wanted = [frames[i * (len(frames) - 1) // 3].to_ndarray(format="rgb24") for i in range(4)]
    assert frames_at_rate(clip, source, 1000.0) == len(frames)
    read = read_positions(source, positions(clip, source, 4), "pyav").permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(read, wanted)
