"""Ranks with gradients, and the rank correlation they give.

A frame's rank counts the frames it beats. Counted by a step, that has no gradient; counted by a sigmoid, it has:

    r_i = 1 + Σ_{j≠i} σ((x_i − x_j) / softness)

(ApproxRank; Qin, Liu & Li, "A general approximation framework for direct optimization of information retrieval
measures", 2010). It is smooth everywhere, gives tied values their mean rank at any softness, and tends to the ranks of
`scipy.stats.rankdata` as the softness goes to 0. Memory and time grow with the square of the number of frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-3
"""Ranks whose deviations have a smaller Euclidean norm than this are all but tied: their correlation fades to 0."""


def ranks(values: Tensor, mask: Tensor | None = None, softness: float = 0.0) -> Tensor:
    """Ascending ranks from 1; tied values have the mean of theirs.

    Args:
        values: float (B, T).
        mask: bool (B, T), false for padding, which has no rank and counts for none; None where there is no padding.
        softness: 0 for exact ranks, which have no gradient; else the difference that is about one step.

    Returns:
        Float (B, T) of the same dtype; 0 in padding.
    """
    difference = values[:, :, None] - values[:, None, :]
    beaten = (
        torch.sigmoid(difference / softness)
        if softness
        else torch.heaviside(difference.detach(), difference.new_tensor(0.5))
    )
    if mask is None:
        return beaten.sum(2) + 0.5  # each draws with itself
    return torch.where(mask, (beaten * mask[:, None, :]).sum(2) + 0.5, 0)


def soft_spearman(scores: Tensor, targets: Tensor, mask: Tensor | None = None, softness: float = 0.1) -> Tensor:
    """Spearman's ρ between soft ranks of scores and exact ranks of targets, with a gradient for the scores.

    Tends to `scipy.stats.spearmanr` as the softness goes to 0. Where either side has nothing to rank (one frame, all
    equal), ρ is 0, and so is its gradient if that is the targets.

    Args:
        scores, targets: float (B, T).
        mask: bool (B, T), false for padding; None where there is none.
        softness: in units of the scores.

    Returns:
        Float (B,), in [−1, 1].
    """
    predicted = _centred(ranks(scores, mask, softness), mask)
    given = _centred(ranks(targets, mask), mask)
    return F.cosine_similarity(predicted, given, dim=1, eps=SMALLEST)


def _centred(values: Tensor, mask: Tensor | None) -> Tensor:
    """Deviations from the mean of each row; 0 in padding."""
    if mask is None:
        return values - values.mean(1, keepdim=True)
    mean = values.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, values - mean, 0)
