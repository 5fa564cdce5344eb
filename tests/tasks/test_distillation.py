"""The task of distillation: its terms, who is trained and who is not, and what sources are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchmetrics.classification import MulticlassAccuracy
from transformers import VideoMAEImageProcessor

from raylab.config import Experiment
from raylab.errors import RaylabError
from raylab.models.distillation import structure
from raylab.models.videomae import load_network, network
from raylab.preflight import check_task
from raylab.tasks import build_task
from raylab.tasks.distances import asymmetric_distance, attention_distance, feature_distance, logit_distance
from raylab.tasks.distillation import DistillationTask, LabelAccuracy

NAMES = ["left", "right", "up"]
FEATURE, ATTENTION, ASYMMETRIC, LOGIT = (
    f"distill.{term}_distillation_weight" for term in ("feature", "attention", "asymmetric", "logit")
)
CLIPS = {"train": 16, "val": 16}
Build = Callable[..., DistillationTask]


@pytest.fixture
def build(small_student: Experiment) -> Build:
    """Makes the task with settings changed."""

    def make(changes: Mapping[str, Any] | None = None, names: Sequence[str] = NAMES) -> DistillationTask:
        torch.manual_seed(0)
        task = build_task(small_student.override(changes or {}), {"label": names})
        assert isinstance(task, DistillationTask)
        return task

    return make


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(2, 4, 3, 32, 32, generator=generator)
    return {"video": video, "labels": {"label": torch.tensor([2, 0])}, "ids": ["a", "b"]}


def save_network(folder: Path, names: Sequence[str] = NAMES, size: str = "base", **changes: Any) -> str:
    """A folder of transformers with a network trained for these classes."""
    torch.manual_seed(1)
    config = structure(size, "tiny")
    config.update(changes)
    model = network(config, len(names))
    nn.init.normal_(model.classifier.weight)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(folder)
    return str(folder)


def teacher(path: str) -> dict[str, Any]:
    return {"distill.pretrained": True, "distill.teacher": path, "distill.assistant": None}


def terms(task: DistillationTask) -> list[str]:
    return [name.removesuffix("_loss") for name in task.loss_names]


# Terms and their weights.


def test_the_loss_is_the_weighted_sum_of_its_terms(build: Build, tmp_path: Path) -> None:
    weights = {
        "distill.classification_weight": 0.7,
        FEATURE: 1.3,
        ATTENTION: 0.4,
        ASYMMETRIC: 2.0,
        LOGIT: 0.3,
        "distill.teacher_feature_weight": 0.9,
        "distill.assistant_feature_weight": 0.6,
        "distill.temperature": 3.0,
        "distill.assistant_model_path": save_network(tmp_path / "assistant", ["x", "y"], "small"),
        "loss.label_smoothing": 0.1,
    }
    task = build({**teacher(save_network(tmp_path / "teacher")), **weights})
    given = batch()
    output = task(given)
    student, said = task.trained(given["video"]), task.ask(given)
    read = student["read"]
    sources = {
        name: [
            {layer: said[f"{name}/{kind}/{layer + 5}"] for layer in (-1, -2, -3)}
            for kind in ("hidden", "attention")
        ]
        for name in ("teacher", "assistant")
    }  # fmt: skip
    (t, t_maps), (a, a_maps) = sources.values()
    expected = {
        "classification": F.cross_entropy(student["logits"], given["labels"]["label"], label_smoothing=0.1),
        "feature": 0.9 * feature_distance(read["teacher"], t) + 0.6 * feature_distance(read["assistant"], a),
        "attention": 0.9 * attention_distance(student["attention"], t_maps)
        + 0.6 * attention_distance(student["attention"], a_maps),
        "asymmetric": asymmetric_distance(read["teacher"], read["assistant"], t, a),
        "logit": 0.9 * logit_distance(student["logits"], said["teacher/logits"], 3.0),
    }
    assert terms(task) == list(expected)
    for term, value in expected.items():
        assert value > 0, term
        torch.testing.assert_close(output.losses[f"{term}_loss"], value.detach())
        assert not output.losses[f"{term}_loss"].requires_grad
    total = sum(weight * output.losses[f"{term}_loss"] for term, weight in task.weights.items())
    torch.testing.assert_close(output.loss.detach(), total)
    assert list(task.weights.values()) == [0.7, 1.3, 0.4, 2.0, 0.3]
    assert torch.equal(output.predictions["label"], student["logits"])


class Attention(TorchFunctionMode):
    """Counts the layers that go through the fast attention kernel, and those whose maps are made."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = self.maps = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fast += function is F.scaled_dot_product_attention
        self.maps += function is torch.Tensor.softmax
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("changes", "found", "parts", "projected", "maps"),
    [
        # Student and assistant are 64 wide, the teacher 128; each has four layers, of which three are compared.
        ({}, "classification feature attention asymmetric", "hidden attention", "teacher assistant", 9),
        ({ATTENTION: 0}, "classification feature asymmetric", "hidden", "teacher assistant", 0),
        ({ASYMMETRIC: 0}, "classification feature attention", "hidden attention", "teacher", 9),
        ({FEATURE: 0}, "classification attention asymmetric", "hidden attention", "teacher assistant", 9),
        ({FEATURE: 0, ASYMMETRIC: 0}, "classification attention", "attention", "", 9),
        ({FEATURE: 0, ATTENTION: 0}, "classification asymmetric", "hidden", "teacher assistant", 0),
        ({"distill.classification_weight": 0}, "feature attention asymmetric", "hidden attention",
         "teacher assistant", 9),
        ({"distill.hidden_layers_to_align": "-1"}, "classification feature attention asymmetric", "hidden attention",
         "teacher assistant", 3),
        ({ATTENTION: 0, ASYMMETRIC: 0, "model.name": "videomae_base", "distill.assistant": "vit_b"},
         "classification feature", "hidden", "", 0),
        ({ATTENTION: 0, "model.name": "videomae_base", "distill.assistant": "vit_b"},
         "classification feature asymmetric", "hidden", "assistant", 0),
        ({"distill.assistant": None}, "classification feature attention", "hidden attention", "teacher", 6),
        ({"distill.assistant_feature_weight": 0}, "classification feature attention", "hidden attention", "teacher", 6),
        ({"distill.teacher": None}, "classification feature attention", "hidden attention", "", 6),
        ({"distill.teacher": None, "distill.assistant": None}, "classification", "", "", 0),
        ({FEATURE: 0, ATTENTION: 0, ASYMMETRIC: 0, LOGIT: 0}, "classification", "", "", 0),
        # There is nothing to ask: nobody knows the classes, or the asymmetric term lacks one of its two sources.
        ({FEATURE: 0, ATTENTION: 0, ASYMMETRIC: 0}, "classification", "", "", 0),
        ({FEATURE: 0, ATTENTION: 0, "distill.assistant": None}, "classification", "", "", 0),
    ],
    ids=str,
)  # fmt: skip
def test_there_is_what_the_weights_ask_for_and_nothing_else(
    build: Build, changes: dict[str, Any], found: str, parts: str, projected: str, maps: int
) -> None:
    task = build(changes)
    assert terms(task) == found.split()
    for source in task.sources.values():
        assert {part.partition("/")[0] for part in source.parts} == set(parts.split())
    assert bool(task.sources) == bool(parts)
    assert list(task.trained.projections) == projected.split()
    assert task.auxiliary is (task.trained.projections if projected else None)
    task.train()
    with Attention() as attention:
        output = task(batch())
    assert (attention.fast, attention.maps) == (4 * (1 + len(task.sources)), maps)
    assert list(output.losses) == task.loss_names
    output.loss.backward()  # everything that is trained has a gradient
    assert [name for name, parameter in task.trained.named_parameters() if parameter.grad is None] == []


def test_projections_lead_from_the_students_width_to_the_sources(build: Build) -> None:
    projections = build().trained.projections
    for name, width in (("teacher", 128), ("assistant", 64)):
        assert {n: (p.in_features, p.out_features) for n, p in projections[name].items()} == dict.fromkeys(
            ("-1", "-2", "-3"), (64, width)
        )


def test_a_loss_without_terms_is_refused(build: Build, tmp_path: Path) -> None:
    nothing = dict.fromkeys(["distill.classification_weight", FEATURE, ATTENTION, ASYMMETRIC], 0)
    for logit in (0, 1):  # there are no classes that the random networks know
        with pytest.raises(RaylabError, match="every weight is 0: nothing is left to learn from"):
            build({**nothing, LOGIT: logit})
    assert terms(build({**nothing, **teacher(save_network(tmp_path / "teacher"))})) == ["logit"]


def test_the_same_layer_by_two_numbers_counts_twice(build: Build) -> None:
    twice, once = ({"distill.hidden_layers_to_align": layers} for layers in ("-1,4", "-1"))
    task, plain = (build({**layers, ASYMMETRIC: 0, ATTENTION: 0}) for layers in (twice, once))
    with torch.no_grad():
        for layer in ("-1", "4"):
            task.trained.projections["teacher"][layer].load_state_dict(
                plain.trained.projections["teacher"]["-1"].state_dict()
            )
    task.model.load_state_dict(plain.model.state_dict())
    found, expected = task(batch()), plain(batch())
    torch.testing.assert_close(found.losses["feature_loss"], expected.losses["feature_loss"])
    found.loss.backward()
    gradients = [task.trained.projections["teacher"][layer].weight.grad for layer in ("-1", "4")]
    torch.testing.assert_close(*gradients)


def test_sources_of_other_depths_are_compared_by_number(build: Build, tmp_path: Path) -> None:
    shallow = save_network(tmp_path / "assistant", ["x"], "small", num_hidden_layers=2)
    settings = {"distill.pretrained": True, "distill.teacher": save_network(tmp_path / "teacher", ["x"])}
    task = build({**settings, "distill.assistant_model_path": shallow, "distill.hidden_layers_to_align": "-1,2"})
    said = task.ask(batch())
    assert {"teacher/hidden/4", "teacher/hidden/2", "assistant/hidden/2"} <= said.keys()
    assert task(batch()).losses.keys() == set(task.loss_names)


# Who is trained.


def test_sources_are_frozen_apart_and_in_evaluation_mode(build: Build) -> None:
    task = build({"model.dropout": 0.5})
    task.train()
    assert task.model.training
    assert not any(module.training for module in task.frozen.modules() if module is not task.frozen)
    assert not any(parameter.requires_grad for parameter in task.frozen.parameters())
    trained = {id(parameter) for parameter in task.trained.parameters()}
    assert trained.isdisjoint(id(parameter) for parameter in task.frozen.parameters())
    before = [parameter.clone() for parameter in task.frozen.parameters()]
    optimizer = torch.optim.AdamW(task.trained.parameters(), lr=0.1)
    first = task.ask(batch())
    task(batch()).loss.backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in task.frozen.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, task.frozen.parameters(), strict=True))
    second = task.ask(batch())
    assert all(torch.equal(first[part], second[part]) for part in first)


def test_random_sources_are_the_same_whatever_the_seed(build: Build) -> None:
    one, other = build(), build({"seed": 7, "model.dropout": 0.5})
    assert one.sources.keys() == {"teacher", "assistant"}
    for name, source in one.sources.items():
        assert source.signature() == other.sources[name].signature()
    assert len({source.signature() for source in one.sources.values()}) == 2


# What sources say.


@pytest.mark.parametrize("names", [["up", "left", "right"], ["right", "up", "left"], NAMES], ids="-".join)
def test_logits_of_a_source_are_compared_class_by_class(build: Build, tmp_path: Path, names: list[str]) -> None:
    path = save_network(tmp_path / "teacher", names)
    task, given = build(teacher(path)), batch()
    with torch.no_grad():
        own = load_network(Path(path))(given["video"])["label"]
    torch.testing.assert_close(task.ask(given)["teacher/logits"], own)
    by_name = torch.stack([own[:, names.index(name)] for name in NAMES], 1)
    expected = logit_distance(task.model(given["video"])["label"], by_name, 4.0)
    torch.testing.assert_close(task(given).losses["logit_loss"], expected.detach())


@pytest.mark.parametrize("names", [["left", "right", "down"], ["left", "right"], [*NAMES, "down"]], ids="-".join)
def test_logits_for_other_classes_are_not_learnt_from(build: Build, tmp_path: Path, names: list[str]) -> None:
    task = build(teacher(save_network(tmp_path / "teacher", names)))
    assert terms(task) == ["classification", "feature", "attention"]
    assert "logits" not in task.sources["teacher"].parts


def test_a_source_sees_clips_as_it_was_trained_on_them(build: Build, tmp_path: Path) -> None:
    path = save_network(tmp_path / "teacher")
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.5, 0.2]
    VideoMAEImageProcessor(image_mean=mean, image_std=std).save_pretrained(path)
    task, given = build(teacher(path)), batch()
    ours, theirs = (
        [torch.tensor(values).view(3, 1, 1) for values in pair]
        for pair in ((task.model.mean, task.model.std), (mean, std))
    )
    pixels = given["video"] * ours[1] + ours[0]
    with torch.no_grad():
        expected = load_network(Path(path))((pixels - theirs[0]) / theirs[1])["label"]
        otherwise = load_network(Path(path))(given["video"])["label"]
    said = task.ask(given)["teacher/logits"]
    torch.testing.assert_close(said, expected, rtol=1e-3, atol=1e-4)
    assert (said - otherwise).abs().max() > 0.01


# Preflight.


@pytest.mark.parametrize(
    ("its", "changes", "message"),
    [
        ({"tubelet_size": 1}, {}, r"distill.teacher: sees clips as tokens of 1 frames × 8², the student of 2 × 8²"),
        ({"patch_size": 16}, {}, r"distill.teacher: sees clips as tokens of 2 frames × 16²"),
        ({"num_hidden_layers": 2}, {}, r"layer -3: teacher and student have 2 and 4: name layers that both have"),
        ({}, {"distill.hidden_layers_to_align": "1,5"}, r"layer 5: teacher and student have 4 and 4"),
        ({}, {"loss.weights": {"label": 2.0}}, r"loss.weights: there is one head: set distill.classification_weight"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_a_run(
    small_student: Experiment, tmp_path: Path, its: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    path = save_network(tmp_path / "teacher", **its)
    with pytest.raises(RaylabError, match=message):
        check_task(small_student.override({**teacher(path), **changes}), CLIPS)


def test_a_network_that_fits_is_named(small_student: Experiment, tmp_path: Path) -> None:
    path = save_network(tmp_path / "teacher", num_hidden_layers=2)
    fitting = small_student.override({**teacher(path), "distill.hidden_layers_to_align": "-1,2"})
    assert check_task(fitting, CLIPS) == [f"teacher: {path}"]
    alone = small_student.override({"distill.teacher": None, "distill.assistant": None})
    assert check_task(alone, CLIPS) == []


@pytest.mark.parametrize(
    ("changes", "clips"), [({"data.augment": "none"}, 3 + 2), ({"data.variants": 4}, 4 * 3 + 2), ({}, 2)], ids=str
)
def test_what_is_kept_must_have_room(
    small_student: Experiment, tmp_path: Path, changes: dict[str, Any], clips: int
) -> None:
    experiment = small_student.override({"distill.cache": str(tmp_path / "kept"), ATTENTION: 0, **changes})
    tokens, layers, widths, thousands = 2 * 4 * 4, 3, 128 + 64, 5000
    size = f"{clips * thousands * tokens * layers * widths * 2 / 1e9:,.1f} GB"
    assert check_task(experiment, {"train": 3 * thousands, "val": 2 * thousands}) == [
        "teacher: random weights",
        "assistant: random weights",
        f"their outputs are kept in {tmp_path / 'kept'}, up to {size}",
    ]
    with pytest.raises(RaylabError, match=r"distill.cache: what .* say of 5,000,000,000,000 clips takes up to .* GB;"):
        check_task(experiment, {"train": 3 * 10**12, "val": 2 * 10**12})
    assert not any("kept" in line for line in check_task(experiment.override({"distill.cache": False}), CLIPS))


def test_weights_of_distillation_mean_nothing_to_another_task(small_experiment: Experiment) -> None:
    assert check_task(small_experiment, CLIPS) == []
    with pytest.raises(RaylabError, match="distill: means nothing to the task action: set task=distillation"):
        check_task(small_experiment.override({FEATURE: 0.5}), CLIPS)


# Accuracy.


@pytest.mark.parametrize("clips", [[40, 60], [100]], ids=str)
def test_accuracies_are_those_of_torchmetrics(clips: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = LabelAccuracy("label", 7)
    theirs = {
        "accuracy": MulticlassAccuracy(7, average="micro"),
        "class_accuracy": MulticlassAccuracy(7, average="macro"),
    }
    for count in clips:
        logits = torch.randn(count, 7, generator=generator)
        labels = torch.randint(0, 7, (count,), generator=generator)
        logits[torch.arange(count), labels] += 0.5 * labels  # later classes are easier
        ours.update({"label": logits}, {"label": labels})
        for metric in theirs.values():
            metric.update(logits, labels)
    found = ours.compute()
    assert list(found) == ours.names
    assert found["accuracy"] != found["class_accuracy"]
    for name, metric in theirs.items():
        torch.testing.assert_close(found[name], metric.compute())


def test_classes_without_clips_do_not_count() -> None:
    metric = LabelAccuracy("label", 5)
    predicted, labels = F.one_hot(torch.tensor([0, 1, 3, 3])).float(), torch.tensor([0, 0, 0, 3])
    metric.update({"label": predicted}, {"label": labels})
    assert metric.compute() == {"accuracy": pytest.approx(1 / 2), "class_accuracy": pytest.approx((1 / 3 + 1) / 2)}
