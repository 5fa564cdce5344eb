"""Every model by its name. Importing this module, or a zoo, loads neither PyTorch nor timm.

A model is one registered function:

    @register(task="action", encoder="resnet50", settings=("pretrained", "dropout"))
    def my_model(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
        \"\"\"What it is, in a sentence or two.\"\"\"
        from my_package.network import Network
        return Network(config.encoder, heads, config.dropout)

An installed package adds models through the entry-point group `raylab.models`, whose entries name modules
that register on import. No experiment and no checkpoint can name code to import.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raylab.config import Experiment, ModelConfig
from raylab.errors import RaylabError, unknown_name

if TYPE_CHECKING:
    from torch import nn

    Build = Callable[[ModelConfig, Mapping[str, int]], nn.Module]

ZOO = (
    "raylab.models.epic",
    "raylab.models.distillation",
    "raylab.models.keyframes",
    "raylab.models.handcrafted",
    "raylab.models.aura",
)
ENTRY_POINTS = "raylab.models"


@dataclass(frozen=True)
class ModelEntry:
    """One registered model.

    Attributes:
        name: what `model.name` says.
        build: (model section, completed; head → classes) → module.
        task: the task it is made for.
        handcrafted: whether it is a classifier of handcrafted features, which scikit-learn fits: a `FeatureClassifier`.
        encoder: its own timm encoder, or None where the model has no exchangeable encoder.
        weights: without a timm encoder, the address of the published weights it starts from.
        repository: the repository of transformers on the Hugging Face hub that it starts from.
        parts: setting → address of the published weights of another part, which is not trained.
        settings: the fields of `ModelConfig` it honours, besides `name`, `scale` and `encoder`.
        tiny: values for `model.scale=tiny`, in place of the model's own. What has no setting, the model scales itself.
        frames, size: the clip it is documented with.
        batch_size, accumulate: the documented clips of a batch, and batches of an optimiser step: see `batches`.
        documented_parameters: the published size in millions, None where none was published.
        documented_epochs: the published training length.
        source: the paper or document it comes from.
        description: the docstring of the function that builds it.
    """

    name: str
    build: Build
    task: str
    handcrafted: bool
    encoder: str | None
    weights: str | None
    repository: str | None
    parts: Mapping[str, str]
    settings: frozenset[str]
    tiny: Mapping[str, Any]
    frames: int
    size: int
    batch_size: int
    accumulate: int
    documented_parameters: float | None
    documented_epochs: int | None
    source: str
    description: str

    @property
    def lacks(self) -> list[str]:
        """The fields of `ModelConfig` that mean nothing to it."""
        honoured = self.settings | {"name", "scale"} | ({"encoder"} if self.encoder else set())
        return [setting for setting in ModelConfig.model_fields if setting not in honoured]

    def check(self, config: ModelConfig) -> None:
        """Refuse what this model would silently ignore.

        Raises:
            RaylabError: a setting the model does not honour differs from its default.
        """
        for setting in self.lacks:
            field, value = ModelConfig.model_fields[setting], getattr(config, setting)
            if value != field.default:
                raise RaylabError(
                    f"model.{setting} = {json.dumps(value)}: {self.name} has no such part ({field.description}); "
                    f"set model.{setting}={json.dumps(field.default)}"
                )

    def complete(self, config: ModelConfig) -> ModelConfig:
        """`config` with this model's own encoder, and at `scale` tiny with its small values, where it names none."""
        own = {"encoder": self.encoder, **(self.tiny if config.scale == "tiny" else {})}
        return config.model_copy(update={name: value for name, value in own.items() if getattr(config, name) is None})


class Batches(NamedTuple):
    """What one worker puts into an optimiser step: batches of `size` clips, `accumulate` of them."""

    size: int
    accumulate: int


class ParameterCount(NamedTuple):
    """Numbers of parameters."""

    total: int
    trainable: int


_MODELS: dict[str, ModelEntry] = {}


def register(
    *,
    task: str,
    handcrafted: bool = False,
    encoder: str | None = None,
    weights: str | None = None,
    repository: str | None = None,
    parts: Mapping[str, str] | None = None,
    settings: Iterable[str] = (),
    tiny: Mapping[str, Any] | None = None,
    frames: int = 16,
    size: int = 224,
    batch_size: int = 24,
    accumulate: int = 1,
    documented_parameters: float | None = None,
    documented_epochs: int | None = None,
    source: str = "",
) -> Callable[[Build], Build]:
    """Register the decorated function under its own name; the arguments are those of `ModelEntry`.

    It gets the settings under `model.` and head → classes, and returns a module that takes float (B, T, 3, H, W) and
    gives head → logits (B, classes). `mean` and `std` of the module, three numbers each, are what pixels of 0 to 1 are
    normalised with.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(build: Build) -> Build:
        name = build.__name__
        if name in _MODELS:
            raise ValueError(f"a model named {name!r} is already registered by {_MODELS[name].build.__module__}")
        _MODELS[name] = ModelEntry(
            name=name,
            build=build,
            task=task,
            handcrafted=handcrafted,
            encoder=encoder,
            weights=weights,
            repository=repository,
            parts=parts or {},
            settings=frozenset(settings),
            tiny=tiny or {},
            frames=frames,
            size=size,
            batch_size=batch_size,
            accumulate=accumulate,
            documented_parameters=documented_parameters,
            documented_epochs=documented_epochs,
            source=source,
            description=inspect.getdoc(build) or "",
        )
        return build

    return decorate


def find_model(name: str) -> ModelEntry:
    """The model of that name.

    Raises:
        RaylabError: there is none; the message has the nearest name.
    """
    _load()
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    return _MODELS[name]


def list_models(task: str | None = None) -> list[ModelEntry]:
    """All models, or those of one task, in the order of registration."""
    _load()
    return [entry for entry in _MODELS.values() if task in (None, entry.task)]


def batches(experiment: Experiment) -> Batches:
    """As `data.batch_size` and `train.accumulate` say, or else as the model is documented.

    The documented accumulation belongs to the documented batch: with another batch it is 1.

    Raises:
        RaylabError: as `find_model`.
    """
    entry, size = find_model(experiment.model.name), experiment.data.batch_size
    documented = 1 if size else entry.accumulate
    return Batches(size or entry.batch_size, experiment.train.accumulate or documented)


def build_model(
    config: ModelConfig, heads: Mapping[str, int], *, pretrained: bool = True, checkpoint: Path | None = None
) -> nn.Module:
    """The model an experiment names.

    Args:
        config: the model section of an experiment.
        heads: head name → number of classes.
        pretrained: False for random weights, whatever `config.pretrained` says.
        checkpoint: the folder of a checkpoint that will fill every weight: nothing is fetched.

    Raises:
        RaylabError: the name or the encoder is unknown, a setting does not fit the model, or its weights cannot be had.
    """
    entry = find_model(config.name)
    entry.check(config)
    complete = entry.complete(config)
    if checkpoint or not pretrained:
        complete = complete.model_copy(update=dict.fromkeys(["pretrained", *entry.parts], False))
    if checkpoint and entry.repository:  # it is a folder of transformers itself, and knows its structure
        complete = complete.model_copy(update={"student": str(checkpoint)})
    return entry.build(complete, heads)


def count_parameters(config: ModelConfig, heads: Mapping[str, int]) -> ParameterCount:
    """The size of `build_model(config, heads)`, found without allocating or fetching a weight."""
    import torch

    with torch.device("meta"):
        parameters = list(build_model(config, heads, pretrained=False).parameters())
    return ParameterCount(
        total=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
    )


def count_flops(config: ModelConfig, heads: Mapping[str, int], frames: int, size: int) -> int:
    """`multiply_adds` of `build_model(config, heads)`, found without allocating or fetching a weight."""
    import torch

    from raylab.models.flops import multiply_adds

    with torch.device("meta"):
        model = build_model(config, heads, pretrained=False).eval()
    return multiply_adds(model, frames, size)


@cache
def _load() -> None:
    for module in ZOO:
        import_module(module)
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            raise RaylabError(
                f"the installed package {point.dist.name if point.dist else point.value} offers raylab models in "
                f"{point.value}, which cannot be loaded ({type(error).__name__}: {error}): mend or uninstall it"
            ) from error
