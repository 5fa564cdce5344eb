"""Learning rates over steps and epochs."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from raylab.config import OptimConfig
from raylab.training.optim import Schedule

SCORES = [0.1, 0.2, 0.2, 0.1, 0.2, 0.19, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
STEPS = 4  # an epoch


def optimizer():
    return SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def rates(schedule, optimizer, scores):
    """The rate of each optimiser step."""
    seen = []
    for score in scores:
        for _ in range(STEPS):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        schedule.epoch(score)
    return seen


def plateau(**settings):
    return OptimConfig(schedule="plateau", lr=1.0, plateau_patience=2, **settings)


@pytest.mark.parametrize(("mode", "scores"), [("max", SCORES), ("min", [1 - score for score in SCORES])])
def test_a_plateau_halves_the_rate_as_pytorchs_own_does(mode, scores):
    ours, theirs = optimizer(), optimizer()
    reference, expected = ReduceLROnPlateau(theirs, mode=mode, factor=0.5, patience=2), []
    for score in scores:
        expected += [theirs.param_groups[0]["lr"]] * STEPS
        reference.step(score)
    found = rates(Schedule(ours, plateau(), len(SCORES), STEPS, mode), ours, scores)
    assert found == expected
    assert set(found) == {1.0, 0.5, 0.25}


def test_a_plateaus_falls_have_a_floor_and_a_factor():
    taken = optimizer()
    config = plateau(plateau_factor=0.1, min_lr=0.05)
    assert set(rates(Schedule(taken, config, 12, STEPS), taken, [0.0] * 12)) == {1.0, 0.1, 0.05}


def test_a_plateau_after_a_warm_up():
    taken = optimizer()
    found = rates(Schedule(taken, plateau(warmup=1 / 12), 12, STEPS), taken, SCORES)
    assert found[:STEPS] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[STEPS:] == pytest.approx([1.0] * 16 + [0.5] * 20 + [0.25] * 8, rel=1e-6)


@pytest.mark.parametrize("name", ["constant", "cosine", "cosine_warm_restarts"])
def test_other_schedules_pay_no_heed_to_the_metric(name):
    config = OptimConfig(schedule=name, lr=1.0, restart_epochs=3)
    one, other = optimizer(), optimizer()
    bad = rates(Schedule(one, config, 12, STEPS), one, [0.0] * 12)
    assert bad == rates(Schedule(other, config, 12, STEPS), other, SCORES)


@pytest.mark.parametrize("name", ["constant", "cosine", "cosine_warm_restarts", "plateau"])
def test_a_schedule_goes_on_from_its_state(name):
    config = OptimConfig(schedule=name, lr=1.0, restart_epochs=3, plateau_patience=2, warmup=0.1)
    whole, first, second = optimizer(), optimizer(), optimizer()
    expected = rates(Schedule(whole, config, 12, STEPS), whole, SCORES)
    before = Schedule(first, config, 12, STEPS)
    begun = rates(before, first, SCORES[:7])
    after = Schedule(second, config, 12, STEPS)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    assert begun + rates(after, second, SCORES[7:]) == expected
