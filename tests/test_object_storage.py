"""Runs and sweeps that live on an object store: a local server that speaks S3."""

import json
from pathlib import Path

import boto3
import pandas as pd
import pytest
import ray
import torch
from moto.server import ThreadedMotoServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import raylab
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.results import Checkpoint
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.training.loop import Trainer, Worker, train
from raylab.training.runfolder import RunFolder, set_aside

BUCKET = "lab"
CPU = Worker(torch.device("cpu"))


@pytest.fixture(scope="module")
def server():
    """The address of an empty S3 server, and the environment to speak to it."""
    service = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    service.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "anybody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield "{}:{}".format(*service.get_host_and_port())
    service.stop()


@pytest.fixture
def client(server):
    """Amazon's own client, and a bucket that is empty again after each test."""
    client = boto3.client("s3", endpoint_url=f"http://{server}")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for key in keys(client):
        client.delete_object(Bucket=BUCKET, Key=key)
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def storage(server, client):
    return f"s3://{BUCKET}/results?endpoint_override={server}&scheme=http"


@pytest.fixture
def experiment(small_experiment):
    """Two steps an epoch, a checkpoint after each."""
    return small_experiment.override({"data.max_clips": 16, "train.checkpoint_minutes": 1e-9})


def keys(client, prefix=""):
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def files(client, prefix=""):
    """Names of the objects, without the empty ones that stand for folders."""
    return [key.removeprefix(prefix) for key in keys(client, prefix) if not key.endswith("/")]


def test_files_are_written_replaced_and_read(storage, client):
    folder = Folder.open(storage)
    assert folder.folders() == []
    folder.write_json("x.json", {"a": 1})
    folder.write_json("x.json", {"a": 2})
    (folder / "inner").write_text("y.txt", "é")
    assert folder.read_json("x.json") == {"a": 2}
    assert (folder / "inner").read_text("y.txt") == "é"
    assert files(client, "results/") == ["inner/y.txt", "x.json"]
    assert folder.folders() == ["inner"]
    assert folder.exists("x.json")
    assert folder.exists("inner")
    assert not folder.exists("z")
    with pytest.raises(FileNotFoundError):
        folder.read_text("z")
    with pytest.raises(RaylabError, match=r"results/inner/y.txt.*: not JSON"):
        (folder / "inner").read_json("y.txt")


def test_a_new_folder_replaces_the_old_one_whole(storage, client):
    folder = Folder.open(storage)
    with folder.new_folder("x", seal="seal") as path:
        (path / "deep").mkdir()
        (path / "deep" / "old").write_text("old")
        (path / "seal").write_text("first")
        assert folder.folders() == []
    with folder.new_folder("x", seal="seal") as path:
        (path / "new").write_text("new")
        (path / "seal").write_text("second")
        assert (folder / "x").read_text("seal") == "first"
    assert files(client, "results/x/") == ["new", "seal"]
    with (folder / "x").as_local() as copy:
        assert {file.name: file.read_text() for file in copy.iterdir()} == {"new": "new", "seal": "second"}
    assert not copy.exists()


def test_an_upload_that_breaks_off_leaves_no_seal(storage, client):
    with pytest.raises(OSError, match="Input/output error"), Folder.open(storage).new_folder("x", seal="a") as path:
        (path / "a").write_text("")
        (path / "b").symlink_to("/proc/self/mem")  # it opens, and fails when read
    assert "a" not in files(client, "results/x/")


def test_move_and_remove(storage, client):
    folder = Folder.open(storage)
    (folder / "a" / "b").write_text("f", "1")
    folder.move("a", "c")
    assert files(client, "results/") == ["c/b/f"]
    folder.remove("c")
    folder.remove("c")
    assert files(client) == []
    (folder / "run").write_text("f", "1")
    set_aside(folder, "run")
    (aside,) = files(client, "results/")
    assert aside.startswith("run.2")


def test_the_text_of_a_folder_opens_it_again_and_holds_no_secret(storage, server):
    folder = Folder.open(storage)
    (folder / "a b" / "c").write_text("f", "here")
    assert Folder.open(str(folder / "a b" / "c")).read_text("f") == "here"
    assert Folder.open(str(folder / "a b")) / "c" == folder / "a b" / "c"

    private = Folder.open(storage.replace("s3://", "s3://anybody:anything@"))
    assert (private / "a b" / "c").read_text("f") == "here"
    assert str(private / "x") == f"s3://{BUCKET}/results/x?endpoint_override={server}&scheme=http"


def test_a_bucket_that_is_not_there_is_named_before_a_cluster_starts(storage, experiment):
    absent = storage.replace(BUCKET, "absent")
    message = r"storage s3://absent/results.* cannot be written: Bucket 'absent' not found"
    with pytest.raises(RaylabError, match=message):
        raylab.fit(experiment, storage=absent)
    with pytest.raises(RaylabError, match=message):
        raylab.sweep("epic_phase2", ["data.kitchen=tiny"], demo=True, storage=absent)
    assert not ray.is_initialized()


class Interrupted(Exception):
    pass


class InterruptedTrainer(Trainer):
    """Ends in mid-epoch, right after a checkpoint."""

    def save(self, metrics):
        super().save(metrics)
        if self.state.progress.batch:
            raise Interrupted


def without_times(rows):
    timed = {"seconds", "clips_per_second", "data_wait", "memory"}
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def test_a_run_interrupted_on_the_object_store_ends_as_one_never_disturbed_on_disk(
    storage, client, experiment, tmp_path
):
    dataset = load_dataset(experiment.data)
    undisturbed = RunFolder(Folder.open(tmp_path / "run"))
    undisturbed.create(experiment)
    train(experiment, dataset, undisturbed, CPU, lambda row: None)

    run = RunFolder(Folder.open(storage) / "run")
    run.create(experiment)
    run.set_status("running")
    with pytest.raises(Interrupted):
        InterruptedTrainer(experiment, dataset, run, CPU).train_epoch()
    assert (run.latest().epoch, run.latest().step) == (0, 1)
    assert files(client, "results/run/checkpoints/step_00000001/") == [
        *("checkpoint.json", "experiment.json", "labels.json"),
        *("model.safetensors", "training.json", "training.safetensors"),
    ]
    train(experiment, dataset, run, CPU, lambda row: None)
    run.set_status("finished")

    history = client.get_object(Bucket=BUCKET, Key="results/run/history.jsonl")["Body"].read().splitlines()
    assert without_times(map(json.loads, history)) == without_times(undisturbed.history())
    seals = [key for key in keys(client, "results/run/checkpoints/") if key.endswith("/checkpoint.json")]
    assert [Path(key).parent.name for key in seals] == [c.folder.name for c in undisturbed.checkpoints()]

    best = raylab.best_checkpoint("run", storage=storage)
    expected = raylab.best_checkpoint(tmp_path / "run")
    assert best.metrics == expected.metrics
    weights, expected_weights = (c.load_model().state_dict() for c in (best, expected))
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)
    assert Checkpoint.open(best.path, "run") == best

    (listed,) = raylab.runs(storage)
    assert (listed.name, listed.state, listed.epochs) == ("run", "finished", 2)
    assert listed.best_checkpoint() == raylab.best_checkpoint(listed.path) == best

    with (run.folder / "tensorboard").as_local() as events:
        board = EventAccumulator(str(events)).Reload()
        assert [event.step for event in board.Scalars("val/action_top1")] == [2, 4]


@pytest.mark.slow
def test_a_sweep_on_the_object_store(storage, client):
    small = [
        *("data.kitchen=tiny", "data.frames=2", "data.size=32", "model.encoder=test_resnet"),
        *("model.temporal_layers=1", "model.temporal_width=32", "model.dim_feedforward=32"),
        *("train.epochs=2", "search.trials=2", "search.grace_epochs=1", "search.keep_trials=1"),
    ]
    ray.shutdown()  # workers take the server's address from a cluster started here
    try:
        board = raylab.sweep("epic_phase2", small, demo=True, storage=storage, quiet=True)
        assert list(board["error"]) == ["", ""]
        assert len(set(board["trial"])) == 2
        prefix = "results/epic_phase2_demo/"
        assert {"sweep.json", "study.journal", "leaderboard.csv", "leaderboard.parquet"} <= set(files(client, prefix))
        table = client.get_object(Bucket=BUCKET, Key=f"{prefix}leaderboard.csv")["Body"]
        pd.testing.assert_frame_equal(pd.read_csv(table).fillna({"error": ""}), board, check_dtype=False)
        kept = [key for key in keys(client, prefix) if key.endswith("/checkpoint.json")]
        assert len(kept) == 1
        assert f"/trials/{board['trial'][0]}/" in kept[0]

        best = raylab.best_checkpoint("epic_phase2_demo", storage=storage)
        assert best.metrics["val/action_top1"] == board["val/action_top1"][0]
        assert best.load_model()(torch.rand(1, 2, 3, 32, 32))["verb"].shape == (1, 8)

        sweep = SweepFolder(Folder.open(storage) / "epic_phase2_demo")
        ended = {run.name: run.status() for run in sweep.runs()}
        again = raylab.sweep("epic_phase2", small, demo=True, storage=storage, quiet=True)
        pd.testing.assert_frame_equal(again, board)
        assert {run.name: run.status() for run in sweep.runs()} == ended

        more = [word for word in small if not word.startswith("search.trials")] + ["search.trials=3"]
        grown = raylab.sweep("epic_phase2", more, demo=True, storage=storage, quiet=True)
        assert len(grown) == 3
        assert {name: sweep.run(name).status() for name in ended} == ended
    finally:
        ray.shutdown()
