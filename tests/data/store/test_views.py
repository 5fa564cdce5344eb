"""Segment sampling and several crops of a frame, from videos, extracted frames and clip stores alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scenes import FPS, building, clip, encode, numbers, prepare

from raylab.config import DataConfig
from raylab.data.clips import ClipTable
from raylab.data.dataset import ClipDataset
from raylab.data.loader import TrainBatches, make_loader
from raylab.data.sampling import segment_fractions
from raylab.data.store.find import find_store
from raylab.errors import RaylabError
from raylab.prepare import prepare as prepare_verb

SEGMENTS = DataConfig(frames=4, size=28, batch_size=3, loader_workers=0, sampling="segments")
UNIFORM = SEGMENTS.model_copy(update={"sampling": "uniform"})
CLIPS = [
    clip("wide_0", "wide", 0, 40),
    clip("tall_10", "tall", 10, 50),
    clip("wide_20", "wide", 20, 26),
    clip("tall_3", "tall", 3, 5),
]


@given(n=st.integers(1, 40), seed=st.integers(0, 99))
def test_each_segment_gives_one_moment(n: int, seed: int) -> None:
    drawn = segment_fractions(n, Random(seed))
    assert [int(fraction * n) for fraction in drawn] == list(range(n))
    assert segment_fractions(n) == pytest.approx([(2 * i + 1) / (2 * n) for i in range(n)])
    assert all(0 <= fraction < 1 for fraction in drawn)


@pytest.mark.parametrize("n", [1, 2, 16, 40])
def test_the_last_moment_stays_inside_the_clip(n: int) -> None:
    class Highest(Random):
        def random(self) -> float:
            return 1 - 2**-53

    assert segment_fractions(n, Highest())[-1] < 1
    assert all(int(segment_fractions(n, Highest())[-1] * frames) == frames - 1 for frames in (1, 3, 64, 999))


def test_segments_are_as_many_as_asked() -> None:
    with pytest.raises(ValueError, match="n must be at least 1"):
        segment_fractions(0)


@pytest.fixture(scope="module")
def store(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    for settings in ({"frames": (), "fps": FPS}, {"frames": (4,)}, {"frames": (8,), "sides": False}):
        prepare(building(folder, **settings), CLIPS, sources)
    return folder


def dataset(config: DataConfig, sources: Mapping[str, Path], **settings: object) -> ClipDataset:
    return ClipDataset(CLIPS, sources, config, **settings)


def stored(config: DataConfig, folder: Path, **settings: object) -> ClipDataset:
    crops = settings.get("crops", 1)
    found, refusals = find_store(config, folder, {"train": ClipTable.of(CLIPS)}, crops)
    assert found, refusals
    return ClipDataset(CLIPS, {}, config, found["train"], **settings)


def shown(data: ClipDataset, epoch: int = 0) -> list[list[int]]:
    """The frames of every clip in one epoch."""
    batch = data.__getitems__([epoch * len(data) + index for index in range(len(data))])
    return [numbers(video) for video in batch["video"]]


def test_without_chance_the_middle_of_each_segment(sources: dict[str, Path]) -> None:
    assert shown(dataset(SEGMENTS, sources)) == [[5, 15, 25, 35], [15, 25, 35, 45], [20, 22, 23, 25], [3, 3, 4, 4]]


def test_extracted_frames_are_those_of_the_video(sources: dict[str, Path]) -> None:
    config = SEGMENTS.model_copy(update={"frames": 7})
    both = [clip("wide_4", "wide", 4, 47), clip("frames_4", "frames", 4, 47)]
    video, folder = ClipDataset(both, sources, config)
    assert numbers(video["video"]) == numbers(folder["video"])


def test_in_training_a_function_of_seed_epoch_and_clip(sources: dict[str, Path]) -> None:
    data = dataset(SEGMENTS, sources, train=True, seed=1)
    first = shown(data)
    assert first == shown(dataset(SEGMENTS, sources, train=True, seed=1))
    assert first != shown(data, epoch=1)
    assert first != shown(dataset(SEGMENTS, sources, train=True, seed=2))
    assert shown(data, epoch=1)[2] == numbers(data.__getitems__([1 * 4 + 2])["video"][0])  # whatever stands beside it
    for epoch in range(20):
        for segment, frames in zip(CLIPS, shown(data, epoch), strict=True):
            start, length = segment.start_frame - 1, segment.stop_frame - segment.start_frame
            assert [int((number - start) * 4 / length) for number in frames] == [0, 1, 2, 3] or length < 8
            assert all(start <= number < start + length for number in frames)


def test_evenly_spaced_frames_are_the_same_in_every_epoch(sources: dict[str, Path]) -> None:
    data = dataset(UNIFORM, sources, train=True)
    assert shown(data) == shown(data, epoch=3) == shown(dataset(UNIFORM, sources))


def test_a_loader_draws_anew_each_epoch(sources: dict[str, Path]) -> None:
    data = dataset(SEGMENTS, sources, train=True)
    batches = TrainBatches(len(data), batch_size=1, rank=0, world_size=1, seed=0)
    loader = make_loader(data, batches, SEGMENTS, pin=False)
    for epoch in (0, 1):
        batches.set_position(epoch)
        seen = {batch["ids"][0]: numbers(batch["video"][0]) for batch in loader}
        assert seen == dict(zip([c.id for c in CLIPS], shown(data, epoch), strict=True))


def test_a_store_by_rate_gives_what_the_video_gives(sources: dict[str, Path], store: Path) -> None:
    for settings in ({}, {"train": True, "seed": 5}):
        for epoch in (0, 3):
            recorded = shown(dataset(SEGMENTS, sources, **settings), epoch)
            kept = shown(stored(SEGMENTS, store, **settings), epoch)
            assert all(abs(a - b) <= 1 for x, y in zip(recorded, kept, strict=True) for a, b in zip(x, y, strict=True))


def test_a_store_of_fixed_frames_refuses_segments(store: Path) -> None:
    config = SEGMENTS.model_copy(update={"store": str(store / "4f-32px-q90")})
    with pytest.raises(RaylabError, match=r"holds evenly spaced frames, not data\.sampling = segments.*--fps"):
        stored(config, store / "4f-32px-q90")


def test_preparing_for_segments_asks_for_a_rate(tmp_path: Path) -> None:
    place = {"dataset": "kitchen", "kitchen": "tiny", "store": str(tmp_path / "stores")}
    sweep = {"description": "mine", "experiment": {"data": place}, "search": {"grace_epochs": 1}}
    searched = {**sweep, "space": {"data.sampling": {"choice": ["uniform", "segments"]}}}
    for content in ({"data": {**place, "sampling": "segments"}}, searched):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(RaylabError, match=r"data\.sampling = segments: .*give --fps"):
            prepare_verb(str(tmp_path / "mine.yaml"))
    assert not (tmp_path / "stores").exists()


@pytest.mark.parametrize("place", ["video", "store"])
def test_three_crops_reach_from_one_end_to_the_other(sources: dict[str, Path], store: Path, place: str) -> None:
    one, three = (
        (dataset(UNIFORM, sources, crops=crops) if place == "video" else stored(UNIFORM, store, crops=crops))
        for crops in (1, 3)
    )
    for index, axis in ((0, 2), (1, 1)):  # wide and tall: red rises with x, green with y
        video = three[index]["video"].float()
        assert video.shape == (12, 3, 32, 32)
        crops = video.reshape(3, 4, 3, 32, 32)
        assert (crops[1] - one[index]["video"].float()).abs().mean() < 2
        means = crops[:, :, 0 if axis == 2 else 1].mean((1, 2, 3)) - crops[:, :, 2].mean((1, 2, 3))
        assert means[0] + 3 < means[1] < means[2] - 3
        other = crops[:, :, 1 if axis == 2 else 0].mean((1, 2, 3)) - crops[:, :, 2].mean((1, 2, 3))
        assert other.max() - other.min() < 1
        assert numbers(crops[0]) == numbers(crops[1]) == numbers(crops[2]) == numbers(one[index]["video"])


def test_a_square_frame_has_three_equal_crops(tmp_path: Path) -> None:
    data = ClipDataset(
        [clip("square_0", "square", 0, 9)], {"square": encode(tmp_path / "s.mp4", 64, 64)}, UNIFORM, crops=3
    )
    left, middle, right = data[0]["video"].reshape(3, 4, 3, 32, 32)
    assert torch.equal(left, middle)
    assert torch.equal(middle, right)


def test_what_keeps_squares_alone_refuses_crops(store: Path, sources: dict[str, Path]) -> None:
    config = UNIFORM.model_copy(update={"frames": 8, "store": str(store / "8f-32px-q90-square")})
    with pytest.raises(RaylabError, match=r"holds the centre square alone, not 3 crops.*without --square"):
        stored(config, store / "8f-32px-q90-square", crops=3)
    gpu = UNIFORM.model_copy(update={"jpeg": "gpu"})
    with pytest.raises(RaylabError, match=r"data\.jpeg = gpu: decodes the centre square alone, not 3 crops"):
        stored(gpu, store, crops=3)
