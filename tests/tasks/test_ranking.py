"""Soft ranks and their correlation: SciPy in the hard limit, gradients, ties, masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from raylab.tasks.ranking import ranks, soft_spearman

HARD = 1e-7


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def values(batch: int, frames: int, levels: int | None = None) -> Tensor:
    """Float64 (batch, frames) in [0, 1]; with so many levels, and so with ties."""
    if levels:
        return torch.randint(levels, (batch, frames)).double() / levels
    return torch.rand(batch, frames, dtype=torch.double)


def lengths(batch: int, frames: int) -> Tensor:
    """A mask of `batch` videos of 2 to `frames` frames."""
    return torch.arange(frames) < torch.randint(2, frames + 1, (batch, 1))


@pytest.mark.parametrize("softness", [0.0, HARD])
@pytest.mark.parametrize("levels", [None, 2, 5, 1])
@pytest.mark.parametrize("frames", [1, 2, 7, 60])
def test_hard_ranks_are_those_of_scipy(frames: int, levels: int | None, softness: float) -> None:
    x = values(8, frames, levels)
    np.testing.assert_allclose(ranks(x, softness=softness), rankdata(x.numpy(), axis=1), atol=1e-9)


@pytest.mark.parametrize("levels", [None, 5])
@pytest.mark.parametrize("frames", [2, 7, 60, 200])
def test_the_hard_limit_is_spearman_of_scipy(frames: int, levels: int | None) -> None:
    x, y = values(8, frames, levels), values(8, frames, levels)
    x[:, 0], x[:, 1], y[:, 0], y[:, 1] = 0, 1, 0, 1  # something to rank, or SciPy has no answer
    expected = [spearmanr(one, other).statistic for one, other in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(soft_spearman(x, y, softness=HARD), expected, atol=1e-9)


def test_soft_ranks_approach_hard_ones() -> None:
    x = values(4, 30)
    away = [(ranks(x, softness=softness) - ranks(x)).abs().max() for softness in (1e-1, 1e-2, 1e-3, 1e-5)]
    assert away == sorted(away, reverse=True)
    assert away[0] > 1 > 1e-6 > away[-1]


@pytest.mark.parametrize("softness", [0.01, 0.1, 10.0])
def test_soft_ranks_keep_order_and_sum_and_give_ties_one_rank(softness: float) -> None:
    x = values(4, 20, levels=6)
    soft = ranks(x, softness=softness)
    torch.testing.assert_close(soft.sum(1), torch.full((4,), 20 * 21 / 2, dtype=torch.double))
    order = x[:, :, None] - x[:, None, :]
    steps = soft[:, :, None] - soft[:, None, :]
    assert (steps[order == 0].abs() < 1e-9).all()
    assert (steps[order > 0] > 0).all()


def test_perfect_and_opposite_orders() -> None:
    x = values(4, 20)
    torch.testing.assert_close(soft_spearman(x, x**3, softness=HARD), torch.ones(4, dtype=torch.double))
    torch.testing.assert_close(soft_spearman(x, -x, softness=HARD), -torch.ones(4, dtype=torch.double))


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("softness", [0.05, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(levels: int | None, softness: float, masked: bool) -> None:
    x, y = values(3, 9, levels).requires_grad_(), values(3, 9, levels)
    mask = lengths(3, 9) if masked else None
    assert torch.autograd.gradcheck(lambda scores: ranks(scores, mask, softness), x)
    assert torch.autograd.gradcheck(lambda scores: soft_spearman(scores, y, mask, softness), x)


def test_following_the_gradient_orders_the_scores() -> None:
    logits, y = torch.zeros(2, 30, requires_grad=True), values(2, 30).float()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (1 - soft_spearman(logits.sigmoid(), y)).sum().backward()
        optimizer.step()
    assert soft_spearman(logits, y, softness=HARD).min() > 0.99


@pytest.mark.parametrize("softness", [HARD, 0.1])
def test_padding_is_no_part_of_it(softness: float) -> None:
    x, y, mask = values(8, 12), values(8, 12), lengths(8, 12)
    x.requires_grad_()
    whole = soft_spearman(x, y, mask, softness)
    alone = [
        soft_spearman(x[i : i + 1, :n], y[i : i + 1, :n], softness=softness) for i, n in enumerate(mask.sum(1).tolist())
    ]
    torch.testing.assert_close(whole, torch.cat(alone))
    with torch.no_grad():
        other = torch.where(mask, x, values(8, 12))
        assert torch.equal(soft_spearman(other, torch.where(mask, y, 7), mask, softness), whole)
    assert (ranks(x, mask, softness)[~mask] == 0).all()
    (gradient,) = torch.autograd.grad(whole.sum(), x)
    assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("softness", [HARD, 0.1])
@pytest.mark.parametrize("constant", ["scores", "targets", "both", "one frame"])
def test_nothing_to_rank_is_no_correlation(constant: str, softness: float, masked: bool) -> None:
    frames = 1 if constant == "one frame" else 6
    x, y = values(2, frames), values(2, frames)
    mask = torch.ones(2, frames, dtype=torch.bool) if masked else None
    if constant in ("scores", "both"):
        x[:] = 0.3
    if constant in ("targets", "both"):
        y[:] = 0.3
    x.requires_grad_()
    rho = soft_spearman(x, y, mask, softness)
    assert torch.equal(rho, torch.zeros(2, dtype=torch.double))
    rho.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad.any()) == (constant == "scores")
