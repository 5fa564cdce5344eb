"""What is refused before a cluster starts, of all that decides whether a network can be built and take a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raylab.config import Experiment
from raylab.errors import RaylabError
from raylab.models import registry
from raylab.preflight import check_structures, preflight
from raylab.storage import Folder

HEADS = {"verb": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.frozen_blocks": 9}, "model.frozen_blocks = 9: test_resnet has 4 blocks; set model.frozen_blocks=4 or"),
        ({"model.temporal_width": 63}, "model.temporal_width = 63"),
        ({"model.encoder": "resnet1"}, "unknown encoder 'resnet1': did you mean"),
        (
            {"model.encoder": "test_vit", "data.size": 40},
            "test_vit takes frames of .160, 160., not .40, 40.: set data.size=160",
        ),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_is_refused(
    tmp_path: Path, small_experiment: Experiment, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RaylabError, match=message):
        preflight(small_experiment.override(changes), Folder.open(tmp_path))
    with pytest.raises(RaylabError, match=message):  # or it is one of a sweep's trials
        preflight(small_experiment, Folder.open(tmp_path), [small_experiment, small_experiment.override(changes)])


def test_a_student_of_other_patches_is_refused(tmp_path: Path, small_student: Experiment) -> None:
    with pytest.raises(
        RaylabError, match=r"data.size = 36: VideoMAE cuts frames into patches of 8²: set a multiple of"
    ):
        preflight(small_student.override({"data.size": 36}), Folder.open(tmp_path))


class Brightest(nn.Module):
    """What it does depends on the numbers, which a network without weights has none of."""

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        return {"verb": video[video.flatten(1).mean(1).argmax().item()]}


@pytest.mark.parametrize(
    ("network", "reason"), [(Brightest, "item"), (lambda: nn.Linear(3, 3), "384, 32"), (nn.Identity, None)]
)
def test_a_network_of_somebody_elses_that_cannot_be_tried_is_named(
    monkeypatch: pytest.MonkeyPatch, small_experiment: Experiment, network: Any, reason: str | None
) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    @registry.register(task="action")
    def theirs(config: Any, heads: Any) -> nn.Module:
        return network()

    experiment = Experiment.parse({**small_experiment.to_dict(), "model": {"name": "theirs"}})
    lines = check_structures([small_experiment, experiment], HEADS)
    assert len(lines) == bool(reason)
    assert all(line.startswith("theirs: not tried with 4 frames of 32 × 32: ") and reason in line for line in lines)
    assert torch.get_default_device().type == "cpu"
