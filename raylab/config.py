"""What an experiment is: validated, frozen data without code.

An `Experiment` names everything that decides a training run. It travels as a plain dict, is written
beside every checkpoint, and is changed by dotted overrides such as `optim.lr=1e-4`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from raylab.errors import RaylabError
from raylab.schema import Count, Fraction, Positive, Probability, Section, UserPath, Weight, unknown_setting, validate


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

    dataset: Literal[
        "epic", "kitchen", "labelled", "kitchen_labelled", "tvsum", "kitchen_keyframes", "metadata", "kitchen_aura"
    ] = Field("epic", description="the layout of the data; kitchen… is built in, and rendered when it is asked for")
    root: UserPath = Field("data/epic-kitchens-100", description="folder with the annotations and the videos")
    annotations: UserPath | None = Field(None, description="folder of the CSV files, when not under root")
    kitchen: Literal["tiny", "small", "medium", "large"] = Field("small", description="size of the built-in data set")
    source: Literal["auto", "videos", "frames"] = Field("auto", description="video files or extracted frames")
    decoder: Literal["pyav", "decord", "torchcodec"] = Field("pyav", description="what reads video files")
    split: Literal["official", "participant", "stratified"] = Field(
        "official",
        description="the published splits; or all clips, no participant (group) in both train and val; or so that "
        "besides every part has its share of each class",
    )
    folds: int = Field(5, ge=2, description="parts of all clips, for data.split=participant or stratified")
    fold: int = Field(0, ge=0, description="the part that is val; of TVSum, which of the five published splits")
    fold_seed: int = Field(0, ge=0, description="draws which clips make up a part; the same for all models")
    frames: Count = Field(16, description="frames sampled from each clip")
    sampling: Literal["uniform", "segments", "rate"] = Field(
        "uniform",
        description="evenly spaced frames; one from each of n equal segments, in training at random; or, for scores of "
        "single frames, at most n from windows that cover the video, fps a second",
    )
    fps: Positive = Field(2.0, description="frames a second, for data.sampling=rate")
    size: int = Field(224, ge=16, description="height and width the model sees, in pixels")
    batch_size: Count | None = Field(
        None, description="clips a worker puts through the model at once; null: the model's own"
    )
    augment: Literal["aggressive", "mild", "none"] = Field("aggressive", description="how training clips are varied")
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
        return self.variants is not None or (self.augment == "none" and self.sampling != "segments")

    def draw(self, epoch: int) -> int:
        """The number of the random draw that an epoch's clips are sampled and augmented with."""
        return epoch % self.variants if self.variants else epoch


class OptimConfig(Section):
    """Optimiser and learning-rate schedule."""

    name: Literal["adamw", "sgd"] = Field("adamw", description="the optimiser")
    lr: Positive = Field(1e-4, description="the learning rate that the schedule begins with, after warmup")
    lr_scale: Positive = Field(
        1.0, description="multiplies every learning rate: for other batches or weights than the rates were chosen with"
    )
    weight_decay: float = Field(1e-4, ge=0, description="decoupled for adamw, an L2 penalty for sgd")
    momentum: Probability = Field(0.9, description="for sgd")
    schedule: Literal["constant", "cosine", "cosine_warm_restarts", "plateau"] = Field(
        "cosine", description="how the rate changes over the run"
    )
    restart_epochs: Count = Field(10, description="length of the first cosine cycle, for warm restarts")
    restart_factor: Count = Field(2, description="each following cycle is this many times longer")
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="plateau: the rate falls to this part")
    plateau_patience: int = Field(3, ge=0, description="plateau: epochs without a better score before it falls")
    warmup: Fraction = Field(0.0, description="share of all steps with a linearly rising rate")
    min_lr: float = Field(0.0, ge=0, description="the rate at the bottom of a cosine, or of a plateau's falls")


class LossConfig(Section):
    """The training objective."""

    label_smoothing: Probability = Field(0.0, description="share of the target that all classes have alike")
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


class KeyframesConfig(Section):
    """What a model of keyframes minimises: a ranking loss (1 − Spearman's ρ of soft ranks) and a squared error."""

    ranking_weight: Weight = Field(1.0, description="of the ranking loss, within each window of data.frames")
    mse_weight: Weight = Field(0.0, description="of the mean squared error, which alone sees the scores' level")
    softness: Positive = Field(0.1, description="scores, of 0 to 1, closer than about this share a rank in part")


class ClassificationConfig(Section):
    """What the figures of one head are about."""

    positive: str | None = Field(
        None,
        description="of two classes the one to be detected, which precision, recall and F1 are of; null: `generated` "
        "where there is such a class, else the second",
    )


class Stage(Section):
    """A stretch of a run with its own rate and its own fixed part: optimiser and schedule begin anew in each."""

    epochs: Count = Field(description="length of the stage")
    lr: Positive = Field(description="in place of optim.lr")
    freeze: Literal["encoder"] | None = Field(None, description="encoder: the whole of it is kept fixed")
    unfreeze_blocks: Count | None = Field(None, description="of the encoder, only its last blocks are trained")
    clip: Positive | None = Field(None, description="largest gradient norm; null for no clipping")

    @model_validator(mode="after")
    def _one_rule(self) -> Stage:
        if self.freeze and self.unfreeze_blocks:
            raise ValueError("freeze and unfreeze_blocks contradict each other: remove one of them")
        return self


class TrainConfig(Section):
    """How long, in which precision, and what is kept."""

    epochs: Count = Field(25, description="passes over the training clips")
    stages: tuple[Stage, ...] = Field(
        (),
        description="one after another, each with its own epochs, lr and clip, in place of train.epochs, optim.lr and "
        "train.clip_norm; one without freeze and unfreeze_blocks trains what model.frozen_blocks says",
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field("fp16", description="of the forward pass; weights stay fp32")
    accumulate: Count | None = Field(
        None,
        description="batches whose gradients make one optimiser step; null: the model's own, or 1 where "
        "data.batch_size is set",
    )
    clip_norm: float | None = Field(1.0, gt=0, description="largest gradient norm; null for no clipping")
    monitor: str | None = Field(None, description="metric that decides which checkpoint is best; null: the task's own")
    mode: Literal["max", "min"] = Field("max", description="whether more or less of it is better")
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better score, with stages those of the last"
    )
    keep_every: int | None = Field(None, ge=1, description="keep also the checkpoint of every so many epochs")
    checkpoint_minutes: Positive = Field(10.0, description="longest time between two checkpoints")
    log_steps: Count = Field(20, description="steps between two readings of the loss")
    sample_clips: int = Field(4, ge=0, description="validation clips that TensorBoard shows with what is said of them")
    max_failures: int = Field(2, ge=0, description="restarts after a lost worker")
    cache: bool | UserPath = Field(
        True, description="folder of what a fixed encoder says of each clip; true: beside the data; false: none"
    )

    @property
    def length(self) -> int:
        """Epochs of the whole run."""
        return sum(stage.epochs for stage in self.stages) or self.epochs


class ResourceConfig(Section):
    """What one training run asks of the cluster."""

    workers: Count = Field(1, description="processes that share one training run (data parallel)")
    gpus_per_worker: float | None = Field(None, ge=0, description="null: one where the cluster has GPUs")
    cpus_per_worker: float | None = Field(None, gt=0, description="null: a GPU's share of its node, else 1")


# The metric that decides which checkpoint of a task is best, unless `train.monitor` names another.
MONITORS = {
    "action": "val/action_top1",
    "distillation": "val/accuracy",
    "keyframes": "val/spearman_mean",
    "classification": "val/accuracy",
}

# What stages have of their own → what it is called in them.
STAGED = {"train.epochs": "epochs", "optim.lr": "lr", "train.clip_norm": "clip"}


class Experiment(Section):
    """Everything that decides a training run."""

    task: Literal["action", "distillation", "keyframes", "classification"] = Field(
        "action", description="what is learned: model, loss and metrics belong to it"
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    distill: DistillConfig = DistillConfig()
    keyframes: KeyframesConfig = KeyframesConfig()
    classification: ClassificationConfig = ClassificationConfig()
    train: TrainConfig = TrainConfig()
    resources: ResourceConfig = ResourceConfig()
    seed: int = Field(0, ge=0, description="of weights, order, augmentation and dropout")

    @property
    def monitor(self) -> str:
        """The metric that decides which checkpoint is best; `train.mode` says in which direction."""
        return self.train.monitor or MONITORS[self.task]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run: those of `train.stages`, or the one that all of it is."""
        train = self.train
        return train.stages or (Stage(epochs=train.epochs, lr=self.optim.lr, clip=train.clip_norm),)

    @classmethod
    def parse(cls, data: Mapping[str, Any], origin: str = "experiment") -> Experiment:
        """Validate a nested dict.

        Args:
            data: nested settings.
            origin: where they stand (a file, "the command line"), named in the error.

        Raises:
            RaylabError: a key is unknown, a value is refused, or stages stand beside what they replace.
        """
        experiment = validate(cls, data, origin)
        if experiment.train.stages:
            for path, own in STAGED.items():
                section, name = path.split(".")
                if name in data.get(section, {}):
                    raise RaylabError(
                        f"{origin}: {path}: every stage of train.stages has its own {own}: remove {path}, and set "
                        f"train.stages.0.{own} and so on, or train.stages=[]"
                    )
        return experiment

    def override(self, changes: Mapping[str, Any], origin: str = "the command line") -> Experiment:
        """A copy with dotted settings replaced, e.g. `{"optim.lr": 1e-4, "train.stages.0.epochs": 5}`.

        Raises:
            RaylabError: a path does not exist or a value is refused.
        """
        data = self.to_dict()
        if changes.get("train.stages"):
            _without_staged(data)
        for path, value in changes.items():
            section: Any = data
            *parents, leaf = path.split(".")
            for parent in parents:
                section = _inner(section, parent)
            if not isinstance(section, dict):
                raise unknown_setting(type(self), path, origin)
            section[leaf] = value
        return self.parse(data, origin)

    def has(self, path: str) -> bool:
        """Whether there is a value at a dotted path."""
        try:
            self.get(path)
        except (LookupError, AttributeError, TypeError, ValueError):
            return False
        return True

    def get(self, path: str) -> Any:
        """The value at a dotted path; `has` says whether there is one."""
        value: Any = self
        for part in path.split("."):
            if isinstance(value, Section):
                value = getattr(value, part)
            else:
                value = value[int(part) if isinstance(value, tuple) else part]
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of JSON types, without what stages replace."""
        data = self.model_dump(mode="json")
        return _without_staged(data) if self.train.stages else data


def _without_staged(data: dict[str, Any]) -> dict[str, Any]:
    for path in STAGED:
        section, name = path.split(".")
        data[section].pop(name, None)
    return data


def _inner(section: Any, name: str) -> Any:
    """What stands under a name, or as a number in a list; None where there is nothing."""
    if isinstance(section, list):
        return section[int(name)] if name.isdecimal() and int(name) < len(section) else None
    return section.get(name) if isinstance(section, dict) else None
