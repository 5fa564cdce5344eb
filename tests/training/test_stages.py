"""Stages: what each trains, at which rate, and that a run killed in any of them ends with the same bits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import assert_the_same_bits, train_until_stopped
from torch import Tensor, nn

from raylab.config import Experiment, ModelConfig, Stage
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.models.freezing import Freezable, enter
from raylab.models.registry import batches, build_model, find_model, list_models
from raylab.preflight import preflight
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker
from raylab.training.runfolder import RunFolder
from raylab.training.stages import stage_at
from raylab.training.tree import load_tree

CPU = Worker(torch.device("cpu"))
FROZEN = {"epochs": 1, "lr": 1e-2, "freeze": "encoder"}
FINE = {"epochs": 1, "lr": 1e-3, "unfreeze_blocks": 2, "clip": 1.0}
STEPS = 4  # of an epoch
KEYFRAMES = {
    "task": "keyframes",
    "model.name": "resnet50_dual_attention",
    "data.dataset": "kitchen_keyframes",
    "data.sampling": "rate",
    "data.frames": 60,
    "data.max_clips": 2 * STEPS,
    "data.batch_size": 2,
}


@pytest.fixture
def staged(small_experiment: Experiment, tmp_path: Path) -> Experiment:
    """An LSTM over a tiny ResNet: the encoder fixed, then its last two blocks trained."""
    model = {"name": "resnet50_lstm", "scale": "tiny", "pretrained": False}
    return Experiment.parse({**small_experiment.to_dict(), "model": model}).override(
        {
            "data.max_clips": 4 * STEPS,
            "data.batch_size": 4,
            "data.augment": "none",
            "train.stages": [FROZEN, FINE],
            "train.cache": str(tmp_path / "kept"),
            "train.checkpoint_minutes": 1e-9,
        }
    )


def new_run(folder: Path, experiment: Experiment) -> RunFolder:
    run = RunFolder(Folder.open(folder))
    run.create(experiment)
    return run


def trainer_of(folder: Path, experiment: Experiment) -> Trainer:
    return Trainer(experiment, load_dataset(experiment.data), new_run(folder, experiment), CPU)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


# What a stage trains.


def test_a_fixed_encoder_does_not_move_and_its_last_blocks_do_in_the_next_stage(
    tmp_path: Path, staged: Experiment
) -> None:
    trainer = trainer_of(tmp_path / "run", staged)
    model = trainer.state.task.model
    states = [state(model)]
    while not trainer.done:
        trainer.train_epoch()
        trainer.finish_epoch()
        states.append(state(model))
    first, second = (moved(*pair) for pair in pairwise(states))
    assert first == {name for name in states[0] if not name.startswith("encoder.")}
    of_encoder = {name for name in second if name.startswith("encoder.")}
    assert second - of_encoder == first
    last = ("encoder.encoder.layer3.", "encoder.encoder.layer4.")
    assert of_encoder == {name for name in states[0] if name.startswith(last)}  # batch-norm statistics among them


def test_each_stage_begins_with_a_fresh_optimiser_and_goes_through_its_own_schedule(
    tmp_path: Path, staged: Experiment
) -> None:
    stages = {"train.stages": [{**FROZEN, "epochs": 2}, FINE], "optim.warmup": 0.25}
    trainer = trainer_of(tmp_path / "run", staged.override(stages))
    rates: list[float] = []
    step = trainer.step

    def recording() -> None:
        rates.append(trainer.state.optimizer.param_groups[0]["lr"])
        step()

    trainer.step = recording  # type: ignore[method-assign]
    while not trainer.done:
        trainer.train_epoch()
        before = trainer.state.optimizer
        trainer.finish_epoch()
        fresh = trainer.state.optimizer is not before
        assert fresh == (trainer.state.progress.epoch == 2)
        assert bool(trainer.state.optimizer.state) != fresh
    first, second = rates[: 2 * STEPS], rates[2 * STEPS :]
    assert (max(first), max(second)) == (first[2], second[1]) == (1e-2, 1e-3)  # after a quarter of its steps each
    assert first[0] == pytest.approx(1e-2 / 3)
    assert second[0] == pytest.approx(1e-3 / 2)
    assert first[-1] < 1e-2 / 10
    trained = {id(p) for group in trainer.state.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.state.task.model.parameters() if p.requires_grad}


def test_the_scale_of_learning_rates_is_that_of_all_of_them(tmp_path: Path, staged: Experiment) -> None:
    def end(name: str, scale: float, its: float) -> Trainer:
        stages = [{**stage, "lr": stage["lr"] * its} for stage in (FROZEN, FINE)]
        rates = {"optim.lr_scale": scale, "optim.min_lr": 1e-4 * its, "train.stages": stages}
        trainer = trainer_of(tmp_path / name, staged.override(rates))
        while not trainer.done:
            trainer.train_epoch()
            trainer.finish_epoch()
        return trainer

    scaled, plain = end("scaled", 4.0, 1.0), end("plain", 1.0, 4.0)
    assert not moved(state(plain.state.task.model), state(scaled.state.task.model))
    assert moved(state(end("unscaled", 1.0, 1.0).state.task.model), state(plain.state.task.model))


def test_gradients_are_clipped_where_the_stage_says(tmp_path: Path, staged: Experiment) -> None:
    stages = [{**FROZEN, "lr": 1.0}, {**FINE, "lr": 1.0, "clip": 1e-3}]
    settings = {"optim.name": "sgd", "optim.momentum": 0.0, "optim.weight_decay": 0.0, "optim.schedule": "constant"}
    trainer = trainer_of(tmp_path / "run", staged.override({"train.stages": stages, **settings}))
    lengths: list[float] = []
    step = trainer.step

    def measured() -> None:
        parameters = list(trainer.state.task.model.parameters())
        before = [p.detach().clone() for p in parameters]
        step()
        moves = [(p.detach() - was).norm() for p, was in zip(parameters, before, strict=True)]
        lengths.append(float(torch.stack(moves).norm()))

    trainer.step = measured  # type: ignore[method-assign]
    while not trainer.done:
        trainer.train_epoch()
        trainer.finish_epoch()
    assert min(lengths[:STEPS]) > 0.01
    assert max(lengths[STEPS:]) <= 1e-3 * (1 + 1e-3)


def test_patience_counts_in_the_last_stage_alone(tmp_path: Path, staged: Experiment) -> None:
    stages = [{**FROZEN, "lr": 1e-9, "epochs": 3}, {**FINE, "lr": 1e-9, "epochs": 9}]  # nothing is learnt
    trainer = trainer_of(tmp_path / "run", staged.override({"train.stages": stages, "train.patience": 2}))
    while not trainer.done:
        trainer.train_epoch()
        trainer.finish_epoch()
    assert trainer.state.progress.best_epoch == 1
    assert trainer.state.progress.epoch == 3 + 2


def test_a_stage_that_says_nothing_of_the_encoder_has_it_as_the_model_says(tmp_path: Path, staged: Experiment) -> None:
    plain = {"epochs": 1, "lr": 1e-3}
    changes = {"train.stages": [plain, FROZEN, plain], "model.frozen_blocks": 3, "data.max_clips": 4}
    trainer = trainer_of(tmp_path / "run", staged.override(changes))
    encoder: Any = trainer.state.task.model.encoder
    trained = []
    while not trainer.done:
        trained.append({name.split(".")[1] for name, p in encoder.named_parameters() if p.requires_grad})
        trainer.train_epoch()
        trainer.finish_epoch()
    assert trained == [{"layer4"}, set(), {"layer4"}]


def test_which_stage_an_epoch_is_in() -> None:
    stages = [Stage(epochs=n, lr=1) for n in (2, 1, 3)]
    found = [stage_at(stages, epoch) for epoch in range(7)]
    assert [stage.number for stage in found] == [0, 0, 1, 2, 2, 2, 2]
    assert {(stage.start, stage.stop) for stage in found} == {(0, 2), (2, 3), (3, 6)}


# Every model.


def tiny(name: str) -> nn.Module:
    entry = find_model(name)
    config = {"name": name, "scale": "tiny", **dict.fromkeys(["pretrained", *entry.parts], False)}
    heads = {
        "action": {"verb": 3, "noun": 4},
        "distillation": {"label": 3},
        "keyframes": {},
        "classification": {"label": 2},
    }
    return build_model(ModelConfig.model_validate(config), heads[entry.task])


@pytest.mark.parametrize("name", [entry.name for entry in list_models() if not entry.handcrafted])
def test_encoders_of_every_model_can_be_fixed_and_the_others_say_that_they_have_none(name: str) -> None:
    model = tiny(name).train()
    encoders = [module for module in model.modules() if isinstance(module, Freezable)]
    if not encoders:
        for setting, value in {"freeze": "encoder", "unfreeze_blocks": 2}.items():
            with pytest.raises(RaylabError, match=rf"stages\.1\.{setting} = {value}: \w+ has no encoder .*=null"):
                enter(model, Stage.model_validate({**FROZEN, "freeze": None, setting: value}), "train.stages.1")
        assert find_model(name).task == "distillation"
        return
    apart = {id(p) for encoder in encoders for p in encoder.parameters()}
    others = [p.requires_grad for p in model.parameters() if id(p) not in apart]
    for _ in range(2):
        enter(model, Stage.model_validate(FROZEN), "train.stages.0")
        model.train()
        for encoder in encoders:
            assert encoder.fixed
            assert not any(m.training for m in encoder.modules() if m is not encoder)
        enter(model, Stage.model_validate(FINE), "train.stages.1")
        for encoder in encoders:
            assert 0 < sum(p.requires_grad for p in encoder.parameters()) < len(list(encoder.parameters()))
            for module in encoder.modules():
                if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                    assert module.training == module.weight.requires_grad
    assert [p.requires_grad for p in model.parameters() if id(p) not in apart] == others


@pytest.mark.parametrize("name", [entry.name for entry in list_models(task="action")])
def test_features_that_were_computed_before_give_the_same_logits(name: str) -> None:
    model: Any = tiny(name).eval()
    if not hasattr(model, "encoder"):
        pytest.skip("two encoders, which see different things")
    video = torch.randn(2, 5, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(video), model(model.encoder(video))
    assert all(torch.equal(found[head], logits) for head, logits in expected.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.stages.1.unfreeze_blocks": 5},
            r"train\.stages\.1\.unfreeze_blocks = 5: test_resnet has 4 blocks; set .*unfreeze_blocks=4 or less",
        ),
        (
            {"model.name": "videomae_small", "task": "distillation", "data.dataset": "kitchen_labelled"},
            r"train\.stages\.0\.freeze = encoder: VideoMAE has no encoder that can be fixed apart: set .*freeze=null",
        ),
    ],
)
def test_stages_that_a_model_cannot_go_through_are_refused_before_anything_starts(
    tmp_path: Path, staged: Experiment, changes: dict[str, Any], message: str
) -> None:
    if "task" in changes:
        changes = {**changes, "distill.pretrained": False, "model.dropout": 0.0}
    experiment = staged.override(changes)
    with pytest.raises(RaylabError, match=message):
        preflight(experiment, Folder.open(tmp_path / "results"))
    with pytest.raises(RaylabError, match=message):
        trainer_of(tmp_path / "run", experiment)


# Killed and resumed.


def _start(folder: Path, fatal: int, moment: str, **environment: str) -> subprocess.Popen[bytes]:
    program = Path(__file__).with_name("train_until_killed.py")
    return subprocess.Popen([sys.executable, program, folder, str(fatal), moment], env={**os.environ, **environment})


def in_a_process(folder: Path, fatal: int, moment: str) -> None:
    assert _start(folder, fatal, moment).wait(timeout=120) == (-signal.SIGKILL if fatal else 0)


def in_two_processes(folder: Path, fatal: int, moment: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (_start(folder, fatal, moment, RANK=str(rank), **place) for rank in range(2))
    code = first.wait(timeout=120)
    if code:
        second.kill()  # it would wait for the other
    assert (code, second.wait(timeout=120)) == ((-signal.SIGKILL, -signal.SIGKILL) if fatal else (0, 0))


@pytest.mark.parametrize(
    ("train", "changes"),
    [
        (train_until_stopped, {}),
        (train_until_stopped, {"data.augment": "aggressive", "train.accumulate": 2}),
        (train_until_stopped, KEYFRAMES),
        pytest.param(in_a_process, {}, marks=pytest.mark.slow),
        pytest.param(in_two_processes, {"data.batch_size": 2, "resources.workers": 2}, marks=pytest.mark.slow),
    ],
)
def test_killed_in_each_stage_and_between_them_a_run_ends_with_the_same_bits(
    tmp_path: Path, staged: Experiment, train: Callable[[Path, int, str], None], changes: dict[str, Any]
) -> None:
    experiment = staged.override(changes)
    steps = STEPS // batches(experiment).accumulate
    whole = new_run(tmp_path / "whole", experiment)
    train(tmp_path / "whole", 0, "after")
    disturbed = new_run(tmp_path / "disturbed", experiment.override({"train.cache": str(tmp_path / "other")}))
    for fatal, moment, reached in [
        (1, "after", 1),  # in the first stage
        (steps - 1, "before", steps - 1),  # while the checkpoint at its end is written
        (1, "after", steps),  # right after that
        (1, "after", steps + 1),  # in the second stage
        (steps - 1, "before", 2 * steps - 1),  # while the last is written
    ]:
        train(tmp_path / "disturbed", fatal, moment)
        latest = disturbed.latest()
        assert latest is not None
        assert latest.step == reached
    train(tmp_path / "disturbed", 0, "after")
    assert_the_same_bits(whole, disturbed)


def test_the_checkpoint_at_a_boundary_is_the_next_stages(tmp_path: Path, staged: Experiment) -> None:
    trainer = trainer_of(tmp_path / "run", staged)
    trainer.train_epoch()
    trainer.finish_epoch()
    latest = trainer.run.latest()
    assert latest is not None
    optimizer = load_tree(Path(latest.folder.path) / "training")["optimizer"]
    assert optimizer["state"] == {}
    assert {group["lr"] for group in optimizer["param_groups"]} == {FINE["lr"]}
    again = Trainer(staged, load_dataset(staged.data), trainer.run, CPU)
    assert again.stage == trainer.stage
    trained = [name for name, p in trainer.state.task.model.named_parameters() if p.requires_grad]
    assert [name for name, p in again.state.task.model.named_parameters() if p.requires_grad] == trained
