"""A fixed encoder's features: computed once for each clip, then neither encoded nor decoded again, by any trial."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch.nn.modules.module import register_module_forward_hook

from raylab.config import Experiment
from raylab.data.augment import ClipTransform
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.data.outputs import OutputCache
from raylab.data.recorded import RecordedFrames
from raylab.models.freezing import Freezable

CLIPS = 8  # of each split
MODELS = ("resnet50_lstm", "cross_attention", "r2plus1d_r50")
Rows = list[dict[str, Any]]
Train = Callable[..., Rows]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of features."""
    return tmp_path / "kept"


@pytest.fixture
def encoded() -> Iterator[list[int]]:
    """Grows by the number of clips whenever an encoder sees frames."""
    calls: list[int] = []

    def count(module: Any, arguments: Any, output: Any) -> None:
        if isinstance(module, Freezable) and arguments[0].ndim == 5:
            calls.append(len(arguments[0]))

    handle = register_module_forward_hook(count)
    yield calls
    handle.remove()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the clip's id whenever one is decoded."""
    clips: list[str] = []
    read = RecordedFrames.read

    def counted(self: RecordedFrames, number: int, clip: Any, *rest: Any) -> None:
        clips.append(clip.id)
        read(self, number, clip, *rest)

    monkeypatch.setattr(RecordedFrames, "read", counted)
    return clips


@pytest.fixture
def train(small_experiment: Experiment, rows_of: Callable[..., Rows], kept: Path) -> Train:
    """`rows_of` with settings changed."""

    def run(between: Callable[[], None] = lambda: None, **changes: Any) -> Rows:
        model = {"name": "resnet50_lstm", "scale": "tiny", "pretrained": False}
        settings = {
            "data.max_clips": CLIPS,
            "data.batch_size": 4,
            "data.augment": "none",
            "train.stages": [{"epochs": 2, "lr": 1e-3, "freeze": "encoder"}],
            "train.cache": str(kept),
            "train.sample_clips": 0,  # or four are decoded once more, to be shown
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        return rows_of(Experiment.parse({**small_experiment.to_dict(), "model": model}).override(settings), between)

    return run


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("name", MODELS)
def test_a_clip_is_encoded_and_decoded_once(
    train: Train, kept: Path, encoded: list[int], decoded: list[str], name: str
) -> None:
    per_epoch: list[tuple[int, int]] = []
    rows = train(lambda: per_epoch.append((sum(encoded), len(decoded))), model__name=name)
    assert per_epoch == [(2 * CLIPS, 2 * CLIPS)] * 2
    assert sorted(decoded) == sorted(set(decoded))
    assert len(files(kept)) == 2 * CLIPS
    read = train(model__name=name)
    assert (sum(encoded), len(decoded)) == per_epoch[-1]
    forgotten = train(lambda: shutil.rmtree(kept), model__name=name)
    assert sum(encoded) == 2 * per_epoch[-1][0]  # in its second epoch anew
    assert rows == read == forgotten


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_without(train: Train, name: str) -> None:
    with_, without = train(model__name=name), train(model__name=name, train__cache=False)
    for one, other in zip(with_, without, strict=True):
        assert {key: one[key] for key in one if "loss" in key} == pytest.approx(
            {key: other[key] for key in other if "loss" in key}, abs=1e-5
        )


def test_features_keep_the_precision_they_were_computed_in(train: Train, kept: Path) -> None:
    train()
    train(train__precision="bf16")
    networks = {tuple(value.dtype for value in load_file(path).values()) for path in files(kept)}
    assert networks == {(torch.float32,), (torch.bfloat16,)}
    assert len(list(kept.iterdir())) == 2  # apart


def test_another_head_over_the_same_weights_reads_what_the_first_has_written(
    train: Train, encoded: list[int], decoded: list[str]
) -> None:
    train()
    before = sum(encoded), len(decoded)
    train(model__name="resnet50_transformer", data__batch_size=2, optim__weight_decay=0.1)
    assert (sum(encoded), len(decoded)) == before
    train(model__name="resnet50_lstm", seed=1)  # other random weights
    assert sum(encoded) == 2 * before[0]


def test_only_what_is_missing_is_decoded_and_encoded(
    train: Train, kept: Path, encoded: list[int], decoded: list[str]
) -> None:
    rows = train()
    contents = {path: path.read_bytes() for path in files(kept)}
    gone, damaged, *_, other = files(kept)
    gone.unlink()
    damaged.write_bytes(contents[damaged][:-10])
    save_file({"else": torch.zeros(1)}, other)
    encoded.clear()
    decoded.clear()
    assert train() == rows
    assert (sum(encoded), len(set(decoded)), len(decoded)) == (3, 3, 3)
    for path, content in contents.items():
        assert torch.equal(load_file(path)["features"], load(content)["features"])


@pytest.mark.parametrize("augment", ["none", "mild"])
def test_loader_processes_read_them_too(train: Train, encoded: list[int], augment: str) -> None:
    settings = {"data__augment": augment, "data__variants": 2}
    rows = train(**settings)
    count = sum(encoded)
    assert count == (2 if augment == "none" else 3) * CLIPS
    assert train(**settings, data__loader_workers=1) == rows
    assert sum(encoded) == count


def test_clips_that_never_return_are_not_kept(train: Train, kept: Path, encoded: list[int]) -> None:
    train(data__augment="mild")
    assert len(files(kept)) == CLIPS  # those of val
    assert sum(encoded) == CLIPS + 2 * CLIPS


def test_nothing_is_kept_of_an_encoder_that_is_trained(train: Train, kept: Path, encoded: list[int]) -> None:
    train(train__stages=[{"epochs": 2, "lr": 1e-3, "unfreeze_blocks": 1}])
    assert files(kept) == []
    assert sum(encoded) == 2 * 2 * CLIPS


def test_an_encoder_that_is_fixed_again_is_another(train: Train, kept: Path, encoded: list[int]) -> None:
    frozen, fine = {"epochs": 1, "lr": 1e-3, "freeze": "encoder"}, {"epochs": 1, "lr": 1e-2, "unfreeze_blocks": 1}
    train(train__stages=[frozen, fine, frozen, frozen])
    assert sum(encoded) == 3 * 2 * CLIPS
    assert len(list(kept.iterdir())) == 2


def test_keys_are_made_without_decoding(small_experiment: Experiment, decoded: list[str], kept: Path) -> None:
    dataset = load_dataset(small_experiment.data, ["val"])
    transform = ClipTransform(small_experiment.data, train=False, seed=0)
    cache = OutputCache(kept, {"encoder": ("x", ("features",))}, transform, replaces=True)
    clips = ClipDataset.of(dataset, "val", small_experiment.data, cache=cache)
    first = clips.__getitems__([0, 1])
    assert first["missing"] == [0, 1]
    for key in first["keys"]:
        cache.write("encoder", key, {"features": torch.ones(4, 8)})
    decoded.clear()
    again = clips.__getitems__([1, 0, 2])
    assert again["missing"] == [2]
    assert len(again["video"]) == len(decoded) == 1
    assert again["outputs"]["encoder/features"][:2].eq(1).all()
    whole = clips.__getitems__([0, 1])
    assert "video" not in whole
    assert whole["missing"] == []
