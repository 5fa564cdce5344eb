"""What an experiment is: validated, frozen data without code.

An `Experiment` names everything that decides a training run. It travels as a plain dict, is written
beside every checkpoint, and is changed by dotted overrides such as `optim.lr=1e-4`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from raylab.errors import RaylabError

Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _expand(path: str) -> str:
    expanded = os.path.expandvars(path)
    if "$" in expanded:
        raise ValueError(f"the environment variable in {path!r} is not set")
    return str(Path(expanded).expanduser()) if expanded.startswith("~") else expanded


UserPath = Annotated[str, AfterValidator(_expand)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ModelConfig(Section):
    """Which model, and how it is regularised."""

    name: str = Field("resnet50_transformer", description="a registered model")
    scale: Literal["full", "tiny"] = Field("full", description="tiny: the same structure, small enough for demos")
    encoder: str | None = Field(None, description="any timm encoder, in place of the model's own")
    student: UserPath | None = Field(
        None,
        description="any VideoMAE, in place of the model's own: OWNER/NAME on the Hugging Face hub, a folder of "
        "transformers, or a checkpoint of the original code",
    )
    pretrained: bool | UserPath = Field(
        True, description="published weights: true, false, a weight file, or a hub repository as hf-hub:OWNER/NAME"
    )
    flow_weights: bool | UserPath = Field(True, description="weights of the optical flow: true, false, or a file")
    dropout: Probability = Field(0.3, description="dropout in the temporal model and before the heads")
    drop_path: Probability = Field(0.0, description="stochastic depth in the temporal Transformer")
    frozen_blocks: int | None = Field(None, ge=0, description="encoder blocks kept fixed, after the stem")
    dim_feedforward: int | None = Field(
        None, ge=1, description="width of the Transformer's feed-forward layers, in place of the model's own"
    )
    temporal_layers: int | None = Field(None, ge=1, description="temporal layers, in place of the model's own")
    temporal_width: int | None = Field(None, ge=8, description="temporal width, in place of the model's own")


class DataConfig(Section):
    """Where the clips come from and how they become batches."""

    dataset: Literal["epic", "kitchen", "labelled", "kitchen_labelled", "metadata", "kitchen_aura"] = "epic"
    root: UserPath = Field("data/epic-kitchens-100", description="folder with the annotations and the videos")
    annotations: UserPath | None = Field(None, description="folder of the CSV files, when not under root")
    kitchen: Literal["tiny", "small", "medium", "large"] = Field("small", description="size of the built-in data set")
    source: Literal["auto", "videos", "frames"] = Field("auto", description="video files or extracted frames")
    decoder: Literal["pyav", "decord", "torchcodec"] = "pyav"
    split: Literal["official", "participant", "stratified"] = Field(
        "official",
        description="the published splits; or all clips, no participant (group) in both train and val; or so that "
        "besides every part has its share of each class",
    )
    folds: int = Field(5, ge=2, description="parts of all clips, for data.split=participant or stratified")
    fold: int = Field(0, ge=0, description="the part that is val")
    fold_seed: int = Field(0, ge=0, description="draws which clips make up a part; the same for all models")
    frames: Count = Field(16, description="frames sampled from each clip")
    sampling: Literal["uniform", "segments"] = Field(
        "uniform", description="evenly spaced frames; or one from each of n equal segments, in training at random"
    )
    size: int = Field(224, ge=16, description="height and width the model sees, in pixels")
    batch_size: Count | None = Field(
        None, description="clips a worker puts through the model at once; null: the model's own"
    )
    augment: Literal["aggressive", "mild", "none"] = "aggressive"
    hflip: Fraction = Field(0.5, description="probability of a horizontal flip; 0 where left and right matter")
    variants: int | None = Field(
        None,
        ge=1,
        description="augmentations and random samplings of each clip, taken in turn; null: new in each epoch",
    )
    loader_workers: int = Field(4, ge=0, description="decoding processes for each training worker")
    max_clips: int | None = Field(None, ge=1, description="use at most this many clips of each split")
    store: bool | UserPath = Field(
        True, description="folder of clip stores; true: beside the data; false: decode video"
    )
    stage: bool | UserPath = Field(True, description="copy a store on shared storage to $TMPDIR, or to this folder")
    jpeg: Literal["cpu", "gpu"] = Field("cpu", description="where a store's JPEG is decoded; gpu: nvJPEG")

    @property
    def side(self) -> int:
        """Height and width of the squares that loaders deliver, in pixels: room to crop `size` from.

        The ratio is that of short side to crop in ImageNet training, 256 to 224.
        """
        return round(self.size * 256 / 224)

    @property
    def repeats(self) -> bool:
        """Whether training meets the same pixels again."""
        return self.variants is not None or (self.augment == "none" and self.sampling == "uniform")

    def draw(self, epoch: int) -> int:
        """The number of the random draw that an epoch's clips are sampled and augmented with."""
        return epoch % self.variants if self.variants else epoch


class OptimConfig(Section):
    """Optimiser and learning-rate schedule."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-4
    weight_decay: float = Field(1e-4, ge=0)
    momentum: Probability = Field(0.9, description="for sgd")
    schedule: Literal["constant", "cosine", "cosine_warm_restarts", "plateau"] = "cosine"
    restart_epochs: Count = Field(10, description="length of the first cosine cycle, for warm restarts")
    restart_factor: Count = Field(2, description="each following cycle is this many times longer")
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="plateau: the rate falls to this part")
    plateau_patience: int = Field(3, ge=0, description="plateau: epochs without a better score before it falls")
    warmup: Fraction = Field(0.0, description="share of all steps with a linearly rising rate")
    min_lr: float = Field(0.0, ge=0, description="the rate at the bottom of a cosine, or of a plateau's falls")


class LossConfig(Section):
    """The training objective."""

    label_smoothing: Probability = 0.0
    weights: dict[str, Weight] = Field(
        default_factory=dict, description="weight of each head's loss; 1 where not named"
    )


def _layers(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    words = [word.strip() for word in text.strip("[] ").split(",")]
    if any(not re.fullmatch(r"-?[1-9][0-9]*", word) for word in words) or len(set(words)) < len(words):
        raise ValueError("write layers, each once: -1 is the last, 1 the first, e.g. [-1, -2, -3]")
    return ",".join(words)


class DistillConfig(Section):
    """Whom a student learns from, besides the labels, and how much of what."""

    teacher: UserPath | None = Field(
        "MCG-NJU/videomae-base", description="as model.student; frozen, never trained; null: no teacher"
    )
    assistant: Literal["vit_s", "vit_b"] | None = Field(
        "vit_s", description="published AMD network, fine-tuned on Something-Something V2, frozen; null: no assistant"
    )
    assistant_model_path: UserPath | None = Field(
        None, description="its file, or any VideoMAE as model.student; null: downloaded once, into ssv2_models/"
    )
    pretrained: bool = Field(True, description="false: teacher and assistant with random weights, for demos and tests")
    classification_weight: Weight = Field(1.0, description="of the cross-entropy with the labels")
    feature_distillation_weight: Weight = Field(1.0, description="of the distance between hidden states")
    attention_distillation_weight: Weight = Field(0.5, description="of the distance between attention maps")
    asymmetric_distillation_weight: Weight = Field(
        0.1, description="of what the student reads from teacher and assistant more alike than they are"
    )
    logit_distillation_weight: Weight = Field(
        1.0, description="of softened logits, from sources with the data's classes"
    )
    teacher_feature_weight: Weight = Field(1.0, description="the teacher's share in each of these distances")
    assistant_feature_weight: Weight = Field(0.8, description="the assistant's")
    temperature: Positive = Field(4.0, description="divides logits before they are compared")
    hidden_layers_to_align: Annotated[str, BeforeValidator(_layers)] = Field(
        "-1,-2,-3", description="layers compared, index by index: -1 is the last, 1 the first"
    )
    cache: bool | UserPath = Field(
        True, description="folder of what teacher and assistant say of each clip; true: beside the data; false: none"
    )

    @property
    def layers(self) -> tuple[int, ...]:
        """`hidden_layers_to_align` as numbers."""
        return tuple(int(word) for word in self.hidden_layers_to_align.split(","))

    @property
    def sources(self) -> dict[str, float]:
        """`teacher` and `assistant`, those that there are and that weigh something → weight."""
        weighed = {"teacher": self.teacher_feature_weight, "assistant": self.assistant_feature_weight}
        named = {"teacher": self.teacher, "assistant": self.assistant_model_path or self.assistant}
        distances = (
            self.feature_distillation_weight,
            self.attention_distillation_weight,
            self.asymmetric_distillation_weight,
            self.logit_distillation_weight,
        )
        return {name: weight for name, weight in weighed.items() if weight and named[name] and any(distances)}


class ClassificationConfig(Section):
    """What the figures of one head are about."""

    positive: str | None = Field(
        None,
        description="of two classes the one to be detected, which precision, recall and F1 are of; null: `generated` "
        "where there is such a class, else the second",
    )


class TrainConfig(Section):
    """How long, in which precision, and what is kept."""

    epochs: Count = 25
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    accumulate: Count | None = Field(
        None,
        description="batches whose gradients make one optimiser step; null: the model's own, or 1 where "
        "data.batch_size is set",
    )
    clip_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null for no clipping")
    monitor: str | None = Field(None, description="metric that decides which checkpoint is best; null: the task's own")
    mode: Literal["max", "min"] = Field("max", description="whether more or less of it is better")
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without a better score")
    keep_every: int | None = Field(None, ge=1, description="keep also the checkpoint of every so many epochs")
    checkpoint_minutes: Positive = Field(10.0, description="longest time between two checkpoints")
    log_steps: Count = Field(20, description="steps between two readings of the loss")
    max_failures: int = Field(2, ge=0, description="restarts after a lost worker")


class ResourceConfig(Section):
    """What one training run asks of the cluster."""

    workers: Count = Field(1, description="processes that share one training run (data parallel)")
    gpus_per_worker: float | None = Field(None, ge=0, description="null: one where the cluster has GPUs")
    cpus_per_worker: float | None = Field(None, gt=0, description="null: a GPU's share of its node, else 1")


# The metric that decides which checkpoint of a task is best, unless `train.monitor` names another.
MONITORS = {"action": "val/action_top1", "distillation": "val/accuracy", "classification": "val/accuracy"}


class Experiment(Section):
    """Everything that decides a training run."""

    task: Literal["action", "distillation", "classification"] = "action"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    distill: DistillConfig = DistillConfig()
    classification: ClassificationConfig = ClassificationConfig()
    train: TrainConfig = TrainConfig()
    resources: ResourceConfig = ResourceConfig()
    seed: int = Field(0, ge=0)

    @property
    def monitor(self) -> str:
        """The metric that decides which checkpoint is best; `train.mode` says in which direction."""
        return self.train.monitor or MONITORS[self.task]

    @classmethod
    def parse(cls, data: Mapping[str, Any], origin: str = "experiment") -> Experiment:
        """Validate a nested dict.

        Args:
            data: nested settings.
            origin: where they stand (a file, "the command line"), named in the error.

        Raises:
            RaylabError: a key is unknown or a value is refused.
        """
        return validate(cls, data, origin)

    def override(self, changes: Mapping[str, Any], origin: str = "the command line") -> Experiment:
        """A copy with dotted settings replaced, e.g. `{"optim.lr": 1e-4}`.

        Raises:
            RaylabError: a path does not exist or a value is refused.
        """
        data = self.to_dict()
        for path, value in changes.items():
            section = data
            *parents, leaf = path.split(".")
            for parent in parents:
                inner = section.get(parent) if isinstance(section, dict) else None
                if not isinstance(inner, dict):
                    raise _unknown_setting(type(self), path, origin)
                section = inner
            section[leaf] = value
        return self.parse(data, origin)

    def get(self, path: str) -> Any:
        """The value at a dotted path."""
        value: Any = self
        for part in path.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of JSON types."""
        return self.model_dump(mode="json")


S = TypeVar("S", bound=BaseModel)


def validate(schema: type[S], data: Mapping[str, Any], origin: str) -> S:
    """`schema` built from `data`; every problem in one `RaylabError` that names `origin`."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        lines = [_explain(schema, problem) for problem in error.errors()]
    raise RaylabError("\n".join(f"{origin}: {line}" for line in dict.fromkeys(lines)))


def settings(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted path of a schema, in order."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """`["optim.lr=1e-4", …]` → `{"optim.lr": 0.0001, …}`; values are read as YAML.

    Raises:
        RaylabError: a word has no `=`, or its value is not YAML.
    """
    changes: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise RaylabError(f"{word!r} is not an override: write setting=value, e.g. optim.lr=1e-4")
        try:
            changes[path] = _load(text)
        except yaml.YAMLError as error:
            raise RaylabError(f"{word!r}: the value is not valid YAML ({error.__class__.__name__})") from None
    return changes


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dict. Plain data only; a key written twice is an error.

    Raises:
        RaylabError: the file is missing, not YAML, or not a mapping.
    """
    try:
        data = _load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RaylabError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise RaylabError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise RaylabError(f"{path}: expected settings (key: value), found {type(data).__name__}")
    return data


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 5e-5 as a number (as YAML 1.2 does) and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _explain(schema: type[BaseModel], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"] if part in _names(schema) or isinstance(part, int))
    full = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return str(_unknown_setting(schema, full))
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{path or full} = {problem['input']!r}: {message.removeprefix('value error, ')}"


def _names(schema: type[BaseModel]) -> set[str]:
    return {part for path in settings(schema) for part in path.split(".")}


def _unknown_setting(schema: type[BaseModel], path: str, origin: str = "") -> RaylabError:
    known = list(settings(schema))
    leaf = path.rpartition(".")[2]
    near = get_close_matches(path, known, n=1, cutoff=0.6) or [p for p in known if p.rpartition(".")[2] == leaf]
    hint = f"did you mean {near[0]}?" if near else "settings: " + ", ".join(known)
    return RaylabError(f"{origin}: unknown setting {path}: {hint}".removeprefix(": "))
