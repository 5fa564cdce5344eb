"""What frozen networks say of clips: asked once, kept on disk, read by whoever needs it next."""

from __future__ import annotations

import logging
import resource
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from raylab.config import DataConfig, Experiment
from raylab.data.augment import ClipTransform
from raylab.data.clips import Dataset
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.data.outputs import OutputCache
from raylab.data.store.build import Building
from raylab.data.store.manifest import StoreSettings
from raylab.data.store.reader import Store, StoredFrames
from raylab.data.store.sources import look, write_seen
from raylab.models.distillation import structure
from raylab.models.frozen import FrozenNetwork
from raylab.models.videomae import VideoMAE, network
from raylab.storage import Folder
from raylab.tasks.distillation import DTYPE
from raylab.training.loop import Trainer, Worker
from raylab.training.runfolder import RunFolder

CLIPS = 8  # of each split
Rows = list[dict[str, Any]]
Train = Callable[..., Rows]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of outputs."""
    return tmp_path / "kept"


@pytest.fixture
def asked() -> Iterator[list[int]]:
    """Grows by the number of clips whenever a frozen network is asked."""
    calls: list[int] = []

    def count(module: Any, arguments: Any, output: Any) -> None:
        if isinstance(module, FrozenNetwork):
            calls.append(len(arguments[0]))

    handle = register_module_forward_hook(count)
    yield calls
    handle.remove()


@pytest.fixture
def train(small_student: Experiment, tmp_path: Path, kept: Path) -> Train:
    """Trains with settings changed, `between` being called after every epoch; the rows without times."""
    started: list[Path] = []

    def run(between: Callable[[], None] = lambda: None, **changes: Any) -> Rows:
        settings = {
            "data.max_clips": CLIPS,
            "data.batch_size": 4,
            "data.augment": "none",
            "train.epochs": 2,
            "distill.cache": str(kept),
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        experiment = small_student.override(settings)
        started.append(tmp_path / f"run{len(started)}")
        folder = RunFolder(Folder.open(started[-1]))
        folder.create(experiment)
        trainer = Trainer(experiment, load_dataset(experiment.data), folder, Worker(torch.device("cpu")))
        rows = []
        while not trainer.done:
            trainer.train_epoch()
            rows.append(trainer.finish_epoch())
            between()
        timed = {"seconds", "clips_per_second", "data_wait", "memory"}
        return [{name: value for name, value in row.items() if name not in timed} for row in rows]

    return run


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def everything(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# Training with it.


def test_sources_are_asked_once_and_what_is_read_is_what_was_computed(
    train: Train, kept: Path, asked: list[int]
) -> None:
    per_epoch: list[int] = []
    rows = train(lambda: per_epoch.append(sum(asked)), train__epochs=3)
    assert per_epoch == [2 * 2 * CLIPS] * 3  # two networks, two splits, and nothing after the first epoch
    assert len(everything(kept)) == len(files(kept)) == 2 * 2 * CLIPS
    read = train(train__epochs=3)
    assert sum(asked) == per_epoch[-1]
    forgotten = train(lambda: shutil.rmtree(kept), train__epochs=3)
    assert sum(asked) == 3 * per_epoch[-1]  # in its second and third epoch anew
    assert rows == read == forgotten


def test_outputs_are_kept_in_half_precision_as_a_network_gives_them_for_one_clip(train: Train, kept: Path) -> None:
    train(train__epochs=1)
    for path in files(kept):
        width = 128 if load_file(path)["hidden/4"].shape[-1] == 128 else 64
        shapes = {name: (value.dtype, tuple(value.shape)) for name, value in load_file(path).items()}
        hidden, attention = (DTYPE, (32, width)), (DTYPE, (32, 32))
        assert shapes == {
            f"{kind}/{n}": of for kind, of in (("hidden", hidden), ("attention", attention)) for n in (2, 3, 4)
        }


def test_training_differs_little_from_that_without(train: Train) -> None:
    with_, without = train(), train(distill__cache=False)
    assert with_ != without
    for one, other in zip(with_, without, strict=True):
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=1e-2, abs=1e-3), name


def test_another_trial_reads_what_the_first_has_written(train: Train, asked: list[int], kept: Path) -> None:
    train(train__epochs=1)
    before, written = sum(asked), {path: path.stat().st_mtime_ns for path in files(kept)}
    trial = {
        "data__batch_size": 3,
        "optim__lr": 1e-3,
        "distill__hidden_layers_to_align": "-1",
        "distill__attention_distillation_weight": 0,
        "distill__temperature": 2.0,
        "seed": 1,
        "model__name": "videomae_base",
    }
    train(**trial)
    assert sum(asked) == before
    assert {path: path.stat().st_mtime_ns for path in files(kept)} == written


def test_a_layer_that_is_wanted_later_is_added(train: Train, asked: list[int], kept: Path) -> None:
    narrow = {"distill__hidden_layers_to_align": "-1", "distill__attention_distillation_weight": 0}
    train(train__epochs=1, **narrow)
    first = {path: load_file(path) for path in files(kept)}
    assert {tuple(content) for content in first.values()} == {("hidden/4",)}
    train(train__epochs=1, **{**narrow, "distill__hidden_layers_to_align": "1,-2"})
    assert sum(asked) == 2 * 4 * CLIPS
    for path, content in first.items():
        assert load_file(path).keys() == {"hidden/1", "hidden/3", "hidden/4"}
        assert torch.equal(load_file(path)["hidden/4"], content["hidden/4"])
    train(**{**narrow, "distill__hidden_layers_to_align": "1,-1,-2"})
    assert sum(asked) == 2 * 4 * CLIPS


def test_each_clip_has_as_many_entries_as_variants(train: Train, asked: list[int], kept: Path) -> None:
    per_epoch: list[int] = []
    settings = {"data__variants": 2, "data__augment": "aggressive", "data__sampling": "segments"}
    rows = train(lambda: per_epoch.append(sum(asked)), train__epochs=4, **settings)
    assert per_epoch == [2 * 2 * CLIPS, 2 * 3 * CLIPS, 2 * 3 * CLIPS, 2 * 3 * CLIPS]
    for of_network in kept.iterdir():
        assert len(files(of_network)) == 2 * CLIPS + CLIPS  # train, and val, which is not augmented
    assert train(lambda: shutil.rmtree(kept), train__epochs=4, **settings) == rows


def test_clips_that_never_return_are_not_kept(train: Train, asked: list[int], kept: Path) -> None:
    train(data__augment="mild")
    assert len(files(kept)) == 2 * CLIPS  # those of val
    assert sum(asked) == 2 * 2 * CLIPS + 2 * CLIPS


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "without_an_output", "gone"])
def test_a_damaged_file_is_made_anew(train: Train, asked: list[int], kept: Path, damage: str) -> None:
    rows = train(train__epochs=1)
    contents = {path: path.read_bytes() for path in files(kept)}
    asked.clear()
    for path in (files(kept)[0], files(kept)[-1]):
        whole = contents[path]
        if damage == "without_an_output":
            save_file({"hidden/4": load_file(path)["hidden/4"]}, path)
        elif damage == "gone":
            path.unlink()
        else:
            path.write_bytes({"truncated": whole[:-10], "empty": b"", "garbage": b"\xff" * 100}[damage])
    assert train(train__epochs=1) == rows
    assert 0 < sum(asked) <= 2 * 2 * 4  # the batches that the two clips stand in
    assert {path: path.read_bytes() for path in files(kept)} == contents


def test_a_folder_that_cannot_be_written_is_said_once_and_training_goes_on(
    train: Train, kept: Path, asked: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    rows = train()
    shutil.rmtree(kept)
    kept.write_text("a file")
    asked.clear()
    with caplog.at_level(logging.WARNING):
        assert train() == rows
    assert sum(asked) == 2 * 2 * 2 * CLIPS
    assert [record.message.partition(" (")[0] for record in caplog.records] == [f"{kept}: cannot be written"]


@pytest.mark.parametrize("augment", ["none", "mild"])
def test_loader_processes_read_it_too(train: Train, asked: list[int], augment: str) -> None:
    settings = {"data__augment": augment, "data__variants": 2, "train__epochs": 3}
    rows = train(**settings)
    count = sum(asked)
    assert train(**settings, data__loader_workers=1) == rows
    assert sum(asked) == count


# Files.


def test_a_full_disk_leaves_nothing_half_written(kept: Path) -> None:
    cache = OutputCache(kept, {"teacher": ("signature", ("hidden/4",))})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            cache.write("teacher", "abc", {"hidden/4": torch.zeros(32, 128, dtype=DTYPE)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert everything(kept) == []


def test_writers_of_one_clip_do_not_disturb_readers(kept: Path) -> None:
    cache = OutputCache(kept, {"teacher": ("signature", ("hidden/4", "logits"))})
    said = {"hidden/4": torch.arange(64 * 64, dtype=DTYPE).view(64, 64), "logits": torch.ones(3, dtype=DTYPE)}
    cache.write("teacher", "abc", said)

    def write(_: int) -> None:
        cache.write("teacher", "abc", said)

    def read(_: int) -> bool:
        found, missing = cache.read(["abc", "abc"], lambda shape, dtype: torch.empty(shape, dtype=dtype))
        expected = {f"teacher/{name}": torch.stack([value] * 2) for name, value in said.items()}
        return not missing and all(torch.equal(found[name], value) for name, value in expected.items())

    with ThreadPoolExecutor(8) as pool:
        writing = pool.map(write, range(100))
        assert all(pool.map(read, range(100)))
        list(writing)
    assert [path.name for path in everything(kept)] == ["abc.safetensors"]


def test_a_batch_is_read_whole_or_not_at_all(kept: Path) -> None:
    cache = OutputCache(kept, {"teacher": ("one", ("logits",)), "assistant": ("other", ("logits",))})

    def read() -> tuple[dict[str, Tensor], list[int]]:
        return cache.read(["abc", "def"], lambda shape, dtype: torch.empty(shape, dtype=dtype))

    for number, (name, key) in enumerate(
        [("teacher", "abc"), ("teacher", "def"), ("assistant", "abc"), ("assistant", "def")]
    ):
        assert read() == ({}, [0, 1])
        cache.write(name, key, {"logits": torch.full((3,), number, dtype=DTYPE)})
    found, missing = read()
    assert not missing
    assert {name: value[:, 0].tolist() for name, value in found.items()} == {
        "teacher/logits": [0, 1],
        "assistant/logits": [2, 3],
    }


# Keys.

CONFIG = DataConfig(
    dataset="kitchen_labelled", kitchen="tiny", max_clips=CLIPS, frames=4, size=32, augment="mild", loader_workers=0
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(CONFIG, ["train"])


def keys(dataset: Dataset, seed: int = 0, epoch: int = 0, mean: float = 0.5, **changes: Any) -> list[str]:
    """Of the first two training clips."""
    config = CONFIG.model_copy(update=changes)
    cache = OutputCache(Path("absent"), {}, ClipTransform(config, True, seed, (mean,) * 3, (0.25,) * 3))
    clips = ClipDataset.of(dataset, "train", config, train=True, seed=seed, cache=cache)
    return clips.__getitems__([epoch * len(clips), epoch * len(clips) + 1])["keys"]


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 40},
        {"frames": 5},
        {"mean": 0.4},
        {"augment": "aggressive"},
        {"augment": "none"},
        {"hflip": 0.0},
        {"seed": 1},
        {"epoch": 1},
        {"sampling": "segments"},
        {"sampling": "segments", "augment": "none"},
    ],
    ids=str,
)
def test_other_pixels_have_another_key(dataset: Dataset, changes: dict[str, Any]) -> None:
    base, other = keys(dataset), keys(dataset, **changes)
    assert len({*base, *other}) == 4


def test_pixels_that_do_not_change_keep_their_key(dataset: Dataset) -> None:
    assert keys(dataset) == keys(dataset, batch_size=3, variants=2, loader_workers=2)
    plain = {"augment": "none"}
    assert keys(dataset, **plain) == keys(dataset, **plain, seed=1, epoch=3, hflip=0.0)
    segments = {"augment": "none", "sampling": "segments"}  # drawn at random, so they are other frames
    of_epochs = [keys(dataset, **segments, epoch=epoch) for epoch in (0, 1)]
    assert set(of_epochs[0]).isdisjoint(of_epochs[1])


def test_a_video_that_is_replaced_has_another_key(dataset: Dataset, tmp_path: Path) -> None:
    clips = dataset.splits["train"].clips
    first, *_, last = (dataset.sources[clip.video] for clip in clips)
    moved = replace(dataset, sources={**dataset.sources, clips[0].video: tmp_path / "video.mp4"})
    shutil.copy(first, tmp_path / "video.mp4")
    assert keys(moved) == keys(dataset)
    shutil.copy(last, tmp_path / "video.mp4")
    changed = keys(moved)
    assert changed[0] != keys(dataset)[0]
    assert changed[1] == keys(dataset)[1]


def test_clips_of_a_store_have_keys_decoded_or_not(dataset: Dataset, tmp_path: Path) -> None:
    settings = StoreSettings(frames=(4,), short_side=36)
    building = Building(tmp_path / settings.name, settings, "pyav")
    clips, seen = dataset.splits["train"].clips, look(dataset.sources, {})
    building.folder.mkdir()
    for piece in building.plan(
        clips, [settings.content_key(seen[clip.video].fingerprint, clip) for clip in clips], dataset.sources
    ):
        building.write(piece)
    write_seen(building.folder, seen)
    frames = StoredFrames(Store(building.folder, building.seal(clips)), clips, CONFIG)
    stored = replace(dataset, stored={"train": frames})
    decoded, encoded = (keys(stored, jpeg=jpeg) for jpeg in ("cpu", "gpu"))
    assert len({*keys(dataset), *decoded, *encoded}) == 6  # JPEG is not what was filmed, nor is nvJPEG libjpeg
    assert decoded == keys(stored, jpeg="cpu", batch_size=3)
    assert encoded == keys(stored, jpeg="gpu", batch_size=3)
    assert keys(stored, jpeg="gpu", epoch=1)[0] != encoded[0]


# Networks.


def a_network(**changes: Any) -> VideoMAE:
    torch.manual_seed(0)
    config = structure("small", "tiny")
    config.update({"num_hidden_layers": 1, **changes})
    return network(config, 3)


def signature(model: VideoMAE, weight: float = 1.0, layers: tuple[int, ...] = (-1,), **wanted: Any) -> str:
    return FrozenNetwork(model, weight, layers, **wanted).signature()


def test_a_signature_changes_with_every_weight() -> None:
    model = a_network()
    found = {signature(model)}
    for tensor in model.state_dict().values():
        tensor.flatten()[-1].add_(1e-3)
        found.add(signature(model))
    assert len(found) == 1 + len(model.state_dict())


def test_a_signature_changes_with_what_weights_do_not_tell() -> None:
    heads, rounder, eps, mean = a_network(num_attention_heads=2), a_network(hidden_act="relu"), a_network(), a_network()
    eps.fc_norm.eps = 1e-3
    mean.mean = (0.5, 0.5, 0.5)
    assert len({signature(model) for model in (a_network(), heads, rounder, eps, mean)}) == 5


def test_a_signature_does_not_change_with_what_is_asked() -> None:
    model = a_network()
    base = signature(model)
    model.classes = ["a", "b", "c"]
    asked = {"weight": 0.5, "layers": (1,), "hidden": False, "attention": True, "classes": ["c", "b", "a"]}
    assert signature(model, **asked) == base
    model.fit(8, 64, 64)
    assert signature(model) == base
