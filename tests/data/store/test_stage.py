import os
import shutil
import stat
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from scenes import building, contents, prepare, spread_over

from raylab.config import DataConfig
from raylab.data.clips import ClipTable
from raylab.data.dataset import ClipDataset
from raylab.data.store.manifest import Manifest, Shard
from raylab.data.store.reader import Store, StoredFrames
from raylab.data.store.shards import _open, shard_path
from raylab.data.store.stage import Stage, _kind
from raylab.errors import RaylabError
from raylab.storage import PARTIAL

CLIPS = spread_over(["wide", "frames"], 40)
OWN = f"raylab-{os.getuid()}"


@pytest.fixture(scope="module")
def folder(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = building(tmp_path_factory.mktemp("stores"))
    prepare(store, CLIPS, sources)
    return store.folder


def shards_of(folder: Path) -> dict[str, Shard]:
    return Manifest.read(folder).shards


def copies(folder: Path) -> dict[str, bytes]:
    """What the copies of all shards should hold."""
    return {f"{shard.digest}.arrow": shard_path(folder, name).read_bytes() for name, shard in shards_of(folder).items()}


def copied(stage: Stage, folder: Path) -> list[str]:
    return [name for name, shard in shards_of(folder).items() if stage.copy_of(shard)]


def filled(folder: Path, scratch: Path) -> Stage:
    stage = Stage.of(folder, str(scratch))
    stage.fill(folder, shards_of(folder)).join()
    return stage


def test_an_explicit_folder_is_made_and_filled(folder: Path, tmp_path: Path) -> None:
    stage = filled(folder, tmp_path / "scratch" / "deep")
    assert stage.folder == tmp_path / "scratch" / "deep" / OWN
    assert stat.S_IMODE(stage.folder.stat().st_mode) == 0o700
    assert contents(stage.folder / "shards") == copies(folder)
    assert copied(stage, folder) == list(shards_of(folder))
    assert stage.copy_of(Shard(clips=1, bytes=1, digest="0" * 32)) is None


def test_clips_are_read_from_the_copy_and_from_the_store_until_there_is_one(folder: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(folder, tmp_path / "store"))
    config, table = DataConfig(frames=4, size=28, stage=str(tmp_path)), ClipTable.of(CLIPS)
    stored = StoredFrames(Store(store, Manifest.read(store)), table, config)
    dataset = ClipDataset(table, {}, config, stored)
    before = [sample["video"] for sample in dataset]
    stored.stage.fill(store, shards_of(store)).join()
    shutil.rmtree(store / "shards")
    _open.cache_clear()
    assert all(torch.equal(sample["video"], was) for sample, was in zip(dataset, before, strict=True))


def test_nothing_is_copied_where_it_is_not_wanted_or_not_worth_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert Stage.of(folder, False).folder is None
    assert Stage.of(folder, True).folder is None, "the store is on a disk of this machine"
    assert Stage(None).fill(folder, shards_of(folder)) is None
    assert copied(Stage(None), folder) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("store", "scratch", "wanted"),
    [
        ("nfs4", "ext4", True),
        ("lustre", "xfs", True),
        ("fuse.sshfs", "overlay", True),
        ("nfs4", "tmpfs", False),
        ("nfs4", "nfs", False),
        ("ext4", "ext4", False),
        ("", "", False),
    ],
)
def test_stores_on_network_filesystems_are_copied_to_disks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, scratch: str, wanted: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("raylab.data.store.stage._kind", {folder: store, tmp_path: scratch}.get)
    assert Stage.of(folder, True).folder == (tmp_path / OWN if wanted else None)


@pytest.mark.skipif(not Path("/proc/self/mounts").exists(), reason="no list of mounts here")
def test_the_kind_of_a_filesystem() -> None:
    assert _kind(Path("/proc/self")) == "proc"
    assert _kind(Path("/")) not in ("", "proc")
    if Path("/dev/shm").is_mount():  # noqa: S108
        assert _kind(Path("/dev/shm/raylab/not/there")) == "tmpfs"  # noqa: S108


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o755, 0o777])
def test_a_folder_open_to_others_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    (tmp_path / OWN).mkdir()
    (tmp_path / OWN).chmod(mode)
    refuses(folder, tmp_path, monkeypatch)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder of somebody else's")
def test_a_folder_of_somebody_else_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / OWN).mkdir(mode=0o700)
    os.chown(tmp_path / OWN, 12345, 12345)
    refuses(folder, tmp_path, monkeypatch)


def test_a_link_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / OWN).symlink_to(tmp_path / "elsewhere")
    refuses(folder, tmp_path, monkeypatch)


def refuses(folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was named is an error; one that was tried unasked is passed by."""
    with pytest.raises(RaylabError, match=rf"data\.stage = {scratch}: {scratch}/{OWN} is not yours alone"):
        Stage.of(folder, str(scratch))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("raylab.data.store.stage._kind", {folder: "nfs", scratch: "ext4"}.get)
    assert Stage.of(folder, True).folder is None


def test_a_folder_that_cannot_be_made_is_explained(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        RaylabError, match=r"data\.stage = .*file: Not a directory: name a folder on the node's own disk"
    ):
        Stage.of(folder, str(tmp_path / "file"))


@pytest.mark.parametrize("room", [0, 1, 2])
def test_copying_stops_where_there_is_no_room(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    shards = shards_of(folder)
    assert len(shards) > 2
    space = sum(shard.bytes for shard in list(shards.values())[:room]) + 1000  # 1,000 bytes are to be left free

    def disk_usage(path: Path) -> SimpleNamespace:
        used = sum(len(content) for content in contents(path).values())
        return SimpleNamespace(total=20_000, free=space - used)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    stage = filled(folder, tmp_path)
    assert copied(stage, folder) == list(shards)[:room]


def test_what_a_killed_copy_left_is_removed_and_what_it_finished_is_kept(folder: Path, tmp_path: Path) -> None:
    stage = Stage.of(folder, str(tmp_path))
    name, shard = next(iter(shards_of(folder).items()))
    finished = shard_path(stage.folder, shard.digest)
    finished.parent.mkdir()
    shutil.copy(shard_path(folder, name), finished)
    inode = finished.stat().st_ino
    half = shard_path(stage.folder, "x").with_name(f"x.arrow{PARTIAL}0")
    half.write_bytes(b"half")
    filled(folder, tmp_path)
    assert contents(stage.folder / "shards") == copies(folder)
    assert finished.stat().st_ino == inode


def test_copies_long_unused_are_removed(folder: Path, tmp_path: Path) -> None:
    stage = filled(folder, tmp_path)
    for path in stage.folder.glob("shards/*"):
        os.utime(path, (0, 0))
    foreign = shard_path(stage.folder, "0" * 32)
    foreign.touch()
    os.utime(foreign, (0, 0))
    filled(folder, tmp_path)
    assert contents(stage.folder / "shards") == copies(folder)


def test_a_damaged_shard_is_not_copied(folder: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(folder, tmp_path / "store"))
    name, *others = shards_of(store)
    content = bytearray(shard_path(store, name).read_bytes())
    content[len(content) // 2] ^= 1
    shard_path(store, name).write_bytes(content)
    stage = filled(store, tmp_path)
    assert copied(stage, store) == others
    assert not list(stage.folder.glob(f"shards/*{PARTIAL}*"))


def test_only_one_process_copies(folder: Path, tmp_path: Path) -> None:
    stage = Stage.of(folder, str(tmp_path))
    with FileLock(stage.folder / "filling.lock"):
        filled(folder, tmp_path)
        assert copied(stage, folder) == []
    filled(folder, tmp_path)
    assert copied(stage, folder) == list(shards_of(folder))


def test_processes_that_copy_at_once(folder: Path, tmp_path: Path) -> None:
    processes = [get_context("fork").Process(target=filled, args=(folder, tmp_path)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {process.exitcode for process in processes} == {0}
    assert contents(tmp_path / OWN / "shards") == copies(folder)


def test_a_shard_that_cannot_be_copied_is_read_where_it_is(folder: Path, tmp_path: Path) -> None:
    stage = Stage.of(folder, str(tmp_path))
    (stage.folder / "shards").write_text("a file where a folder should be")
    stage.fill(folder, shards_of(folder)).join()
    assert copied(stage, folder) == []
