"""`raylab prepare` on a real cluster of this machine: what it writes, what it says, and how it goes on."""

import os
import pty
import re
import shutil
import signal
import subprocess

import psutil
import pytest
import ray
import torch
import yaml
from place import CLIPS, MODULE, STORE, Place, stamp, start, wait_for

import raylab
from raylab import prepare
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.data.store.shards import shard_path
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker
from raylab.training.runfolder import RunFolder

# What it makes


@pytest.mark.slow
def test_training_reads_the_store_even_when_the_videos_are_gone(run, place):
    code, said, errors = run("prepare", place.file)
    assert (code, errors) == (0, "")
    shards = place.manifest.shards
    last = said.splitlines()[-1]
    assert re.fullmatch(rf"{place.store}: {CLIPS} clips in {len(shards)} shards, [\d.]+ MB, 0 unreadable", last)
    assert sum(shard.clips for shard in shards.values()) == place.manifest.clips == CLIPS
    assert not list((place.store / "parts").iterdir())

    code, said, _ = run("train", place.file, "--dry-run", "--storage", place.folder / "results")
    assert code == 0
    assert f"frames: clip store {place.store}\n" in said

    for video in place.videos:
        video.rename(place.folder / video.name)
    experiment = place.experiment.override({"data.stage": str(place.folder)})
    finished = raylab.fit(experiment, storage=place.folder / "results")
    assert (finished.state, finished.epochs) == ("finished", 2)
    copies = {path.stem for path in place.folder.glob("raylab-*/shards/*.arrow")}
    assert copies == {shard.digest for shard in shards.values()}, "of what was read, on the node's own disk"


def test_a_run_that_goes_on_with_a_store_made_meanwhile_says_so(run, place, caplog):
    folder = RunFolder(Folder.open(place.folder / "run"))
    folder.create(place.experiment)

    def trainer():
        return Trainer(place.experiment, load_dataset(place.experiment.data), folder, Worker(torch.device("cpu")))

    first = trainer()
    first.train_epoch()
    first.finish_epoch()
    trainer()
    assert (folder.info["frames"], caplog.messages) == ("video", [])
    assert run("prepare", place.file)[0] == 0
    trainer()
    assert folder.info["frames"] == f"clip store {STORE}"
    (message,) = caplog.messages
    assert f"began with frames from video, goes on with those from clip store {STORE}" in message


def test_the_demo_of_a_sweep(run, tmp_path):
    demo = ("epic_phase2", "--demo", "data.kitchen=tiny", f"data.store={tmp_path / 'stores'}")
    code, said, _ = run("prepare", *demo)
    assert code == 0
    assert f": {CLIPS} clips in " in said
    code, said, _ = run("tune", *demo, "--dry-run", "--storage", tmp_path / "results")
    assert code == 0
    assert f"frames: clip store {tmp_path / 'stores' / STORE}\n" in said


def test_a_store_serves_every_number_of_frames_and_every_size_that_a_sweep_tries(run, place):
    space = {"data.frames": {"choice": [6, 4, 3]}, "data.size": {"choice": [32, 240]}, "optim.lr": {"choice": [0.1]}}
    sweep = {"description": "mine", "experiment": place.experiment.to_dict(), "space": space}
    place.file.write_text(yaml.safe_dump({**sweep, "search": {"grace_epochs": 1}}))
    assert run("prepare", place.file)[0] == 0
    (store,) = (place.root / "clip-stores").iterdir()
    assert store.name == "3+4+6f-274px-q90"
    for frames in (3, 4, 6):
        for size in (32, 240):
            data = place.experiment.override({"data.frames": frames, "data.size": size, "data.store": str(store)}).data
            clips = ClipDataset.of(load_dataset(data), "val", data)
            assert clips[0]["video"].shape == (frames, 3, data.side, data.side)


# What it leaves alone


def test_where_nothing_is_to_be_done_ray_is_not_even_imported(run, place):
    assert run("prepare", place.file)[0] == 0
    before = place.shards(), (place.store / "manifest.json").read_bytes()
    again = start(place.file, code=MODULE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said, errors = again.communicate(timeout=120)
    assert (again.returncode, errors) == (0, "imported: torch\n")
    assert said.startswith(f"{place.store}: {CLIPS} clips in ")
    assert (place.shards(), (place.store / "manifest.json").read_bytes()) == before


def test_annotations_that_grow_add_what_is_new(run, place):
    assert run("prepare", place.file, "data.max_clips=10")[0] == 0
    first = place.shards()
    held = place.ids(first)
    assert len(held) == 20
    assert run("prepare", place.file)[0] == 0
    assert place.manifest.clips == CLIPS
    later = place.shards()
    assert first.items() <= later.items()
    added = place.ids(later.keys() - first.keys())
    assert len(added) == CLIPS - 20
    assert not added & held


def test_a_video_that_has_changed_is_found_and_read_again(run, place):
    assert run("prepare", place.file)[0] == 0
    assert run("prepare", place.file, "--verify")[:2] == (0, "0 faults\n")
    first = place.shards()
    changed, *_, other = place.videos
    shutil.copyfile(other, changed)
    theirs = {id for id in place.ids(first) if id.startswith(f"{changed.stem}_")}
    assert len(theirs) == 6

    code, said, errors = run("train", place.file, "--dry-run", "--storage", place.folder / "results")
    assert (code, said) == (2, "")
    assert f"1 videos have changed since it was made ({changed.stem}): run `raylab prepare`" in errors

    code, said, _ = run("prepare", place.file, "--verify")
    assert code == 1
    faulty = {id for id in theirs if re.search(rf": clip {id} (differs from|has other frames than) {changed}", said)}
    assert len(faulty) > 0
    assert f"\n{len(faulty)} faults\n" in said

    assert run("prepare", place.file)[0] == 0
    later = place.shards()
    assert place.ids(later.keys() - first.keys()) == theirs
    assert run("prepare", place.file, "--verify")[:2] == (0, "0 faults\n")
    assert run("train", place.file, "--dry-run", "--storage", place.folder / "results")[0] == 0


def test_damaged_and_deleted_shards_are_found_and_written_again(run, place):
    assert run("prepare", place.file)[0] == 0
    damaged, deleted, *_ = (shard_path(place.store, name) for name in place.manifest.shards)
    whole = {path: path.read_bytes() for path in (damaged, deleted)}
    content = bytearray(whole[damaged])
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    deleted.unlink()
    code, said, _ = run("prepare", place.file, "--verify")
    assert code == 1
    assert said.startswith(f"{damaged}: is damaged\n{deleted}: is gone\n2 faults\nto mend it, delete shards")

    damaged.unlink()
    assert run("prepare", place.file)[0] == 0
    assert run("prepare", place.file, "--verify")[:2] == (0, "0 faults\n")
    assert place.manifest.clips == CLIPS


def test_clips_that_cannot_be_read_are_listed_counted_and_tolerated_up_to_a_share(run, place):
    broken = place.videos[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 4])
    code, said, _ = run("prepare", place.file)
    assert code == 1
    listed = place.manifest.unreadable
    assert {clip.video for clip in listed} == {broken.stem}
    assert len(listed) == 6
    assert place.manifest.clips == CLIPS - 6
    assert ", 6 unreadable\n" in said
    assert all(f"  {clip.id}: {clip.reason}\n" in said and str(broken) in clip.reason for clip in listed)
    assert "more than 1% of the clips cannot be read; all are in manifest.json" in said
    assert run("prepare", place.file, "--tolerance", "0.1")[0] == 0

    code, said, _ = run("train", place.file, "--dry-run", "--storage", place.folder / "results")
    assert code == 0
    assert re.search(r"(train|val): \d+ clips, 6 unreadable\n", said)
    kept = sum(
        len(ClipDataset.of(load_dataset(place.experiment.data), split, place.experiment.data))
        for split in ("train", "val")
    )
    assert kept == CLIPS - 6

    first = place.shards()
    broken.write_bytes(whole)
    assert run("prepare", place.file)[0] == 0
    assert place.manifest.unreadable == []
    assert len(place.ids(place.shards().keys() - first.keys())) == 6


# On its way


def test_off_a_terminal_a_line_now_and_then_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(prepare, "LINE_SECONDS", 0)
    parts = [(16, 0), (16, 2), (8, 0)]
    assert list(prepare.watched(iter(parts), 40)) == parts
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[\d,]+\.\d clips/s, about \d+:\d\d:\d\d", "…", line) for line in lines] == [
        *("16 of 40 clips, … left", "32 of 40 clips, … left", "40 of 40 clips, … left")
    ]


@pytest.mark.slow
def test_on_a_terminal_a_bar_shows_how_far_it_is(place):
    ours, theirs = pty.openpty()
    cluster = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = start(place.file, stdout=theirs, stderr=theirs, environment=cluster)
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(timeout=60) == 0
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", said.decode())
    assert re.search(rf"━ +{CLIPS}/{CLIPS} clips, [\d.]+ clips/s +0:00:00", shown), shown
    assert f": {CLIPS} clips in " in shown.replace("\r\n", "")


def test_interrupted_it_ends_with_all_its_processes_and_the_same_command_goes_on(run, tmp_path, small_experiment):
    place = Place(tmp_path, small_experiment, repeats=8)
    process = start(place.file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parts = place.store / "parts"
    wait_for(lambda: list(parts.glob("*.arrow")), process)
    process.send_signal(signal.SIGSTOP)  # now it cannot end before all this is checked

    code, said, errors = run("prepare", place.file)
    assert (code, said) == (2, "")
    assert errors == f"error: {place.store}: another process is preparing this store: wait for it to end\n"

    children = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in children)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.send_signal(signal.SIGCONT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted: the same command goes on from here"
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert place.manifest is None

    finished = {path.stem: stamp(shard_path(place.store, path.stem)) for path in parts.glob("*.arrow")}
    assert run("prepare", place.file)[0] == 0
    assert place.manifest.clips == 8 * CLIPS
    assert finished.items() <= place.shards().items()
    assert len(finished) < len(place.shards())
