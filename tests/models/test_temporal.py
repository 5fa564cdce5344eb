"""Temporal models, by what they do to features."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from raylab.errors import RaylabError
from raylab.models.temporal import AveragePool, TemporalGRU, TemporalLSTM, TemporalTransformer, sinusoids


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_average_is_the_mean_over_frames() -> None:
    features = torch.randn(2, 5, 6)
    assert AveragePool(6).width == 6
    torch.testing.assert_close(AveragePool(6)(features), sum(features.unbind(1)) / 5)


RECURRENT = [(TemporalLSTM, "lstm"), (TemporalGRU, "gru")]


@pytest.mark.parametrize(("kind", "part"), RECURRENT)
def test_recurrent_models_give_the_last_state_of_the_last_layer(kind: type[TemporalLSTM], part: str) -> None:
    model, features = kind(6, hidden=8, layers=2), torch.randn(2, 5, 6)
    outputs, _ = model.get_submodule(part)(features)
    assert torch.equal(model(features), outputs[:, -1])
    prefix = model(features[:, :3])
    torch.testing.assert_close(outputs[:, 2], prefix)


@pytest.mark.parametrize(("kind", "part"), RECURRENT)
def test_one_recurrent_layer_has_nothing_to_drop_between(
    kind: type[TemporalLSTM], part: str, recwarn: pytest.WarningsRecorder
) -> None:
    model = kind(6, hidden=8, layers=1, dropout=0.5).train()
    features = torch.randn(2, 5, 6)
    assert torch.equal(model(features), model(features))
    assert model.get_submodule(part).dropout == 0
    assert not recwarn.list


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(50, 16)
    assert table.shape == (50, 16)
    for position, pair in [(0, 0), (1, 0), (7, 3), (49, 7)]:
        angle = position / 10000 ** (2 * pair / 16)
        assert table[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[position, 8 + pair].item() == pytest.approx(math.cos(angle), abs=1e-5)
    assert torch.equal(sinusoids(10, 16), table[:10])


def test_transformer_without_dropout_is_the_same_in_training() -> None:
    model, features = TemporalTransformer(6, width=16, layers=2, dim_feedforward=32), torch.randn(2, 5, 6)
    assert torch.equal(model.train()(features), model.eval()(features))


@pytest.mark.parametrize("setting", ["dropout", "drop_path"])
def test_transformer_drops_in_training_only(setting: str) -> None:
    model = TemporalTransformer(6, width=16, layers=2, dim_feedforward=32, **{setting: 0.5})
    features = torch.randn(1, 5, 6).expand(64, -1, -1)  # the same clip 64 times
    assert model.train()(features).std(0).max() > 1e-3
    assert model.eval()(features).std(0).max() < 1e-5


def test_drop_path_drops_whole_branches_of_single_clips() -> None:
    model = TemporalTransformer(6, width=16, layers=2, dim_feedforward=32, drop_path=0.5).train()
    outputs = model(torch.randn(1, 5, 6).expand(256, -1, -1))
    # The last layer alone drops: attention and feed-forward, each kept or not, leave four possible outputs.
    assert len(outputs.detach().round(decimals=4).unique(dim=0)) == 4


def test_drop_path_rises_linearly() -> None:
    model = TemporalTransformer(6, width=16, layers=5, dim_feedforward=32, drop_path=0.2)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_dropout_is_everywhere() -> None:
    model = TemporalTransformer(6, width=16, layers=2, dim_feedforward=32, dropout=0.3)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.3}
    assert len([module for module in model.modules() if isinstance(module, nn.Dropout)]) == 1 + 2 * 4


@pytest.mark.parametrize("dim_feedforward", [1, 31, 33, 100, 1000, 2048])
@pytest.mark.parametrize("width", [24, 56, 488])
def test_the_feed_forward_width_is_exact(width: int, dim_feedforward: int) -> None:
    with torch.device("meta"):
        model = TemporalTransformer(6, width=width, layers=1, dim_feedforward=dim_feedforward)
    assert model.blocks[0].mlp.fc1.out_features == dim_feedforward


@pytest.mark.parametrize(("width", "heads"), [(100, 8), (15, 5)])
def test_a_width_that_heads_cannot_share_is_refused(width: int, heads: int) -> None:
    with pytest.raises(RaylabError, match=rf"model\.temporal_width = {width}: .*{heads} heads"):
        TemporalTransformer(6, width=width, heads=heads)
