"""The metadata file: columns by name, rows that can be trusted, groups that stay together."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.config import DataConfig
from raylab.data.clips import Annotations
from raylab.data.datasets import load_dataset
from raylab.data.metadata import FILE, annotation_files, read_annotations, read_dataset
from raylab.errors import RaylabError


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    path.write_text(text, encoding="utf-8", newline="")
    return path


def config(folder: Path, **settings: object) -> DataConfig:
    return DataConfig(dataset="metadata", root=str(folder), split="participant", **settings)


def rows(path: Path) -> dict[str, tuple[str, str]]:
    """Video → its label and group."""
    read, labels = read_annotations(path)
    return {clip.video: (labels[clip.labels["label"]], clip.group) for clip in read.clips}


def rejected(path: Path) -> Annotations:
    return read_annotations(path)[0]


def test_a_row_becomes_a_clip_of_the_whole_video(tmp_path: Path) -> None:
    write(tmp_path, "path,label\nvideos/a.mp4,real\nvideos/b.mp4,generated\n")
    asked = config(tmp_path)
    dataset = read_dataset(annotation_files(asked), asked)
    clip = dataset.splits["train"].clips[0]
    assert (clip.id, clip.video, clip.group) == ("videos/a.mp4",) * 3
    assert (clip.start, clip.stop, clip.start_frame, clip.stop_frame) == (0.0, math.inf, 1, 2)
    assert clip.labels == {"label": 1}
    assert (dataset.labels, dataset.heads) == ({"label": ["generated", "real"]}, {"label": 2})
    assert len(dataset.splits["val"].clips) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label,path\n1,a.mp4\n", {"a.mp4": ("1", "a.mp4")}),
        (
            "path,label,group\na.mp4,A,g1\nb.mp4,A,\nc.mp4,A\n",
            {"a.mp4": ("A", "g1"), "b.mp4": ("A", "b.mp4"), "c.mp4": ("A", "c.mp4")},
        ),
        ("\ufeff path , label \r\n\r\n a b.mp4 , A 1 \r\n,,\r\n", {"a b.mp4": ("A 1", "a b.mp4")}),
        ('path,seconds,label,"a, note"\n"a, b.mp4",3,"A ""x""",n\n', {"a, b.mp4": ('A "x"', "a, b.mp4")}),
        ("path,label\n./v//a.mp4,A,and more\n", {"v/a.mp4": ("A", "v/a.mp4")}),
        ("path,label\nvid\u00e9os/\u624b.mp4,\u00e9", {"vid\u00e9os/\u624b.mp4": ("\u00e9", "vid\u00e9os/\u624b.mp4")}),
    ],
)
def test_columns_go_by_their_names(tmp_path: Path, text: str, expected: dict[str, tuple[str, str]]) -> None:
    assert rows(write(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ("c.mp4,", "incomplete", "path 'c.mp4', label ''"),
        (",A", "incomplete", "path '', label 'A'"),
        ("c.mp4", "incomplete", "label ''"),
        ("/etc/passwd,A", "unsafely named", "path '/etc/passwd' is not a path under the root"),
        ("../c.mp4,A", "unsafely named", "path '../c.mp4' is not"),
        ("v\\c.mp4,A", "unsafely named", "is not a path under the root"),
        ("c.mp4,A\x1b[31m", "unsafely named", "label 'A\\x1b[31m' has control characters"),
        ("c.mp4,A,g\x1b", "unsafely named", "group 'g\\x1b' has control characters"),
        (".//a.mp4,B", "duplicate", "path 'a.mp4' stands already in line 2"),
    ],
)
def test_bad_rows_are_rejected_with_their_line(tmp_path: Path, row: str, kind: str, reason: str) -> None:
    read = rejected(write(tmp_path, f"path,label,group\na.mp4,A,g\n{row}\nb.mp4,A,g\n"))
    assert [clip.video for clip in read.clips] == ["a.mp4", "b.mp4"]
    (issue,) = read.rejected
    assert (issue.file, issue.line, issue.kind) == (str(tmp_path / FILE), 3, kind)
    assert reason in issue.reason


CELLS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"], exclude_characters="/\\"), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(CELLS.filter(lambda name: name not in (".", "..")), st.tuples(CELLS, CELLS), min_size=1))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, given: dict[str, tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("metadata") / FILE
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "path", "note", "label"])
        writer.writerows([group, video, "", label] for video, (label, group) in given.items())
    assert rows(path) == given


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from('./\\~ab ,"\t\n\r\x1b\u2028é'), max_size=30))
def test_whatever_the_file_no_path_leads_out(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.mktemp("metadata"), f"path,label\n{text}")
    try:
        found = rows(path)
    except RaylabError as error:
        assert str(path) in str(error)
        return
    for video in found:
        assert not video.startswith("/") and ".." not in video.split("/") and "\\" not in video


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"no column 'path' in the heading \(empty\)"),
        (b"file,label\na.mp4,A\n", r"no column 'path' in the heading file, label"),
        (b"path,class\na.mp4,A\n", r"no column 'label' in the heading path, class"),
        (b"path,label\n", r"no clips; rows rejected: 0; metadata\.csv needs a heading"),
        (b"path,label\na.mp4\n", r"no clips; rows rejected: 1, the first: .*metadata\.csv:2: path 'a\.mp4', label ''"),
        (b"path,label\n\xff,A\n", r"not UTF-8 text"),
        (b'path,label\n"a.mp4,A\n', r"not CSV \(unexpected end"),
    ],
)
def test_files_that_will_not_do_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(RaylabError, match=rf"metadata\.csv.*{message}"):
        read_dataset({"all": tmp_path / FILE}, config(tmp_path))


def test_a_missing_file_and_what_it_cannot_give(tmp_path: Path) -> None:
    with pytest.raises(RaylabError, match=r"metadata\.csv: not found; set data\.root=PATH"):
        annotation_files(config(tmp_path))
    write(tmp_path, "path,label\na.mp4,A\n")
    with pytest.raises(RaylabError, match=r"data\.split = official: .* set data\.split=stratified"):
        annotation_files(DataConfig(root=str(tmp_path)))
    with pytest.raises(RaylabError, match=r"test: metadata\.csv is divided into train and val alone"):
        annotation_files(config(tmp_path), ["test"])


def test_max_clips_takes_evenly_spaced_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label\n" + "".join(f"{i}.mp4,A\n" for i in range(10)))
    clips = read_dataset({"all": path}, config(tmp_path, max_clips=4)).splits["train"].clips
    assert [clip.id for clip in clips] == [f"{i}.mp4" for i in (0, 2, 5, 7)]


def test_loaded_it_is_divided_and_groups_stay_whole(tmp_path: Path) -> None:
    videos = {f"v/{i}.mp4": f"scene {i // 2}" for i in range(12)}
    (tmp_path / "v").mkdir()
    for video in videos:
        (tmp_path / video).write_bytes(b"\0")
    text = "".join(f"{video},{'AB'[i % 2]},{scene}\n" for i, (video, scene) in enumerate(videos.items()))
    write(tmp_path, "path,label,group\n" + text)
    validated: list[str] = []
    for fold in range(3):
        dataset = load_dataset(config(tmp_path, folds=3, fold=fold))
        train, val = ({clip.id for clip in read.clips} for read in dataset.splits.values())
        assert train | val == set(videos) and not train & val
        assert {videos[video] for video in train}.isdisjoint(videos[video] for video in val)
        assert dataset.sources["v/3.mp4"] == tmp_path / "v" / "3.mp4"
        validated += val
    assert sorted(validated) == sorted(videos)


def test_missing_videos_are_named_with_a_remedy(tmp_path: Path) -> None:
    write(tmp_path, "path,label\na.mp4,A\nb.mp4,B\n")
    with pytest.raises(RaylabError, match=r"(?s)2 of 2 videos are missing: a\.mp4, b\.mp4.*folder with metadata\.csv"):
        load_dataset(config(tmp_path, folds=2))
