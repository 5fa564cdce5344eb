"""Dividing clips anew, so that no group stands on both sides: by group alone, or with equal shares of every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raylab.data.clips import ClipTable, Dataset
from raylab.errors import RaylabError

if TYPE_CHECKING:
    from raylab.config import DataConfig

POOLED = ("train", "val")
DEALS = 16  # orders, where groups of several clips keep parts from being equal
MANY = 200_000_000  # products that one round of exchanges takes


def divide(dataset: Dataset, config: DataConfig) -> Dataset:
    """All labelled clips, divided into `train` and `val`; part `data.fold` of `data.folds` is `val`.

    Over all folds each clip is in `val` once, and no group (EPIC: participants; a labelled folder: videos; metadata:
    the column `group`) stands in both. Which group falls into which part is drawn by `data.fold_seed` alone. Where
    `data.max_clips` has thinned out the published files, what is left of them is divided.

    Args:
        dataset: with its published splits.
        config: `split` is `participant`, which deals groups as scikit-learn's `GroupKFold` does, or `stratified`.

    Raises:
        RaylabError: there is no such fold, there are too few groups, or an id stands in both files.
    """
    folds, fold = config.folds, config.fold
    if fold >= folds:
        raise RaylabError(f"data.fold = {fold}: folds are numbered 0 to {folds - 1}; lower it, or raise data.folds")
    clips = pa.concat_tables(dataset.splits[split].clips.table for split in POOLED)
    groups = clips["group"].to_pylist()
    if len(set(groups)) < folds:
        raise RaylabError(
            f"data.folds = {folds}: there are only {len(set(groups))} groups of clips (participants, or else videos): "
            "set data.folds to that or less, or raise data.max_clips where it is set"
        )
    counts = pc.value_counts(clips["id"])
    twice = [count["values"].as_py() for count in counts if count["counts"].as_py() > 1]
    if twice:
        raise RaylabError(f"clip id {twice[0]!r} stands in both train and val: remove it from one of these files")
    if config.split == "stratified":
        part = stratified(_classes(clips, dataset), groups, folds, config.fold_seed)
    else:
        part = _by_group(groups, folds, config.fold_seed)
    whole = ClipTable(clips)
    sides = {"train": np.flatnonzero(part != fold), "val": np.flatnonzero(part == fold)}
    taken = {split: whole.take(places.tolist()) for split, places in sides.items()}
    splits = {
        split: replace(found, clips=taken[split]) if split in taken else found
        for split, found in dataset.splits.items()
    }
    return replace(dataset, splits=splits, unseen=frozenset(groups[at] for at in sides["val"]))


def stratified(classes: Sequence[str], groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """The part, 0 to folds - 1, of each clip: no group in two parts, and of every class as many clips as can be.

    Where every clip is a group of its own, parts differ by at most one clip of each class, and by at most one in all.
    Groups of several clips may keep them from that; they are dealt largest first, each to the part that lacks its
    classes most, and then exchanged for as long as that brings the parts closer together. Where they end further apart
    than a clip, they are dealt again in other orders, and the best of `DEALS` is taken.

    Args:
        classes: of each clip; any names.
        groups: of each clip.
        folds: number of parts.
        seed: draws among groups that are alike.

    Raises:
        RaylabError: a class has fewer groups than there are parts, so that one would be without it.
    """
    names, of_clip = np.unique(np.asarray(groups), return_inverse=True)
    labels, label = np.unique(np.asarray(classes), return_inverse=True)
    counts = np.zeros((len(names), len(labels)), np.int64)
    np.add.at(counts, (of_clip, label), 1)
    having = (counts > 0).sum(0)
    rare = int(having.argmin())
    if having[rare] < folds:
        raise RaylabError(
            f"data.folds = {folds}: only {having[rare]} groups of clips are of class {labels[rare]}, and each part "
            "needs one: set data.folds to that or less, or raise data.max_clips where it is set"
        )
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(len(names))
    # The last key decides first: the largest groups, those of one kind together, and among these as they were drawn.
    order = drawn[np.lexsort((*counts[drawn].T, -counts[drawn].sum(1)))]
    best, apart = _deal(order, counts, folds)
    for _ in range(DEALS - 1):
        if apart[0] <= 1:
            break
        other, its = _deal(generator.permutation(len(names)), counts, folds)
        if its < apart:
            best, apart = other, its
    return best[of_clip]


def _deal(order: NDArray[np.int64], counts: NDArray[np.int64], folds: int) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """The part of each group, dealt in an order; and how far apart parts are.

    That is the most clips of a class by which two differ, and the sum of all squared counts.
    """
    part = np.empty(len(counts), np.int64)
    held = np.zeros((folds, counts.shape[1]), np.int64)
    for group in order:
        crowding = held @ counts[group]  # half of what the sum of all squared counts would grow by, but for a constant
        part[group] = min(range(folds), key=lambda fold: (crowding[fold], held[fold].sum(), fold))
        held[part[group]] += counts[group]
    _exchange(part, counts, held)
    return part, (int(np.ptp(held, axis=0).max()), int((held**2).sum()))


def _exchange(part: NDArray[np.int64], counts: NDArray[np.int64], held: NDArray[np.int64]) -> None:
    """Swap two groups of different parts, or move one, as long as the sum of squared counts falls.

    Thousands of kinds of groups of hundreds of classes stay as they were dealt: all pairs of them would take minutes,
    to gain a clip or two among hundreds.

    Args:
        part: the part of each group; changed in place.
        counts: (groups, classes).
        held: (parts, classes), the sums of counts; changed in place.
    """
    kinds, kind = np.unique(np.vstack([counts, np.zeros_like(counts[:1])]), axis=0, return_inverse=True)
    if len(kinds) ** 2 * kinds.shape[1] > MANY:
        return
    nothing = kind[-1]  # exchanged for it, a group moves
    folds = len(held)
    there = np.zeros((folds, len(kinds)), bool)
    there[part, kind[:-1]] = True
    there[:, nothing] = True
    kinds = kinds.astype(np.float64)  # whole numbers still, multiplied by a faster library
    squares = (kinds**2).sum(1)
    swaps: dict[tuple[int, int], tuple[float, int, int]] = {}
    while True:
        for f, g in combinations(range(folds), 2):
            if (f, g) not in swaps:
                # One kind for another, d = gets - gives, changes part f by d and part g by -d, and the sum of squares
                # by 2 d · (d + held[f] - held[g]): here half of it, of every kind in f and every one in g.
                gives, gets = np.flatnonzero(there[f]), np.flatnonzero(there[g])
                lean = kinds @ (held[f] - held[g])
                change = (squares - lean)[gives, None] + (squares + lean)[gets] - 2 * kinds[gives] @ kinds[gets].T
                given, got = np.unravel_index(change.argmin(), change.shape)
                swaps[f, g] = float(change[given, got]), int(gives[given]), int(gets[got])
        (f, g), (change_by, given, got) = min(swaps.items(), key=lambda swap: swap[1][0])
        if change_by >= 0:
            return
        swaps = {pair: swap for pair, swap in swaps.items() if not {f, g} & {*pair}}
        for at, to in ((_first(part, kind, f, given), g), (_first(part, kind, g, got), f)):
            if at >= 0:
                held[part[at]] -= counts[at]
                held[to] += counts[at]
                part[at] = to
        for fold in (f, g):
            there[fold] = np.isin(np.arange(len(kinds)), kind[:-1][part == fold])
            there[fold, nothing] = True


def _first(part: NDArray[np.int64], kind: NDArray[np.int64], fold: int, wanted: int) -> int:
    """The first group of a kind in a part; -1 for nothing."""
    found = np.flatnonzero((part == fold) & (kind[:-1] == wanted))
    return int(found[0]) if len(found) else -1


def unequal(folds: Mapping[int, Dataset]) -> list[str]:
    """Where groups keep stratified parts from being equal to a clip, a line for each class; else none.

    Args:
        folds: number of the part → the data set whose `val` it is; all that are compared.
    """
    found = []
    for head, names in next(iter(folds.values())).labels.items():
        counts = np.array([_counts(dataset, head, len(names)) for dataset in folds.values()])
        for name, least, most in zip(names, counts.min(0), counts.max(0), strict=True):
            if most - least > 1:
                found.append(f"{head} {name}: {least} to {most} clips in a part: groups keep them from being equal")
    return found


def _counts(dataset: Dataset, head: str, classes: int) -> NDArray[np.int64]:
    labels = dataset.splits["val"].clips.column("labels")
    return np.bincount(np.from_dlpack(labels.field(head)), minlength=classes)


def _classes(clips: pa.Table, dataset: Dataset) -> list[str]:
    """The class of each clip; with several heads, all of them together."""
    if not dataset.labels:
        raise RaylabError("data.split = stratified: the data set has no classes: set data.split=participant")
    heads = dataset.labels.items()
    return ["/".join(names[labels[head]] for head, names in heads) for labels in clips["labels"].to_pylist()]


def _by_group(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    from sklearn.model_selection import GroupKFold  # imported only where it is used: it takes a second

    part = np.empty(len(groups), np.int64)
    for fold, (_, val) in enumerate(GroupKFold(folds, shuffle=True, random_state=seed).split(groups, groups=groups)):
        part[val] = fold
    return part
