"""VideoMAE against transformers' own: clips of any size, folders of every kind, hidden states and attention maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
)

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.registry import build_model
from raylab.models.taps import QUERIES, Taps
from raylab.models.videomae import VideoMAE, load_network, network, network_like

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NAMES = ["wave", "point", "clap", "knock", "pour"]
HEADS = {"label": len(NAMES)}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


def structure(**fields: object) -> VideoMAEConfig:
    """Three layers of two heads, for clips of 4 × 32² in patches of 8²."""
    small = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
    decoder = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
    clip = {"patch_size": 8, "image_size": 32, "num_frames": 4, "id2label": dict(enumerate(NAMES))}
    return VideoMAEConfig(**{**small, **decoder, **clip, "initializer_range": 0.2, **fields})


def clips(frames: int = 4, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(2, frames, 3, height, width)


def check_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.fixture
def published(tmp_path: Path) -> VideoMAEForVideoClassification:
    """A fine-tuned network, which `tmp_path / "folder"` holds."""
    model = VideoMAEForVideoClassification(structure()).eval()
    model.save_pretrained(tmp_path / "folder")
    return model


@pytest.fixture
def pretrained(tmp_path: Path) -> VideoMAEForPreTraining:
    """A network before fine-tuning, which `tmp_path / "folder"` holds as the hub does: no mean pooling."""
    model = VideoMAEForPreTraining(structure(use_mean_pooling=False)).eval()
    for value in model.videomae.layernorm.parameters():
        value.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path / "folder")
    return model


def test_clips_of_any_size_get_the_positions_of_transformers() -> None:
    model = network(structure()).eval()
    for frames, height, width in ((4, 32, 32), (2, 64, 32), (8, 48, 48), (2, 16, 40), (4, 32, 32)):
        original = VideoMAEForVideoClassification(structure(num_frames=frames, image_size=[height, width])).eval()
        original.load_state_dict(model.state_dict())
        video = clips(frames, height, width)
        torch.testing.assert_close(model(video)["label"], original(video).logits, rtol=1e-5, atol=1e-6)
        assert model.config.num_frames == frames
        assert model.config.image_size == (height if height == width else [height, width])


@pytest.mark.parametrize("frames", [1, 3])
def test_the_last_frame_completes_a_tubelet(frames: int) -> None:
    model, video = network(structure()).eval(), clips(frames)
    model.fit(frames, 32, 32)
    assert model.config.num_frames == frames + 1
    whole = torch.cat([video, video[:, -1:]], dim=1)
    assert torch.equal(model(video)["label"], model(whole)["label"])


def test_frames_that_patches_do_not_cover() -> None:
    with pytest.raises(RaylabError, match=r"data\.size = 36: .* patches of 8²: set a multiple of 8"):
        network(structure())(clips(4, 32, 36))


def test_a_network_of_given_classes_leaves_the_configuration_alone() -> None:
    config = structure()
    assert network(config, 7)(clips())["label"].shape == (2, 7)
    assert network(config)(clips())["label"].shape == (2, 5)
    assert (config.num_labels, config.num_frames, config.image_size) == (5, 4, 32)


def test_a_folder_of_transformers(published: VideoMAEForVideoClassification, tmp_path: Path) -> None:
    video = clips()
    for classes in (None, 5):
        model = load_network(tmp_path / "folder", classes)
        assert not model.training
        assert (model.classes, model.mean, model.std) == (NAMES, *IMAGENET)
        torch.testing.assert_close(model(video)["label"], published(video).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("biases", [("query.bias", "value.bias"), ("q_bias", "v_bias")], ids=["new", "old"])
def test_files_of_every_age(
    published: VideoMAEForVideoClassification, file: str, biases: tuple[str, str], tmp_path: Path
) -> None:
    renamed = {
        f"attention.attention.{new}": name for new, name in zip(("query.bias", "value.bias"), biases, strict=True)
    }
    state = {}
    for key, value in published.state_dict().items():
        new = next((new for new in renamed if key.endswith(new)), "")
        state[key.removesuffix(new) + (f"attention.attention.{renamed[new]}" if new else "")] = value
    assert f"videomae.encoder.layer.0.attention.attention.{biases[0]}" in state
    (tmp_path / "folder" / "model.safetensors").unlink()
    (torch.save if file.endswith(".bin") else save_file)(state, tmp_path / "folder" / file)
    check_equal(load_network(tmp_path / "folder").state_dict(), published.state_dict())


def test_weights_in_half_precision_are_read_as_float32(
    published: VideoMAEForVideoClassification, tmp_path: Path
) -> None:
    published.half().save_pretrained(tmp_path / "folder")
    state = load_network(tmp_path / "folder").state_dict()
    check_equal(state, published.float().state_dict())
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_a_classifier_of_another_size_is_dropped_with_a_notice(
    published: VideoMAEForVideoClassification, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    load_network(folder, 5)
    assert not caplog.messages
    model = load_network(folder, 7)
    assert caplog.messages == [f"{folder}: no classifier for 7 classes: new, with random weights"]
    assert model.classes == []
    assert model(clips())["label"].shape == (2, 7)
    whole = {key: value for key, value in published.state_dict().items() if not key.startswith("classifier.")}
    check_equal({key: model.state_dict()[key] for key in whole}, whole)


def test_what_pretraining_leaves_is_the_same_network_each_time(
    pretrained: VideoMAEForPreTraining, tmp_path: Path
) -> None:
    model, video = load_network(tmp_path / "folder"), clips()
    found = model.videomae(video).last_hidden_state
    torch.testing.assert_close(found, pretrained.videomae(video).last_hidden_state, rtol=1e-5, atol=1e-5)
    assert model.classes == []
    assert not model(video)["label"].any()
    check_equal(load_network(tmp_path / "folder").state_dict(), model.state_dict())


def test_fine_tuning_begins_with_the_mean_of_what_pretraining_leaves(
    pretrained: VideoMAEForPreTraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    model, video = load_network(folder, 7), clips()
    assert caplog.messages == [f"{folder}: no classifier and fc_norm for 7 classes: new, with random weights"]
    hidden = pretrained.videomae(video, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model.videomae(video).last_hidden_state, hidden, rtol=1e-5, atol=1e-5)
    expected = model.classifier(model.fc_norm(hidden.mean(1)))
    torch.testing.assert_close(model(video)["label"], expected, rtol=1e-5, atol=1e-5)
    like = network_like(folder, 7)
    assert {key: value.shape for key, value in like.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_clips_are_normalised_as_the_folder_says(published: VideoMAEForVideoClassification, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    VideoMAEImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.1]).save_pretrained(folder)
    own = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    student = ModelConfig(name="videomae_base", student=str(folder))
    models = [
        load_network(folder),
        build_model(student, HEADS),
        build_model(student, HEADS, pretrained=False),
        build_model(ModelConfig(name="videomae_base"), HEADS, checkpoint=folder),
    ]
    assert [(model.mean, model.std) for model in models] == [own] * 4
    (folder / "preprocessor_config.json").write_text("{}")
    assert (load_network(folder).mean, load_network(folder).std) == IMAGENET
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(RaylabError, match=r"preprocessor_config\.json: cannot be read"):
        load_network(folder)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "cannot be read .*: name a folder of transformers"),
        ("[]", "model_type = None: not a VideoMAE"),
        ('{"model_type": "vivit", "hidden_size": "x"}', "model_type = 'vivit': not a VideoMAE"),
        ('{"model_type": "videomae", "hidden_size": "wide"}', "hidden_size"),
    ],
)
def test_a_damaged_configuration(
    published: VideoMAEForVideoClassification, content: str, named: str, tmp_path: Path
) -> None:
    (tmp_path / "folder" / "config.json").write_text(content)
    for load in (load_network, lambda path: network_like(path, 7)):
        with pytest.raises(RaylabError, match=rf"folder/config\.json: .*{named}"):
            load(tmp_path / "folder")


LAYER = "videomae.encoder.layer"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop(f"{LAYER}.1.output.dense.bias"), rf"without {LAYER}\.1\.output\.dense\.bias"),
        (lambda state: state.pop(f"{LAYER}.0.attention.attention.q_bias"), "without .*query.bias"),
        (lambda state: state.update({f"{LAYER}.3.output.dense.bias": torch.zeros(64)}), rf"with {LAYER}\.3\.output"),
        (lambda state: state.update({"extra": torch.zeros(1)}), "with extra"),
        (lambda state: state.update({f"{LAYER}.1.output.dense.bias": torch.zeros(3)}), rf"without {LAYER}\.1\.output"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    published: VideoMAEForVideoClassification, change: Callable[[dict[str, Tensor]], object], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    for classes in (None, 7):
        with pytest.raises(RaylabError, match=f"folder: not the weights of its VideoMAE: {named}"):
            load_network(tmp_path / "folder", classes)


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"truncated"])
def test_damaged_weights(published: VideoMAEForVideoClassification, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "model.safetensors"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[:5000] if content == b"truncated" else content)
    with pytest.raises(RaylabError, match="folder: cannot be read as a VideoMAE of transformers"):
        load_network(tmp_path / "folder")


class Malicious:
    """Writes a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


def test_loading_runs_no_code(published: VideoMAEForVideoClassification, tmp_path: Path) -> None:
    (tmp_path / "folder" / "model.safetensors").unlink()
    torch.save({"classifier.bias": Malicious(tmp_path / "ran")}, tmp_path / "folder" / "pytorch_model.bin")
    with pytest.raises(RaylabError, match="folder: cannot be read as a VideoMAE of transformers"):
        load_network(tmp_path / "folder")
    assert not (tmp_path / "ran").exists()


def test_a_student_starts_from_any_folder(published: VideoMAEForVideoClassification, tmp_path: Path) -> None:
    config, video = ModelConfig(name="videomae_small", student=str(tmp_path / "folder"), dropout=0.25), clips()
    model = build_model(config, {"gesture": 5})
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    torch.testing.assert_close(model(video)["gesture"], published(video).logits, rtol=1e-5, atol=1e-6)
    other = build_model(config.model_copy(update={"pretrained": False}), {"gesture": 5})
    assert other.state_dict().keys() == model.state_dict().keys()
    assert not torch.equal(other(video)["gesture"], model(video)["gesture"])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"pretrained": "hf-hub:MCG-NJU/videomae-large"},
            "set model.student=MCG-NJU/videomae-large and model.pretrained=true",
        ),
        ({"scale": "tiny"}, "model.scale = tiny: no weights are published: set model.pretrained=false"),
        ({"student": "./nowhere/at/all"}, "model.student = ./nowhere/at/all: no such folder or file"),
        ({"student": str(Path(__file__).parent)}, "has no config.json: name a folder"),
    ],
)
def test_a_student_that_cannot_be_had(settings: dict[str, object], named: str) -> None:
    with pytest.raises(RaylabError) as error:
        build_model(ModelConfig.model_validate({"name": "videomae_base", **settings}), HEADS)
    assert named in str(error.value)


LAYERS = (-1, -2, 1, 3)


def original_of(model: VideoMAE) -> VideoMAEForVideoClassification:
    """Transformers' own network with the same weights, by the attention that makes whole maps."""
    config = structure(num_frames=model.config.num_frames, image_size=model.config.image_size)
    config._attn_implementation = "eager"
    original = VideoMAEForVideoClassification(config).eval()
    original.load_state_dict(model.state_dict())
    return original


def test_taps_say_what_transformers_says_of_every_layer() -> None:
    model, video = network(structure()).eval(), clips()
    plain = model(video)["label"]
    said = original_of(model)(video, output_hidden_states=True, output_attentions=True)
    taps = Taps(model, LAYERS, attention=True)
    torch.testing.assert_close(model(video)["label"], plain, rtol=1e-5, atol=1e-5)
    hidden, attention = taps.take()
    assert hidden.keys() == attention.keys() == set(LAYERS)
    for layer in LAYERS:
        number = layer % 4  # of three layers: -1 is the third
        torch.testing.assert_close(hidden[layer], said.hidden_states[number], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(attention[layer], said.attentions[number - 1].mean(1), rtol=1e-5, atol=1e-6)
    assert taps.take() == ({}, {})


def test_of_many_tokens_the_attention_of_some_is_recorded() -> None:
    model, video = network(structure()).eval(), clips(4, 96, 96)
    model(video)
    whole = original_of(model)(video, output_attentions=True).attentions[-1].mean(1)
    taps = Taps(model, [-1], attention=True)
    model(video)
    found = taps.take()[1][-1]
    assert (whole.shape, found.shape) == ((2, 288, 288), (2, QUERIES, 288))
    evenly = [query * 288 // QUERIES for query in range(QUERIES)]
    torch.testing.assert_close(found, whole[:, evenly], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("attention", "made"), [(True, [False, True, False]), (False, [False, False, False])])
def test_only_layers_whose_maps_are_wanted_make_them(attention: bool, made: list[bool]) -> None:
    model = network(structure()).eval()
    taps, maps = Taps(model, [2], attention), []
    for layer in model.videomae.encoder.layer:
        layer.attention.attention.register_forward_hook(lambda module, given, output: maps.append(output[1]))
    model(clips())
    assert [found is not None for found in maps] == made
    assert [len(found) for found in taps.take()] == [1, int(attention)]


def test_gradients_pass_through_taps() -> None:
    model = network(structure()).train()
    taps = Taps(model, [2], attention=True)
    with torch.enable_grad():
        model(clips())
        hidden, attention = taps.take()
        (hidden[2].sum() + attention[2].square().sum()).backward()
    trained = [layer.attention.attention.query.weight.grad is not None for layer in model.videomae.encoder.layer]
    assert trained == [True, True, False]


@pytest.mark.parametrize("layer", [0, 4, -4])
def test_a_layer_that_a_network_has_not(layer: int) -> None:
    with pytest.raises(RaylabError, match=rf"hidden_layers_to_align: layer {layer} of a network that has 3"):
        Taps(network(structure()), [layer], attention=False)
