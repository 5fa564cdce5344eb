"""Every registered model, and the registry."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.__main__ import row
from raylab.models.registry import build_model, count_flops, count_parameters, find_model, list_models, register

HEADS = {"verb": 97, "noun": 300}
TASK_HEADS = {"action": HEADS, "distillation": {"label": 7}, "keyframes": {}, "classification": {"label": 2}}
NAMES = [entry.name for entry in list_models() if not entry.handcrafted]
TINY = "test_resnet"  # timm's 0.5M-parameter ResNet, with the stages and key layout of the large ones
AVERAGING = {"resnet18_avg", "resnet50_avg", "naive_cnn"}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tiny(name: str, **settings: object) -> nn.Module:
    """The model at its small scale, with random weights and the heads of its task."""
    entry = find_model(name)
    config = {"name": name, "scale": "tiny", **dict.fromkeys(["pretrained", *entry.parts], False)}
    return build_model(ModelConfig.model_validate(config | settings), TASK_HEADS[entry.task])


def outputs_of(name: str, frames: int) -> dict[str, int]:
    """What the model says of a clip: a number for each class of each head, or for each frame."""
    entry = find_model(name)
    return {"importance": frames} if entry.task == "keyframes" else TASK_HEADS[entry.task]


def logits(model: nn.Module, video: Tensor) -> Tensor:
    """All that the model says of each clip, side by side."""
    return torch.cat(list(model(video).values()), dim=1)


def clips(frames: int = 4) -> Tensor:
    return torch.randn(2, frames, 3, 64, 64)


def perturb(model: nn.Module) -> None:
    """Move every weight and statistic away from its initial value."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(torch.rand_like(value) * 0.1 if value.is_floating_point() else 1)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_for_any_number_of_frames(name: str) -> None:
    model = tiny(name)
    for frames in (1, 4, 7):
        outputs = model(clips(frames))
        expected = {output: (2, n) for output, n in outputs_of(name, frames).items()}
        assert {output: value.shape for output, value in outputs.items()} == expected
        assert all(value.isfinite().all() for value in outputs.values())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_what_is_trained_and_nothing_else(name: str) -> None:
    model = tiny(name).train()
    sum(value.square().sum() for value in model(clips()).values()).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
        else:
            assert parameter.grad is None, key


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_deterministic_and_training_is_not(name: str) -> None:
    model, video = tiny(name, dropout=0.5), clips()
    model.eval()
    assert torch.equal(logits(model, video), logits(model, video))
    model.train()
    assert not torch.equal(logits(model, video), logits(model, video))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_alone_restores_the_model(name: str, tmp_path: Path) -> None:
    saved, video = tiny(name).eval(), clips()
    perturb(saved)
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    restored = tiny(name).eval()
    assert not torch.equal(logits(restored, video), logits(saved, video))
    restored.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits(restored, video), logits(saved, video))


@pytest.mark.parametrize("name", NAMES)
def test_only_temporal_models_see_the_order_of_frames(name: str) -> None:
    kind, sight = (torch.float32, 1e-4) if find_model(name).parts else (torch.float64, 1e-6)  # RAFT knows no doubles
    model, video = tiny(name).eval().to(kind), clips(8).to(kind)
    said, backwards = logits(model, video), logits(model, video.flip(1))
    if find_model(name).task == "keyframes":
        backwards = backwards.flip(1)  # frame by frame
    difference = (said - backwards).abs().max()
    assert difference < 1e-12 if name in AVERAGING else difference > sight


@pytest.mark.parametrize("name", NAMES)
def test_one_clip_does_not_change_the_logits_of_another(name: str) -> None:
    model, video = tiny(name).eval(), clips()
    torch.testing.assert_close(logits(model, video)[:1], logits(model, video[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entry", list_models(), ids=lambda entry: entry.name)
def test_an_entry_says_what_the_model_is(entry) -> None:
    assert len(entry.description) > 40
    assert entry.source
    assert entry.settings <= set(ModelConfig.model_fields)


# ResNet without its classifier, by torchvision's published totals: 11,689,512 - 513,000 and 25,557,032 - 2,049,000.
RESNET18, RESNET50 = 11_176_512, 23_508_032
RESNET50_STEM_TO_LAYER2 = 9_536 + 215_808 + 1_219_584
LSTM = 4 * 512 * (2048 + 512 + 2) + 4 * 512 * (512 + 512 + 2)
ENCODER_LAYER = 4 * (512 * 512 + 512) + (512 * 2048 + 2048) + (2048 * 512 + 512) + 2 * 2 * 512
TRANSFORMER = 2 * 2048 + (2048 * 512 + 512) + 6 * ENCODER_LAYER + 2 * 512


def classifiers(width: int) -> int:
    return (width + 1) * (97 + 300)


@pytest.mark.parametrize(
    ("name", "parameters", "frozen", "tolerance"),
    [
        ("resnet18_avg", RESNET18 + classifiers(512), 0, 0.05),
        ("resnet50_avg", RESNET50 + classifiers(2048), 0, 0.05),
        ("resnet50_lstm", RESNET50 + LSTM + classifiers(512), 0, 0.20),
        # The published 30M cannot hold six layers with the stock feed-forward width of 2048.
        ("resnet50_transformer", RESNET50 + TRANSFORMER + classifiers(512), 0, 0.50),
        (
            "resnet50_transformer_regularized",
            RESNET50 + TRANSFORMER + classifiers(512),
            RESNET50_STEM_TO_LAYER2,
            None,
        ),
    ],
)
def test_size_follows_from_the_structure(name: str, parameters: int, frozen: int, tolerance: float | None) -> None:
    assert count_parameters(ModelConfig(name=name), HEADS) == (parameters, parameters - frozen)
    documented = find_model(name).documented_parameters
    if tolerance is None:
        assert documented is None
    else:
        assert parameters / 1e6 == pytest.approx(documented, rel=tolerance)


def test_every_model_at_full_scale_has_a_size_a_cost_and_a_line_in_the_table() -> None:
    lines = [row(entry) for entry in list_models()]
    assert [line[0] for line in lines] == [entry.name for entry in list_models()]
    assert all("" not in line for line in lines)
    table = {line[0]: line for line in lines}
    assert table["r2plus1d_r50"][3:7] == ["~28M", "28.10M", "28.10M", "57.5"]
    assert table["resnet18_avg"][7:9] == ["8 × 224²", "32"]
    assert table["slowfast"][7:9] == ["64 × 224²", "2 × 8"]


@pytest.mark.parametrize(
    ("name", "frames", "size", "published"),
    [
        ("resnet18_avg", 1, 224, 1.82e9),  # timm's table of ImageNet models
        ("resnet50_avg", 1, 224, 4.11e9),
        ("efficientnet_b3_lstm", 1, 300, 1.87e9),
        ("r2plus1d_r50", 16, 256, 76.45e9),  # pytorchvideo's model zoo
        ("videomae_base", 16, 224, 180e9),  # the paper's tables
        ("slowfast", 32, 256, 65.71e9),  # pytorchvideo's model zoo
        ("x3d", 16, 224, 4.73e9),  # the paper's
        ("videomae_small", 16, 224, 57e9),
    ],
)
def test_flops_are_those_that_are_published(name: str, frames: int, size: int, published: float) -> None:
    heads = TASK_HEADS[find_model(name).task]
    assert count_flops(ModelConfig(name=name), heads, frames, size) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(("name", "published"), [("videomae_base", 86_361_006), ("videomae_small", 21_946_926)])
def test_videomae_has_its_published_size_with_the_classes_of_something_something(name: str, published: int) -> None:
    assert count_parameters(ModelConfig(name=name), {"label": 174}) == (published, published)


@pytest.mark.parametrize("name", ["videomae_base", "videomae_small"])
def test_videomae_has_one_head(name: str) -> None:
    config = ModelConfig(name=name, scale="tiny", pretrained=False)
    with pytest.raises(
        RaylabError, match=rf"model\.name = {name}: .* 2 heads \(verb, noun\): set data\.dataset=labelled"
    ):
        build_model(config, HEADS)
    assert build_model(config, {"gesture": 3})(clips())["gesture"].shape == (2, 3)


def test_a_model_with_its_own_encoder() -> None:
    model = build_model(ModelConfig(name="resnet50_lstm", pretrained=False), HEADS).eval()
    with torch.no_grad():
        assert model(clips(1))["noun"].shape == (2, 300)
    assert (model.mean, model.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_rebuilding_from_a_checkpoint_fetches_no_weights(tmp_path: Path) -> None:
    gone = ModelConfig(name="resnet50_avg", encoder=TINY, pretrained=str(tmp_path / "gone.safetensors"))
    with pytest.raises(RaylabError, match="no such file"):
        build_model(gone, HEADS)
    assert build_model(gone, HEADS, pretrained=False)(clips())["verb"].shape == (2, 97)


def test_settings_change_the_structure() -> None:
    model = tiny(
        "resnet50_transformer",
        encoder=TINY,
        temporal_layers=3,
        temporal_width=64,
        dim_feedforward=100,
        dropout=0.4,
        drop_path=0.2,
        frozen_blocks=1,
    )
    blocks = list(model.temporal.blocks)
    assert len(blocks) == 3
    assert blocks[0].mlp.fc1.weight.shape == (100, 64)
    assert blocks[2].drop_path1.drop_prob == 0.2
    assert {module.p for module in model.temporal.modules() if isinstance(module, nn.Dropout)} == {0.4}
    assert model.dropout.p == 0.4
    assert not model.encoder.encoder.layer1[0].conv1.weight.requires_grad
    assert model.encoder.encoder.layer2[0].conv1.weight.requires_grad
    assert tiny("resnet50_lstm", temporal_layers=1, temporal_width=24).heads["verb"].in_features == 24


def test_phase_2_freezes_two_blocks_unless_told_otherwise() -> None:
    def trainable(**settings: object) -> int:
        return sum(p.requires_grad for p in tiny("resnet50_transformer_regularized", **settings).parameters())

    assert trainable() == trainable(frozen_blocks=2) < trainable(frozen_blocks=1) < trainable(frozen_blocks=0)


@pytest.mark.parametrize(
    ("name", "setting", "value", "remedy"),
    [
        ("videomae_base", "encoder", "resnet18", "model.encoder=null"),
        ("videomae_small", "frozen_blocks", 2, "model.frozen_blocks=null"),
        ("resnet50_avg", "student", "MCG-NJU/videomae-base", "model.student=null"),
        ("resnet50_lstm", "drop_path", 0.1, "model.drop_path=0.0"),
        ("resnet50_lstm", "dim_feedforward", 1024, "model.dim_feedforward=null"),
        ("resnet50_avg", "temporal_layers", 2, "model.temporal_layers=null"),
        ("resnet18_avg", "temporal_width", 64, "model.temporal_width=null"),
        ("r2plus1d_r50", "encoder", "resnet18", "model.encoder=null"),
    ],
)
def test_a_setting_the_model_would_ignore_is_refused(name: str, setting: str, value: float, remedy: str) -> None:
    with pytest.raises(RaylabError, match=rf"model\.{setting} = .*{name}") as error:
        tiny(name, **{setting: value})
    assert remedy in str(error.value)


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(RaylabError, match="did you mean 'resnet50_transformer'"):
        build_model(ModelConfig(name="resnet50_transfomer"), HEADS)


def test_models_are_listed_by_task() -> None:
    assert list_models("action") == [entry for entry in list_models() if entry.task == "action"] != []
    assert list_models("no such task") == []


def test_a_name_can_be_registered_once() -> None:
    def resnet50_avg(config: ModelConfig, heads: dict[str, int]) -> nn.Module:
        return nn.Identity()

    with pytest.raises(ValueError, match=r"resnet50_avg.*raylab\.models\.epic"):
        register(task="action")(resnet50_avg)


def python(code: str, path: Path) -> str:
    """Standard output of a fresh interpreter that finds packages in `path` too."""
    search = os.pathsep.join([str(path), *sys.path])
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": search}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_names_are_checked_without_loading_torch(tmp_path: Path) -> None:
    code = """
import sys
from raylab.models.registry import find_model
find_model("resnet50_transformer")
print({"torch", "timm", "ray"} & set(sys.modules))
"""
    assert python(code, tmp_path) == "set()"


def install(path: Path, module: str) -> None:
    """A package as pip leaves it, offering `module` as an entry point."""
    (path / "plugin-1.0.dist-info").mkdir()
    (path / "plugin-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (path / "plugin-1.0.dist-info" / "entry_points.txt").write_text(f"[raylab.models]\nplugin = {module}\n")


def test_an_installed_package_adds_models(tmp_path: Path) -> None:
    install(tmp_path, "plugin_models")
    (tmp_path / "plugin_models.py").write_text(
        """
from raylab.models.registry import register

@register(task="action", settings=("dropout",))
def mean_colour(config, heads):
    "The mean colour of the clip, and a linear classifier."
    from torch import nn
    return nn.Flatten()
"""
    )
    code = """
from raylab.config import ModelConfig
from raylab.models.registry import build_model, find_model
print(find_model("mean_colour").description, build_model(ModelConfig(name="mean_colour"), {}))
"""
    assert python(code, tmp_path).startswith("The mean colour of the clip, and a linear classifier. Flatten(")


def test_a_broken_package_is_named(tmp_path: Path) -> None:
    install(tmp_path, "no_such_module")
    code = """
from raylab.errors import RaylabError
from raylab.models.registry import list_models
try:
    list_models()
except RaylabError as error:
    print(error)
"""
    message = python(code, tmp_path)
    assert "plugin" in message
    assert "no_such_module" in message
