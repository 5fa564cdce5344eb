"""What models cost: counted, and measured here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import VideoMAEConfig

from raylab.config import ModelConfig
from raylab.evaluate import efficiency
from raylab.evaluation.efficiency import ROUNDS, measure
from raylab.models.registry import build_model, count_flops, count_parameters
from raylab.models.videomae import network
from raylab.results import find_checkpoint

CPU = torch.device("cpu")
HEADS = {"label": 3}


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch a round: what is tested is not the time."""
    monkeypatch.setattr("raylab.evaluation.efficiency.SECONDS", 1e-6)


def resnet() -> tuple[ModelConfig, nn.Module]:
    config = ModelConfig(name="resnet18_avg", scale="tiny", pretrained=False)
    return config, build_model(config, HEADS)


def test_a_model_is_counted_as_the_registry_counts_it() -> None:
    config, model = resnet()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (found,) = measure({"one": model}, 4, 32, 2, CPU, "fp32")
    assert (found.name, found.parameters) == ("one", count_parameters(config, HEADS).total)
    assert found.flops == count_flops(config, HEADS, 4, 32)
    assert found.bytes == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert found.clips_per_second > 0
    assert found.seconds > 0
    assert found.conditions == f"4 × 32², batches of 2, fp32, cpu with {torch.get_num_threads()} threads"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # no batch norm moved
    assert {parameter.device for parameter in model.parameters()} == {CPU}


def test_a_video_transformer_is_counted_as_by_hand_and_left_as_it_was() -> None:
    width, hidden, layers, tokens, patch = 48, 96, 2, 2 * 2 * 2, 3 * 2 * 16 * 16
    size = {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 3}
    model = network(VideoMAEConfig(image_size=32, num_frames=4, num_labels=5, **size)).eval()
    video = torch.rand(1, 4, 3, 32, 32)
    with torch.no_grad():
        before = model(video)["label"]
        (found,) = measure({"one": model}, 4, 32, 2, CPU, "fp32")
        assert torch.equal(model(video)["label"], before)
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    assert found.flops == tokens * patch * width + layers * block + 5 * width


class Watched(nn.Module):
    """Notes what it is given."""

    def __init__(self, name: str, seen: list[tuple[str, tuple[int, ...], torch.dtype, bool]]) -> None:
        super().__init__()
        self.name, self.seen = name, seen
        self.layer = nn.Linear(8, 2, bias=False)

    def forward(self, video: torch.Tensor) -> Mapping[str, torch.Tensor]:
        out = self.layer(video.mean((1, 2, 3)))
        self.seen.append((self.name, tuple(video.shape), out.dtype, out.requires_grad))
        return {"label": out}


def test_models_take_turns_at_whole_batches() -> None:
    seen: list[tuple[str, tuple[int, ...], torch.dtype, bool]] = []
    models = {name: Watched(name, seen) for name in ("student", "teacher")}
    found = measure(models, 4, 8, 5, CPU, "bf16")
    assert [(row.name, row.parameters, row.flops) for row in found] == [("student", 16, 16), ("teacher", 16, 16)]
    assert {batch[2:] for batch in seen} == {(torch.bfloat16, False)}
    shapes = [shape for _, shape, *_ in seen]
    assert shapes == sorted(shapes, reverse=True)  # first whole batches, then one clip alone
    assert set(shapes) == {(5, 4, 3, 8, 8), (1, 4, 3, 8, 8)}
    turns = [name for at, (name, *_) in enumerate(seen) if at == 0 or seen[at - 1][0] != name]
    assert turns == ["student", "teacher"] * (2 * (2 + ROUNDS) + 1)  # warmed up, tried once, timed; last its memory


def test_the_command_measures_a_checkpoint(tmp_path: Path, small_experiment, train_run, cli) -> None:
    experiment = small_experiment.override({"data.max_clips": 8, "train.epochs": 1})
    train_run(tmp_path / "run", experiment)
    figures = tmp_path / "figures.json"
    output = cli("run", "--efficiency", "--json", figures, "--storage", tmp_path)
    (row,) = json.loads(figures.read_text())[0]["efficiency"]
    heads = find_checkpoint("run", tmp_path).heads
    counted = count_parameters(experiment.model, heads).total
    assert (row["name"], row["parameters"]) == (experiment.model.name, counted)
    assert row["flops"] == count_flops(experiment.model, heads, 4, 32)
    assert f"{counted / 1e6:.2f}M" in output
    assert "100.00 %" in output
    assert "4 × 32², batches of 8, fp32, cpu" in output


def test_a_student_beside_those_that_it_learnt_from(tmp_path: Path, small_student, train_run, cli) -> None:
    train_run(tmp_path / "student", small_student)
    student, teacher, assistant = efficiency("student", storage=tmp_path)
    assert [row.name for row in (student, teacher, assistant)] == ["student", "teacher", "assistant"]
    counted = count_parameters(small_student.model, {"label": 8}).total
    assert student.parameters == counted
    assert student.flops == count_flops(small_student.model, {"label": 8}, 4, 32)
    assert assistant.parameters < teacher.parameters
    output = cli("student", "--efficiency", "--storage", tmp_path)
    largest = max(student.parameters, teacher.parameters)
    assert f"{100 * assistant.parameters / largest:.2f} %" in output
