"""Dual temporal attention: the band, padding, any number of frames."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.attention import Attention
from torch import Tensor, nn

from raylab.config import Experiment, ModelConfig
from raylab.errors import RaylabError
from raylab.models.dual_attention import DualAttention, DualAttentionHead, ImportanceModel, visible
from raylab.models.encoders import FrameEncoder
from raylab.models.registry import build_model, count_parameters, list_models
from raylab.results import Checkpoint

NAMES = [entry.name for entry in list_models("keyframes")]
WIDTH = 16


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def head(**settings: float) -> DualAttentionHead:
    """A small head whose weights, biases too, are far from their initial values."""
    small = DualAttentionHead(6, **{"width": WIDTH, "layers": 2, "dim_feedforward": 32, **settings}).double().eval()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return small


def features(batch: int, frames: int) -> Tensor:
    return torch.randn(batch, frames, 6, dtype=torch.double)


def padded(lengths: list[int], frames: int) -> Tensor:
    """The mask of videos of these lengths."""
    return torch.arange(frames) < torch.tensor(lengths)[:, None]


def attend_naively(attention: Attention, tokens: Tensor, reach: float) -> Tensor:
    """Frame by frame and head by head, over no more than `reach` frames either way."""
    frames, width = tokens.shape
    q, k, v = attention.qkv(tokens).view(frames, 3, attention.num_heads, -1).unbind(1)
    out = torch.zeros(frames, attention.num_heads, width // attention.num_heads, dtype=tokens.dtype)
    for i in range(frames):
        near = [j for j in range(frames) if abs(i - j) <= reach]
        for h in range(attention.num_heads):
            scores = torch.stack([q[i, h] @ k[j, h] / math.sqrt(q.shape[-1]) for j in near])
            out[i, h] = sum(weight * v[j, h] for weight, j in zip(scores.softmax(0), near, strict=True))
    return attention.proj(out.flatten(1))


@pytest.mark.parametrize("reach", [0, 1, 5])
@pytest.mark.parametrize("frames", [1, 2, 4, 5, 6, 7, 11, 12, 25])
def test_attention_is_that_of_a_naive_loop(frames: int, reach: int) -> None:
    dual = DualAttention(WIDTH, reach=reach).double().eval()
    tokens = torch.randn(2, frames, WIDTH, dtype=torch.double)
    found = dual(tokens)
    for clip, result in zip(tokens, found, strict=True):
        own = dual.norm(clip)
        near, far = attend_naively(dual.near, own, reach), attend_naively(dual.far, own, math.inf)
        torch.testing.assert_close(result, clip + dual.fuse(torch.cat([near, far], dim=1)))


@pytest.mark.parametrize("frames", [1, 3, 6, 11, 40])
def test_the_band_reaches_five_frames_either_way(frames: int) -> None:
    band = visible(frames, reach=5)
    assert band is not None
    assert band.tolist() == [[abs(i - j) <= 5 for j in range(frames)] for i in range(frames)]


def test_a_frame_beyond_the_band_is_not_seen_locally() -> None:
    dual = DualAttention(WIDTH).eval()
    tokens = torch.randn(1, 30, WIDTH, requires_grad=True)
    dual.near(dual.norm(tokens), attn_mask=visible(30, reach=5))[0, 12].sum().backward()
    assert tokens.grad is not None
    seen = tokens.grad[0].abs().sum(1) > 0
    assert seen.nonzero().flatten().tolist() == list(range(7, 18))


@pytest.mark.parametrize("frames", [1, 7, 60, 61, 200])
def test_any_number_of_frames(frames: int) -> None:
    model, x = head(), features(2, frames)
    scores = model(x)
    assert scores.shape == (2, frames)
    assert ((scores > 0) & (scores < 1)).all()
    torch.testing.assert_close(model(x, torch.ones(2, frames, dtype=torch.bool)), scores)


@pytest.mark.parametrize("lengths", [[20, 20], [1, 20], [3, 14], [12, 6]])
def test_a_padded_video_is_scored_as_it_is_alone(lengths: list[int]) -> None:
    model, x, mask = head(), features(2, 20), padded(lengths, 20)
    scores = model(x, mask)
    for clip, result, length in zip(x, scores, lengths, strict=True):
        torch.testing.assert_close(result[:length], model(clip[None, :length])[0])
    assert (scores[~mask] == 0).all()


@pytest.mark.parametrize("training", [False, True])
def test_padding_influences_no_frame_and_gets_no_gradient(training: bool) -> None:
    model, x, mask = head().train(training), features(3, 20), padded([1, 9, 20], 20)
    x.requires_grad_()
    scores = model(x, mask)
    scores.sum().backward()
    assert x.grad is not None
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask] != 0).any(1).all()
    other = torch.where(mask[..., None], x.detach(), 1e3 * features(3, 20))
    assert torch.equal(model(other, mask), scores)


def test_a_mask_of_nothing_gives_numbers() -> None:
    model, x = head(), features(2, 20).requires_grad_()
    scores = model(x, padded([0, 20], 20))
    scores.sum().backward()
    assert torch.equal(scores[0], torch.zeros(20, dtype=torch.double))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_all_of_a_video_matters_to_each_frame() -> None:
    x = features(1, 60).requires_grad_()
    head()(x)[0, 30].backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(2) > 0).all()


def test_frames_that_look_alike_are_told_apart_by_their_place() -> None:
    scores = head()(features(1, 1).expand(1, 12, 6))
    assert len(scores[0].unique()) == 12


def test_half_precision_leaves_scores_apart() -> None:
    model = head().float()
    with torch.no_grad():
        model.score[-1].bias.add_(6)  # where bfloat16 has two numbers between 0.99 and 1
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(features(1, 60).float())
    assert scores.dtype == torch.float32
    assert len(scores[0].unique()) > 20


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_not_seen_by_the_encoder(name: str) -> None:
    """Nor by its batch norms, in training."""
    model = build_model(ModelConfig(name=name, scale="tiny", pretrained=False, dropout=0.0), {}).train()
    assert isinstance(model, ImportanceModel)
    video, mask = torch.randn(2, 6, 3, 32, 32), padded([6, 2], 6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = model(video, mask)["importance"]
    statistics = {key: value for key, value in model.state_dict().items() if "running" in key}
    assert statistics
    assert all(not torch.equal(value, before[key]) for key, value in statistics.items())
    after = {key: value.clone() for key, value in statistics.items()}
    model.load_state_dict(before)
    video[1, 2:] = 100.0
    assert torch.equal(model(video, mask)["importance"], scores)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in after.items())


@pytest.mark.parametrize("name", NAMES)
def test_features_may_be_given(name: str) -> None:
    model = build_model(ModelConfig(name=name, scale="tiny", pretrained=False), {}).eval()
    assert isinstance(model, ImportanceModel)
    video, mask = torch.randn(2, 6, 3, 32, 32), padded([6, 2], 6)
    known = model.features(video, mask)
    assert known.shape == (2, 6, model.encoder.width)
    assert (known[~mask] == 0).all()
    scores = model(video, mask)["importance"]
    assert torch.equal(model(known, mask)["importance"], scores)
    assert torch.equal(model.importance(known, mask), scores)


# EfficientNet-B0 and ResNet-50 without classifiers, by torchvision's published totals.
EFFICIENTNET_B0, RESNET50 = 5_288_548 - 1_281_000, 25_557_032 - 2_049_000
NORM = 2 * 512
ATTENTION = 4 * (512 * 512 + 512)
FEED_FORWARD = 2 * 512 * 2048 + 2048 + 512
ENCODER = 3 * (2 * NORM + ATTENTION + FEED_FORWARD)
DUAL = NORM + 2 * ATTENTION + (1024 * 512 + 512)
MLP = NORM + (512 * 256 + 256) + (256 + 1)


@pytest.mark.parametrize(
    ("name", "encoder", "width", "millions"),
    [("efficientnet_b0_dual_attention", EFFICIENTNET_B0, 1280, 17), ("resnet50_dual_attention", RESNET50, 2048, 37)],
)
def test_size_follows_from_the_structure(name: str, encoder: int, width: int, millions: int) -> None:
    expected = encoder + 2 * width + (width * 512 + 512) + ENCODER + DUAL + MLP
    assert count_parameters(ModelConfig(name=name), {}) == (expected, expected)
    assert round(expected / 1e6) == millions


def test_settings_change_the_structure() -> None:
    config = ModelConfig(
        name="resnet50_dual_attention",
        scale="tiny",
        pretrained=False,
        temporal_layers=3,
        temporal_width=32,
        dim_feedforward=50,
        dropout=0.4,
        drop_path=0.2,
        frozen_blocks=1,
    )
    model = build_model(config, {})
    assert isinstance(model, ImportanceModel)
    assert [block.mlp.fc1.weight.shape for block in model.head.blocks] == [(50, 32)] * 3
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.head.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    assert {module.p for module in model.head.modules() if isinstance(module, nn.Dropout)} == {0.4}
    assert model.head.score[1].weight.shape == (16, 32)
    assert isinstance(model.encoder, FrameEncoder)
    assert sum(p.requires_grad for p in model.encoder.parameters()) < len(list(model.encoder.parameters()))


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(RaylabError, match=r"model\.temporal_width = 20: .*8 heads"):
        DualAttentionHead(6, width=20)


def saved(kind: str, model: nn.Module, path: Path) -> None:
    """The model's weights in a file as its name and `kind` say."""
    parallel = nn.DataParallel(model).state_dict() if "parallel" in kind else model.state_dict()
    assert all(key.startswith("module.") for key in parallel) == ("parallel" in kind)
    if path.suffix == ".safetensors":
        save_file(parallel, path)
    elif "trained" in kind:
        optimizer = torch.optim.AdamW(model.parameters())
        content = {"epoch": 3, "model_state_dict": parallel, "optimizer_state_dict": optimizer.state_dict()}
        torch.save(content, path)
    else:
        torch.save(parallel, path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("plain", "model.pth"),
        ("parallel", "model.pth"),
        ("trained parallel", "best.pth"),
        ("parallel", "model.safetensors"),
    ],
)
@pytest.mark.parametrize("model", NAMES)
def test_the_weights_of_a_whole_model_may_come_from_data_parallel(
    model: str, kind: str, name: str, tmp_path: Path
) -> None:
    config = ModelConfig(name=model, scale="tiny", pretrained=False)
    original = build_model(config, {}).eval()
    saved(kind, original, tmp_path / name)
    loaded = build_model(config.model_copy(update={"pretrained": str(tmp_path / name)}), {}).eval()
    assert loaded.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(value, original.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_an_encoder_alone_may_come_from_data_parallel(tmp_path: Path) -> None:
    encoder = timm.create_model("test_resnet")
    torch.save(nn.DataParallel(encoder).state_dict(), tmp_path / "encoder.pth")
    config = ModelConfig(name="resnet50_dual_attention", scale="tiny", pretrained=str(tmp_path / "encoder.pth"))
    model = build_model(config, {})
    assert torch.equal(model.encoder.encoder.conv1[0].weight, encoder.conv1[0].weight)


def test_the_weights_of_another_whole_model_are_refused(tmp_path: Path) -> None:
    config = ModelConfig(name="resnet50_dual_attention", scale="tiny", pretrained=False)
    saved("parallel", build_model(config.model_copy(update={"temporal_width": 32}), {}), tmp_path / "other.pth")
    with pytest.raises(RaylabError, match=r"other\.pth: not the weights of resnet50_dual_attention.*(?s:.)*mismatch"):
        build_model(config.model_copy(update={"pretrained": str(tmp_path / "other.pth")}), {})


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"module.encoder.encoder.conv1.weight": Malicious()}, tmp_path / "model.pth")
    config = ModelConfig(name="resnet50_dual_attention", scale="tiny", pretrained=str(tmp_path / "model.pth"))
    with pytest.raises(RaylabError, match=r"model\.pth: cannot be read as weights"):
        build_model(config, {})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["plain", "parallel"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_saved_under_data_parallel_loads(name: str, kind: str, tmp_path: Path) -> None:
    changes = {"task": "keyframes", "model.name": name, "model.scale": "tiny", "model.pretrained": False}
    experiment = Experiment().override(changes)
    original = build_model(experiment.model, {}).eval()
    saved(kind, original, tmp_path / "model.safetensors")
    (tmp_path / "experiment.json").write_text(json.dumps(experiment.to_dict()))
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "checkpoint.json").write_text(json.dumps({"epoch": 1, "metrics": {}}))
    loaded = Checkpoint.open(tmp_path).load_model()
    video = torch.randn(1, 3, 3, 32, 32)
    assert torch.equal(loaded(video)["importance"], original(video)["importance"])
