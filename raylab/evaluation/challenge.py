"""Predictions in the forms that the EPIC-KITCHENS-100 action recognition challenge reads.

Facts from https://github.com/epic-kitchens/C1-Action-Recognition (`evaluate.py` for scores, `create_submission.py` for
a submission) and https://github.com/epic-kitchens/sls (the levels of supervision).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch

from raylab.errors import RaylabError
from raylab.evaluation.predictions import Predictions
from raylab.storage import replacing

CLASSES = {"verb": 97, "noun": 300}


class Supervision(NamedTuple):
    """Levels of supervision, 0 to 5: pretraining, training labels, training data."""

    pt: int = 1
    tl: int = 3
    td: int = 3


def write_scores(predictions: Predictions, path: Path) -> None:
    """The file that the official `evaluate.py` reads.

    `torch.save` of NumPy arrays `verb_output` float32 (N, 97), `noun_output` float32 (N, 300), and `narration_id`. The
    scores are log-probabilities of -30 to 0: the official code takes one softmax over the scores of all clips together,
    so unbounded logits of one clip would make those of others underflow.

    Raises:
        RaylabError: the classes are not those of EPIC-KITCHENS-100, or the file cannot be written.
    """
    check_heads(_heads(predictions), path)
    scores = {f"{head}_output": predictions.values[head] for head in CLASSES}
    _write(path, lambda file: torch.save({**scores, "narration_id": np.array(predictions.ids)}, file))


def write_submission(predictions: Predictions, path: Path, supervision: Supervision) -> None:
    """A submission to the challenge: a zip file with `test.json`, version 0.2.

    Raises:
        RaylabError: the classes are not those of EPIC-KITCHENS-100, or the file cannot be written.
    """
    check_heads(_heads(predictions), path)
    values = predictions.values
    scores = (
        {head: {str(index): float(value) for index, value in enumerate(values[head][at])} for head in CLASSES}
        for at in range(len(predictions.ids))
    )
    submission = {
        "version": "0.2",
        "challenge": "action_recognition",
        **{f"sls_{name}": level for name, level in supervision._asdict().items()},
        "results": dict(zip(predictions.ids, scores, strict=True)),
    }

    def write(file: Path) -> None:
        with ZipFile(file, "w", ZIP_DEFLATED) as archive:
            archive.writestr("test.json", json.dumps(submission))

    _write(path, write)


def check_heads(heads: Mapping[str, int], path: Path) -> None:
    """Refuse a model whose classes are not the challenge's, for the file that was asked for.

    Raises:
        RaylabError: names the file and both numbers of classes.
    """
    if heads != CLASSES:
        wanted, found = (", ".join(f"{count} {head}s" for head, count in each.items()) for each in (CLASSES, heads))
        raise RaylabError(f"{path}: the challenge's files hold {wanted}, but this model knows {found}")


def _heads(predictions: Predictions) -> dict[str, int]:
    return {head: values.shape[1] for head, values in predictions.values.items()}


def _write(path: Path, write: Callable[[Path], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as writing:
            write(writing)
    except OSError as error:
        raise RaylabError(f"{path}: cannot be written ({error.strerror or error})") from None
