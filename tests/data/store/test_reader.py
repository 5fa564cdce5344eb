import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scenes import building, clip, encode, numbers, prepare, spread_over
from torch.utils.data import DataLoader

from raylab.config import DataConfig
from raylab.data.augment import ClipTransform
from raylab.data.clips import Clip, ClipTable
from raylab.data.dataset import Batch, ClipDataset
from raylab.data.loader import EvalBatches, make_loader
from raylab.data.store import index
from raylab.data.store.manifest import MANIFEST, Manifest
from raylab.data.store.reader import Store, StoredFrames
from raylab.data.store.shards import shard_path
from raylab.errors import RaylabError
from raylab.training.prefetch import Prefetch

CONFIG = DataConfig(frames=4, size=28, loader_workers=0)
SIDE = 32  # 28 · 256 / 224
VIDEOS = ["wide", "tall", "square", "double", "odd", "frames"]
CLIPS = spread_over(VIDEOS, 24)


@pytest.fixture(scope="module")
def folder(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = building(tmp_path_factory.mktemp("stores"), frames=(1, 4, 7), quality=95)
    prepare(store, CLIPS, sources)
    return store.folder


def open_clips(folder: Path, clips: list[Clip] = CLIPS, config: DataConfig = CONFIG) -> ClipDataset:
    table = ClipTable.of(clips)
    return ClipDataset(table, {}, config, StoredFrames(Store(folder, Manifest.read(folder)), table, config))


# What is read.


@pytest.mark.parametrize("frames", [1, 4, 7])
@pytest.mark.parametrize("settings", [{}, {"short_side": 64}, {"short_side": 256}, {"sides": False, "short_side": 100}])
def test_frames_are_those_of_direct_decoding(
    sources: dict[str, Path], tmp_path: Path, settings: dict[str, object], frames: int
) -> None:
    store = building(tmp_path, frames=(1, 4, 7), quality=95, **settings)
    clips = [clip(video, video, 5 + i, 30 + 3 * i) for i, video in enumerate(VIDEOS)]
    prepare(store, clips, sources)
    config = CONFIG.model_copy(update={"frames": frames})
    for stored, direct in zip(
        open_clips(store.folder, clips, config), ClipDataset(clips, sources, config), strict=True
    ):
        assert stored["video"].shape == direct["video"].shape == (frames, 3, SIDE, SIDE)
        assert stored["video"].dtype == torch.uint8
        assert (stored["id"], stored["labels"]) == (direct["id"], direct["labels"])
        assert numbers(stored["video"]) == numbers(direct["video"])
        assert (stored["video"].float() - direct["video"].float()).abs().mean((1, 2, 3)).max() < 3


def test_a_store_at_a_frame_rate_gives_the_nearest_frames(sources: dict[str, Path], tmp_path: Path) -> None:
    clips = [clip("c", "wide", 3, 44), clip("d", "frames", 3, 44), clip("e", "wide", 3, 5)]
    store = building(tmp_path, frames=(), fps=12.5)  # every other frame
    prepare(store, clips, sources)
    for frames in (1, 3, 5, 30):
        found = open_clips(store.folder, clips, CONFIG.model_copy(update={"frames": frames}))
        exact = np.linspace(3, 43, frames)
        assert np.abs(np.array(numbers(found[0]["video"])) - exact).max() <= 1
        assert np.abs(np.array(numbers(found[1]["video"])) - exact).max() <= 1.5  # numbers are rounded first
        assert set(numbers(found[2]["video"])) <= {3, 4}


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("size", [28, 14, 10])
@pytest.mark.parametrize("workers", [0, 1])
def test_jpeg_can_be_decoded_where_the_model_is(folder: Path, device: str, size: int, workers: int) -> None:
    decoded, encoded = (
        open_clips(folder, config=CONFIG.model_copy(update={"size": size, "jpeg": jpeg, "loader_workers": workers}))
        for jpeg in ("cpu", "gpu")
    )
    transform = ClipTransform(CONFIG.model_copy(update={"size": size}), train=False, seed=0)

    def batches(dataset: ClipDataset) -> Iterator[Batch]:
        config = CONFIG.model_copy(update={"loader_workers": workers})
        loader = make_loader(dataset, EvalBatches(len(dataset), 5, 0, 1), config, pin=device == "cuda")
        return Prefetch(torch.device(device))(loader, transform, epoch=0)

    for batch, other in zip(batches(decoded), batches(encoded), strict=True):
        assert batch["ids"] == other["ids"]
        assert all(torch.equal(batch["labels"][head], other["labels"][head]) for head in ("verb", "noun"))
        assert batch["video"].shape == other["video"].shape
        assert 58 * (batch["video"] - other["video"]).abs().mean() < 1.5, "of 255"
    assert encoded.__getitems__([0])["images"].dtype == torch.uint8
    assert torch.equal(encoded[0]["video"], decoded[0]["video"]), "single clips are decoded at once"


def test_without_a_store_there_is_no_jpeg_to_decode_on_the_gpu(sources: dict[str, Path]) -> None:
    with pytest.raises(RaylabError, match=r"data\.jpeg = gpu: there is no clip store .*: run `raylab prepare`"):
        ClipDataset(CLIPS, sources, CONFIG.model_copy(update={"jpeg": "gpu"}))


def test_a_batch_holds_its_clips_in_order(folder: Path) -> None:
    dataset = open_clips(folder)
    batch = dataset.__getitems__([5, 0, 5, 23])
    assert batch["ids"] == [CLIPS[i].id for i in (5, 0, 5, 23)]
    assert batch["labels"]["verb"].tolist() == [CLIPS[i].labels["verb"] for i in (5, 0, 5, 23)]
    assert batch["video"].shape == (4, 4, 3, SIDE, SIDE)
    for place, at in enumerate((5, 0, 5, 23)):
        assert torch.equal(batch["video"][place], dataset[at]["video"])


def test_unreadable_clips_are_left_out(sources: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    clips = spread_over(["text", "wide", "tall"], 12)
    store = building(tmp_path)
    prepare(store, clips, {**sources, "text": tmp_path / "text.mp4"})
    dataset = open_clips(store.folder, clips)
    readable = [each for each in clips if each.video != "text"]
    assert [dataset.clip(i) for i in range(len(dataset))] == readable
    assert [sample["id"] for sample in dataset] == [each.id for each in readable]
    assert StoredFrames(Store(store.folder, Manifest.read(store.folder)), ClipTable.of(clips), CONFIG).missing == 0


def test_clips_that_are_not_there_or_have_changed_are_missing(folder: Path) -> None:
    clips = [*CLIPS[:5], clip("new", "wide", 1, 9), replace(CLIPS[5], stop=1.99)]
    frames = StoredFrames(Store(folder, Manifest.read(folder)), ClipTable.of(clips), CONFIG)
    assert frames.missing == 2
    assert frames.chosen.tolist() == [0, 1, 2, 3, 4]


# In other processes.


def and_whether_shared(batch: Batch) -> tuple[Batch, bool]:
    return batch, batch["video"].is_shared()


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1), ("forkserver", 1)])
def test_loader_processes_read_the_same_bytes(folder: Path, method: str, workers: int) -> None:
    dataset = open_clips(folder)
    here = [dataset.__getitems__(batch) for batch in EvalBatches(len(dataset), 5, 0, 1)]
    assert here[0]["video"].shape[0] == 5  # shards are open in this process when it forks
    loader = DataLoader(
        dataset,
        batch_sampler=EvalBatches(len(dataset), 5, 0, 1),
        num_workers=workers,
        collate_fn=and_whether_shared,
        multiprocessing_context=method,
    )
    there, shared = zip(*loader, strict=True)
    assert [batch["ids"] for batch in there] == [batch["ids"] for batch in here]
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(here, there, strict=True))
    assert all(shared), "or each batch would be copied once more"


def large_store(folder: Path, clips: ClipTable) -> ClipDataset:
    """The index and the manifest of a store; shards would be the same for any number of clips."""
    name = "0" * 24
    rows = index.rows_of(name, [(each, bytes(16)) for each in clips], {})
    made = Manifest(
        settings=building(folder).settings, index=f"index-{index.digest(rows)}.arrow", clips=len(clips), shards={}
    )
    index.write_rows(folder / made.index, rows)
    made.write(folder)
    clips.write(folder / "clips.arrow")
    return open_clips(folder, ClipTable.open(folder / "clips.arrow"))


def test_what_is_sent_to_a_loader_process_does_not_grow_with_the_store(tmp_path: Path) -> None:
    clips = ClipTable.of(spread_over(VIDEOS, 5_000))
    before = pa.total_allocated_bytes()
    large = large_store(tmp_path / "large", clips)
    held = pa.total_allocated_bytes() - before
    small = large_store(tmp_path / "small", clips[:10])
    sizes = [len(ForkingPickler.dumps(dataset)) for dataset in (small, large)]
    assert sizes[1] < sizes[0] + 100 < 5_000
    assert held < large._clips.table.nbytes / 10
    assert len(large) == 5_000


READ = """
import pickle, sys
from pathlib import Path
from raylab.config import DataConfig
from raylab.data.clips import ClipTable
from raylab.data.dataset import ClipDataset
from raylab.data.store.manifest import Manifest
from raylab.data.store.reader import Store, StoredFrames

folder = Path(sys.argv[1])
pickle.loads((folder / "dataset.pickle").read_bytes()).__getitems__([0, 1])
print("pandas" in sys.modules)

unpickled = []
sys.addaudithook(lambda event, args: unpickled.append(args) if event == "pickle.find_class" else None)
store, config = Store(folder, Manifest.read(folder)), DataConfig(frames=4)
table = ClipTable.open(folder / "clips.arrow")
store.check_sources()
ClipDataset(table, {}, config, StoredFrames(store, table, config)).__getitems__([0, 1])
print(unpickled)
"""


def test_loader_processes_do_not_import_pandas_and_nothing_pickled_is_in_a_store(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    ClipTable.of(CLIPS).write(copy / "clips.arrow")
    (copy / "dataset.pickle").write_bytes(pickle.dumps(open_clips(copy)))
    done = subprocess.run([sys.executable, "-c", READ, copy], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n[]\n"


def test_a_store_is_pickled_as_its_place(folder: Path) -> None:
    store = Store(folder, Manifest.read(folder))
    assert store.index.num_rows == len(CLIPS)
    assert pickle.loads(pickle.dumps(store)) == store  # noqa: S301
    assert len(pickle.dumps(store)) < 2_000


# What goes wrong.


def test_a_store_opened_before_it_grew_goes_on(sources: dict[str, Path], tmp_path: Path) -> None:
    store = building(tmp_path)
    clips = spread_over(["wide"], 20)
    prepare(store, clips[:10], sources)
    before = Store(store.folder, Manifest.read(store.folder))
    prepare(
        store, [replace(clips[0], stop=clips[0].stop + 0.2, stop_frame=clips[0].stop_frame + 5), *clips[1:]], sources
    )
    table = ClipTable.of(clips[:10])
    dataset = ClipDataset(table, {}, CONFIG, StoredFrames(pickle.loads(pickle.dumps(before)), table, CONFIG))  # noqa: S301
    assert [sample["id"] for sample in dataset] == [each.id for each in clips[:10]]
    assert StoredFrames(Store(store.folder, Manifest.read(store.folder)), table, CONFIG).missing == 1


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil_images(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff\xe0", b"\xff\xd8\x00\x00"))


@pytest.mark.parametrize("damage", [Path.unlink, cut, spoil_images, lambda path: path.write_bytes(b"")])
def test_a_damaged_shard_is_named_with_the_remedy(folder: Path, tmp_path: Path, damage) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for path in copy.glob("shards/*"):
        damage(path)
    dataset = open_clips(copy)
    name = copy / "shards"
    with pytest.raises(RaylabError, match=rf"clip wide_0: {name}/\w+\.arrow: cannot be read .*: delete it and run"):
        dataset[0]


def test_a_lost_index_is_named_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / Manifest.read(copy).index).unlink()
    with pytest.raises(RaylabError, match=r"index-\w+\.arrow: cannot be read .*: delete it and run `raylab prepare`"):
        open_clips(copy)


def test_changed_videos_are_noticed_and_absent_ones_do_not_matter(tmp_path: Path) -> None:
    videos = {name: encode(tmp_path / f"{name}.mp4", count=20) for name in ("one", "two", "three")}
    store = building(tmp_path)
    prepare(store, spread_over(list(videos), 6), videos)
    opened = Store(store.folder, Manifest.read(store.folder))
    opened.check_sources()
    videos["three"].unlink()
    opened.check_sources()
    size = videos["two"].stat().st_size
    encode(tmp_path / "other.mp4", count=15, first=9)
    videos["two"].write_bytes((tmp_path / "other.mp4").read_bytes().ljust(size, b"\0")[:size])
    os.utime(videos["two"], (1, 1))
    with pytest.raises(
        RaylabError, match=r"4f-32px-q90: 1 videos have changed since it was made \(two\): run `raylab pre"
    ):
        opened.check_sources()


def test_images_are_those_of_the_shard(folder: Path) -> None:
    table = ClipTable.of(CLIPS)
    frames = StoredFrames(Store(folder, Manifest.read(folder)), table, CONFIG)
    images = frames.images(3)
    assert len(images) == 4
    assert all(bytes(image[:2]) == b"\xff\xd8" for image in images)
    (row,) = index.locate(frames.store.index, table[3:4]).tolist()
    content = shard_path(folder, frames.store.index["shard"][row].as_py()).read_bytes()
    assert all(bytes(image) in content for image in images)
    assert (folder / MANIFEST).exists()
