"""What a store gives, beside what direct decoding gives: pixels and validation metrics. `pytest -s` prints the figures.

`benchmarks/store_fidelity.py` measures the same on more clips and with a better model.
"""

import numpy as np
import pytest
import torch
from place import CLIPS

from raylab import prepare
from raylab.data.dataset import ClipDataset
from raylab.data.datasets import load_dataset
from raylab.data.store.manifest import StoreSettings
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker, train
from raylab.training.runfolder import RunFolder

ACCURACIES = ("val/action_top1", "val/verb_top1", "val/noun_top1")


@pytest.mark.parametrize(("quality", "most"), [(90, 1.1), (50, 2.3)])
def test_frames_differ_from_decoded_ones_by_the_loss_of_jpeg_alone(run, place, quality, most):
    assert run("prepare", place.file, "--quality", quality)[0] == 0
    stored, decoded = place.experiment.data, place.experiment.override({"data.store": False}).data
    differences = []
    for split in ("train", "val"):
        pair = [ClipDataset.of(load_dataset(data), split, data) for data in (stored, decoded)]
        for one, other in zip(*pair, strict=True):
            assert (one["id"], one["labels"]) == (other["id"], other["labels"])
            differences.append((one["video"].int() - other["video"].int()).abs().float().mean().item())
    mean = np.mean(differences)
    print(f"quality {quality}: mean difference {mean:.2f} of 255, of one clip at most {max(differences):.2f}")
    assert len(differences) == CLIPS
    assert 0.5 < mean < most


@pytest.mark.slow
def test_validation_metrics_from_a_store_are_those_of_decoded_frames(tmp_path, small_experiment):
    experiment = small_experiment.override(
        {
            "model.name": "resnet50_lstm",
            "model.dropout": 0.1,
            "model.drop_path": 0.0,
            "model.dim_feedforward": None,
            "model.temporal_width": 256,
            "data.kitchen": "small",
            "data.batch_size": 16,
            "data.augment": "none",
            "data.store": False,
            "optim.lr": 2e-3,
            "optim.weight_decay": 0.05,
            "optim.warmup": 0.05,
            "train.epochs": 24,
        }
    )
    folder = RunFolder(Folder.open(tmp_path / "run"))
    folder.create(experiment)
    train(experiment, load_dataset(experiment.data), folder, Worker(torch.device("cpu")), lambda row: None)

    def metrics(data):
        dataset = load_dataset(data)
        trainer = Trainer(experiment.model_copy(update={"data": data}), dataset, folder, Worker(torch.device("cpu")))
        assert sum(len(batch["ids"]) for batch in trainer.val_loader) == 160
        return trainer.validate()

    decoded = metrics(experiment.data)
    assert decoded == pytest.approx(folder.latest().metrics)
    for quality, most in ((90, 0.03), (50, 0.06)):
        data = experiment.override({"data.store": str(tmp_path / str(quality))}).data
        prepare.make_store(data, StoreSettings(frames=(4,), quality=quality))
        stored = metrics(data)
        change = {name: stored[name] - decoded[name] for name in ("val/loss", *ACCURACIES)}
        print(f"quality {quality}:", *(f"{name} {decoded[name]:.4f} {value:+.4f}" for name, value in change.items()))
        assert abs(change["val/loss"]) < 0.02 * decoded["val/loss"]
        assert all(abs(change[name]) <= most for name in ACCURACIES)
