"""What single models promise beyond what all of them do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pytorchvideo.models.r2plus1d import create_r2plus1d
from torch import Tensor
from torchvision.models.optical_flow import raft_small

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.cross_attention import WINDOWS
from raylab.models.registry import build_model, count_parameters
from raylab.models.weights import resolve_weights

HEADS = {"verb": 97, "noun": 300}


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of pytorchvideo's model zoo."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("zoo") / "R2PLUS1D_16x4_R50.pyth"
    model = create_r2plus1d(model_depth=50, dropout_rate=0.5)
    torch.save({"model_state": model.state_dict()}, path)
    return path


def r2plus1d(**settings: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": "r2plus1d_r50", **settings})


def test_r2plus1d_starts_from_kinetics_weights(kinetics: Path) -> None:
    published = create_r2plus1d(model_depth=50, head_pool_kernel_size=(1, 1, 1), head_activation=None).eval()
    published.load_state_dict(torch.load(kinetics, weights_only=True)["model_state"])
    model = build_model(r2plus1d(pretrained=str(kinetics)), HEADS).eval()
    video = torch.randn(1, 4, 3, 32, 32)
    model.heads["verb"].weight.data = published.blocks[-1].proj.weight.data[:97]
    model.heads["verb"].bias.data = published.blocks[-1].proj.bias.data[:97]
    with torch.no_grad():
        expected = published(video.transpose(1, 2))[:, :97]
        torch.testing.assert_close(model(video)["verb"], expected, rtol=1e-4, atol=1e-5)


def test_r2plus1d_normalises_as_its_weights_were_trained() -> None:
    model = build_model(r2plus1d(pretrained=False, scale="tiny"), HEADS)
    assert (model.mean, model.std) == ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


def test_r2plus1d_freezes_its_stem_and_stages() -> None:
    def trainable(blocks: int) -> int:
        return count_parameters(r2plus1d(pretrained=False, scale="tiny", frozen_blocks=blocks), HEADS).trainable

    assert trainable(0) > trainable(1) > trainable(4) > 0
    with pytest.raises(RaylabError, match=r"r2plus1d_r50 has 4 blocks; set model.frozen_blocks=4 or less"):
        trainable(5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"model_state": {"blocks.0.conv.weight": torch.zeros(1)}}, tmp_path / "other.pyth")
    with pytest.raises(RaylabError, match=r"other\.pyth: not the weights of pytorchvideo's r2plus1d_r50"):
        build_model(r2plus1d(pretrained=str(tmp_path / "other.pyth")), HEADS)


def test_published_weights_come_from_the_cache_or_the_internet(
    kinetics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")  # where nobody listens
    cache = tmp_path / "hub" / "checkpoints"
    with pytest.raises(RaylabError, match=r"published weights, https://.*, are not in the cache") as error:
        resolve_weights(r2plus1d())
    assert str(cache) in str(error.value)
    assert "model.pretrained=false" in str(error.value)
    cache.mkdir(parents=True)
    (cache / kinetics.name).write_bytes(kinetics.read_bytes())
    assert resolve_weights(r2plus1d()) == cache / kinetics.name
    assert resolve_weights(r2plus1d(pretrained=False)) is None


def attention(**settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = {"name": "cross_attention", "scale": "tiny", "pretrained": False, **settings}
    return build_model(ModelConfig.model_validate(config), HEADS).eval()


def gradient(model: torch.nn.Module, features: Tensor, frame: int) -> Tensor:
    """How much each frame's features bear on one frame's tokens."""
    features.requires_grad_()
    model.scales(features)[0, frame].square().sum().backward()
    return features.grad[0].abs().sum(1)


def test_each_scale_sees_its_window_and_no_more() -> None:
    model = attention()
    frames = torch.randn(1, 20, model.encoder.width)
    seen = gradient(model, frames, frame=1)
    assert (seen[:16] > 0).all()  # the widest window
    assert (seen[16:] == 0).all()
    for block, window in zip(model.scales.blocks, WINDOWS, strict=True):
        narrow = attention()
        for other, size in zip(narrow.scales.blocks, WINDOWS, strict=True):
            if size != window:  # silence the other scales
                for part in (other.attn.proj, other.mlp.fc2):
                    torch.nn.init.zeros_(part.weight)
                    torch.nn.init.zeros_(part.bias)
        assert block.attn.num_heads == 8
        seen = gradient(narrow, torch.randn(1, 20, model.encoder.width), frame=1)
        assert (seen[:window] > 0).all()
        assert (seen[window:] == 0).all()


@pytest.mark.parametrize(("head", "other"), [("verb", "noun"), ("noun", "verb")])
def test_each_branch_attends_to_the_other(head: str, other: str) -> None:
    model, video = attention(), torch.randn(1, 4, 3, 32, 32)
    before = model(video)
    for parameter in model.branches[other].parameters():
        torch.nn.init.normal_(parameter)
    after = model(video)
    assert not torch.equal(after[head], before[head])
    alone = attention()
    torch.nn.init.zeros_(alone.rounds[0][head].attention.out_proj.weight)
    before = alone(video)
    for parameter in alone.branches[other].parameters():
        torch.nn.init.normal_(parameter)
    assert torch.equal(alone(video)[head], before[head])  # through the attention and by no other way


def test_cross_attention_has_two_blocks_frozen_and_as_many_rounds_as_asked() -> None:
    model = attention(temporal_layers=3)
    assert len(model.rounds) == 3
    assert not model.encoder.encoder.layer2[0].conv1.weight.requires_grad
    assert model.encoder.encoder.layer3[0].conv1.weight.requires_grad


@pytest.mark.parametrize("heads", [{"verb": 97}, {"a": 2, "b": 3, "c": 4}])
def test_cross_attention_is_between_two_heads(heads: dict[str, int]) -> None:
    config = ModelConfig(name="cross_attention", scale="tiny", pretrained=False)
    with pytest.raises(RaylabError, match=f"between two heads, but the data has {len(heads)}"):
        build_model(config, heads)


def test_efficientnets_are_b3() -> None:
    lstm = count_parameters(ModelConfig(name="efficientnet_b3_lstm"), HEADS).total
    # timm's published 12,233,232 less its classifier; the LSTM of test_models over 1536 features; two classifiers.
    assert lstm == 12_233_232 - 1_537_000 + 4 * 512 * (1536 + 3 * 512 + 4) + 513 * 397


@pytest.fixture(scope="module")
def raft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in torchvision's layout."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "raft_small.pth"
    torch.save(raft_small(weights=None).state_dict(), path)
    return path


def two_stream(raft: Path) -> torch.nn.Module:
    config = {"name": "resnet18_two_stream", "scale": "tiny", "pretrained": False, "flow_weights": str(raft)}
    return build_model(ModelConfig.model_validate(config), HEADS)


def test_flow_is_rafts_in_pixels_of_the_frame(raft: Path) -> None:
    model = two_stream(raft).eval()
    reference = raft_small(weights=None).eval()
    reference.load_state_dict(torch.load(raft, weights_only=True))
    pixels = torch.rand(1, 3, 3, 64, 64)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.mean, model.std))
    found = model.flow((pixels - mean) / std)
    assert found.shape == (1, 2, 2, 64, 64)
    large = torch.nn.functional.interpolate(2 * pixels[0] - 1, (128, 128), mode="bilinear")
    with torch.no_grad():
        flow = torch.nn.functional.interpolate(reference(large[:2], large[1:])[-1], (64, 64), mode="bilinear")
    expected = (flow / 2 / 20).clamp(-1, 1)  # 128 pixels wide, it moves twice as far
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-4)


def test_two_streams_are_the_mean_of_both(raft: Path) -> None:
    model, video = two_stream(raft).eval(), torch.randn(2, 3, 3, 32, 32)
    one, other = model.appearance(video), model.motion(model.flow(video))
    torch.testing.assert_close(model(video)["verb"], (one["verb"] + other["verb"]) / 2)
    assert model.motion.encoder.encoder.conv1[0].weight.shape[1] == 2


def test_the_flow_network_is_never_trained(raft: Path) -> None:
    model = two_stream(raft).train()
    assert not any(module.training for module in model.flow.modules())
    assert not any(parameter.requires_grad for parameter in model.flow.parameters())


def test_flow_weights_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    config = ModelConfig(name="resnet18_two_stream", pretrained=False, flow_weights=str(tmp_path / "gone.pth"))
    with pytest.raises(RaylabError, match=r"model\.flow_weights = .*gone\.pth: no such file"):
        resolve_weights(config)
