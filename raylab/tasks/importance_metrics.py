"""Figures of predicted frame importance against annotators: rank correlation, error, keyframes, summaries.

Correlation is measured by two protocols, which are far apart and never to be mixed: against the annotators' *mean*
score (`…_mean`), and against each annotator, averaged over them (`…_annotators`). The second is that of M. Otani et
al., "Rethinking the Evaluation of Video Summaries", CVPR 2019, where humans reach τ 0.177 and ρ 0.204 on TVSum.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata
from torch import Tensor
from torchmetrics import Metric

from raylab.data.clips import Clip, ClipTable
from raylab.data.keyshots import f1, portion, summarize
from raylab.data.sampling import sample_count

if TYPE_CHECKING:
    from raylab.data.importance import Importance

FIGURES = (
    "spearman_mean",
    "kendall_mean",
    "spearman_annotators",
    "kendall_annotators",
    "mse",
    "precision_15",
    "f1",
)

Scores = NDArray[np.floating[Any]]


def figures(scores: Scores, importance: Importance, seen: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """Every figure of `FIGURES` for one video.

    Args:
        scores: (N,) in [0, 1], of its samples; or (D, N), of several scorings, whose figures are averaged.
        importance: of the video.
        seen: bool (N,), the samples that were scored; all, if not given. Others take no part, and count as 0 in shots.

    Returns:
        By name. A correlation is 0 for scores that are all the same, which rank nothing. Annotators who say the same
        of all samples are left out; it is nan where that leaves none. All are nan where a score is.
    """
    scores = np.atleast_2d(scores)
    seen = np.ones(scores.shape[1], bool) if seen is None else seen
    said, annotators, mean = scores[:, seen].astype(np.float64), importance.scores[:, seen], importance.mean[seen]
    if np.isnan(said).any():
        return dict.fromkeys(FIGURES, np.nan)
    keyframes = max(1, portion(len(mean)))
    shown = (importance.shots, importance.frames, importance.picks)
    summaries = (summarize(row, *shown) for row in np.where(seen, scores, 0))
    return {
        "spearman_mean": known_mean(spearman(said, mean[None])),
        "kendall_mean": known_mean(kendall(said, mean[None])),
        "spearman_annotators": known_mean(spearman(said, annotators)),
        "kendall_annotators": known_mean(kendall(said, annotators)),
        "mse": float(np.mean((said - mean) ** 2)),
        "precision_15": float(np.mean([precision(row, mean, keyframes) for row in said])),
        "f1": float(np.mean([f1(summary, importance.references) for summary in summaries])),
    }


def average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over videos of each figure; videos where it is nan are left out."""
    return {name: known_mean(np.array([row[name] for row in rows], np.float64)) for name in FIGURES}


def spearman(scores: Scores, references: Scores) -> Scores:
    """Spearman's ρ, ties ranked by their mean.

    Args:
        scores: (D, N).
        references: (A, N).

    Returns:
        float64 (D, A): nan for a reference that is constant, else 0 for scores that are.
    """
    one, other = (rankdata(values, axis=1) for values in (scores, references))
    one, other = (ranks - ranks.mean(1, keepdims=True) for ranks in (one, other))
    norms = np.linalg.norm(one, axis=1)[:, None], np.linalg.norm(other, axis=1)
    with np.errstate(invalid="ignore"):
        found: Scores = one @ other.T / (np.where(norms[0] > 0, norms[0], 1) * norms[1])
    return found


def kendall(scores: Scores, references: Scores) -> Scores:
    """Kendall's τ-b; arguments and result as those of `spearman`."""
    found = np.zeros((len(scores), len(references)))
    for row, one in zip(found, scores, strict=True):
        varied = np.ptp(one) > 0
        row[:] = [kendalltau(one, other).statistic if varied or not np.ptp(other) else 0.0 for other in references]
    return found


def precision(scores: Scores, reference: Scores, count: int) -> float:
    """The part of the `count` highest-scored samples that the reference has no lower than its own `count`-th highest.

    Where samples tie for the last places, it is the expectation over all ways to break the tie: independent of their
    order, and for scores that are all the same the precision of chance.
    """
    relevant = reference >= _highest(reference, count)
    least = _highest(scores, count)
    above, tied = scores > least, scores == least
    return float((relevant[above].sum() + relevant[tied].mean() * (count - above.sum())) / count)


def _highest(values: Scores, count: int) -> np.floating[Any]:
    """The `count`-th highest."""
    return np.partition(values, -count)[-count]


def known_mean(values: Scores) -> float:
    """The mean of all that are not nan; nan where there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but nan
        return float(np.nanmean(values))


class ImportanceMetrics(Metric):
    """Every figure of `FIGURES`, averaged over videos; those seen in part are judged by the samples seen.

    The state holds each score at its place, and each window goes through one worker: the sums over workers are exact.

    Args:
        clips: the windows of a split.
        importance: of their videos.
        fps: samples a second.
        samples: T, of a window with its padding.
    """

    full_state_update = False
    scores: Tensor
    seen: Tensor

    def __init__(self, clips: Sequence[Clip], importance: Mapping[str, Importance], fps: float, samples: int) -> None:
        super().__init__()
        self.windows, self.importance, self.fps = ClipTable.of(clips), importance, fps
        size = len(clips)
        self.add_state("scores", torch.zeros(size, samples), dist_reduce_fx="sum", persistent=True)
        self.add_state("seen", torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum", persistent=True)

    def update(self, predictions: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Add a batch: `importance` float (B, T), and `window` int64 (B,), its clips' numbers within the split."""
        self.scores[labels["window"]] = predictions["importance"].to(self.scores.dtype)
        self.seen[labels["window"]] = 1

    def compute(self) -> dict[str, Tensor]:
        """Name → mean over the videos seen."""
        seen = np.flatnonzero(self.seen.cpu().numpy()).tolist()
        whole = join(self.windows.take(seen), self.scores.cpu().numpy()[seen], self.importance, self.fps)
        rows = [figures(scores, self.importance[video], known) for video, (scores, known) in whole.items()]
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in average(rows).items()}


def join(
    clips: Sequence[Clip], scores: Scores, importance: Mapping[str, Importance], fps: float
) -> dict[str, tuple[Scores, NDArray[np.bool_]]]:
    """Put the windows of videos together.

    Args:
        clips: W windows.
        scores: (W, T), of their samples; what stands in the padding is not looked at.
        importance: of their videos.
        fps: samples a second.

    Returns:
        Video → the scores of its N samples, and which of them the windows hold, bool (N,).
    """
    whole: dict[str, tuple[Scores, NDArray[np.bool_]]] = {}
    for clip, row in zip(clips, scores, strict=True):
        samples = len(importance[clip.video].picks)
        joined, known = whole.setdefault(clip.video, (np.zeros(samples, row.dtype), np.zeros(samples, bool)))
        first, count = round(clip.start * fps), sample_count(clip.stop - clip.start, fps)
        joined[first : first + count], known[first : first + count] = row[:count], True
    return whole
