"""The networks of AURA: their documented structure, published weights, pathways, and the one logit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from pytorchvideo.models.slowfast import create_slowfast
from pytorchvideo.models.x3d import create_x3d
from torch import Tensor, nn
from torch.nn import functional as F

from raylab.config import Experiment, ModelConfig
from raylab.errors import RaylabError
from raylab.models.clip_model import OneLogit, classifier
from raylab.models.encoders import FrameEncoder
from raylab.models.registry import Batches, batches, build_model, count_parameters, find_model
from raylab.models.slowfast import SlowFastEncoder
from raylab.models.weights import resolve_weights
from raylab.models.x3d import X3DEncoder

HEADS = {"label": 2}


def model(name: str, scale: str = "tiny", **settings: object) -> nn.Module:
    torch.manual_seed(0)
    config = {"name": name, "scale": scale, "pretrained": False, **settings}
    return build_model(ModelConfig.model_validate(config), HEADS).eval()


def structure(name: str) -> nn.Module:
    """The model as documented, without weights."""
    with torch.device("meta"):
        return model(name, scale="full")


def video(frames: int = 8, size: int = 64, clips: int = 1) -> Tensor:
    return torch.randn(clips, frames, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_vit_gru_is_as_documented() -> None:
    found = structure("vit_gru")
    vit, gru = found.encoder.encoder, found.temporal.gru
    assert (vit.embed_dim, len(vit.blocks), vit.patch_embed.patch_size, vit.global_pool) == (768, 12, (16, 16), "token")
    assert (gru.input_size, gru.hidden_size, gru.num_layers, gru.bidirectional) == (768, 256, 2, False)
    assert found.heads["label"].weight.shape == (1, 256)


def test_vit_transformer_is_as_documented() -> None:
    found = structure("vit_transformer")
    blocks = list(found.temporal.blocks)
    assert found.encoder.width == found.temporal.width == 768
    assert [block.attn.num_heads for block in blocks] == [8, 8]
    assert [block.mlp.fc1.weight.shape for block in blocks] == [(2048, 768)] * 2
    assert found.heads["label"].weight.shape == (1, 768)


def test_naive_cnn_is_blocks_of_2d_convolutions_and_one_layer() -> None:
    found = structure("naive_cnn")
    convolutions = [module for module in found.modules() if isinstance(module, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        (3, 32),
        (32, 64),
        (64, 128),
        (128, 256),
    ]
    assert {layer.kernel_size for layer in convolutions} == {(3, 3)}
    assert [module for module in found.modules() if isinstance(module, nn.Linear)] == [found.heads["label"]]
    assert not any(isinstance(module, nn.Conv3d) for module in found.modules())


VIT = 85_798_656  # timm's vit_base_patch16_224 without its classifier
GRU = 3 * 256 * (768 + 256 + 2) + 3 * 256 * (256 + 256 + 2)
LAYER = 4 * (768 * 768 + 768) + (768 * 2048 + 2048) + (2048 * 768 + 768) + 2 * 2 * 768
CNN = sum(9 * a * b + 2 * b for a, b in [(3, 32), (32, 64), (64, 128), (128, 256)])


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("naive_cnn", 2, CNN + 257),
        ("vit_gru", 2, VIT + GRU + 257),
        ("vit_transformer", 2, VIT + 2 * 768 + (768 * 768 + 768) + 2 * LAYER + 2 * 768 + 769),
        ("slowfast", 400, 34_566_488),  # pytorchvideo's slowfast_r50
        ("slowfast", 2, 34_566_488 - 400 * 2305 + 2305),
        ("x3d", 400, 3_794_274),  # pytorchvideo's x3d_m
        ("x3d", 2, 3_794_274 - 400 * 2049 + 2049),
    ],
)
def test_size_follows_from_the_structure(name: str, classes: int, parameters: int) -> None:
    assert count_parameters(ModelConfig(name=name), {"label": classes}) == (parameters, parameters)
    documented = find_model(name).documented_parameters
    assert documented is None or classes == 2 or round(parameters / 1e6, 2) == documented


def test_frames_become_the_cls_token_of_timms_vit() -> None:
    torch.manual_seed(0)
    reference = timm.create_model("test_vit").eval()
    found = FrameEncoder("test_vit", any_size=True).eval()
    found.encoder.load_state_dict(
        {key: value for key, value in reference.state_dict().items() if not key.startswith("head.")}
    )
    pixels = video(2, size=160)
    tokens = reference.forward_features(pixels[0])  # after the last norm
    torch.testing.assert_close(found(pixels)[0], tokens[:, 0])
    assert found(video(2, size=64)).shape == (1, 2, 64)


def test_frames_that_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(
        RaylabError, match=r"test_vit takes frames of a multiple of 16, not \(56, 56\): set data.size=64"
    ):
        model("vit_gru")(video(size=56))


def test_any_size_changes_nothing_for_encoders_that_take_it_anyway() -> None:
    assert FrameEncoder("test_resnet", any_size=True).eval()(video(1, size=40)).shape[:2] == (1, 1)


@pytest.mark.parametrize(("name", "sees"), [("naive_cnn", False), ("vit_gru", True), ("vit_transformer", True)])
def test_the_order_of_frames(name: str, sees: bool) -> None:
    found, pixels = model(name).double(), video().double()
    shuffled = pixels[:, torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])]
    difference = (found(pixels)["label"] - found(shuffled)["label"]).abs().max()
    assert (difference > 1e-6) if sees else (difference < 1e-12)


def inputs_of_pathways(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    stem = network.encoder.stages[0]
    hook = stem.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    network(pixels)
    hook.remove()
    return seen


@pytest.mark.parametrize("frames", [64, 32, 16, 7, 4, 1])
def test_the_slow_pathway_sees_every_fourth_frame_of_the_fast(frames: int) -> None:
    pixels = video(frames, size=32)
    slow, fast = inputs_of_pathways(model("slowfast"), pixels)
    assert torch.equal(fast, pixels.transpose(1, 2))
    assert slow.shape[2] == math.ceil(frames / 4)
    assert torch.equal(slow, fast[:, :, ::4])


def test_documented_clips_give_16_and_64_frames() -> None:
    assert find_model("slowfast").frames == 64
    slow, fast = inputs_of_pathways(model("slowfast"), video(64, size=32))
    assert (slow.shape[2], fast.shape[2]) == (16, 64)


def test_both_pathways_reach_the_classifier() -> None:
    found, pixels = model("slowfast").double(), video(16).double()
    features = found.encoder(pixels)
    slow, fast = 16 * 32, 16 * 32 // 8
    assert features.shape == (1, 1, slow + fast)
    between = pixels.clone()
    between[:, 1] += 1  # a frame of the fast pathway alone
    changed = found.encoder(between)
    assert not torch.equal(changed[..., slow:], features[..., slow:])
    assert not torch.equal(changed[..., :slow], features[..., :slow])  # through the lateral connections


def slowfast_of_pytorchvideo(classes: int = 400) -> nn.Module:
    """The published network; its pooling windows, without weights, are those of 8 frames of 64 pixels."""
    pools = ((2, 2, 2), (8, 2, 2))
    return create_slowfast(model_num_class=classes, head_pool_kernel_sizes=pools)


def x3d_of_pytorchvideo(classes: int = 400) -> nn.Module:
    """The published network, for 8 frames of 64 pixels, before its softmax."""
    return create_x3d(input_clip_length=8, input_crop_size=64, model_num_class=classes, head_activation=None)


PUBLISHED = {"slowfast": slowfast_of_pytorchvideo, "x3d": x3d_of_pytorchvideo}
NAMES = {"slowfast": "slowfast_r50", "x3d": "x3d_m"}
FILES = {"slowfast": "SLOWFAST_8x8_R50.pyth", "x3d": "X3D_M.pyth"}


def perturb(network: nn.Module) -> None:
    """Move statistics of batch norms too: those of a fresh network are all alike."""
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(torch.rand_like(value) * 0.05 if value.is_floating_point() else 1)


def published(name: str, folder: Path, make: Callable[[], nn.Module]) -> tuple[nn.Module, Path]:
    """A network with random weights, and these in a file of the layout in which pytorchvideo publishes."""
    torch.manual_seed(0)
    network = make().eval()
    perturb(network)
    path = folder / FILES[name]
    torch.save({"model_state": network.state_dict()}, path)
    return network, path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_give_the_published_logits(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference, path = published(name, tmp_path, PUBLISHED[name])
    config = ModelConfig(name=name, pretrained=str(path), dropout=0.0)
    found = build_model(config, {"label": 400}).eval()
    assert f"{path}: its classifier of 400 classes is left out" in caplog.text
    head = reference.blocks[-1].proj
    found.heads["label"].load_state_dict(head.state_dict())
    pixels = video(8)
    with torch.no_grad():
        expected = reference([pixels[:, ::4].transpose(1, 2), pixels.transpose(1, 2)]) if name == "slowfast" else None
        expected = reference(pixels.transpose(1, 2)) if expected is None else expected
        torch.testing.assert_close(found(pixels)["label"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_classifier_of_any_size_is_left_out(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, path = published(name, tmp_path, lambda: PUBLISHED[name](classes=7))
    assert build_model(ModelConfig(name=name, pretrained=str(path)), HEADS).heads["label"].weight.shape[0] == 1
    assert "classifier of 7 classes" in caplog.text


@pytest.mark.parametrize(("name", "other"), [("slowfast", "x3d"), ("x3d", "slowfast")])
def test_weights_of_another_network_are_refused(name: str, other: str, tmp_path: Path) -> None:
    _, path = published(other, tmp_path, PUBLISHED[other])
    with pytest.raises(RaylabError, match=rf"{path.name}: not the weights of pytorchvideo's {NAMES[name]}\n"):
        build_model(ModelConfig(name=name, pretrained=str(path)), HEADS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_come_from_the_published_address(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")  # where nobody listens
    address = f"https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/{FILES[name]}"
    with pytest.raises(RaylabError, match=f"the published weights, {address}, are not in the cache"):
        resolve_weights(ModelConfig(name=name))
    cached = tmp_path / "hub" / "checkpoints" / FILES[name]
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert resolve_weights(ModelConfig(name=name)) == cached


def test_naive_cnn_starts_from_nothing_and_refuses_a_file() -> None:
    assert resolve_weights(ModelConfig(name="naive_cnn")) is None
    with pytest.raises(RaylabError, match=r"model\.pretrained = some\.pth: naive_cnn has no weights to start from"):
        build_model(ModelConfig(name="naive_cnn", pretrained="some.pth"), HEADS)


@pytest.mark.parametrize("encoder", [SlowFastEncoder, X3DEncoder])
def test_stem_and_stages_can_be_fixed(encoder: type[SlowFastEncoder] | type[X3DEncoder]) -> None:
    found = encoder(scale="tiny")
    found.freeze(2)
    fixed = [stage for stage in found.stages if not any(p.requires_grad for p in stage.parameters())]
    assert fixed == list(found.stages[:3])
    assert (found.mean, found.std) == ((0.45,) * 3, (0.225,) * 3)


def test_one_logit_is_binary_cross_entropy_and_sigmoid() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(16, 12), torch.randint(2, (16,))
    head = classifier(12, 2)
    assert isinstance(head, OneLogit)
    assert head.weight.shape == (1, 12)
    pair = head(features)
    logit = F.linear(features, head.weight, head.bias)[:, 0]
    assert torch.equal(pair, torch.stack([torch.zeros_like(logit), logit], 1))
    torch.testing.assert_close(pair.softmax(1)[:, 1], logit.sigmoid())
    losses = F.cross_entropy(pair, labels), F.binary_cross_entropy_with_logits(logit, labels.float())
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, head.weight, retain_graph=True)[0] for loss in losses]
    torch.testing.assert_close(*gradients)


def test_label_smoothing_is_that_of_binary_cross_entropy() -> None:
    logit, labels = torch.randn(16), torch.randint(2, (16,))
    pair = torch.stack([torch.zeros(16), logit], 1)
    smoothed = labels * 0.9 + 0.05
    torch.testing.assert_close(
        F.cross_entropy(pair, labels, label_smoothing=0.1), F.binary_cross_entropy_with_logits(logit, smoothed)
    )


@pytest.mark.parametrize("classes", [1, 3, 400])
def test_other_than_two_classes_get_a_linear_classifier(classes: int) -> None:
    found = classifier(12, classes)
    assert type(found) is nn.Linear
    assert found.weight.shape == (classes, 12)


DOCUMENTED = {"naive_cnn": (16, 1), "vit_gru": (4, 4), "vit_transformer": (2, 8), "slowfast": (2, 8), "x3d": (4, 4)}


@pytest.mark.parametrize(("name", "documented"), DOCUMENTED.items())
def test_batch_and_accumulation_are_the_documented_unless_told_otherwise(name: str, documented: Batches) -> None:
    experiment = Experiment(task="classification", model=ModelConfig(name=name))
    assert batches(experiment) == documented
    assert batches(experiment.override({"train.accumulate": 3})) == (documented[0], 3)
    assert batches(experiment.override({"data.batch_size": 5})) == (5, 1)  # what is documented belongs together
    assert batches(experiment.override({"data.batch_size": 5, "train.accumulate": 3})) == (5, 3)


def test_another_model_has_another_batch() -> None:
    experiment = Experiment(task="classification", model=ModelConfig(name="vit_gru"))
    assert batches(experiment.override({"model.name": "slowfast"})) == (2, 8)
    assert batches(Experiment(model=ModelConfig(name="resnet50_avg"))) == (24, 1)
