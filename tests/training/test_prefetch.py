import threading
from contextlib import suppress

import pytest
import torch

from raylab.config import DataConfig
from raylab.data.augment import ClipTransform
from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker
from raylab.training.prefetch import Prefetch
from raylab.training.runfolder import RunFolder

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def loader(batches, asked=None, pin=False):
    """Batches of two clips, the `asked` list growing by one with each that is taken."""
    generator = torch.Generator().manual_seed(0)
    for number in range(batches):
        if asked is not None:
            asked.append(number)
        video = torch.randint(0, 256, (2, 3, 3, 36, 36), dtype=torch.uint8, generator=generator)
        labels = {"verb": torch.randint(0, 8, (2,), generator=generator)}
        if pin:
            video, labels = video.pin_memory(), {head: value.pin_memory() for head, value in labels.items()}
        yield {"video": video, "labels": labels, "ids": [f"{number}a", f"{number}b"]}


def transform(augment="aggressive"):
    return ClipTransform(DataConfig(size=32, augment=augment), train=True, seed=3)


def test_on_the_cpu_a_batch_is_made_when_it_is_asked_for_and_by_this_thread():
    asked, threads = [], threading.active_count()
    batches = Prefetch(CPU)(loader(3, asked), transform(), epoch=2)
    assert asked == []
    for number, (batch, plain) in enumerate(zip(batches, loader(3), strict=True)):
        assert asked == list(range(number + 1))
        assert batch["ids"] == plain["ids"]
        assert torch.equal(batch["labels"]["verb"], plain["labels"]["verb"])
        assert torch.equal(batch["video"], transform()(plain["video"], plain["ids"], 2))
    assert threading.active_count() == threads


def test_on_the_cpu_labels_are_not_copied():
    plain = list(loader(1))
    (batch,) = Prefetch(CPU)(plain, transform(), epoch=0)
    assert batch["labels"]["verb"] is plain[0]["labels"]["verb"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_outputs_of_frozen_networks_come_along(device):
    plain = list(loader(3, pin=device == "cuda"))
    outputs = [{"teacher/logits": torch.randn(2, 5).half()}, None, {"teacher/logits": torch.randn(2, 5).half()}]
    keys = [["a", "b"], ["c", "d"], None]
    given = [
        {**batch, **({"keys": key} if key else {}), **({"outputs": said} if said else {})}
        for batch, key, said in zip(plain, keys, outputs, strict=True)
    ]
    found = list(Prefetch(torch.device(device))(given, transform(), epoch=0))
    for batch, key, said in zip(found, keys, outputs, strict=True):
        assert batch.get("keys") == key
        assert ("outputs" in batch) == (said is not None)
        if said:
            assert batch["outputs"]["teacher/logits"].device.type == device
            assert torch.equal(batch["outputs"]["teacher/logits"].cpu(), said["teacher/logits"])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_a_batch_that_was_fetched_but_not_trained_on_is_trained_on_after_a_restart(tmp_path, small_experiment, device):
    class Stopped(Exception):
        pass

    def batches_seen(folder, stop_before=None):
        run = RunFolder(Folder.open(folder))
        if run.latest() is None:
            run.create(experiment)
        trainer, seen = Trainer(experiment, dataset, run, Worker(torch.device(device))), []
        train_on = trainer.backward

        def backward(batch, steps):
            if len(seen) == stop_before:
                raise Stopped
            seen.append((batch["ids"], batch["video"].cpu()))
            train_on(batch, steps)

        trainer.backward = backward
        with suppress(Stopped):
            trainer.train_epoch()
        return seen

    experiment = small_experiment.override({"train.checkpoint_minutes": 1e-9})  # after every step
    dataset = load_dataset(experiment.data)
    whole = batches_seen(tmp_path / "whole")
    parts = batches_seen(tmp_path / "stopped", stop_before=2) + batches_seen(tmp_path / "stopped")
    assert [ids for ids, _ in parts] == [ids for ids, _ in whole]
    assert all(torch.equal(part, video) for (_, part), (_, video) in zip(parts, whole, strict=True))


@needs_gpu
@pytest.mark.parametrize("augment", ["aggressive", "mild", "none"])
@pytest.mark.parametrize("batches", [0, 1, 2, 7])
def test_on_a_gpu_every_batch_comes_once_in_order_and_unharmed(augment, batches):
    device = torch.device("cuda")
    plain = list(loader(batches))
    alone = transform(augment)
    expected = [alone(batch["video"].to(device), batch["ids"], 2).sum((2, 3, 4)) for batch in plain]
    busy = torch.rand(4096, 4096, device=device)
    seen = []
    for batch in Prefetch(device)(loader(batches, pin=True), transform(augment), epoch=2):
        busy = torch.tanh(busy @ busy)  # the model is behind when the next batches are made
        seen.append((batch["video"].sum((2, 3, 4)), batch["labels"]["verb"], batch["ids"]))
    assert len(seen) == batches
    for (video, labels, ids), want, batch in zip(seen, expected, plain, strict=True):
        assert torch.equal(video, want)
        assert torch.equal(labels.cpu(), batch["labels"]["verb"])
        assert ids == batch["ids"]


@needs_gpu
@pytest.mark.parametrize("augment", ["aggressive", "mild", "none"])
def test_on_a_gpu_one_batch_is_ahead_and_nothing_waits_for_the_device(augment):
    asked, device = [], torch.device("cuda")
    making = transform(augment)
    making(next(loader(1))["video"].to(device), ["a", "b"], 0)  # its constants move once
    batches = Prefetch(device)(loader(6, asked, pin=True), making, epoch=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number, _ in enumerate(batches):
            assert asked == list(range(min(number + 2, 6)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
