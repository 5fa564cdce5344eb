"""Figures against cases worked out by hand, and against every pair of classes ranked by brute force."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from raylab.data.clips import Annotations, Clip, ClipTable, Dataset
from raylab.data.epic import read_annotations, read_names, read_tail
from raylab.evaluation.predictions import Predictions, bound
from raylab.evaluation.scores import rank, rank_actions, score

OFFICIAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "epic-kitchens-100"


def dataset(labels: list[tuple[int, int]], heads: tuple[int, int], groups: str = "", **lists: object) -> Dataset:
    """Clips 0, 1, … with a verb and a noun each."""
    clips = [
        Clip(str(i), "v", 0.0, 1.0, 1, 26, {"verb": verb, "noun": noun}, groups[i] if groups else "P")
        for i, (verb, noun) in enumerate(labels)
    ]
    names = {head: [f"{head}{i}" for i in range(n)] for head, n in zip(("verb", "noun"), heads, strict=True)}
    return Dataset({"val": Annotations(ClipTable.of(clips))}, names, **lists)


def predictions(verb: object, noun: object) -> Predictions:
    """From probabilities."""
    logs = {}
    for head, values in (("verb", verb), ("noun", noun)):
        with np.errstate(divide="ignore"):
            logs[head] = bound(np.log(np.asarray(values, np.float64)))
    return Predictions([str(i) for i in range(len(logs["verb"]))], logs)


def softmax(logits: np.ndarray) -> np.ndarray:
    scores = np.exp(logits - logits.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def test_by_hand() -> None:
    verb = [[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]]
    noun = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]
    truth = dataset(
        [(0, 0), (0, 1), (2, 1), (0, 1)], (3, 2), "AABB", unseen=frozenset("B"), tail={"verb": {2}, "noun": {0}}
    )
    found = score(predictions(verb, noun), truth, "val")
    assert (found.clips, found.left_out) == (4, 0)
    assert found.accuracy == {
        "verb_top1": 0.75,  # all but the second
        "noun_top1": 0.75,  # all but the third
        "action_top1": 0.5,
        "action_top5": 1.0,  # of six; three verbs and two nouns have no five best
    }
    assert found.unseen == {"verb_top1": 1.0, "noun_top1": 0.5, "action_top1": 0.5}
    # A tail verb in the third, a tail noun in the first: the action's tail is both.
    assert found.tail == {"verb_top1": 1.0, "noun_top1": 1.0, "action_top1": 0.5}
    assert found.class_mean == {"verb": pytest.approx((2 / 3 + 1) / 2), "noun": pytest.approx((1 + 2 / 3) / 2)}
    assert [row["class"] for row in found.classes["verb"]] == [0, 2]  # verb 1 does not occur
    assert found.classes["noun"][1] == {"class": 1, "name": "noun1", "clips": 3, "top1": pytest.approx(2 / 3)}


def test_one_head_makes_no_action() -> None:
    clips = [Clip(name, name, 0.0, math.inf, 1, 2, {"label": at}, name) for at, name in enumerate("abc")]
    names = {"label": ["A", "B-1", "C", "D", "E"]}
    truth = Dataset({"test": Annotations(ClipTable.of(clips))}, names, unseen=frozenset("c"), tail={"label": {1}})
    values = np.log([[0.6, 0.1, 0.1, 0.1, 0.1], [0.4, 0.3, 0.1, 0.1, 0.1], [0.2, 0.2, 0.3, 0.2, 0.1]])
    found = score(Predictions(["a", "b", "c"], {"label": values.astype(np.float32)}), truth, "test")
    assert found.figures() == {
        "label_top1": pytest.approx(2 / 3),  # all but the second
        "label_top5": 1.0,
        "unseen/label_top1": 1.0,
        "tail/label_top1": 0.0,
        "class_mean/label": pytest.approx(2 / 3),
    }
    assert found.classes == {
        "label": [
            {"class": 0, "name": "A", "clips": 1, "top1": 1.0},
            {"class": 1, "name": "B-1", "clips": 1, "top1": 0.0},
            {"class": 2, "name": "C", "clips": 1, "top1": 1.0},
        ]
    }


def test_clips_that_could_not_be_read_are_counted_apart() -> None:
    truth = dataset([(0, 0), (1, 1), (0, 1)], (2, 2))
    made = predictions([[1, 0], [1, 0]], [[1, 0], [0, 1]])
    found = score(Predictions(["0", "2"], made.values), truth, "val")
    assert (found.clips, found.left_out, found.accuracy["action_top1"]) == (2, 1, 1.0)


def test_an_action_is_ranked_by_the_product_of_probabilities() -> None:
    # Verb 1 with noun 0 (0.27) comes before verb 0 with noun 1 (0.05), though noun 1 is only its head's second.
    verb = [[0.5, 0.3, 0.2, 0, 0, 0]]
    noun = [[0.9, 0.1, 0, 0, 0, 0]]
    at, products = rank_actions(predictions(verb, noun).values, 6)
    pairs = list(zip(at["verb"][0].tolist(), at["noun"][0].tolist(), strict=True))
    assert pairs == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert products[0] == pytest.approx([0.45, 0.27, 0.18, 0.05, 0.03, 0.02])


def test_saying_the_same_of_all_classes_gains_nothing() -> None:
    labels = [(verb, noun) for verb in range(10) for noun in range(10)]
    flat = predictions(np.full((100, 10), 0.1), np.full((100, 10), 0.1))
    found = score(flat, dataset(labels, (10, 10)), "val")
    assert found.accuracy["verb_top1"] == found.accuracy["noun_top1"] == 0.1
    assert found.accuracy["verb_top5"] == 0.5
    assert (found.accuracy["action_top1"], found.accuracy["action_top5"]) == (0.01, 0.05)
    assert rank(np.zeros((1, 7), np.float32)).tolist() == [[0, 1, 2, 3, 4]]


def test_what_is_not_known_or_does_not_occur_is_no_number() -> None:
    certain = predictions([[1, 0]], [[0, 1]])
    plain = score(certain, dataset([(0, 1)], (2, 2)), "val")
    assert (plain.unseen, plain.tail) == (None, None)
    rare = score(certain, dataset([(0, 1)], (2, 2), unseen=frozenset("X"), tail={"verb": {1}, "noun": {0}}), "val")
    assert all(math.isnan(value) for value in (*rare.unseen.values(), *rare.tail.values()))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 3))
def test_as_scikit_learn_and_brute_force_over_all_pairs_say(seed: int, verbs: int, nouns: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    labels = [(int(rng.integers(verbs)), int(rng.integers(nouns))) for _ in range(30)]
    made = predictions(*(softmax(spread * rng.normal(size=(30, n))) for n in (verbs, nouns)))
    found = score(made, dataset(labels, (verbs, nouns)), "val")
    verb, noun = (made.values[head].astype(np.float64) for head in ("verb", "noun"))
    pairs = (verb[:, :, None] + noun[:, None, :]).reshape(30, -1)
    truth = {
        "verb": [v for v, _ in labels],
        "noun": [n for _, n in labels],
        "action": [v * nouns + n for v, n in labels],
    }
    for head, values in (("verb", verb), ("noun", noun), ("action", pairs)):
        order = np.argsort(-values, axis=1)
        assert (f"{head}_top5" in found.accuracy) == (values.shape[1] >= 5)
        for k in (1, 5)[: 1 + (values.shape[1] >= 5)]:
            own = float(np.mean([label in row[:k] for label, row in zip(truth[head], order, strict=True)]))
            assert found.accuracy[f"{head}_top{k}"] == pytest.approx(own)
            if values.shape[1] > max(k, 2):
                theirs = top_k_accuracy_score(truth[head], values, k=k, labels=np.arange(values.shape[1]))
                assert found.accuracy[f"{head}_top{k}"] == pytest.approx(theirs)


def official(folder: Path) -> Dataset:
    """The validation split; its videos are not needed to judge predictions."""
    names = {}
    for head in ("verb", "noun"):
        with (folder / f"EPIC_100_{head}_classes.csv").open(newline="", encoding="utf-8") as file:
            names[head] = [row["key"] for row in csv.DictReader(file)]
    classes = {head: len(each) for head, each in names.items()}
    return Dataset(
        {"val": read_annotations(folder / "EPIC_100_validation.csv", classes)},
        names,
        unseen=frozenset(read_names(folder / "EPIC_100_unseen_participant_ids_validation.csv")),
        tail={h: frozenset(read_tail(folder / f"EPIC_100_tail_{h}s.csv", h, classes[h])) for h in classes},
    )


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official EPIC-KITCHENS-100 files are not here")
def test_the_majority_class_on_the_official_validation_split() -> None:
    truth = official(OFFICIAL)
    clips = truth.splits["val"].clips
    frequency = {}
    for head, names in truth.labels.items():
        counts = np.bincount([clip.labels[head] for clip in clips], minlength=len(names))
        frequency[head] = np.tile(counts / counts.sum(), (len(clips), 1))
    made = predictions(frequency["verb"], frequency["noun"])
    found = score(Predictions([clip.id for clip in clips], made.values), truth, "val")
    assert found.clips == 9668
    percent = {name: round(100 * value, 2) for name, value in found.accuracy.items()}
    assert (percent["verb_top1"], percent["noun_top1"], percent["action_top1"]) == (20.04, 4.45, 1.47)
    assert {head: len(rows) for head, rows in found.classes.items()} == {"verb": 78, "noun": 211}
    assert found.class_mean == {"verb": pytest.approx(1 / 78), "noun": pytest.approx(1 / 211)}
