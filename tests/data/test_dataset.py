import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torchvision.io import write_jpeg

from raylab.config import DataConfig
from raylab.data.clips import Clip
from raylab.data.dataset import ClipDataset
from raylab.data.footage import fit
from raylab.data.loader import EvalBatches, TrainBatches, make_loader
from raylab.data.sampling import frame_numbers
from raylab.errors import RaylabError

FPS, COUNT = 25, 50
CONFIG = DataConfig(frames=4, size=28, batch_size=3, loader_workers=0)
SIDE = 32  # 28 · 256 / 224
VIDEOS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "videos"


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Frame `number` (from 0), uint8 (H, W, 3): its brightness tells the number, its colour the column."""
    level = np.full((height, width, 3), 10.0 + 4 * number)
    level[..., 0] += np.linspace(0, 40, width)
    return level.round().astype(np.uint8)


def number_of(frame: torch.Tensor) -> int:
    """Which `picture` this is, from the blue channel of a frame (3, H, W)."""
    return round((frame[2].float().mean().item() - 10) / 4)


def encode(path: Path, width: int = 96, height: int = 64) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"g": "12", "crf": "4"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def extract(folder: Path, width: int = 96, height: int = 64) -> Path:
    folder.mkdir()
    for number in range(COUNT):
        pixels = torch.from_numpy(picture(number, width, height)).permute(2, 0, 1).contiguous()
        write_jpeg(pixels, str(folder / f"frame_{number + 1:010d}.jpg"), quality=95)
    return folder


def make_clip(id: str, video: str, first: int, stop: int, verb: int = 0, noun: int = 0) -> Clip:
    """A clip of the frames first … stop - 1, counted from 0."""
    return Clip(id, video, first / FPS, stop / FPS, first + 1, stop + 1, {"verb": verb, "noun": noun}, "P01")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("videos")
    return {
        "wide": encode(root / "wide.mp4"),
        "tall": encode(root / "tall.mp4", 48, 80),
        "large": encode(root / "large.mp4", 256, 144),
        "frames": extract(root / "frames"),
    }


@pytest.fixture(scope="module")
def dataset(sources: dict[str, Path]) -> ClipDataset:
    videos = ["wide", "tall", "large", "frames"]
    clips = [make_clip(f"c{i}", videos[i % 4], 3 * i, 3 * i + 11, verb=i, noun=2 * i) for i in range(12)]
    return ClipDataset(clips, sources, CONFIG)


@pytest.mark.parametrize("video", ["wide", "tall", "large", "frames"])
@pytest.mark.parametrize(("first", "stop"), [(0, 50), (7, 30), (20, 21), (46, 50)])
def test_a_sample_holds_the_frames_of_its_segment(sources: dict[str, Path], video: str, first: int, stop: int) -> None:
    sample = ClipDataset([make_clip("c", video, first, stop, 3, 17)], sources, CONFIG)[0]
    assert sample["id"] == "c"
    assert sample["labels"] == {"verb": 3, "noun": 17}
    assert sample["video"].shape == (4, 3, SIDE, SIDE)
    assert sample["video"].dtype == torch.uint8
    expected = [number - 1 for number in frame_numbers(first + 1, stop + 1, 4)]
    assert [number_of(frame) for frame in sample["video"]] == expected


def test_video_and_extracted_frames_agree(sources: dict[str, Path]) -> None:
    pair = [make_clip(video, video, 5, 40) for video in ("wide", "frames")]
    video, frames = (sample["video"].float() for sample in ClipDataset(pair, sources, CONFIG))
    assert (video - frames).abs().max() < 8  # frames next to each other in the clip differ by 40 and more


def test_a_segment_past_the_end_stops_at_the_last_frame(sources: dict[str, Path]) -> None:
    clip = replace(make_clip("late", "wide", 40, 50), stop=99.0)
    sample = ClipDataset([clip], sources, CONFIG)[0]
    assert [number_of(frame) for frame in sample["video"]] == [40, 43, 46, 49]


def test_a_segment_that_starts_past_the_end_is_refused(sources: dict[str, Path]) -> None:
    clip = replace(make_clip("late", "wide", 40, 50), start=5.0, stop=6.0)
    with pytest.raises(RaylabError, match=r"clip late: starts at 5\.00 s, but .*wide\.mp4 ends at 2\.00 s"):
        ClipDataset([clip], sources, CONFIG)[0]


def test_an_unreadable_file_is_named_with_its_clip(tmp_path: Path) -> None:
    for name, content in {"absent.mp4": None, "text.mp4": b"not a video"}.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RaylabError, match=rf"clip c: .*{name}"):
            ClipDataset([make_clip("c", "v", 0, 5)], {"v": path}, CONFIG)[0]
    with pytest.raises(RaylabError, match=rf"clip c: .*{tmp_path.name}"):
        ClipDataset([make_clip("c", "v", 0, 5)], {"v": tmp_path}, CONFIG)[0]  # a folder without frames


def test_a_clip_without_a_source_is_refused_at_once(sources: dict[str, Path]) -> None:
    with pytest.raises(RaylabError, match="video 'P99_01' has neither a file nor a folder of frames"):
        ClipDataset([make_clip("found", "wide", 0, 5), make_clip("lost", "P99_01", 0, 5)], sources, CONFIG)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (96, 64), (256, 456), (20, 31), (32, 32)])
def test_fit_takes_the_centre_square(height: int, width: int) -> None:
    # Red rises with x, green with y, by one level a pixel from 0 at the centre: what is left is as far either side.
    frames = torch.zeros(2, 3, height, width)
    frames[:, 0] = 128 + (torch.arange(width) - (width - 1) / 2) * 120 / min(height, width)
    frames[:, 1] = 128 + ((torch.arange(height) - (height - 1) / 2) * 120 / min(height, width))[:, None]
    square = fit(frames.clamp(0, 255).round().to(torch.uint8), SIDE)
    assert square.shape == (2, 3, SIDE, SIDE)
    assert square.dtype == torch.uint8
    edges = square.float()[:, :2].mean(0)
    for low, high in [(edges[0, :, 0], edges[0, :, -1]), (edges[1, 0], edges[1, -1])]:
        assert low.sub(128 - 60 * (SIDE - 1) / SIDE).abs().max() < 6
        assert high.sub(128 + 60 * (SIDE - 1) / SIDE).abs().max() < 6


@pytest.mark.parametrize(("size", "side"), [(224, 256), (112, 128), (16, 18), (300, 343)])
def test_squares_leave_the_imagenet_margin(sources: dict[str, Path], size: int, side: int) -> None:
    dataset = ClipDataset([make_clip("c", "wide", 0, 9)], sources, CONFIG.model_copy(update={"size": size}))
    assert dataset[0]["video"].shape == (4, 3, side, side)
    assert dataset.shape == (4, side, side, 3)


def test_a_batch_holds_different_shapes_of_video(dataset: ClipDataset) -> None:
    batch = dataset.__getitems__([5, 0, 2])
    assert batch["video"].shape == (3, 4, 3, SIDE, SIDE)
    assert batch["video"].dtype == torch.uint8
    for place, index in enumerate((5, 0, 2)):
        assert torch.equal(batch["video"][place], dataset[index]["video"])
    assert not batch["video"].is_shared()
    assert batch["ids"] == ["c5", "c0", "c2"]
    assert {head: labels.tolist() for head, labels in batch["labels"].items()} == {
        "verb": [5, 0, 2],
        "noun": [10, 0, 4],
    }
    assert {labels.dtype for labels in batch["labels"].values()} == {torch.int64}


def test_a_large_data_set_travels_light() -> None:
    clips = [make_clip(f"P01_{i % 400}_{i}", f"P01_{i % 700}", i, i + 60, i % 97, i % 300) for i in range(20_000)]
    sources = {clip.video: Path("videos") / f"{clip.video}.MP4" for clip in clips}
    sources |= {f"unused_{i}": Path("videos") / f"unused_{i}.MP4" for i in range(20_000)}
    data = pickle.dumps(ClipDataset(clips, sources, CONFIG))
    assert len(data) < 100 * len(clips)
    copy = pickle.loads(data)  # noqa: S301
    assert len(copy) == len(clips)
    for index in (0, 123, 19_999):
        assert copy.clip(index) == clips[index]


def train_batches(
    clips: int, batch_size: int, world_size: int, seed: int, position: tuple[int, int]
) -> list[list[list[int]]]:
    """Rank → batches."""
    ranks = []
    for rank in range(world_size):
        batches = TrainBatches(clips, batch_size, rank, world_size, seed)
        batches.set_position(*position)
        ranks.append(list(batches))
    return ranks


@given(clips=st.integers(1, 200), batch_size=st.integers(1, 9), world_size=st.integers(1, 5), epoch=st.integers(0, 99))
def test_training_takes_each_clip_at_most_once_an_epoch(
    clips: int, batch_size: int, world_size: int, epoch: int
) -> None:
    assume(clips >= batch_size * world_size)
    ranks = train_batches(clips, batch_size, world_size, 0, (epoch, 0))
    steps = clips // (batch_size * world_size)
    assert [len(batches) for batches in ranks] == [steps] * world_size
    assert {len(batch) for batches in ranks for batch in batches} == {batch_size}
    seen = list(chain.from_iterable(chain.from_iterable(ranks)))
    assert len(set(seen)) == len(seen) == steps * batch_size * world_size
    assert set(seen) <= set(range(epoch * clips, (epoch + 1) * clips))  # sample numbers count on through the epochs
    assert len(TrainBatches(clips, batch_size, 0, world_size, 0)) == steps


@given(batch_size=st.integers(1, 6), world_size=st.integers(1, 5), spare=st.integers(0, 50), seed=st.integers(0, 2**63))
def test_more_workers_see_what_one_worker_with_larger_batches_sees(
    batch_size: int, world_size: int, spare: int, seed: int
) -> None:
    clips = 2 * batch_size * world_size + spare
    ranks = train_batches(clips, batch_size, world_size, seed, (1, 0))
    (alone,) = train_batches(clips, batch_size * world_size, 1, seed, (1, 0))
    together = [set(chain.from_iterable(batches)) for batches in zip(*ranks, strict=True)]
    assert together == [set(batch) for batch in alone]


@given(clips=st.integers(8, 100), epoch=st.integers(0, 5), batch=st.integers(0, 30))
def test_a_position_yields_the_tail_of_its_epoch(clips: int, epoch: int, batch: int) -> None:
    whole = train_batches(clips, 2, 3, 5, (epoch, 0))
    tail = train_batches(clips, 2, 3, 5, (epoch, batch))
    assert tail == [batches[batch:] for batches in whole]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    orders = {
        (seed, epoch): train_batches(100, 10, 1, seed, (epoch, 0))[0][0] for seed in range(3) for epoch in range(3)
    }
    assert len({tuple(order) for order in orders.values()}) == 9
    assert orders[1, 2] == train_batches(100, 10, 1, 1, (2, 0))[0][0]


def test_epochs_of_the_same_draw_sample_alike_in_another_order() -> None:
    batches = TrainBatches(10, 5, 0, 1, 0, draw=lambda epoch: epoch % 2)
    numbers = []
    for epoch in range(4):
        batches.set_position(epoch)
        numbers.append(list(chain.from_iterable(batches)))
        (undrawn,) = train_batches(10, 5, 1, 0, (epoch, 0))
        assert [number % 10 for number in numbers[-1]] == [number % 10 for number in chain.from_iterable(undrawn)]
    for epoch in range(4):
        assert sorted(numbers[epoch]) == [epoch % 2 * 10 + index for index in range(10)]
    assert numbers[0] != numbers[2]


def test_a_batch_has_keys_and_outputs_only_where_there_is_a_cache(dataset: ClipDataset) -> None:
    assert dataset.__getitems__([0, 1]).keys() == {"video", "labels", "ids"}


@pytest.mark.parametrize("clips", [0, 7])
def test_less_than_one_global_batch_is_refused(clips: int) -> None:
    with pytest.raises(
        RaylabError, match=rf"{clips} clips, less than the 8 .*data\.batch_size 4 × resources\.workers 2"
    ):
        TrainBatches(clips, batch_size=4, rank=0, world_size=2, seed=0)


@given(clips=st.integers(0, 100), batch_size=st.integers(1, 9), world_size=st.integers(1, 7))
def test_evaluation_takes_each_clip_exactly_once(clips: int, batch_size: int, world_size: int) -> None:
    ranks = [EvalBatches(clips, batch_size, rank, world_size) for rank in range(world_size)]
    shares = [list(chain.from_iterable(batches)) for batches in ranks]
    assert sorted(chain.from_iterable(shares)) == list(range(clips))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    alone = list(EvalBatches(clips, batch_size, rank=0, world_size=1))
    for rank, batches in enumerate(ranks):
        assert list(batches) == alone[rank::world_size]  # the same batches for any number of workers
        assert len(batches) == len(list(batches))
        assert all(0 < len(batch) <= batch_size for batch in batches)


def test_loader_processes_yield_the_same_bytes_and_follow_a_moved_position(dataset: ClipDataset) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    runs = []
    for workers in (0, 2):
        batches = TrainBatches(len(dataset), batch_size=3, rank=0, world_size=1, seed=0)
        config = CONFIG.model_copy(update={"loader_workers": workers})
        loader = make_loader(dataset, batches, config, pin=False)
        assert len(loader) == 4
        run = []
        for position in [(0, 0), (1, 2)]:
            batches.set_position(*position)
            run += list(loader)
        runs.append(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(run) for run in runs] == [6, 6]
    for here, there in zip(*runs, strict=True):
        assert here["ids"] == there["ids"]
        assert torch.equal(here["video"], there["video"])
        assert {h: x.tolist() for h, x in here["labels"].items()} == {h: x.tolist() for h, x in there["labels"].items()}


def test_an_error_in_a_loader_process_stays_a_raylab_error(tmp_path: Path) -> None:
    broken = ClipDataset([make_clip("c", "v", 0, 5)], {"v": tmp_path / "absent.mp4"}, CONFIG)
    config = CONFIG.model_copy(update={"loader_workers": 1})
    with pytest.raises(RaylabError, match=r"clip c: .*absent\.mp4"):
        list(make_loader(broken, EvalBatches(1, 1, rank=0, world_size=1), config, pin=False))


KILLED_WHILE_LOADING = """
import os, signal, sys
from pathlib import Path
from raylab.config import DataConfig
from raylab.data.clips import Clip
from raylab.data.dataset import ClipDataset
from raylab.data.loader import EvalBatches, make_loader

if __name__ == "__main__":
    config = DataConfig(frames=2, size=28, loader_workers=2)
    clips = [Clip(str(i), "v", 0.0, 1.0, 1, 26, {"verb": i}) for i in range(20)]
    dataset = ClipDataset(clips, {"v": Path(sys.argv[1])}, config)
    batches = iter(make_loader(dataset, EvalBatches(20, 1, rank=0, world_size=1), config, pin=False))
    print(next(batches)["ids"], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_loader_processes_end_with_a_killed_trainer(sources: dict[str, Path], tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED_WHILE_LOADING)
    # The output is at its end only when every process that inherited it is gone.
    run = subprocess.run([sys.executable, script, sources["wide"]], capture_output=True, text=True, timeout=120)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert run.stdout == "['0']\n"


def test_a_rank_without_clips_has_an_empty_loader(dataset: ClipDataset) -> None:
    assert list(make_loader(dataset, EvalBatches(1, 4, rank=1, world_size=2), CONFIG, pin=False)) == []


@pytest.mark.skipif(not VIDEOS.exists(), reason="../shared/data is not here")
def test_real_videos_batch_together() -> None:
    sources = {path.stem: path for path in sorted(VIDEOS.glob("*_*.mp4")) if path.stem != "corrupted"}
    clips = [Clip(name, name, 0.2, 1.5, 6, 46, {"verb": 1}) for name in sources]
    batch = ClipDataset(clips, sources, CONFIG.model_copy(update={"size": 112})).__getitems__(range(len(clips)))
    assert batch["video"].shape == (len(sources), 4, 3, 128, 128)
    assert all(clip.float().std() > 10 for clip in batch["video"])
