"""Windows: every sample of a video in one of them, masks that agree with lengths, the same frames from any place."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylab.config import DataConfig, Experiment
from raylab.data.augment import ClipTransform
from raylab.data.clips import Clip, ClipTable
from raylab.data.dataset import ClipDataset
from raylab.data.importance import Importance, window_scores
from raylab.data.loader import EvalBatches, make_loader
from raylab.data.sampling import sample_count, sample_times
from raylab.data.store.build import Building
from raylab.data.store.manifest import Manifest, StoreSettings
from raylab.data.store.reader import Store, StoredFrames
from raylab.data.store.sources import look, write_seen
from raylab.data.store.verify import Comparison, suspects
from raylab.data.windows import pick, windows
from raylab.errors import RaylabError
from raylab.training.prefetch import Prefetch

amounts = st.floats(0.01, 400)  # of samples
rates = st.sampled_from([8.0, 12.5, 23.976023976023978, 25.0, 29.97002997002997, 30.0, 59.94005994005994, 90.0])
speeds = st.one_of(st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 7.3, 29.97002997002997]), st.floats(0.05, 30))
sizes = st.integers(1, 80)


def config(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"sampling": "rate", "frames": 6, "size": 32, "loader_workers": 0, **changes})


# ---- which samples a window holds


@settings(deadline=None)
@given(amount=amounts, rate=rates, fps=speeds, samples=sizes)
def test_windows_hold_every_sample_once(amount: float, rate: float, fps: float, samples: int) -> None:
    seconds = amount / fps
    cut = windows("a", seconds, rate, fps, samples)
    counts = [sample_count(clip.stop - clip.start, fps) for clip in cut]
    times = [time for clip in cut for time in sample_times(clip.start, clip.stop, fps)]

    assert counts[:-1] == [samples] * (len(cut) - 1)
    assert 1 <= counts[-1] <= samples
    assert [round(clip.start * fps) for clip in cut] == [sum(counts[:at]) for at in range(len(cut))]
    assert times == pytest.approx([k / fps for k in range(sum(counts))], abs=1e-9)
    assert sum(counts) == sample_count(seconds, fps)
    assert times[-1] < seconds or len(times) == 1
    assert times[-1] + 1 / fps >= seconds - 1e-5 / fps
    assert len({clip.id for clip in cut}) == len(cut)
    assert {(clip.video, clip.group) for clip in cut} == {("a", "a")}
    assert [clip.start for clip in cut[1:]] == [clip.stop for clip in cut[:-1]]
    assert all(1 <= clip.start_frame < clip.stop_frame for clip in cut)


@settings(deadline=None)
@given(frames=st.integers(1, 2_000), rate=rates, fps=speeds)
def test_picks_are_the_frames_on_screen(frames: int, rate: float, fps: float) -> None:
    picks = pick(frames, rate, fps)
    assert len(picks) == sample_count(frames / rate, fps)
    assert picks[0] == 0 and picks[-1] < frames
    assert (np.diff(picks) >= 0).all()
    shown = picks / rate
    times = np.arange(len(picks)) / fps
    assert (shown <= times + 1e-3 + 1e-9).all()
    assert (times < shown + 1 / rate + 1e-9).all()


def test_known_windows() -> None:
    assert [(clip.id, clip.start, clip.stop) for clip in windows("a", 70.2, 30.0, 2.0, 60)] == [
        ("a@0", 0.0, 30.0),
        ("a@1", 30.0, 60.0),
        ("a@2", 60.0, 70.5),
    ]
    assert [(clip.start_frame, clip.stop_frame) for clip in windows("a", 70.2, 30.0, 2.0, 60)] == [
        (1, 901),
        (901, 1801),
        (1801, 2107),
    ]
    assert len(windows("a", 30.0, 30.0, 2.0, 60)) == 1
    assert pick(10, 4.0, 2.0).tolist() == [0, 2, 4, 6, 8]
    assert pick(10, 1.0, 2.0).tolist() == [k // 2 for k in range(20)]


@pytest.mark.parametrize(("seconds", "fps"), [(0.0, 2.0), (math.inf, 2.0), (math.nan, 2.0), (3.0, 0.0), (-1.0, 2.0)])
def test_no_samples_are_refused(seconds: float, fps: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        sample_count(seconds, fps)


@settings(deadline=None)
@given(lengths=st.lists(amounts, min_size=1, max_size=4), fps=speeds, samples=sizes)
def test_window_scores_put_together_are_those_of_the_video(lengths: list[float], fps: float, samples: int) -> None:
    clips: list[Clip] = []
    importance = {}
    for at, amount in enumerate(lengths):
        seconds = amount / fps
        clips += windows(f"v{at}", seconds, 25.0, fps, samples)
        count = sample_count(seconds, fps)
        scores = np.random.default_rng(at).random((3, count), np.float32) + 0.5
        none = np.zeros((0, 2), np.int64)
        importance[f"v{at}"] = Importance(scores, none, 0, np.arange(count))
    found = window_scores(clips, importance, fps, samples)
    assert found.shape == (len(clips), samples)
    for video, known in importance.items():
        rows = np.concatenate([row for row, clip in zip(found, clips, strict=True) if clip.video == video])
        np.testing.assert_array_equal(rows[rows > 0], known.mean)


# ---- frames


def encode(path: Path, count: int, fps: Fraction) -> Path:
    """Frames whose level tells their number: 3 levels brighter from one to the next."""
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"qp": "0", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            picture = np.full((48, 64, 3), 20 + 3 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


RECORDED = {"a": (70, Fraction(10)), "b": (74, Fraction(30000, 1001)), "c": (9, Fraction(25))}  # 7 s, 2.47 s, 0.36 s


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipTable, dict[str, Path], dict[str, Importance]]:
    folder = tmp_path_factory.mktemp("videos")
    sources = {video: encode(folder / f"{video}.mp4", *about) for video, about in RECORDED.items()}
    clips, importance = [], {}
    for video, (frames, fps) in RECORDED.items():
        rate = float(fps)
        clips += windows(video, frames / rate, rate, 2.0, 6)
        picks = pick(frames, rate, 2.0)
        scores = np.random.default_rng(len(importance)).random((20, len(picks)), np.float32)
        importance[video] = Importance(scores, np.array([[0, frames - 1]]), frames, picks)
    return ClipTable.of(clips), sources, importance


def numbers(video: torch.Tensor) -> list[int]:
    """Which frame each of (T, 3, S, S) shows."""
    return ((video.float().mean((1, 2, 3)) - 20) / 3).round().int().tolist()


def test_a_batch_is_padded_and_says_so(recorded: tuple[ClipTable, dict[str, Path], dict[str, Importance]]) -> None:
    clips, sources, importance = recorded
    assert [clip.id for clip in clips] == ["a@0", "a@1", "a@2", "b@0", "c@0"]
    batch = ClipDataset(clips, sources, config(), importance=importance).__getitems__([4, 1, 2, 3])
    assert batch["ids"] == ["c@0", "a@1", "a@2", "b@0"]
    assert batch["mask"].dtype == torch.bool
    assert batch["mask"].sum(1).tolist() == [1, 6, 2, 5]
    assert (batch["mask"].int().diff(dim=1) <= 0).all()
    assert batch["labels"]["window"].tolist() == [4, 1, 2, 3]
    assert batch["labels"]["window"].dtype == torch.int64
    scores = batch["labels"]["importance"]
    assert (scores.dtype, scores.shape) == (torch.float32, (4, 6))
    assert "video" in batch
    for place, (first, mask) in enumerate(zip([0, 6, 12, 0], batch["mask"], strict=True)):
        known, count = importance[clips[[4, 1, 2, 3][place]].video], int(mask.sum())
        assert numbers(batch["video"][place][mask]) == known.picks[first : first + count].tolist()
        np.testing.assert_array_equal(scores[place, :count], known.mean[first : first + count])
    assert not batch["video"][~batch["mask"]].any()
    assert not scores[~batch["mask"]].any()


def test_later_epochs_have_the_same_windows(recorded: tuple[ClipTable, dict[str, Path], dict[str, Importance]]) -> None:
    clips, sources, importance = recorded
    dataset = ClipDataset(clips, sources, config(), train=True, importance=importance)
    first, later = dataset.__getitems__([0, 3]), dataset.__getitems__([0 + 5 * 7, 3 + 5 * 7])
    assert "video" in first and "video" in later
    assert torch.equal(first["video"], later["video"])
    assert torch.equal(first["labels"]["window"], later["labels"]["window"])


@settings(deadline=None)
@given(seconds=st.floats(0.1, 8), fps=st.sampled_from([0.7, 2.0, 3.0, 10.0]), samples=st.integers(1, 12))
def test_masks_agree_with_lengths(seconds: float, fps: float, samples: int) -> None:
    clips = windows("a", seconds, 10.0, fps, samples)
    dataset = ClipDataset(clips, {"a": Path("nowhere.mp4")}, config(fps=fps, frames=samples))
    lengths = [dataset._length(clip) for clip in clips]
    assert sum(lengths) == sample_count(seconds, fps)
    assert all(1 <= length <= samples for length in lengths)


def test_clips_that_are_no_windows_have_no_mask(
    recorded: tuple[ClipTable, dict[str, Path], dict[str, Importance]],
) -> None:
    clips, sources, _ = recorded
    batch = ClipDataset(clips, sources, config(sampling="uniform")).__getitems__([0])
    assert "mask" not in batch and not batch["labels"]


def test_one_score_a_frame_not_one_a_crop(recorded: tuple[ClipTable, dict[str, Path], dict[str, Importance]]) -> None:
    clips, sources, _ = recorded
    with pytest.raises(RaylabError, match=r"data\.sampling = rate: .* 3 crops"):
        ClipDataset(clips, sources, config(), crops=3)


# ---- the clip store


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory,
    recorded: tuple[ClipTable, dict[str, Path], dict[str, Importance]],
) -> Store:
    clips, sources, _ = recorded
    rule = StoreSettings(rate=2.0, short_side=48)
    folder = tmp_path_factory.mktemp("stores") / rule.name
    assert folder.name == "windows-2fps-48px-q90"
    folder.mkdir()
    building = Building(folder, rule, "pyav")
    seen = look(sources, {})
    keys = [rule.content_key(seen[clip.video].fingerprint, clip) for clip in clips]
    for piece in building.plan(clips, keys, sources):
        assert building.write(piece)[1] == 0
    write_seen(folder, seen)
    return Store(folder, building.seal(clips))


def test_stored_frames_are_those_of_the_videos(
    store: Store, recorded: tuple[ClipTable, dict[str, Path], dict[str, Importance]]
) -> None:
    clips, sources, importance = recorded
    asked = config()
    stored = StoredFrames(store, clips, asked)
    assert stored.missing == 0
    kept = ClipDataset(clips, {}, asked, stored, importance=importance)
    decoded = ClipDataset(clips, sources, asked, importance=importance)
    one, other = (dataset.__getitems__(list(range(5))) for dataset in (kept, decoded))
    assert "video" in one and "video" in other
    assert torch.equal(one["mask"], other["mask"])
    assert all(torch.equal(one["labels"][name], other["labels"][name]) for name in ("importance", "window"))
    assert (one["video"].float() - other["video"].float()).abs().mean() < 1.0
    assert [numbers(clip[mask]) for clip, mask in zip(one["video"], one["mask"], strict=True)] == [
        numbers(clip[mask]) for clip, mask in zip(other["video"], other["mask"], strict=True)
    ]
    assert not one["video"][~one["mask"]].any()


def test_a_store_of_windows_is_verified(
    store: Store, recorded: tuple[ClipTable, dict[str, Path], dict[str, Importance]]
) -> None:
    _, sources, _ = recorded
    building = Building(store.folder, store.manifest.settings, "pyav")
    manifest = Manifest.read(store.folder)
    assert manifest is not None and manifest.settings.rate == 2.0
    comparison = Comparison(building, sources)
    assert [fault for suspect in suspects(building, manifest) for fault in comparison.faults(suspect)] == []


def test_jpeg_goes_to_the_device_without_padding(
    store: Store, recorded: tuple[ClipTable, dict[str, Path], dict[str, Importance]]
) -> None:
    clips, _, importance = recorded
    batches = []
    for where in ("cpu", "gpu"):
        asked = config(jpeg=where, augment="none")
        dataset = ClipDataset(clips, {}, asked, StoredFrames(store, clips, asked), importance=importance)
        transform = ClipTransform(asked, train=False, seed=0)
        (batch,) = Prefetch(torch.device("cpu"))([dataset.__getitems__([1, 4, 2])], transform, 0)
        batches.append(batch)
    one, other = batches
    assert torch.equal(one["mask"], other["mask"])
    assert one["video"].shape == other["video"].shape == (3, 6, 3, 32, 32)
    assert (one["video"] - other["video"]).abs().mean() < 0.05


def test_loader_processes_get_the_same(
    store: Store, recorded: tuple[ClipTable, dict[str, Path], dict[str, Importance]]
) -> None:
    clips, _, importance = recorded
    asked = config()
    dataset = ClipDataset(clips, {}, asked, StoredFrames(store, clips, asked), importance=importance)
    (here,) = make_loader(dataset, EvalBatches(5, 5, 0, 1), asked, pin=False)
    sent = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    (there,) = make_loader(sent, EvalBatches(5, 5, 0, 1), asked, pin=False)
    assert there["mask"].sum(1).tolist() == [6, 6, 2, 5, 1]
    assert torch.equal(here["video"], there["video"])
    assert torch.equal(here["labels"]["importance"], there["labels"]["importance"])


@pytest.mark.parametrize(
    ("held", "asked", "refusal"),
    [
        (StoreSettings(rate=2.0), config(), None),
        (StoreSettings(rate=2.0), config(frames=60), None),
        (StoreSettings(rate=2.0), config(fps=4.0), "samples of windows, 2 a second"),
        (StoreSettings(rate=2.0), config(sampling="uniform"), "samples of windows, 2 a second"),
        (StoreSettings(rate=2.0), config(sampling="segments"), "samples of windows, 2 a second"),
        (StoreSettings(fps=2.0), config(), "no samples of windows"),
        (StoreSettings(frames=(6,)), config(), "no samples of windows"),
        (StoreSettings(rate=2.0, short_side=16), config(size=224), "short side 16"),
    ],
)
def test_which_store_serves_windows(held: StoreSettings, asked: DataConfig, refusal: str | None) -> None:
    said = held.refusal(asked)
    assert said is None if refusal is None else said is not None and refusal in said


def test_older_stores_keep_their_keys() -> None:
    clip = Clip("a", "v", 0.0, 1.0, 1, 26, {})
    assert StoreSettings(frames=(4,)).content_key("f", clip).hex() == "bf99fd646b0b7026ea5255cdf4f12a17"
    assert len({StoreSettings(**rule).content_key("f", clip) for rule in ({"rate": 2.0}, {"fps": 2.0})}) == 2
    with pytest.raises(ValueError, match="one of the three"):
        StoreSettings(rate=2.0, fps=2.0)


def test_batches_repeat_unless_frames_are_drawn() -> None:
    base = Experiment().data.model_copy(update={"augment": "none"})
    assert [base.model_copy(update={"sampling": rule}).repeats for rule in ("uniform", "rate", "segments")] == [
        True,
        True,
        False,
    ]
