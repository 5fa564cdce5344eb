"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
)

from raylab.config import OptimConfig

# Fused: one kernel for all parameters, and with a gradient scaler no wait for the GPU at each step.
OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimConfig], Optimizer]] = {
    "adamw": lambda groups, config: AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True),
    "sgd": lambda groups, config: SGD(
        groups, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, fused=True
    ),
}

# What advances at each step: name -> (optimizer, config, steps after warm-up, steps an epoch) -> schedule
SCHEDULES: dict[str, Callable[[Optimizer, OptimConfig, int, int], LRScheduler]] = {
    "constant": lambda optimizer, config, steps, epoch: ConstantLR(optimizer, factor=1.0),
    "plateau": lambda optimizer, config, steps, epoch: ConstantLR(optimizer, factor=1.0),
    "cosine": lambda optimizer, config, steps, epoch: CosineAnnealingLR(optimizer, T_max=steps, eta_min=config.min_lr),
    "cosine_warm_restarts": lambda optimizer, config, steps, epoch: CosineAnnealingWarmRestarts(
        optimizer, T_0=config.restart_epochs * epoch, T_mult=config.restart_factor, eta_min=config.min_lr
    ),
}

# What follows a metric, epoch by epoch: name -> (optimizer, config, mode) -> schedule
METRIC_SCHEDULES: dict[str, Callable[[Optimizer, OptimConfig, Literal["max", "min"]], ReduceLROnPlateau]] = {
    "plateau": lambda optimizer, config, mode: ReduceLROnPlateau(
        optimizer, mode, factor=config.plateau_factor, patience=config.plateau_patience, min_lr=config.min_lr
    ),
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """An optimiser over the parameters of a model that are to be trained, a group for each of its parts.

    A group's `name` is that of the part, the model's child: `encoder`, `temporal`, `heads`. Groups are in the model's
    order, so that all their parameters are too.
    """
    trained = [(name.partition(".")[0], p) for name, p in model.named_parameters() if p.requires_grad]
    parts = groupby(trained, key=lambda named: named[0])
    groups = [{"name": part, "params": [p for _, p in found]} for part, found in parts]
    return OPTIMIZERS[config.name](groups, config)


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """`lr/PART` → the rate of each group."""
    return {f"lr/{group['name']}": float(group["lr"]) for group in optimizer.param_groups}


class Schedule:
    """The learning rate of `config`: a linear warm-up over its share of all steps, then what it names.

    Args:
        optimizer: whose rate it sets.
        config: `schedule` and its settings.
        epochs: of the whole run, or of the stage it is for.
        steps_per_epoch: optimiser steps.
        mode: whether more or less of the monitored metric is better, "max" or "min".
    """

    def __init__(
        self,
        optimizer: Optimizer,
        config: OptimConfig,
        epochs: int,
        steps_per_epoch: int,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        total = epochs * steps_per_epoch
        warmup = round(config.warmup * total)
        follow = METRIC_SCHEDULES.get(config.schedule)
        # The first to be built, since the others set the optimiser's rate to that of their first step.
        self.metric = follow(optimizer, config, mode) if follow else None
        self.steps = SCHEDULES[config.schedule](optimizer, config, max(1, total - warmup), steps_per_epoch)
        if warmup:
            rising = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
            self.steps = SequentialLR(optimizer, [rising, self.steps], milestones=[warmup])

    def step(self) -> None:
        """After each optimiser step."""
        self.steps.step()

    def epoch(self, metric: float) -> None:
        """After each epoch, with the value of the monitored metric."""
        if self.metric:
            self.metric.step(metric)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps.state_dict(), "metric": self.metric.state_dict() if self.metric else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps.load_state_dict(state["steps"])
        if self.metric:
            self.metric.load_state_dict(state["metric"])
