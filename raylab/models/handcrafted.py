"""AURA's two classifiers of handcrafted features (`raylab.handcrafted`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.registry import register

if TYPE_CHECKING:
    from torch import nn

SOURCE = "AURA: seven models, real or generated video; scikit-learn"


@register(task="classification", handcrafted=True, batch_size=64, source=SOURCE)
def logistic_regression(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """Standardised handcrafted features → logistic regression, L2-regularised with C = 1."""
    from sklearn.linear_model import LogisticRegression

    return _classifier(LogisticRegression(max_iter=1000), heads)


@register(task="classification", handcrafted=True, batch_size=64, source=SOURCE)
def svm(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """Standardised handcrafted features → linear support vector machine, C = 1; the sigmoid of its decision function.

    That is a score between 0 and 1 that orders clips as the machine does, not a calibrated probability.
    """
    from sklearn.svm import LinearSVC

    return _classifier(LinearSVC(random_state=0, max_iter=10_000), heads)


def _classifier(last: Any, heads: Mapping[str, int]) -> nn.Module:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from raylab.models.feature_classifier import FeatureClassifier

    if len(heads) != 1:
        raise RaylabError(f"{type(last).__name__} tells one thing, and the data has {', '.join(heads)}")
    (head, classes), *_ = heads.items()
    return FeatureClassifier(make_pipeline(StandardScaler(), last), head, classes)
