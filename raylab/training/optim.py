"""Optimisers and learning-rate schedules by name. Schedules advance once an optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from raylab.config import OptimConfig

# Fused: one kernel for all parameters, and with a gradient scaler no wait for the GPU at each step.
OPTIMIZERS: dict[str, Callable[[list[Parameter], OptimConfig], Optimizer]] = {
    "adamw": lambda parameters, config: AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True),
    "sgd": lambda parameters, config: SGD(
        parameters, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, fused=True
    ),
}

# name -> (optimizer, config, steps after warm-up, steps an epoch) -> schedule
SCHEDULES: dict[str, Callable[[Optimizer, OptimConfig, int, int], LRScheduler]] = {
    "constant": lambda optimizer, config, steps, epoch: ConstantLR(optimizer, factor=1.0),
    "cosine": lambda optimizer, config, steps, epoch: CosineAnnealingLR(optimizer, T_max=steps, eta_min=config.min_lr),
    "cosine_warm_restarts": lambda optimizer, config, steps, epoch: CosineAnnealingWarmRestarts(
        optimizer, T_0=config.restart_epochs * epoch, T_mult=config.restart_factor, eta_min=config.min_lr
    ),
}


def build_optimizer(parameters: Iterable[Parameter], config: OptimConfig) -> Optimizer:
    """An optimiser over the parameters that are to be trained."""
    return OPTIMIZERS[config.name]([p for p in parameters if p.requires_grad], config)


def build_schedule(optimizer: Optimizer, config: OptimConfig, epochs: int, steps_per_epoch: int) -> LRScheduler:
    """The schedule of `config`, after a linear warm-up over its share of all steps."""
    total = epochs * steps_per_epoch
    warmup = round(config.warmup * total)
    schedule = SCHEDULES[config.schedule](optimizer, config, max(1, total - warmup), steps_per_epoch)
    if not warmup:
        return schedule
    rising = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rising, schedule], milestones=[warmup])
