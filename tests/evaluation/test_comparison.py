"""Means, deviations, tests and curves over folds, against scipy, scikit-learn and figures worked out by hand."""

from __future__ import annotations

from math import inf, isnan, nan, sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from raylab.evaluation.comparison import Comparison, corrected_t_test, holm, mean_roc, paired_tests, plus_minus
from raylab.reporting import charts, paper

ACCURACY = {"cheap": [0.70, 0.80, 0.60], "dear": [0.90, 0.85, 0.95], "same": [0.70, 0.80, 0.60]}
FOLDS = pd.DataFrame(
    [
        {
            "model": model,
            "fold": fold,
            "trial": f"{model}-fold{fold}",
            "accuracy": value,
            "seconds": 10.0,
            "memory": 2e9,
        }
        for model, values in ACCURACY.items()
        for fold, value in enumerate(values)
    ]
)


def scores(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for model in ACCURACY:
        for fold in range(3):
            positive = np.arange(20) % 2 == 0
            score = rng.normal(size=20) + positive
            rows += [
                (model, fold, f"clip{at}", bool(p), s) for at, (p, s) in enumerate(zip(positive, score, strict=True))
            ]
    return pd.DataFrame(rows, columns=["model", "fold", "clip", "positive", "score"])


def test_means_and_deviations_in_the_order_of_the_models() -> None:
    models = Comparison.of(FOLDS, 3).models
    assert list(models["model"]) == list(ACCURACY)
    assert list(models["folds"]) == [3, 3, 3]
    np.testing.assert_allclose(models["accuracy_mean"], [0.7, 0.9, 0.7])
    np.testing.assert_allclose(models["accuracy_std"], [0.1, 0.05, 0.1])
    np.testing.assert_allclose(models["memory_mean"], 2e9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=10).filter(lambda found: np.std(found) > 1e-6))
def test_without_the_correction_it_is_the_paired_t_test(differences: list[float]) -> None:
    found = corrected_t_test(np.array(differences), 0.0)
    expected = stats.ttest_1samp(differences, 0.0)
    np.testing.assert_allclose(found, (expected.statistic, expected.pvalue), rtol=1e-7, atol=1e-12)


def test_the_correction_is_that_of_nadeau_and_bengio() -> None:
    differences = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
    t, p = corrected_t_test(differences, 1 / 4)
    expected = 0.026 / sqrt((1 / 5 + 1 / 4) * differences.var(ddof=1))
    assert t == pytest.approx(expected)
    assert p == pytest.approx(2 * (1 - stats.t.cdf(expected, 4)))
    assert p > stats.ttest_1samp(differences, 0).pvalue


def test_equal_differences() -> None:
    assert corrected_t_test(np.zeros(3), 0.5) == (0.0, 1.0)
    assert corrected_t_test(np.full(3, -0.1), 0.5) == (-inf, 0.0)


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])
    assert len(holm(np.array([]))) == 0


def test_pairs_are_tested_over_the_folds_that_both_have() -> None:
    tests = paired_tests(FOLDS[FOLDS["trial"] != "dear-fold2"], ["accuracy"], 3)
    assert list(zip(tests["a"], tests["b"], strict=True)) == [("cheap", "dear"), ("cheap", "same"), ("dear", "same")]
    assert list(tests["folds"]) == [2, 3, 2]
    assert tests["difference"][0] == pytest.approx(-0.125)
    assert (tests["t"][1], tests["p"][1], tests["p_holm"][1]) == (0.0, 1.0, 1.0)
    assert paired_tests(FOLDS[FOLDS["fold"] == 0], ["accuracy"], 3).empty


def test_the_area_under_the_mean_curve_is_the_mean_area() -> None:
    found = scores()
    one = found[found["model"] == "dear"]
    grid = np.linspace(0, 1, 10_001)
    mean, deviation = mean_roc(one, grid)
    areas = [roc_auc_score(fold["positive"], fold["score"]) for _, fold in one.groupby("fold")]
    assert np.trapezoid(mean, grid) == pytest.approx(np.mean(areas), abs=1e-3)
    assert (np.diff(mean) >= 0).all()
    assert deviation.max() > 0
    lonely = one[one["positive"]]
    assert np.isnan(mean_roc(lonely, grid)[0]).all()


def test_charts_of_folds_are_pictures() -> None:
    found = list(charts.folds(Comparison.of(FOLDS, 3, scores()), "accuracy"))
    assert [chart.name for chart in found] == ["roc", "folds", "fold_cost"]
    for chart in found:
        content = paper.files(paper.draw(chart), chart.name)[f"{chart.name}.png"]
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5_000
    assert [chart.name for chart in charts.folds(Comparison.of(FOLDS, 3), "accuracy")] == ["folds", "fold_cost"]


def test_cells() -> None:
    assert plus_minus(0.5, 0.25, 100) == "50.00 ± 25.00"
    assert plus_minus(0.5, nan, 100) == "50.00"
    assert plus_minus(nan, nan) == "–"
    assert isnan(Comparison.of(FOLDS[FOLDS["fold"] == 0], 3).models["accuracy_std"][0])
