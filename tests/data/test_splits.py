"""Which clips are for what: participants kept apart, the test split, unseen participants and tail classes."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.config import DataConfig, Experiment
from raylab.data.clips import Annotations, Clip, ClipTable, Dataset
from raylab.data.datasets import load_dataset
from raylab.data.epic import annotation_files
from raylab.data.kitchen import kitchen_root
from raylab.data.splits import divide, stratified, unequal
from raylab.errors import RaylabError
from raylab.preflight import preflight
from raylab.storage import Folder

OFFICIAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "epic-kitchens-100"
KITCHEN = DataConfig(dataset="kitchen", kitchen="tiny", store=False)


def by_group(data: Dataset, folds: int, fold: int) -> Dataset:
    return divide(data, DataConfig(split="participant", folds=folds, fold=fold))


def clips(ids: str, group: str) -> list[Clip]:
    return [Clip(id, "v", 0.0, 1.0, 1, 26, {"verb": 0}, group) for id in ids]


def dataset(train: list[Clip], val: list[Clip]) -> Dataset:
    return Dataset({"train": Annotations(ClipTable.of(train)), "val": Annotations(ClipTable.of(val))}, {"verb": ["x"]})


MIXED = dataset(clips("abc", "P1") + clips("de", "P2"), clips("fg", "P2") + clips("h", "P3") + clips("ij", "P4"))


@pytest.mark.parametrize("folds", [2, 3, 4])
def test_over_all_folds_each_clip_is_validated_once_and_no_participant_stands_on_both_sides(folds: int) -> None:
    validated = []
    for fold in range(folds):
        divided = by_group(MIXED, folds, fold)
        train, val = (divided.splits[split].clips for split in ("train", "val"))
        assert len(train) + len(val) == 10
        assert {clip.group for clip in train}.isdisjoint(clip.group for clip in val)
        assert divided.unseen == {clip.group for clip in val}
        validated += [clip.id for clip in val]
    assert sorted(validated) == list("abcdefghij")
    assert by_group(MIXED, folds, 0).splits == by_group(MIXED, folds, 0).splits


@pytest.mark.parametrize(
    ("data", "folds", "fold", "message"),
    [
        (MIXED, 2, 2, r"data\.fold = 2: folds are numbered 0 to 1"),
        (MIXED, 5, 0, r"data\.folds = 5: there are only 4 groups of clips"),
        (dataset(clips("ab", "P1"), clips("b", "P2")), 2, 0, "'b' stands in both train and val"),
    ],
)
def test_what_cannot_be_divided_is_named(data: Dataset, folds: int, fold: int, message: str) -> None:
    with pytest.raises(RaylabError, match=message):
        by_group(data, folds, fold)


def test_a_data_set_by_participant() -> None:
    official, divided = (
        load_dataset(KITCHEN.model_copy(update={"split": split, "folds": 3})) for split in ("official", "participant")
    )
    whole = {clip.id for found in official.splits.values() for clip in found.clips}
    assert {clip.id for found in divided.splits.values() for clip in found.clips} == whole
    assert divided.sources == official.sources
    alone = load_dataset(KITCHEN.model_copy(update={"split": "participant", "folds": 3}), splits=("val",))
    assert alone.splits == {"val": divided.splits["val"]}


def test_every_fold_that_trials_ask_for_has_clips_for_a_batch(small_experiment: Experiment, tmp_path: Path) -> None:
    divided = small_experiment.override({"data.split": "participant", "data.folds": 2, "data.max_clips": 13})
    folds = [divided.override({"data.fold": fold}) for fold in (0, 1)]
    clips = [len(load_dataset(trial.data).splits["train"].clips) for trial in folds]
    small, large = sorted(clips)
    assert small < large
    base = folds[clips.index(large)].override({"data.batch_size": large})
    trials = [base.override({"data.fold": fold}) for fold in (0, 1)]
    assert f"train: {large} clips" in preflight(base, Folder.open(tmp_path))
    with pytest.raises(RaylabError, match=f"more than the {small} training clips"):
        preflight(base, Folder.open(tmp_path), trials)


def test_only_what_is_asked_for_has_to_be_there(tmp_path: Path) -> None:
    root = tmp_path / "epic"
    shutil.copytree(kitchen_root("tiny"), root)
    config = DataConfig(root=str(root), store=False)
    whole = load_dataset(config)
    (root / "EPIC_100_train.csv").unlink()
    for video in whole.splits["train"].clips.videos:
        whole.sources[video].unlink()
    val = load_dataset(config, splits=("val",))
    assert val.splits == {"val": whole.splits["val"]}
    assert val.sources.keys() == whole.splits["val"].clips.videos.keys()
    with pytest.raises(RaylabError, match=r"EPIC_100_train\.csv"):
        load_dataset(config)


@pytest.mark.parametrize("splits", [("train", "val"), ("val", "train")])
def test_the_folder_with_most_of_the_files_is_taken(tmp_path: Path, splits: tuple[str, str]) -> None:
    folder = tmp_path / "annotations"
    shutil.copytree(kitchen_root("tiny"), folder, ignore=shutil.ignore_patterns("*.MP4"))
    config = DataConfig(root=str(tmp_path))
    shutil.copy(folder / "EPIC_100_validation.csv", tmp_path)  # a stray copy, in the folder that is looked at first
    assert {path.parent for path in annotation_files(config, splits).values()} == {folder}
    (folder / "EPIC_100_train.csv").unlink()
    (tmp_path / "EPIC_100_validation.csv").unlink()
    with pytest.raises(RaylabError) as caught:
        annotation_files(config, splits)
    assert [line for line in str(caught.value).splitlines() if "EPIC_100" in line] == [
        f"  {folder / 'EPIC_100_train.csv'}"
    ]


def test_the_test_split_has_no_labels(tmp_path: Path) -> None:
    root = tmp_path / "epic"
    shutil.copytree(kitchen_root("tiny"), root)
    lines = (root / "EPIC_100_validation.csv").read_text().splitlines()
    columns = 8  # narration_id to stop_frame: what the test file has
    kept = [",".join(line.split(",")[:columns]) for line in lines]
    (root / "EPIC_100_test_timestamps.csv").write_text("\n".join(kept) + "\n")
    config = DataConfig(root=str(root), store=False)
    test, val = load_dataset(config, splits=("test",)), load_dataset(config, splits=("val",))
    assert [clip.labels for clip in test.splits["test"].clips] == [{}] * len(val.splits["val"].clips)
    assert [clip.id for clip in test.splits["test"].clips] == [clip.id for clip in val.splits["val"].clips]
    assert load_dataset(config, splits=("test",)) == test  # from the cache


def test_unseen_participants_and_tail_classes() -> None:
    found = load_dataset(KITCHEN)
    train, val = (found.splits[split].clips for split in ("train", "val"))
    assert found.unseen == {clip.group for clip in val}
    assert found.unseen.isdisjoint(clip.group for clip in train)
    assert found.tail == {"verb": frozenset({6, 7}), "noun": frozenset({8, 9})}
    assert load_dataset(KITCHEN).tail == found.tail


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("EPIC_100_tail_verbs.csv", "verb\n97\n", r"tail_verbs\.csv:2: verb 97 is not among 0 to 7"),
        ("EPIC_100_tail_nouns.csv", "noun\n1\nx\n", r"tail_nouns\.csv:3: noun 'x' is not a whole number"),
        ("EPIC_100_unseen_participant_ids_validation.csv", "participant_id\n../P1\n", r"participant_id '\.\./P1'"),
        ("EPIC_100_unseen_participant_ids_validation.csv", "name\nP1\n", "no column participant_id"),
    ],
)
def test_bad_lists_are_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    root = tmp_path / "epic"
    shutil.copytree(kitchen_root("tiny"), root)
    (root / file).write_text(content)
    with pytest.raises(RaylabError, match=message):
        load_dataset(DataConfig(root=str(root), store=False))


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official EPIC-KITCHENS-100 files are not here")
def test_the_official_lists(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    config = DataConfig(root=str(tmp_path), annotations=str(OFFICIAL), store=False)
    with pytest.raises(RaylabError, match="138 of 138 videos are missing"):
        load_dataset(config, splits=("val",))
    for line in (OFFICIAL / "EPIC_100_validation.csv").read_text().splitlines()[1:]:
        (videos / f"{line.split(',')[2]}.MP4").touch()
    found = load_dataset(config, splits=("val",))
    assert found.unseen == {"P18", "P32"}
    assert {head: len(classes) for head, classes in found.tail.items()} == {"verb": 86, "noun": 228}


# Stratified parts


@st.composite
def labelled_clips(draw: st.DrawFn) -> tuple[list[str], list[str], int]:
    """Classes and groups of clips, and a number of parts for which every class has enough groups."""
    folds = draw(st.integers(2, 6))
    classes = draw(st.lists(st.sampled_from("abc"), min_size=folds, max_size=60))
    groups = draw(st.lists(st.integers(0, 30), min_size=len(classes), max_size=len(classes)))
    both = list(zip(classes, map(str, groups), strict=True))
    known = {name: len({group for other, group in both if other == name}) for name in set(classes)}
    kept = [(name, group) for name, group in both if known[name] >= folds]
    return [name for name, _ in kept], [group for _, group in kept], folds


def spread(classes: list[str], part: np.ndarray, folds: int) -> int:
    """The largest difference between two parts in clips of one class."""
    found = [np.bincount(part[np.array(classes) == name], minlength=folds) for name in set(classes)]
    return max(int(counts.max() - counts.min()) for counts in found)


@given(labelled_clips(), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_parts_keep_groups_whole_and_every_clip_is_in_one(given: tuple[list[str], list[str], int], seed: int) -> None:
    classes, groups, folds = given
    if not classes:
        return
    part = stratified(classes, groups, folds, seed)
    assert part.shape == (len(classes),)
    assert set(part) <= set(range(folds))
    assert all(len(set(part[np.array(groups) == group])) == 1 for group in groups)
    assert (part == stratified(classes, groups, folds, seed)).all()


@given(labelled_clips(), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_without_groups_parts_are_equal_to_a_clip(given: tuple[list[str], list[str], int], seed: int) -> None:
    classes, _, folds = given
    if not classes:
        return
    part = stratified(classes, [f"clip {at}" for at in range(len(classes))], folds, seed)
    sizes = np.bincount(part, minlength=folds)
    assert spread(classes, part, folds) <= 1
    assert sizes.max() - sizes.min() <= 1


@given(st.integers(2, 5), st.integers(1, 8), st.integers(0, 3), st.integers(0, 6))
@settings(deadline=None, max_examples=60)
def test_pairs_and_single_clips_are_equal_to_a_clip(folds: int, times: int, more: int, singles: int) -> None:
    """A group for each original and what was made of it, some without a counterpart."""
    pairs = folds * times + more
    classes = ["generated", "real"] * pairs + ["real"] * singles
    groups = [str(at // 2) for at in range(2 * pairs)] + [f"alone {at}" for at in range(singles)]
    assert spread(classes, stratified(classes, groups, folds, 0), folds) <= 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=7), st.integers(2, 3))
@settings(deadline=None, max_examples=80)
def test_groups_are_dealt_nearly_as_well_as_can_be(counts: list[tuple[int, int]], folds: int) -> None:
    """Against every possible way of dealing them."""
    classes = [name for a, b in counts for name in "a" * a + "b" * b]
    groups = [str(at) for at, (a, b) in enumerate(counts) for _ in range(a + b)]
    if any(sum(pair[at] > 0 for pair in counts) < folds for at in (0, 1)):
        return
    found = spread(classes, stratified(classes, groups, folds, 0), folds)
    table = np.array([list(pair) for pair in counts])
    best = min(
        int(np.ptp([table[np.array(way) == fold].sum(0) for fold in range(folds)], axis=0).max())
        for way in product(range(folds), repeat=len(counts))
    )
    assert found <= best + 1


def test_thousands_of_large_groups_of_hundreds_of_classes_take_seconds_and_little_memory() -> None:
    """As many as a data set of 60,000 clips from 6,000 videos has."""
    drawn = np.random.default_rng(0)
    groups, classes = drawn.integers(0, 6000, 60_000), drawn.integers(0, 300, 60_000)
    classes[: 300 * 5], groups[: 300 * 5] = np.arange(300 * 5) // 5, np.arange(300 * 5)
    names = classes.astype(str).tolist()
    assert spread(names, stratified(names, groups.astype(str).tolist(), 5, 0), 5) < 10


def test_another_seed_deals_others_and_the_order_of_rows_does_not_matter_to_a_group() -> None:
    classes, groups = ["a", "b"] * 20, [str(at) for at in range(40)]
    one, two = (stratified(classes, groups, 5, seed) for seed in (0, 1))
    assert (one != two).any()


def test_a_class_with_fewer_groups_than_parts_is_named() -> None:
    with pytest.raises(RaylabError, match=r"data\.folds = 3: only 2 groups of clips are of class b"):
        stratified(["a", "a", "a", "b", "b", "b"], ["1", "2", "3", "4", "4", "5"], 3, 0)


def test_what_groups_keep_from_being_equal_is_said() -> None:
    sizes = (9, 2, 2)
    table = [
        Clip(f"{g}{at}", "v", 0.0, 1.0, 1, 26, {"label": 0}, str(g)) for g, n in enumerate(sizes) for at in range(n)
    ]
    splits = {"train": Annotations(ClipTable.of(table[:5])), "val": Annotations(ClipTable.of(table[5:]))}
    data = Dataset(splits, {"label": ["real"]})
    folds = {fold: divide(data, DataConfig(split="stratified", folds=3, fold=fold)) for fold in range(3)}
    assert sorted(len(found.splits["val"].clips) for found in folds.values()) == [2, 2, 9]
    assert unequal(folds) == ["label real: 2 to 9 clips in a part: groups keep them from being equal"]
