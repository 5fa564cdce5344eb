"""The built-in data set, real and generated: pairs that only the artefact tells apart."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raylab.config import DataConfig, ModelConfig
from raylab.data.augment import ClipTransform
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.data.kitchen import fingerprint, kitchen_root, render_frames
from raylab.data.kitchen_aura import AURA, GENERATED, REAL, Take, draw_imprint, plan_takes, render_take
from raylab.data.kitchen_plan import digits
from raylab.data.loader import TrainBatches, make_loader
from raylab.handcrafted.extract import HandcraftedSettings, extract
from raylab.handcrafted.measures import FEATURES
from raylab.models.registry import build_model, list_models


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kitchen_root("tiny", tmp_path_factory.mktemp("cache"), layout=AURA)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, root: Path) -> DataConfig:
    monkeypatch.setenv("RAYLAB_CACHE", str(root.parent))
    return DataConfig(dataset="kitchen_aura", kitchen="tiny", split="participant", folds=3, frames=2, size=32)


def takes() -> list[Take]:
    return [take for found in plan_takes("tiny").values() for take in found]


def frames(take: Take) -> NDArray[np.float64]:
    images = digits()[0][take.images]
    return np.stack([np.asarray(frame, np.float64) for frame in render_take(take, images)])


def test_metadata_files_and_plan_agree(root: Path) -> None:
    with (root / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"path": take.path.as_posix(), "label": take.label, "group": take.video.participant} for take in takes()
    ]
    assert {path.relative_to(root) for path in root.rglob("*.mp4")} == {take.path for take in takes()}
    assert Counter(row["label"] for row in rows) == {REAL: 72, GENERATED: 72}
    assert Counter((row["group"], row["label"]) for row in rows) == {
        (f"P{participant:02}", label): 12 for participant in range(1, 7) for label in (REAL, GENERATED)
    }


def test_a_changed_plan_needs_a_new_format() -> None:
    content = hashlib.sha256(repr(plan_takes("tiny")).encode()).hexdigest()[:10]
    assert (fingerprint("tiny", *AURA.settings), content) == ("4ad3d48caf", "a0507ca493"), (
        "raise kitchen.FORMAT, then renew both values"
    )


def test_folds_keep_pairs_together(config: DataConfig) -> None:
    held_out = []
    for fold in range(3):
        dataset = load_dataset(config.model_copy(update={"fold": fold}))
        assert dataset.labels == {"label": [GENERATED, REAL]}
        val = [clip.id for clip in dataset.splits["val"].clips]
        assert {id.replace(REAL, GENERATED) for id in val} == {id for id in val if id.startswith(GENERATED)}
        held_out += val
    assert sorted(held_out) == sorted(take.path.as_posix() for take in takes())


def test_fewer_clips_are_still_pairs(config: DataConfig) -> None:
    dataset = load_dataset(config.model_copy(update={"max_clips": 60}))
    clips = [clip.id for split in dataset.splits.values() for clip in split.clips]
    assert len(clips) == 60
    assert Counter(id.partition("/")[2] for id in clips) == dict.fromkeys({id.partition("/")[2] for id in clips}, 2)


def test_a_pair_differs_by_grain_imprint_and_flicker_as_stated() -> None:
    real, generated = (found[0] for found in plan_takes("tiny").values())
    assert (real.video, real.amplitude, real.flicker) == (generated.video, 0, 0)
    clean = np.stack([np.asarray(f, np.float64) for f in render_frames(real.video, digits()[0][real.images])])
    for take in (real, generated):
        added = (frames(take) - clean).mean(-1)
        imprint = draw_imprint()
        strength = (added.mean(0) * imprint).mean() / (imprint**2).mean()
        assert strength == pytest.approx(take.amplitude, abs=0.1)
        assert added.mean((1, 2)).std() == pytest.approx(take.flicker, abs=0.35)
        assert added.mean() == pytest.approx(0, abs=0.35)
        grain = added - added.mean((1, 2), keepdims=True) - strength * imprint
        assert grain.std() == pytest.approx(take.grain, rel=0.1)


def test_its_decoded_frames_are_the_rendered_ones(root: Path) -> None:
    for found in plan_takes("tiny").values():
        images = digits()[0][found[0].images]
        expected = [
            av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24").to_ndarray(format="yuv420p")
            for frame in render_take(found[0], images)
        ]
        with av.open(root / found[0].path) as container:
            decoded = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
        np.testing.assert_array_equal(decoded, expected)


def test_features_of_the_picture_see_the_artefact_and_no_single_thing_else_does(root: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    some = takes()[::2]
    values = np.stack([extract(root / take.path, HandcraftedSettings(frames=3)) for take in some])
    generated = np.array([take.label == GENERATED for take in some])
    groups = [take.video.participant for take in some]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    found = cross_val_predict(model, values, generated, groups=groups, cv=GroupKFold(3))
    assert (found == generated).mean() > 0.75
    sizes = [(root / take.path).stat().st_size for take in some]
    for telltale in (sizes, *(values[:, i] for i, feature in enumerate(FEATURES) if feature.group == "codec")):
        assert abs(roc_auc_score(generated, telltale) - 0.5) < 0.15


@pytest.mark.parametrize("augment", ["mild", "aggressive"])
def test_every_network_is_shown_the_same_pixels_in_every_epoch(config: DataConfig, augment: str) -> None:
    config = config.model_copy(update={"augment": augment, "variants": 2, "max_clips": 24, "loader_workers": 0})
    networks = [entry for entry in list_models("classification") if not entry.handcrafted]
    assert len(networks) == 5
    shown = []
    for number, entry in enumerate(networks):
        model = build_model(ModelConfig(name=entry.name, scale="tiny", pretrained=False), {"label": 2})
        transform = ClipTransform.for_model(model, config, train=True, seed=0)
        shown.append(pixels(config, transform, batch_size=1 + number))
    for name, clip in shown[0].items():
        for other in shown[1:]:
            if name in other:  # what is left at the end of an epoch depends on the size of a batch
                torch.testing.assert_close(other[name], clip, rtol=0, atol=1e-4)
    assert len({name for name, _ in shown[0]}) == 16
    for name, epoch in shown[0]:
        assert torch.equal(shown[0][name, epoch], shown[0][name, epoch % 2])
        assert not torch.equal(shown[0][name, epoch], shown[0][name, 1 - epoch % 2])


def pixels(config: DataConfig, transform: ClipTransform, batch_size: int) -> dict[tuple[str, int], torch.Tensor]:
    """(Path, epoch) → what a model sees of a video, on a scale of 0 to 255, as the training loop brings it."""
    dataset = ClipDataset.of(load_dataset(config), "train", config, train=True)
    order = TrainBatches(len(dataset), batch_size, 0, 1, seed=0, draw=config.draw)
    seen = {}
    for epoch in range(4):
        order.set_position(epoch)
        for batch in make_loader(dataset, order, config, pin=False):
            clips = transform(batch["video"], batch["ids"], config.draw(epoch)) / transform.scale + transform.mean
            seen |= {(id, epoch): clip for id, clip in zip(batch["ids"], clips, strict=True)}
    return seen


def test_what_happens_to_a_video_follows_from_its_path_alone(config: DataConfig) -> None:
    """The same in every process, on every machine: these numbers may not change without a new `augment.FORMAT`."""
    transform = ClipTransform(config.model_copy(update={"augment": "mild"}), train=True, seed=0)
    assert transform.recipe is not None
    paths = ("real/P01_101_0.mp4", "real/P01_101_1.mp4")
    draws = [transform.draw(transform.recipe, path, epoch=0, side=37).warp for path in paths]
    expected = [[-0.9193849565111935, 0.0, -0.0089469403966711], [0.0, 0.9884033722777226, -0.0073848648113691295]]
    np.testing.assert_allclose(draws[0], expected, atol=1e-12)
    assert not np.allclose(draws[0], draws[1])
