"""What models say of clips: views, ensembles, bounds, and the same bits for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raylab.data.augment import ClipTransform
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.evaluation.predictions import FLOOR, Predictions, Views, average, bound, predict
from raylab.models.registry import build_model


@pytest.mark.parametrize("text", ["3", "5x", "x3", "0x1", "1x0", "-1x3", "axb", "1x2x3", ""])
def test_views_are_clips_x_crops(text: str) -> None:
    assert Views.parse("5x3") == (5, 3)
    with pytest.raises(RaylabError, match="write clips x crops"):
        Views.parse(text)


def test_clips_of_a_view_are_interleaved_and_crops_apart() -> None:
    crops, frames, clips = 3, 4, 2
    numbers = torch.arange(crops * frames * clips).float()
    video = numbers.reshape(1, -1, 1, 1, 1).expand(2, -1, 3, 2, 2)
    divided = Views(clips, crops).divide(video)
    assert divided.shape == (2, 6, 4, 3, 2, 2)
    assert divided[0, :, :, 0, 0, 0].tolist() == [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
        [8, 10, 12, 14],
        [9, 11, 13, 15],
        [16, 18, 20, 22],
        [17, 19, 21, 23],
    ]


class Constant(nn.Module):
    """Says the same of every clip."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.mean, self.std = (0.0,) * 3, (1.0,) * 3

    def forward(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"verb": self.logits.expand(len(video), -1)}


@pytest.fixture(scope="module")
def experiment(small_experiment):
    return small_experiment.override({"data.max_clips": 13, "data.batch_size": 3})


def test_log_probabilities_are_bounded_in_their_order() -> None:
    values = np.array([0.0, -1e-9, -3.5, -19.9, -20.0, -20.1, -25.0, -100.0, -101.0, -1500.0, -1501.0, -np.inf])
    found = bound(values)
    assert np.array_equal(found[:5], values[:5].astype(np.float32))
    assert (np.diff(found[1:]) < 0).all()
    assert found[-1] == FLOOR
    assert found[5] == pytest.approx(-20.1, abs=0.002)  # no kink


def test_wide_logits_stay_bounded_and_keep_their_order(experiment) -> None:
    data = load_dataset(experiment.data, ("val",))
    ((_, first), *rest) = predict(Constant([500.0, -500.0, 0.0, 499.0]), experiment, data, "val")
    assert len(rest) == 4
    values = first.values["verb"][0]
    assert values.dtype == np.float32
    assert values.min() > FLOOR
    assert np.argsort(-values).tolist() == [0, 3, 2, 1]
    assert np.exp(values.astype(float)).sum() == pytest.approx(1, abs=1e-6)


def test_any_number_of_ranks_gives_the_same_bits(experiment) -> None:
    torch.manual_seed(0)
    data = load_dataset(experiment.data, ("val",))
    model = build_model(experiment.model, data.heads).eval()
    whole = Predictions.join(predict(model, experiment, data, "val"))
    clips = ClipDataset.of(data, "val", experiment.data)
    assert whole.ids == [clips.clip(index).id for index in range(13)]
    for ranks in (2, 3, 7):
        parts = [
            part
            for rank in reversed(range(ranks))
            for part in predict(model, experiment, data, "val", share=(rank, ranks))
        ]
        shared = Predictions.join(parts)
        assert shared.ids == whole.ids
        for head, values in whole.values.items():
            assert np.array_equal(shared.values[head], values)


def test_views_are_averaged_as_probabilities(experiment) -> None:
    torch.manual_seed(0)
    views = Views(2, 3)
    data = load_dataset(views.reading(experiment.data), ("val",), views.crops)
    model = build_model(experiment.model, data.heads).eval()
    found = Predictions.join(predict(model, experiment, data, "val", views))
    clips = ClipDataset.of(data, "val", views.reading(experiment.data), crops=3)
    transform = ClipTransform.for_model(model, experiment.data, train=False, seed=0)
    video = transform(clips[0]["video"][None], ["x"], 0)[0].reshape(3, 4, 2, 3, 32, 32)
    with torch.no_grad():
        each = [
            model(video[crop, :, clip][None])["noun"].double().softmax(1)[0] for crop in range(3) for clip in range(2)
        ]
    mean = torch.stack(each).mean(0).log().numpy()
    np.testing.assert_allclose(found.values["noun"][0], mean, rtol=1e-4)


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    one, other = (Predictions(["a"], {"verb": np.log(np.array([row], np.float32))}) for row in ([0.8, 0.2], [0.4, 0.6]))
    together = average([one, other])
    np.testing.assert_allclose(np.exp(together.values["verb"]), [[0.6, 0.4]], rtol=1e-6)
    with pytest.raises(RaylabError, match="different clips"):
        average([one, Predictions(["b"], one.values)])
    with pytest.raises(RaylabError, match="different heads"):
        average([one, Predictions(["a"], {"verb": np.zeros((1, 3), np.float32)})])
