"""The terms of tri-model distillation: how far a student is from whom it learns from.

Layers are keys of every mapping; hidden states are float (B, N, D), attention maps float (B, Q, N) with rows that sum
to 1. Every term is a mean over the batch, and over the layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Layers = Mapping[int, Tensor]

TOKENS = 2048
"""Of a batch with more tokens, so many are compared by `similarity`."""


def feature_distance(student: Layers, source: Layers) -> Tensor:
    """Mean squared difference of hidden states; the student's are projected to the source's width before."""
    return _mean([F.mse_loss(student[layer].float(), source[layer].float()) for layer in source])


def attention_distance(student: Layers, source: Layers) -> Tensor:
    """Squared Euclidean distance between rows of attention, Σ_k (A_qk − B_qk)², a mean over queries q: 0 to 2.

    That is the mean squared difference times the number of tokens: of 1,568 tokens each gets so little attention that
    the mean over all pairs would vanish beside the other terms.

    The maps are means over heads. Heads have no order that two networks share, nor need there be as many; their mean
    does not depend on either, and its rows are still distributions over the same tokens.
    """
    return _mean([(student[layer].float() - source[layer].float()).square().sum(2).mean() for layer in source])


def asymmetric_distance(to_teacher: Layers, to_assistant: Layers, teacher: Layers, assistant: Layers) -> Tensor:
    """What the student reads from its two sources more alike than the sources are.

        max(0, CKA(P_t h, P_a h) − CKA(t, a))

    h are the student's hidden states, P_t h and P_a h its readings of them toward teacher and assistant, t and a the
    hidden states of these two; CKA is `similarity`, over all tokens of the batch. t and a are given, so the gradient
    moves the readings alone.

    It encourages diversity between what is taken from teacher and from assistant: a student that reads both from the
    same directions of h (P_t h and P_a h alike) pays as far as teacher and assistant themselves differ. It is
    asymmetric in that only too little diversity costs: a student that has learnt both sources perfectly pays nothing,
    so the term never opposes the feature distance, and a student whose readings differ more pays nothing either.
    """
    excess = [
        (similarity(to_teacher[layer], to_assistant[layer]) - similarity(teacher[layer], assistant[layer])).clamp(min=0)
        for layer in teacher
    ]
    return _mean(excess)


def logit_distance(student: Tensor, source: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(source / T) ‖ softmax(student / T)), of logits (B, classes) (Hinton et al., arXiv:1503.02531)."""
    ours, theirs = ((logits.float() / temperature).log_softmax(1) for logits in (student, source))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def similarity(one: Tensor, other: Tensor) -> Tensor:
    """Linear CKA of two representations of the same tokens, 0 to 1 (Kornblith et al., arXiv:1905.00414).

    1 where they are equal up to rotation and scale, 0 where no direction of one varies with any of the other. Of more
    than `TOKENS` tokens so many are compared, evenly spaced.

    Args:
        one, other: float (B, N, D), with the same B and N, any D.
    """
    with torch.autocast(one.device.type, enabled=False):  # products of many tokens would overflow float16
        tokens = one.shape[0] * one.shape[1]
        compared = min(tokens, TOKENS)
        at = torch.arange(compared, device=one.device) * tokens // compared  # a whole stride might keep to one column
        x, y = (value.flatten(0, 1)[at].float() for value in (one, other))
        x, y = x - x.mean(0), y - y.mean(0)
        shared = (x.mT @ y).square().sum()
        own = (x.mT @ x).norm() * (y.mT @ y).norm()
        return shared / own.clamp(min=torch.finfo(torch.float32).tiny)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
