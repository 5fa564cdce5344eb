"""A student outlives its training: its checkpoint is a folder of transformers, and needs no other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raylab.config import DataConfig, Experiment
from raylab.data.augment import ClipTransform
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.data.footage import positions, read_positions
from raylab.models.distillation import structure
from raylab.models.videomae import network
from raylab.results import Checkpoint
from raylab.storage import Folder
from raylab.tasks import build_task
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder

VIDEO = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "videos" / "bikes.mp4"


def trained(folder: Path, experiment: Experiment) -> Checkpoint:
    run = RunFolder(Folder.open(folder))
    run.create(experiment)
    train(experiment, load_dataset(experiment.data), run, Worker(torch.device("cpu")), lambda row: None)
    latest = run.latest()
    assert latest is not None
    return Checkpoint.open(latest.folder)


def open_with_transformers(file: Path, *folders: Path) -> dict[str, str]:
    program = Path(__file__).with_name("open_with_transformers.py")
    done = subprocess.run([sys.executable, "-I", program, file, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not VIDEO.exists(), reason="the real videos are not here")
def test_transformers_opens_a_checkpoint_and_sees_what_raylab_sees(small_student: Experiment, tmp_path: Path) -> None:
    checkpoint = trained(tmp_path / "run", small_student)
    model = checkpoint.load_model()

    (tmp_path / "data" / "videos").mkdir(parents=True)
    shutil.copy(VIDEO, tmp_path / "data" / "videos")
    (tmp_path / "data" / "train.csv").write_text("videos/bikes.mp4 cycling\n")
    folders, transformed = [Path(checkpoint.path), tmp_path / "full"], []
    for folder, size in zip(folders, (32, 224), strict=True):
        config = DataConfig(dataset="labelled", root=str(tmp_path / "data"), frames=4, size=size)
        dataset = load_dataset(config, ["train"])
        sample = ClipDataset.of(dataset, "train", config)[0]
        transform = ClipTransform.for_model(model, config, train=False, seed=0)
        transformed.append(transform(sample["video"][None], [sample["id"]], 0))
        if not folder.exists():
            folder.mkdir()
            build_task(small_student.override({"data.size": size}), checkpoint.labels).export(folder)
    clip = dataset.splits["train"].clips[0]
    source = dataset.sources[clip.video]
    frames = read_positions(source, positions(clip, source, 4), "pyav").permute(0, 2, 3, 1).contiguous()

    save_file({"video": transformed[0], "frames": frames}, tmp_path / "seen.safetensors")
    names = open_with_transformers(tmp_path / "seen.safetensors", *folders)
    assert list(names.values()) == checkpoint.labels["label"]
    assert list(names) == [str(index) for index in range(len(names))]
    found = load_file(tmp_path / "seen.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], model(transformed[0])["label"], rtol=0, atol=1e-6)
    for number, expected in enumerate(transformed):
        torch.testing.assert_close(found[f"pixels/{number}"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_students_own_folder_is_not_needed_any_more(
    small_student: Experiment, tmp_path: Path, pretrained: bool
) -> None:
    config = structure("small", "tiny")
    config.update({"num_hidden_layers": 3, "intermediate_size": 96})
    network(config, 5).save_pretrained(tmp_path / "student")
    experiment = small_student.override({"model.student": str(tmp_path / "student"), "model.pretrained": pretrained})
    checkpoint = trained(tmp_path / "run", experiment)
    video = torch.randn(1, 4, 3, 32, 32)
    before = checkpoint.load_model()
    shutil.rmtree(tmp_path / "student")
    after = Checkpoint.open(checkpoint.path).load_model()
    assert (after.depth, after.config.intermediate_size, after.config.num_labels) == (3, 96, 8)
    with torch.no_grad():
        assert torch.equal(after(video)["label"], before(video)["label"])
    assert trained(tmp_path / "run", experiment).path == checkpoint.path  # nor to go on
