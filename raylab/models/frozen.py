"""Networks that are learnt from and never trained: where they come from, and what they say of clips."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig

from raylab.config import DistillConfig, Experiment
from raylab.data.datasets import outputs_folder
from raylab.errors import RaylabError
from raylab.models.amd import fetch_assistant
from raylab.models.distillation import structure
from raylab.models.freezing import digest
from raylab.models.registry import build_model
from raylab.models.taps import QUERIES, Taps
from raylab.models.videomae import VideoMAE, load_network, network, read_config
from raylab.models.weights import find_network

_STRUCTURAL = (
    *("num_attention_heads", "hidden_act", "layer_norm_eps", "use_mean_pooling", "tubelet_size", "patch_size"),
    *("hidden_size", "num_hidden_layers", "intermediate_size", "num_labels"),
)


class FrozenNetwork(nn.Module):
    """A network in evaluation mode for ever, and the parts of what it says that are wanted.

    Args:
        model: the network.
        weight: of its distances.
        layers: whose hidden states are wanted: -1 is the last, 1 the first.
        hidden: whether they are.
        attention: whether attention maps of these layers are wanted, too.
        classes: of the data. Logits are wanted where the network was trained for the same ones, whatever their order.

    Attributes:
        order: where wanted, the places of the data's classes in its logits, int64 (classes,).
    """

    order: Tensor | None

    def __init__(
        self,
        model: VideoMAE,
        weight: float,
        layers: tuple[int, ...],
        *,
        hidden: bool = True,
        attention: bool = False,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.weight, self.layers = weight, layers
        self.kinds = [kind for kind, wanted in (("hidden", hidden), ("attention", attention)) if wanted]
        self.taps = Taps(model, layers, attention)
        agree = bool(classes) and sorted(classes or []) == sorted(model.classes)
        order = torch.tensor([model.classes.index(name) for name in classes or []]) if agree else None
        self.register_buffer("order", order, persistent=False)

    def train(self, mode: bool = True) -> FrozenNetwork:
        return super().train(False)

    @property
    def width(self) -> int:
        """Of its hidden states."""
        return int(self.model.config.hidden_size)

    @property
    def parts(self) -> dict[str, int | None]:
        """The names of what it says, `hidden/12`, `attention/12` and `logits` → layer."""
        found: dict[str, int | None] = {self.part(kind, layer): layer for kind in self.kinds for layer in self.layers}
        return {**found, "logits": None} if self.order is not None else found

    def part(self, kind: str, layer: int) -> str:
        """The name of what it says in a layer: two numbers of one layer have the same."""
        return f"{kind}/{layer % (self.model.depth + 1)}"

    @torch.no_grad()
    def forward(self, video: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Tensor]:
        """What it says of clips.

        Args:
            video: float (B, T, 3, H, W).
            mean, std: that it was normalised with; where the network knows others, it is normalised anew.

        Returns:
            For each of `parts`: hidden states (B, N, D), attention (B, Q, N), logits (B, classes) in its own order.
        """
        if (mean, std) != (self.model.mean, self.model.std):
            theirs, ours = (
                [torch.tensor(values, device=video.device).view(3, 1, 1) for values in pair]
                for pair in ((mean, std), (self.model.mean, self.model.std))
            )
            video = (video * theirs[1] + theirs[0] - ours[0]) / ours[1]
        logits = self.model(video)[self.model.head]
        hidden, attention = self.taps.take()
        taken: dict[str, Tensor] = {}
        for name, layer in self.parts.items():
            kind = name.partition("/")[0]
            taken[name] = logits if layer is None else (hidden if kind == "hidden" else attention)[layer]
        return taken

    def signature(self) -> str:
        """32 hex digits that change with any weight, and with what else decides what it says of a clip."""
        config = self.model.config
        norm = self.model.fc_norm.eps if self.model.fc_norm is not None else None
        about = [*(getattr(config, name) for name in _STRUCTURAL), norm, self.model.mean, self.model.std, QUERIES]
        return digest(self.model, about)


def load_frozen(experiment: Experiment, classes: list[str] | None = None) -> dict[str, FrozenNetwork]:
    """Teacher and assistant, those of them that have anything to say to an experiment.

    Args:
        experiment: `distill`, and the `scale` of random ones.
        classes: names of the data's classes, by index.

    Raises:
        RaylabError: one cannot be had, or has no such layers.
    """
    distill = experiment.distill
    apart = len(distill.sources) == 2 and distill.asymmetric_distillation_weight > 0
    sources = {
        name: FrozenNetwork(
            load_source(experiment, name),
            weight,
            distill.layers,
            hidden=distill.feature_distillation_weight > 0 or apart,
            attention=distill.attention_distillation_weight > 0,
            classes=classes if distill.logit_distillation_weight else None,
        )
        for name, weight in distill.sources.items()
    }
    return {name: source for name, source in sources.items() if source.parts}


def frozen_networks(experiment: Experiment) -> dict[str, VideoMAE]:
    """`teacher` and `assistant` as plain networks: float (B, T, 3, H, W) → logits.

    Raises:
        RaylabError: one cannot be had.
    """
    return {name: load_source(experiment, name) for name in experiment.distill.sources}


def load_source(experiment: Experiment, name: str) -> VideoMAE:
    """One of them, with its weights."""
    path = find_source(experiment.distill, name)
    if path:
        return load_network(path)
    with torch.random.fork_rng(devices=[]):  # the same for every worker and trial
        torch.manual_seed(0)
        return network(_random_structure(experiment, name))


def find_source(distill: DistillConfig, name: str) -> Path | None:
    """Where `teacher` or `assistant` lies, downloaded if need be; None for random weights.

    Raises:
        RaylabError: it cannot be had.
    """
    if not distill.pretrained:
        return None
    if name == "teacher":
        assert distill.teacher is not None  # noqa: S101 - it is among the sources
        return find_network(distill.teacher, "distill.teacher")
    if distill.assistant_model_path:
        return find_network(distill.assistant_model_path, "distill.assistant_model_path")
    assert distill.assistant is not None  # noqa: S101 - likewise
    return fetch_assistant(distill.assistant)


def _random_structure(experiment: Experiment, name: str) -> VideoMAEConfig:
    size = "small" if name == "assistant" and experiment.distill.assistant == "vit_s" else "base"
    config: VideoMAEConfig = structure(size, experiment.model.scale)
    return config


def check_sources(experiment: Experiment, clips: Mapping[str, int]) -> list[str]:
    """Check teacher and assistant against the student, without loading any of them.

    Args:
        experiment: to be run.
        clips: `train` and `val` → how many there are.

    Returns:
        What was found, a line each.

    Raises:
        RaylabError: one cannot be had, has no such layers, cuts clips into other tokens, or the disk is too small.
    """
    data, distill = experiment.data, experiment.distill
    with torch.device("meta"):
        model: Any = build_model(experiment.model, {"label": 2}, pretrained=False)
    student = model.config
    training = clips["train"] * (data.variants or 1) if data.repeats else 0
    lines, stored = [], 0
    for name in distill.sources:
        path = find_source(distill, name)
        config = read_config(path) if path else _random_structure(experiment, name)
        tokens = [(c.tubelet_size, c.patch_size) for c in (config, student)]
        if tokens[0] != tokens[1]:
            raise RaylabError(
                f"distill.{name}: sees clips as tokens of {tokens[0][0]} frames × {tokens[0][1]}², the student of "
                f"{tokens[1][0]} × {tokens[1][1]}²: their hidden states cannot be compared; take networks alike in this"
            )
        depth = min(config.num_hidden_layers, student.num_hidden_layers)
        beyond = [layer for layer in distill.layers if abs(layer) > depth]
        if beyond:
            raise RaylabError(
                f"distill.hidden_layers_to_align = [{distill.hidden_layers_to_align}]: layer {beyond[0]}: {name} and "
                f"student have {config.num_hidden_layers} and {student.num_hidden_layers}: name layers that both have"
            )
        count = -(-data.frames // config.tubelet_size) * (data.size // config.patch_size) ** 2
        maps = min(count, QUERIES) if distill.attention_distillation_weight else 0
        stored += 2 * (training + clips["val"]) * len(distill.layers) * count * (config.hidden_size + maps)
        lines.append(f"{name}: {path or 'random weights'}")
    if lines and distill.cache is not False:
        folder = outputs_folder(data, distill.cache)
        free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
        size = f"{stored / 1e9:,.1f} GB"
        if stored > free:
            raise RaylabError(
                f"distill.cache: what teacher and assistant say of {sum(clips.values()):,} clips takes up to {size}; "
                f"{folder} has {free / 1e9:,.1f} GB left: set distill.cache=FOLDER elsewhere, or distill.cache=false, "
                "or leave out what takes most of it, distill.attention_distillation_weight=0"
            )
        lines.append(f"their outputs are kept in {folder}, up to {size}")
    return lines
