import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raylab.config import DataConfig
from raylab.data import epic
from raylab.data.annotation_cache import KEPT_DAYS, cached, digest
from raylab.data.clips import Annotations, Clip, ClipTable, Dataset, Issue, IssueTable
from raylab.data.datasets import load_dataset
from raylab.data.kitchen import kitchen_root
from raylab.errors import RaylabError

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "epic-kitchens-100"
KEY = "0" * 32


def annotations(split: str, n: int) -> Annotations:
    clips = [Clip(f"{split}{i}", f"v{i % 3}", i, i + 1, i + 1, i + 9, {"verb": i % 2}, "P01") for i in range(n)]
    issues = [Issue(f"{split}.csv", line, "empty", "naught") for line in range(2, 4)]
    return Annotations(ClipTable.of(clips), IssueTable.of(issues), IssueTable.of(issues[:1]))


@pytest.fixture
def dataset() -> Dataset:
    return Dataset({"train": annotations("train", 9), "val": annotations("val", 9)}, {"verb": ["put", "naïve"]})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "annotations"


def unread() -> Dataset:
    raise AssertionError("read, though it was in the cache")


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_read_once_is_mapped_from_then_on(cache: Path, dataset: Dataset) -> None:
    first = cached(KEY, lambda: dataset)
    again = cached(KEY, unread)
    assert first == again == dataset
    assert again.splits["val"].summary() == "9 clips, 3 empty"
    for split, read in again.splits.items():
        assert read.clips.path == cache / KEY / f"{split}-clips.arrow"
    tables = [f"{KEY}/{split}-{name}.arrow" for split in ("train", "val") for name in ("clips", "odd", "rejected")]
    assert files_below(cache) == sorted([f"{KEY}/dataset.json", *tables])


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("file", ["train-clips.arrow", "val-odd.arrow", "dataset.json"])
@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink], ids=["truncated", "emptied", "deleted"])
def test_a_damaged_entry_is_written_again(
    cache: Path, dataset: Dataset, file: str, damage: Callable[[Path], None]
) -> None:
    cached(KEY, lambda: dataset)
    damage(cache / KEY / file)
    assert cached(KEY, lambda: dataset) == dataset
    assert cached(KEY, unread) == dataset


@pytest.mark.parametrize("about", ["[]", "{}", '{"labels": {}, "splits": {"test": {}}}', '{"splits": 3}'])
def test_a_foreign_entry_is_written_again(cache: Path, dataset: Dataset, about: str) -> None:
    cached(KEY, lambda: dataset)
    (cache / KEY / "dataset.json").write_text(about)
    assert cached(KEY, lambda: dataset) == dataset
    assert cached(KEY, unread) == dataset


def test_a_table_of_another_length_is_written_again(cache: Path, dataset: Dataset) -> None:
    cached(KEY, lambda: dataset)
    annotations("val", 5).clips.write(cache / KEY / "val-clips.arrow")
    assert cached(KEY, lambda: dataset) == dataset
    assert cached(KEY, unread) == dataset


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/raylab"])
def test_without_a_cache_folder_the_annotations_stay_in_memory(
    dataset: Dataset, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYLAB_CACHE", str(tmp_path / where))
    assert cached(KEY, lambda: dataset) is dataset


def test_an_error_of_the_reader_is_passed_on_and_nothing_is_kept(cache: Path) -> None:
    def fail() -> Dataset:
        raise RaylabError("no clips")

    with pytest.raises(RaylabError, match="no clips"):
        cached(KEY, fail)
    assert not cache.exists()


def test_entries_long_unused_go_when_another_is_written(cache: Path, dataset: Dataset) -> None:
    unused, used, new = "1" * 32, "2" * 32, "3" * 32
    held = cached(unused, lambda: dataset)
    cached(used, lambda: dataset)
    long_ago = time.time() - (KEPT_DAYS + 1) * 86_400
    for key in (unused, used):
        os.utime(cache / key, (long_ago, long_ago))
    cached(used, unread)
    cached(new, lambda: dataset)
    assert sorted(entry.name for entry in cache.iterdir()) == [used, new]
    assert held == dataset


WRITER = """
import sys
from raylab.data.annotation_cache import cached
from raylab.storage import cache_folder
from tests.data.test_annotation_cache import KEY, annotations, Dataset

dataset = Dataset({"train": annotations("train", 3_000), "val": annotations("val", 9)}, {"verb": ["put", "naïve"]})
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    cached(KEY, lambda: dataset) == dataset or sys.exit("another data set")
    (cache_folder() / "annotations" / KEY / "dataset.json").unlink(missing_ok=True)
"""


def test_processes_that_remove_and_write_one_entry_at_once(cache: Path) -> None:
    project = Path(__file__).resolve().parents[2]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER], cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    assert not [name for name in files_below(cache) if "partial" in name]


# With a reader.


def test_the_digest_follows_content_place_and_settings(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("a")
    two.write_text("b")
    seen = {
        digest({}),
        digest({"train": one}),
        digest({"val": one}),
        digest({"train": two}),
        digest({"train": one, "val": two}),
        digest({"train": one}, "epic", 1, None),
        digest({"train": one}, "epic", 1, 5),
        digest({"train": one}, "epic", 2, 5),
    }
    one.write_text("b")
    seen.add(digest({"train": one}))
    assert len(seen) == 9
    one.write_text("a")
    assert digest({"train": one}) in seen
    with pytest.raises(RaylabError, match=r"absent\.csv: cannot be read \(No such file"):
        digest({"train": tmp_path / "absent.csv"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The built-in data set, in a folder that may be changed."""
    return Path(shutil.copytree(kitchen_root("tiny"), tmp_path / "root"))


def test_a_data_set_is_parsed_once(root: Path, cache: Path) -> None:
    config = DataConfig(root=str(root))
    first, second = load_dataset(config), load_dataset(config)
    direct = epic.read_dataset(epic.annotation_files(config), config)
    assert first == second
    assert (second.splits, second.labels) == (direct.splits, direct.labels)
    assert second.splits["train"].clips.path.is_relative_to(cache)
    assert len(list(cache.iterdir())) == 1


def test_changed_annotations_are_read_again(root: Path, cache: Path) -> None:
    config = DataConfig(root=str(root))
    before = load_dataset(config)
    path = root / "EPIC_100_train.csv"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert list(load_dataset(config).splits["train"].clips) == list(before.splits["train"].clips)[:-1]
    path.write_text(whole)
    assert load_dataset(config) == before
    assert len(list(cache.iterdir())) == 2


def test_each_limit_of_clips_is_an_entry_of_its_own(root: Path, cache: Path) -> None:
    sizes = [len(load_dataset(DataConfig(root=str(root), max_clips=most)).splits["train"].clips) for most in (3, 5, 3)]
    assert sizes == [3, 5, 3]
    assert len(list(cache.iterdir())) == 2


def test_issues_name_the_file_that_was_read(root: Path, cache: Path, tmp_path: Path) -> None:
    with (root / "EPIC_100_train.csv").open("a") as file:
        file.write("P01\n")
    other = tmp_path / "other"
    shutil.copytree(root, other)
    for folder in (root, other):
        (issue,) = load_dataset(DataConfig(root=str(folder))).splits["train"].rejected
        assert issue.file == str(folder / "EPIC_100_train.csv")


def test_videos_are_looked_for_each_time(root: Path, cache: Path) -> None:
    config = DataConfig(root=str(root))
    sources = load_dataset(config).sources
    video, source = next(iter(sources.items()))
    source.unlink()
    with pytest.raises(RaylabError, match=f"1 of {len(sources)} videos are missing: {video}\n"):
        load_dataset(config)


@pytest.mark.skipif(not SHARED.exists(), reason="the official EPIC-KITCHENS-100 files are not here")
def test_the_official_annotations_from_the_cache(tmp_path: Path, cache: Path) -> None:
    for name in [*epic.SPLITS.values(), *epic.CLASSES.values(), *epic.OPTIONAL.values()]:
        # The full training file is not to be had; this one has the same columns.
        official = SHARED / ("EPIC_100_uda_source_train.csv" if name == epic.SPLITS["train"] else name)
        (tmp_path / name).symlink_to(official)
    config = DataConfig(root=str(tmp_path))
    read = epic.read_dataset(epic.annotation_files(config), config)
    (tmp_path / "videos").mkdir()
    for video in {**read.splits["train"].clips.videos, **read.splits["val"].clips.videos}:
        (tmp_path / "videos" / f"{video}.MP4").touch()
    for _ in range(2):
        dataset = load_dataset(config)
        assert (dataset.splits, dataset.labels) == (read.splits, read.labels)
        assert dataset.splits["train"].clips.path.is_relative_to(cache)
        assert dataset.splits["val"].summary() == "9,668 clips, 1 clamped, 2,560 with frame numbers off"
    assert len(pickle.dumps(dataset.splits)) < 2_000
    assert json.loads((next(cache.iterdir()) / "dataset.json").read_text())["splits"]["train"]["clips"] == 16_115
