"""Models compared over the folds of a cross-validation: means, deviations, paired tests, ROC curves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import inf, isnan, nan, sqrt

import numpy as np
import pandas as pd
from numpy.typing import NDArray

COSTS = ("seconds", "memory")
KEYS = ("model", "fold")
SCORES = ("model", "fold", "clip", "positive", "score")


@dataclass(frozen=True)
class Comparison:
    """What a cross-validation has found.

    Attributes:
        folds: one row for each model and fold: `model`, `fold`, `trial`, its figures (`accuracy`, …, each in [0, 1]),
            `seconds` of training and `memory`, the most that its process held, in bytes.
        models: one row a model, in the order in which they ran: `model`, `folds`, and of every figure and cost
            `…_mean` and `…_std`, the standard deviation over folds (n - 1).
        tests: one row for each figure and pair of models that share two folds or more: see `paired_tests`.
        scores: what each model says of each clip it has not been trained on: `model`, `fold`, `clip`, `positive`
            (bool), `score` (higher for what is taken to be positive); empty where that is not known.
    """

    folds: pd.DataFrame
    models: pd.DataFrame
    tests: pd.DataFrame
    scores: pd.DataFrame

    @classmethod
    def of(cls, folds: pd.DataFrame, parts: int, scores: pd.DataFrame | None = None) -> Comparison:
        """Compare what is in `folds`.

        Args:
            folds: as the attribute.
            parts: into how many the data was divided.
            scores: as the attribute, where there are any.
        """
        figures = [name for name in folds.columns if name not in (*KEYS, *COSTS, "trial")]
        tests = paired_tests(folds, figures, parts)
        known = pd.DataFrame(columns=list(SCORES)) if scores is None else scores
        return cls(folds, summary(folds, [*figures, *COSTS]), tests, known)

    @property
    def figures(self) -> list[str]:
        return [name for name in self.folds.columns if name not in (*KEYS, *COSTS, "trial")]


def summary(folds: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Mean and standard deviation over folds of each column, a row for each model, in the order of their first rows."""
    groups = folds.groupby("model", sort=False)
    table = groups.size().rename("folds").to_frame()
    for column in columns:
        table[f"{column}_mean"] = groups[column].mean()
        table[f"{column}_std"] = groups[column].std(ddof=1)
    return table.reset_index()


def paired_tests(folds: pd.DataFrame, figures: list[str], parts: int) -> pd.DataFrame:
    """Whether two models differ by more than the choice of folds explains.

    Returns:
        Columns `figure`, `a`, `b`, `folds` (that both have), `difference` (mean of a less b), `t` and `p` of
        `corrected_t_test`, and `p_holm`, which is p corrected for the number of pairs of the same figure (Holm 1979).
    """
    rows = []
    for figure in figures:
        table = folds.pivot(index="fold", columns="model", values=figure)[folds["model"].unique()]
        found = []
        for a, b in combinations(table.columns, 2):
            differences = (table[a] - table[b]).dropna().to_numpy()
            if len(differences) > 1:
                t, p = corrected_t_test(differences, 1 / (parts - 1))
                found.append([figure, a, b, len(differences), float(differences.mean()), t, p])
        adjusted = holm(np.array([row[-1] for row in found]))
        rows += [[*row, float(p)] for row, p in zip(found, adjusted, strict=True)]
    return pd.DataFrame(rows, columns=["figure", "a", "b", "folds", "difference", "t", "p", "p_holm"])


def corrected_t_test(differences: NDArray[np.float64], ratio: float) -> tuple[float, float]:
    """The corrected resampled t-test: t and the two-sided p of a mean difference of zero.

    The folds' training sets overlap, so that their differences are not independent and the ordinary paired test finds
    too much; the correction adds `ratio` to 1/n in the variance of the mean. Source: C. Nadeau, Y. Bengio, "Inference
    for the Generalization Error", Machine Learning 52 (2003).

    Args:
        differences: of two models, one for each of at least two folds.
        ratio: clips tested on to clips trained on; with k folds 1 / (k - 1).
    """
    from scipy.stats import t as student  # imported only where it is used: it takes a second

    count, mean = len(differences), float(differences.mean())
    deviation = float(differences.std(ddof=1))
    # Equal differences leave nothing but rounding in the deviation.
    if deviation <= 1e-12 * max(1.0, abs(mean)):
        return (0.0, 1.0) if abs(mean) <= 1e-12 else (inf if mean > 0 else -inf, 0.0)
    statistic = mean / (deviation * sqrt(1 / count + ratio))
    return statistic, float(2 * student.sf(abs(statistic), count - 1))


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values corrected for their number, step by step from the smallest; at most 1."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def mean_roc(scores: pd.DataFrame, grid: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean of a model's ROC curves over its folds, and their standard deviation, at these false positive rates.

    Args:
        scores: rows of one model; folds with one class alone do not count.
        grid: ascending, in [0, 1].

    Returns:
        True positive rates, each the highest that the false positive rate allows, as straight lines between points.
    """
    from sklearn.metrics import roc_curve

    curves = []
    for _, fold in scores.groupby("fold"):
        if fold["positive"].nunique() == 2:
            false, true, _ = roc_curve(fold["positive"], fold["score"])
            curves.append(np.interp(grid, false, true))
    if not curves:
        return np.full_like(grid, nan), np.full_like(grid, nan)
    return np.mean(curves, axis=0), np.std(curves, axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(grid)


def plus_minus(mean: float, deviation: float, scale: float = 1.0, digits: int = 2) -> str:
    """`83.00 ± 4.20`; the mean alone where there is one fold, a dash where there is none."""
    if isnan(mean):
        return "–"
    text = f"{scale * mean:.{digits}f}"
    return text if isnan(deviation) else f"{text} ± {scale * deviation:.{digits}f}"
