"""Out of memory, injected: the batch is divided, the step begun again, and nothing else changes."""

import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from raylab.config import Experiment
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker, train
from raylab.training.memory import Attempt, is_out_of_memory, pieces, recall, remember
from raylab.training.runfolder import RunFolder

CPU = torch.device("cpu")


@pytest.fixture
def exact(small_experiment, tmp_path, monkeypatch):
    """Without what depends on which clips stand together: dropout, drop path, batch norm in training."""
    monkeypatch.setenv("RAYLAB_CACHE", str(tmp_path / "cache"))
    still = {"model.dropout": 0.0, "model.drop_path": 0.0, "model.frozen_blocks": 4}
    return small_experiment.override({**still, "data.max_clips": 24, "train.accumulate": 2, "data.batch_size": 4})


@pytest.fixture
def trainer(exact, tmp_path):
    def build(name, experiment=exact):
        run = RunFolder(Folder.open(tmp_path / name))
        run.create(experiment)
        return Trainer(experiment, load_dataset(experiment.data), run, Worker(CPU))

    return build


def fail(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def fails_above(clips, module):
    """Let a module fail where more clips than these come at once; the numbers of clips that came."""
    seen = []

    def short(module, inputs):
        seen.append(len(inputs[0]))
        if len(inputs[0]) > clips:
            fail()

    module.register_forward_pre_hook(short)
    return seen


def go_through(trainer):
    rows = []
    while not trainer.done:
        trainer.train_epoch()
        rows.append(trainer.finish_epoch())
    return rows


STEPS = 2 * 2  # 24 clips, 16 a step: one whole and one of what is left, in each of two epochs


@pytest.mark.parametrize(
    "scenarios",
    [
        [[0, 1, "backward", 2], [1, 2, "forward", 2], [1, 0, "backward", 1]],
        pytest.param(
            [[rank, step, part, 2] for rank in (0, 1) for step in range(STEPS) for part in ("forward", "backward")],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["some", "all"],
)
def test_two_workers_go_on_wherever_memory_does_not_suffice_for_one(exact, tmp_path, scenarios):
    """Of each: the rank, the step, the part of it, and how many clips suffice."""
    RunFolder(Folder.open(tmp_path / "whole")).create(exact)
    program = [sys.executable, Path(__file__).with_name("train_short_of_memory.py")]
    processes = [subprocess.Popen([*program, str(rank), tmp_path, json.dumps(scenarios)]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    whole, *others = json.loads((tmp_path / "found.json").read_text())
    for scenario, found in zip(scenarios, others, strict=True):
        assert found["micro_batch"] == scenario[3], scenario
        for split in ("train", "val"):
            assert found[split] == pytest.approx(whole[split], abs=1e-5), scenario


def test_the_step_is_divided_until_it_fits_and_the_loss_stays(trainer):
    whole = go_through(trainer("whole"))
    short = trainer("short")
    seen = fails_above(1, short.state.task.model.encoder)
    rows = go_through(short)
    assert (short.state.progress.micro_batch, short.val_micro_batch) == (1, 1)
    assert seen[:3] == [4, 2, 1]
    for name in ("train/loss", "val/loss", "train/verb_top1", "val/verb_top1", "grad_norm"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in whole], abs=1e-5), name
    assert [row["step"] for row in rows] == [row["step"] for row in whole]


def test_one_clip_that_does_not_fit_ends_the_run_with_the_remedy(trainer):
    short = trainer("short")
    fails_above(0, short.state.task.model.encoder)
    with pytest.raises(RaylabError, match=r"out of memory on cpu with one clip of 4 frames.*lower data\.frames"):
        short.train_epoch()


def test_other_errors_are_not_taken_for_a_lack_of_memory(trainer):
    broken = trainer("broken")

    def break_(*_):
        raise RuntimeError("shapes do not match")

    broken.state.task.model.encoder.register_forward_pre_hook(break_)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        broken.train_epoch()


def test_the_next_run_of_the_same_model_begins_with_what_was_found(trainer, exact):
    first = trainer("first")
    fails_above(2, first.state.task.model.encoder)
    first.train_epoch()
    for other in ({"optim.lr": 1e-3, "data.fold": 1, "model.dropout": 0.5}, {"data.batch_size": 8}):
        assert trainer(str(other), exact.override(other)).state.progress.micro_batch == 2
    for other in ({"data.frames": 2}, {"model.temporal_layers": 2}, {"data.batch_size": 2}):
        assert trainer(str(other), exact.override(other)).state.progress.micro_batch == 0


def test_a_resumed_run_goes_on_in_the_pieces_of_its_checkpoint(trainer, exact):
    first = trainer("run")
    fails_above(2, first.state.task.model.encoder)
    first.train_epoch()
    first.finish_epoch()
    remember(exact, CPU, 1)  # another run's
    assert trainer("run").state.progress.micro_batch == 2


def test_a_damaged_note_is_no_note(exact):
    path = remember(exact, CPU, 3)
    assert recall(exact, CPU) == 3
    path.write_text('{"micro_batch":')
    assert recall(exact, CPU) == 0


def test_running_statistics_of_a_failed_try_are_undone():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    attempt = Attempt(network, first=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with attempt.trying():
        network(torch.randn(4, 2))
        fail()
    assert attempt.failed
    assert network[0].num_batches_tracked == 1
    attempt.undo()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_pieces_are_all_of_a_batch_in_order():
    clips = torch.arange(5)
    batch = {"video": clips.view(5, 1), "labels": {"verb": clips}, "ids": list("abcde"), "keys": list("vwxyz")}
    assert list(pieces(batch, 0)) == list(pieces(batch, 5)) == [batch]
    parts = list(pieces(batch, 2))
    assert [part["ids"] for part in parts] == [["a", "b"], ["c", "d"], ["e"]]
    assert torch.equal(torch.cat([part["video"] for part in parts]), batch["video"])
    assert torch.equal(torch.cat([part["labels"]["verb"] for part in parts]), clips)
    assert [key for part in parts for key in part["keys"]] == batch["keys"]


def test_pieces_have_the_pixels_of_those_clips_that_lack_outputs():
    clips = torch.arange(5)
    batch = {"video": torch.tensor([[1], [4]]), "missing": [1, 4], "ids": list("abcde"), "labels": {"verb": clips}}
    batch |= {"outputs": {"encoder/features": clips.view(5, 1)}, "mask": clips[:, None] > 2}
    parts = list(pieces(batch, 2))
    assert [part["missing"] for part in parts] == [[1], [], [0]]
    assert [part["video"].tolist() for part in parts] == [[[1]], [], [[4]]]
    assert torch.equal(torch.cat([part["mask"] for part in parts]), batch["mask"])
    assert torch.equal(torch.cat([part["outputs"]["encoder/features"] for part in parts])[:, 0], clips)
    whole = {**{name: value for name, value in batch.items() if name != "video"}, "missing": []}
    assert [(part["missing"], "video" in part) for part in pieces(whole, 2)] == 3 * [([], False)]


@pytest.mark.parametrize("cache", [True, False])
def test_windows_are_divided_with_their_masks_and_kept_features(trainer, exact, tmp_path, cache):
    sections = exact.to_dict()
    base = {name: sections[name] for name in ("data", "train")} | {"task": "keyframes"}
    model = {"name": "resnet50_dual_attention", "scale": "tiny", "pretrained": False, "dropout": 0.0}
    data = {"data.dataset": "kitchen_keyframes", "data.sampling": "rate", "data.frames": 9, "data.augment": "none"}
    stages = [{"epochs": 2, "lr": 1e-4, "freeze": "encoder"}]
    staged = Experiment.parse({**base, "model": model}).override({**data, "train.stages": stages, "data.max_clips": 12})
    kept = [str(tmp_path / name) if cache else False for name in ("one", "two")]
    whole = go_through(trainer("whole", staged.override({"train.cache": kept[0]})))
    short = trainer("short", staged.override({"train.cache": kept[1]}))
    fails_above(1, short.state.task.model)
    rows = go_through(short)
    assert short.state.progress.micro_batch == 1
    for name in ("train/loss", "val/loss", "val/spearman_mean"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in whole], abs=1e-5), name


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate…"),
            True,
        ),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_what_libraries_say_when_memory_does_not_suffice(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_allocator_of_this_machine_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_nothing_of_a_run_stays_in_memory(exact, tmp_path, monkeypatch):
    run, models = RunFolder(Folder.open(tmp_path / "run")), []
    run.create(exact)
    build = Trainer.__init__

    def watched(self, *args):
        build(self, *args)
        models.append(weakref.ref(self.state.task.model))

    monkeypatch.setattr(Trainer, "__init__", watched)
    train(exact, load_dataset(exact.data), run, Worker(CPU), lambda row: None)
    assert [model() for model in models] == [None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_full_makes_pieces(exact, tmp_path):
    experiment = exact.override({"data.frames": 16, "data.size": 224, "data.batch_size": 8, "train.accumulate": 1})
    run, device = RunFolder(Folder.open(tmp_path / "run")), torch.device("cuda")
    run.create(experiment)
    trainer = Trainer(experiment, load_dataset(experiment.data), run, Worker(device))
    torch.cuda.reset_peak_memory_stats()
    trainer.train_epoch()
    needed, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(0.7 * needed / total)
    try:
        trainer.finish_epoch()
        trainer.train_epoch()
        assert 0 < trainer.state.progress.micro_batch < 8
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
