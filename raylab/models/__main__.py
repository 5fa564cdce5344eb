"""List the registered models: `python -m raylab.models`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from raylab.cli import console, run_verb
from raylab.config import ModelConfig
from raylab.models.registry import ModelEntry, count_flops, count_parameters, list_models

# The data set each task is documented on fixes the classifiers' sizes.
HEADS = {
    "action": {"verb": 97, "noun": 300},
    "distillation": {"label": 174},
    "keyframes": {},
    "classification": {"label": 2},
}


def models(
    task: Annotated[str | None, typer.Option(help="Only the models of one task.")] = None,
    details: Annotated[bool, typer.Option("--details", help="Structure, source and settings of each.")] = False,
) -> None:
    """List models with their documented and their counted size, and what one clip costs.

    GFLOPs are multiply-adds, as papers count them, of a clip of the documented frames and size; the batch is that of
    one worker, times how often it accumulates gradients.

    Example: raylab models --task action
    """
    entries = list_models(task)
    if details:
        for entry in entries:
            settings = ", ".join(f"model.{name}" for name in sorted(entry.settings))
            console.print(f"{entry.name}\n  {entry.description}\n  {entry.source}\n  settings: {settings}\n")
        return
    table = Table(
        *("model", "task", "encoder", "documented", "counted", "trainable"),
        *("GFLOPs a clip", "clip", "batch", "documented epochs"),
    )
    for entry in entries:
        table.add_row(*row(entry))
    console.print(table)


def row(entry: ModelEntry) -> list[str]:
    """One line of the table; sizes in millions, with the heads of the task's documented data set."""
    if entry.handcrafted:
        return [entry.name, entry.task, *["–"] * 5, "whole video", str(entry.batch_size), "–"]
    config, heads = ModelConfig(name=entry.name), HEADS[entry.task]
    count = count_parameters(config, heads)
    documented = f"~{entry.documented_parameters:g}M" if entry.documented_parameters else "–"
    sizes = [documented, f"{count.total / 1e6:.2f}M", f"{count.trainable / 1e6:.2f}M"]
    flops = count_flops(config, heads, entry.frames, entry.size) / 1e9
    clip = f"{entry.frames} × {entry.size}²"
    batch = f"{entry.batch_size}" + (f" × {entry.accumulate}" if entry.accumulate > 1 else "")
    epochs = str(entry.documented_epochs or "–")
    return [entry.name, entry.task, entry.encoder or "–", *sizes, f"{flops:.1f}", clip, batch, epochs]


if __name__ == "__main__":
    run_verb(models)
