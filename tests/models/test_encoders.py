"""Frame encoders over timm models of several families."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from raylab.errors import RaylabError
from raylab.models.encoders import FrameEncoder

SIZES = {"test_resnet": 64, "test_efficientnet": 64, "test_convnext": 64, "test_vit": 160}  # tiny, one of each family


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def clips(name: str = "test_resnet") -> Tensor:
    return torch.randn(2, 2, 3, SIZES[name], SIZES[name])


@pytest.mark.parametrize("name", SIZES)
def test_every_frame_gets_the_features_of_the_image_model(name: str) -> None:
    encoder, video = FrameEncoder(name).eval(), clips(name)
    with torch.no_grad():
        features = encoder(video)
        assert features.shape == (2, 2, encoder.width)
        torch.testing.assert_close(features[1, 0], encoder.encoder(video[1, :1])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("blocks", [0, 2])
def test_frozen_blocks_do_not_move(name: str, blocks: int) -> None:
    encoder = FrameEncoder(name)
    encoder.freeze(blocks)
    encoder.train()
    before = deepcopy(encoder.state_dict())
    optimiser = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder(clips(name)).square().sum().backward()
    optimiser.step()
    moved = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert bool(frozen) == bool(blocks)
    assert not moved & frozen
    for prefix, module in encoder.named_modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics move exactly where weights are trained
            assert (f"{prefix}.running_mean" in moved) != (f"{prefix}.weight" in frozen), prefix


def test_two_blocks_of_a_resnet_are_stem_layer1_and_layer2() -> None:
    encoder = FrameEncoder("resnet18")
    encoder.freeze(2)
    frozen = {key.split(".")[1] for key, p in encoder.named_parameters() if not p.requires_grad}
    trained = {key.split(".")[1] for key, p in encoder.named_parameters() if p.requires_grad}
    assert (frozen, trained) == ({"conv1", "bn1", "layer1", "layer2"}, {"layer3", "layer4"})


def test_freezing_can_be_changed_and_undone() -> None:
    encoder = FrameEncoder("test_resnet").train()
    encoder.freeze(3)
    encoder.freeze(1)
    assert not encoder.encoder.layer1.training
    assert encoder.encoder.layer2.training
    encoder.freeze(0)
    encoder.train()
    assert all(module.training for module in encoder.modules())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_a_copy_stays_frozen() -> None:
    encoder = FrameEncoder("test_resnet")
    encoder.freeze(2)
    copy = deepcopy(encoder).train()
    assert not copy.encoder.layer2.training
    assert copy.encoder.layer3.training


def test_no_activation_is_kept_for_a_frozen_prefix() -> None:
    encoder, kept = FrameEncoder("test_resnet").train(), {}
    for blocks in (0, 2, encoder.blocks):
        encoder.freeze(blocks)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()), lambda _: None):
            encoder(clips())
        kept[blocks] = sum(sizes)
    assert kept[0] > 2 * kept[2] > 0
    assert kept[encoder.blocks] == 0


def test_freezing_more_than_there_is() -> None:
    with pytest.raises(RaylabError, match=r"model\.frozen_blocks = 5: test_resnet has 4 blocks"):
        FrameEncoder("test_resnet").freeze(5)


def test_a_model_that_timm_does_not_divide() -> None:
    with torch.device("meta"):
        encoder = FrameEncoder("caformer_s18")
    encoder.freeze(0)
    with pytest.raises(RaylabError, match="caformer_s18 is not divided into blocks"):
        encoder.freeze(1)


def test_a_frame_size_the_model_cannot_take() -> None:
    with pytest.raises(RaylabError, match=r"test_vit takes frames of \(160, 160\), not \(64, 64\): set data.size=160"):
        FrameEncoder("test_vit")(clips("test_resnet"))


@pytest.mark.parametrize("name", ["resnet5O", "resnet50.no_such_tag", "hf-hub:timm/resnet50", "local-dir:/tmp"])
def test_unknown_encoders(name: str) -> None:
    with pytest.raises(RaylabError, match=f"unknown encoder '{name}': did you mean|unknown encoder '{name}': known"):
        FrameEncoder(name)


def published(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A whole timm model, classifier included, with no weight at its initial value; and its state."""
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(torch.rand_like(value) * 0.1 if value.is_floating_point() else 1)
    return model, model.state_dict()


def check_features(name: str, path: Path, model: nn.Module) -> None:
    """The encoder read from `path` is `model` without its classifier."""
    encoder, video = FrameEncoder(name, path).eval(), clips(name)
    model.reset_classifier(0)
    with torch.no_grad():
        torch.testing.assert_close(encoder(video)[0], model(video[0]), rtol=1e-4, atol=1e-5)
    assert encoder.state_dict().keys() == FrameEncoder(name).state_dict().keys()
    assert not any(isinstance(value, dict) for value in encoder.encoder.pretrained_cfg.values()), (
        "a second copy is kept"
    )


@pytest.mark.parametrize("name", SIZES)
def test_weight_files_of_every_family(name: str, tmp_path: Path) -> None:
    model, state = published(name)
    save_file(state, tmp_path / "weights.safetensors")
    check_features(name, tmp_path / "weights.safetensors", model)


@pytest.mark.parametrize("kind", ["whole", "headless", "finetuned", "ddp"])
def test_pytorch_files_with_any_classifier_or_none(kind: str, tmp_path: Path) -> None:
    model, state = published("test_resnet")
    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    files = {
        "whole": state,
        "headless": headless,
        "finetuned": headless | {"fc.weight": torch.randn(97, 96), "fc.bias": torch.randn(97)},
        "ddp": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
    }
    torch.save(files[kind], tmp_path / "weights.pth")
    check_features("test_resnet", tmp_path / "weights.pth", model)


def test_torchvision_files_are_read_as_they_are(tmp_path: Path) -> None:
    original = torchvision.models.resnet18().eval()
    torch.save(original.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    encoder, video = FrameEncoder("resnet18", tmp_path / "resnet18-f37072fd.pth").eval(), clips()
    original.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(encoder(video)[0], original(video[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("layer2.0.conv1.weight"), r"Missing key.*layer2\.0\.conv1\.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), r"Unexpected key.*extra"),
        (lambda state: state.update({"bn1.weight": torch.zeros(7)}), r"size mismatch for bn1\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, named: str, tmp_path: Path) -> None:
    _, state = published("test_resnet")
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(RaylabError, match=rf"weights\.pth: not the weights of test_resnet(?s:.)*{named}"):
        FrameEncoder("test_resnet", tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("name", "other"), [("test_resnet", "test_vit"), ("test_vit", "test_convnext"), ("test_convnext", "test_vit")]
)
def test_the_weights_of_another_model(name: str, other: str, tmp_path: Path) -> None:
    save_file(published(other)[1], tmp_path / "weights.safetensors")
    with pytest.raises(RaylabError, match=f"not the weights of {name}; set model.encoder") as error:
        FrameEncoder(name, tmp_path / "weights.safetensors")
    assert len(str(error.value)) < 3500
