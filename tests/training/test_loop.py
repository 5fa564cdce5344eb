import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker, train
from raylab.training.runfolder import RunFolder
from raylab.training.tree import load_tree

CPU = Worker(torch.device("cpu"))


def new_run(folder, experiment):
    run = RunFolder(Folder.open(folder))
    run.create(experiment)
    return run


def train_here(folder, experiment):
    run, rows = new_run(folder, experiment), []
    train(experiment, load_dataset(experiment.data), run, CPU, rows.append)
    return run, rows


def train_in_a_process(folder, fatal, moment):
    program = Path(__file__).with_name("train_until_killed.py")
    return subprocess.run([sys.executable, program, folder, str(fatal), moment], check=False).returncode


class Stopped(Exception):
    pass


class Stopping(RunFolder):
    """Ends its process's training where `train_until_killed.py` would kill it."""

    def __init__(self, folder, fatal, moment):
        super().__init__(folder)
        self.left, self.moment = fatal, moment

    def write_checkpoint(self, write, epoch, step, metrics):
        self.left -= 1

        def write_and_stop(path):
            write(path)
            if self.left == 0 and self.moment == "before":
                raise Stopped

        super().write_checkpoint(write_and_stop, epoch, step, metrics)
        if self.left == 0 and self.moment == "after":
            raise Stopped


def train_until_stopped(folder, fatal, moment):
    run = Stopping(Folder.open(folder), fatal, moment)
    with suppress(Stopped):
        train(run.experiment, load_dataset(run.experiment.data), run, CPU, lambda row: None)


def weights(run):
    """File → its tensors."""
    files = sorted(Path(run.latest().folder.path).glob("*.safetensors"))
    return {file.stem: load_file(file) for file in files if file.stem != "training"}


def assert_the_same_bits(whole, other):
    expected, found = weights(whole), weights(other)
    assert expected.keys() == found.keys()
    for file, tensors in expected.items():
        assert tensors.keys() == found[file].keys()
        assert all(torch.equal(tensors[name], found[file][name]) for name in tensors)
    state, other_state = (load_tree(Path(run.latest().folder.path) / "training") for run in (whole, other))
    moments = [s["optimizer"]["state"] for s in (state, other_state)]
    for index, values in moments[0].items():
        assert all(torch.equal(values[key], moments[1][index][key]) for key in values)
    assert state["schedule"] == other_state["schedule"]
    assert without_times(whole.history()) == without_times(other.history())


def without_times(rows):
    timed = {"seconds", "clips_per_second", "data_wait", "memory"}
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"train.accumulate": 2}, {"optim.schedule": "plateau", "optim.plateau_patience": 0}], ids=str
)
def test_a_run_killed_twice_ends_with_the_same_bits_as_one_never_disturbed(tmp_path, small_experiment, settings):
    experiment = small_experiment.override({"train.checkpoint_minutes": 1e-9, "data.augment": "aggressive", **settings})
    whole, disturbed = (new_run(tmp_path / name, experiment) for name in ("whole", "disturbed"))
    assert train_in_a_process(tmp_path / "whole", 0, "after") == 0
    # Once in mid-epoch after a checkpoint, once halfway through writing one.
    assert train_in_a_process(tmp_path / "disturbed", 2, "after") == -signal.SIGKILL
    assert 0 < disturbed.latest().step < whole.latest().step / 2
    assert train_in_a_process(tmp_path / "disturbed", 2, "before") == -signal.SIGKILL
    assert train_in_a_process(tmp_path / "disturbed", 0, "after") == 0
    assert_the_same_bits(whole, disturbed)


@pytest.mark.parametrize("go_on", [train_until_stopped, pytest.param(train_in_a_process, marks=pytest.mark.slow)])
def test_a_student_ends_with_the_same_bits_whenever_its_sources_were_asked(tmp_path, small_student, go_on):
    settings = {"model.dropout": 0.2, "data.augment": "mild", "data.variants": 1, "data.max_clips": 32}
    training = {"train.epochs": 2, "train.checkpoint_minutes": 1e-9, "distill.cache": str(tmp_path / "kept")}
    experiment = small_student.override({**settings, **training})
    whole, disturbed = (new_run(tmp_path / name, experiment) for name in ("whole", "disturbed"))
    go_on(tmp_path / "whole", 0, "after")  # asked in the first epoch
    assert list(weights(whole)) == ["auxiliary", "model"]
    go_on(tmp_path / "disturbed", 2, "after")  # never asked
    assert 0 < disturbed.latest().step < whole.latest().step / 2
    shutil.rmtree(tmp_path / "kept")
    go_on(tmp_path / "disturbed", 4, "before")  # asked until it is stopped, in the second epoch
    assert disturbed.latest().step == 5
    go_on(tmp_path / "disturbed", 0, "after")  # asked for some clips
    assert_the_same_bits(whole, disturbed)


def test_a_plateau_lowers_the_rate_of_later_epochs(tmp_path, small_experiment):
    settings = {"optim.schedule": "plateau", "optim.plateau_patience": 0, "optim.lr": 1e-7, "train.epochs": 3}
    _, rows = train_here(tmp_path / "run", small_experiment.override({**settings, "data.max_clips": 16}))
    assert [row["lr"] for row in rows] == [1e-7, 1e-7, 5e-8]  # nothing is learnt at such a rate


def test_checkpoints_of_every_so_many_epochs_stay(tmp_path, small_experiment):
    settings = {"train.keep_every": 2, "train.epochs": 5, "data.max_clips": 16, "train.checkpoint_minutes": 1e-9}
    run, rows = train_here(tmp_path / "run", small_experiment.override(settings))
    kept = {checkpoint.epoch for checkpoint in run.checkpoints()}
    assert kept == {2, 4, 5, rows[-1]["best_epoch"]}


def test_every_weight_changed_by_hand_survives_a_checkpoint(tmp_path, small_experiment):
    dataset = load_dataset(small_experiment.data)
    trainer = Trainer(small_experiment, dataset, new_run(tmp_path / "run", small_experiment), CPU)
    with torch.no_grad():
        for tensor in trainer.state.task.model.state_dict().values():
            tensor.add_(1)
    expected = {name: tensor.clone() for name, tensor in trainer.state.task.model.state_dict().items()}
    trainer.save({})
    again = Trainer(small_experiment, dataset, trainer.run, CPU)
    actual = again.state.task.model.state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_frozen_blocks_do_not_move_and_the_rest_does(tmp_path, small_experiment):
    dataset = load_dataset(small_experiment.data)
    trainer = Trainer(small_experiment, dataset, new_run(tmp_path / "run", small_experiment), CPU)
    model = trainer.state.task.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.train_epoch()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any("layer1" in name for name in frozen)
    for name, tensor in model.state_dict().items():
        if name in frozen or "layer1.0.bn" in name:
            assert torch.equal(tensor, before[name]), name
    moved = [n for n, p in model.named_parameters() if p.requires_grad and not torch.equal(p, before[n])]
    assert len(moved) == sum(p.requires_grad for p in model.parameters())


def test_history_counts_every_clip_and_keeps_the_best(tmp_path, small_experiment):
    run, rows = train_here(tmp_path / "run", small_experiment.override({"train.epochs": 3, "optim.lr": 1e-3}))
    assert rows == run.history()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    best = max(rows, key=lambda row: row["val/action_top1"])
    assert rows[-1]["best"] == best["val/action_top1"]
    assert run.best("val/action_top1", "max").metrics["val/action_top1"] == best["val/action_top1"]
    assert len(run.checkpoints()) <= 2
    assert rows[0]["gap/noun_top1"] == pytest.approx(rows[0]["train/noun_top1"] - rows[0]["val/noun_top1"])
    assert rows[0]["val/verb_top1"] * 24 == pytest.approx(round(rows[0]["val/verb_top1"] * 24), abs=1e-4)


def test_tensorboard_has_losses_and_hyperparameters(tmp_path, small_experiment):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, rows = train_here(tmp_path / "run", small_experiment)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name in ("train/loss", "val/verb_loss", "val/action_top1", "gap/noun_top1", "grad_norm", "best"):
        logged = {scalar.step: scalar.value for scalar in events.Scalars(name)}
        assert logged == pytest.approx({row["step"]: row[name] for row in rows})
    assert "_hparams_/experiment" in events.summary_metadata
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_patience_ends_a_run_early(tmp_path, small_experiment):
    frozen = small_experiment.override({"optim.lr": 1e-7, "train.epochs": 20, "train.patience": 2})
    _, rows = train_here(tmp_path / "run", frozen)
    assert len(rows) < 20
    assert rows[-1]["epoch"] - rows[-1]["best_epoch"] == 2


def test_another_metric_can_decide(tmp_path, small_experiment):
    experiment = small_experiment.override({"train.monitor": "val/loss", "train.mode": "min"})
    _, rows = train_here(tmp_path / "run", experiment)
    assert rows[-1]["best"] == min(row["val/loss"] for row in rows)


def test_an_unknown_metric_is_refused_before_the_first_step(tmp_path, small_experiment):
    experiment = small_experiment.override({"train.monitor": "val/action_top2"})
    with pytest.raises(RaylabError, match="did you mean 'val/action_top1'"):
        Trainer(experiment, load_dataset(experiment.data), new_run(tmp_path / "run", experiment), CPU)


def test_a_diverged_run_ends_with_the_cause(tmp_path, small_experiment):
    experiment = small_experiment.override({"optim.lr": 1e30, "train.clip_norm": None, "optim.name": "sgd"})
    with pytest.raises(RaylabError, match=r"loss is (nan|inf) at step .* lower optim.lr"):
        train_here(tmp_path / "run", experiment)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_mixed_precision_learns_about_the_same(tmp_path, small_experiment, precision):
    experiment = small_experiment.override({"train.epochs": 1, "data.augment": "none"})
    _, full = train_here(tmp_path / "full", experiment)
    run, mixed = train_here(tmp_path / "mixed", experiment.override({"train.precision": precision}))
    assert mixed[0]["train/loss"] == pytest.approx(full[0]["train/loss"], rel=0.02)
    scaler = load_tree(Path(run.latest().folder.path) / "training")["scaler"]
    assert bool(scaler) == (precision == "fp16")


def test_accumulated_batches_give_the_gradient_of_the_whole_batch(tmp_path, small_experiment):
    gradients = []
    for name, batch_size, accumulate in (("one", 16, 1), ("four", 4, 4)):
        experiment = small_experiment.override(
            {
                "data.batch_size": batch_size,
                "train.accumulate": accumulate,
                "model.dropout": 0.0,
                "model.drop_path": 0.0,
                "model.frozen_blocks": 4,  # every batch-norm layer in evaluation mode
            }
        )
        trainer = Trainer(experiment, load_dataset(experiment.data), new_run(tmp_path / name, experiment), CPU)
        trainer.step = lambda trainer=trainer: gradients.append(
            [p.grad.clone() for p in trainer.state.task.model.parameters() if p.requires_grad]
        )
        with pytest.raises(StopIteration):
            stop_after_one_step(trainer)
    for one, four in zip(*gradients, strict=True):
        assert torch.allclose(one, four, rtol=1e-4, atol=1e-6 * float(one.abs().max()))


def stop_after_one_step(trainer):
    collect = trainer.step

    def step():
        collect()
        raise StopIteration

    trainer.step = step
    trainer.train_epoch()
