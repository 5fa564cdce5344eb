"""Dividing clips anew, so that no group stands on both sides."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from raylab.data.clips import ClipTable, Dataset
from raylab.errors import RaylabError

POOLED = ("train", "val")
SEED = 0  # of the order in which groups are dealt: one division, whatever the experiment's seed


def by_group(dataset: Dataset, folds: int, fold: int) -> Dataset:
    """All labelled clips, divided into `train` and `val` by group (EPIC: participants; a labelled folder: videos).

    The groups are shuffled once and dealt to `folds` parts, as scikit-learn's `GroupKFold` does; part `fold` is `val`.
    Over all folds each clip is in `val` once. Where `data.max_clips` has thinned out the published files, what is left
    of them is divided.

    Raises:
        RaylabError: there is no such fold, there are fewer groups than folds, or an id stands in both files.
    """
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
    from sklearn.model_selection import GroupKFold  # imported only where it is used: it takes a second

    parts = GroupKFold(folds, shuffle=True, random_state=SEED).split(groups, groups=groups)
    train, val = list(parts)[fold]
    whole = ClipTable(clips)
    taken = {"train": whole.take(train.tolist()), "val": whole.take(val.tolist())}
    splits = {
        split: replace(found, clips=taken[split]) if split in taken else found
        for split, found in dataset.splits.items()
    }
    return replace(dataset, splits=splits, unseen=frozenset(groups[at] for at in val))
