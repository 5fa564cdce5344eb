import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scenes import building, clip, prepare, spread_over

from raylab.config import DataConfig
from raylab.data.clips import Clip, ClipTable
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset, stores_folder
from raylab.data.kitchen import kitchen_root
from raylab.data.store.find import find_store
from raylab.errors import RaylabError

CLIPS = spread_over(["wide", "tall"], 12)
CONFIG = DataConfig(frames=4, size=28)


@pytest.fixture(scope="module")
def stores(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip-stores")
    for settings in [
        {"frames": (4, 8), "short_side": 32},
        {"frames": (4,), "short_side": 32},
        {"frames": (4,), "short_side": 48},
        {"frames": (), "fps": 10, "short_side": 32},
    ]:
        prepare(building(folder, **settings), CLIPS, sources)
    return folder


def splits(clips: list[Clip]) -> dict[str, ClipTable]:
    return {"train": ClipTable.of(clips[::2]), "val": ClipTable.of(clips[1::2])}


def found(config: DataConfig, folder: Path, clips: list[Clip] = CLIPS) -> str | None:
    """The name of the store that serves, if any does."""
    stored, _ = find_store(config, folder, splits(clips))
    assert not stored or stored.keys() == {"train", "val"}
    return stored["train"].store.folder.name if stored else None


@pytest.mark.parametrize(
    ("frames", "size", "name"),
    [
        (4, 28, "4f-32px-q90"),
        (8, 28, "4+8f-32px-q90"),
        (4, 29, "4f-48px-q90"),
        (5, 28, "10fps-32px-q90"),
        (8, 42, None),
        (4, 43, None),
    ],
)
def test_the_smallest_store_that_will_do(stores: Path, frames: int, size: int, name: str | None) -> None:
    assert found(DataConfig(frames=frames, size=size), stores) == name


def test_a_store_may_be_named_itself(stores: Path) -> None:
    folder = stores / "4f-48px-q90"
    assert found(CONFIG.model_copy(update={"store": str(folder)}), folder) == folder.name


def test_no_store_is_looked_for_where_none_is_wanted(stores: Path) -> None:
    assert find_store(CONFIG.model_copy(update={"store": False}), stores, splits(CLIPS)) == ({}, [])


def test_without_a_store_videos_are_decoded(stores: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert find_store(CONFIG, folder, splits(CLIPS)) == ({}, [])


def test_a_store_that_lacks_clips_does_not_serve(stores: Path) -> None:
    assert found(CONFIG, stores, [*CLIPS, clip("new", "wide", 1, 9)]) is None
    assert found(CONFIG, stores, CLIPS[:3]) == "4f-32px-q90", "fewer clips than it holds"


def test_a_named_folder_without_a_store_that_serves_says_why(stores: Path, tmp_path: Path) -> None:
    config = DataConfig(frames=5, size=43, store=str(stores))
    with pytest.raises(RaylabError) as caught:
        find_store(config, stores, splits(CLIPS))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"data.store = {stores}: no clip store there will do: run `raylab prepare`")
    assert set(lines[1:]) == {
        f"{stores}/4f-32px-q90: holds 4 frames of a clip, not data.frames = 5",
        f"{stores}/4f-48px-q90: holds 4 frames of a clip, not data.frames = 5",
        f"{stores}/4+8f-32px-q90: holds 4 or 8 frames of a clip, not data.frames = 5",
        f"{stores}/10fps-32px-q90: short side 32: data.size = 43 needs 49",
    }
    config = CONFIG.model_copy(update={"store": str(stores / "4f-32px-q90")})
    with pytest.raises(RaylabError, match=r"4f-32px-q90: lacks 1 of 13 clips"):
        find_store(config, stores / "4f-32px-q90", splits([*CLIPS, clip("new", "wide", 1, 9)]))
    with pytest.raises(RaylabError, match=r"absent: no clip store there will do: run `raylab prepare`"):
        find_store(CONFIG.model_copy(update={"store": str(tmp_path / "absent")}), tmp_path, splits(CLIPS))


def test_a_store_that_is_passed_by_says_why(stores: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    new = [*CLIPS, clip("new", "wide", 1, 9)]
    stored, refusals = find_store(DataConfig(frames=4, size=42), stores, splits(new))
    assert not stored
    assert sorted(refusal.removeprefix(f"{stores}/") for refusal in refusals) == [
        "10fps-32px-q90: short side 32: data.size = 42 needs 48",
        "4+8f-32px-q90: short side 32: data.size = 42 needs 48",
        "4f-32px-q90: short side 32: data.size = 42 needs 48",
        "4f-48px-q90: lacks 1 of 13 clips",
    ]
    store = building(tmp_path)
    prepare(store, CLIPS, sources)
    next(store.folder.glob("shards/*.arrow")).unlink()
    stored, refusals = find_store(CONFIG, tmp_path, splits(CLIPS))
    assert (stored, refusals) == ({}, [f"{store.folder}: 1 shards are gone"])


def test_an_unfinished_store_is_not_seen(sources: dict[str, Path], tmp_path: Path) -> None:
    prepare(building(tmp_path), CLIPS, sources, pieces=1)
    assert find_store(CONFIG, tmp_path, splits(CLIPS)) == ({}, [])


def test_looking_where_there_is_no_store_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raylab.config import DataConfig\n"
        "from raylab.data.store.find import find_store\n"
        "print(find_store(DataConfig(), Path(sys.argv[1]), {}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "({}, []) False\n"


def test_a_data_set_is_read_from_its_store_without_the_videos(tmp_path: Path) -> None:
    root = Path(shutil.copytree(kitchen_root("tiny"), tmp_path / "root"))
    config = DataConfig(root=str(root), frames=4, size=32, max_clips=6)
    recorded = load_dataset(config)
    assert (recorded.stored, len(recorded.sources) > 0) == ({}, True)
    clips = [each for split in recorded.splits.values() for each in split.clips]
    prepare(building(stores_folder(config), short_side=37, quality=95), clips, recorded.sources)
    for video in recorded.sources.values():
        video.unlink()
    stored = load_dataset(config)
    assert (stored.sources, stored.stored.keys()) == ({}, {"train", "val"})
    assert (stored.splits, stored.labels) == (recorded.splits, recorded.labels)
    for split in ("train", "val"):
        samples = ClipDataset.of(stored, split, config)
        assert [sample["id"] for sample in samples] == [each.id for each in recorded.splits[split].clips]
        assert all(sample["video"].float().std() > 5 for sample in samples)
    for other in ({"max_clips": None}, {"frames": 5}, {"store": False}):
        with pytest.raises(RaylabError, match="videos are missing"):
            load_dataset(config.model_copy(update=other))
    assert load_dataset(config.model_copy(update={"max_clips": 3})).stored
