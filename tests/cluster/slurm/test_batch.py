"""`sbatch cluster/raylab.sbatch`, on a real SLURM of several nodes."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from harness import CHECKOUT, Slurm
from safetensors.torch import load_file

from raylab.cluster.node import temp_path
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.training.tree import load_tree

SMALL = "--gpus-per-node=0 --cpus-per-task=1"  # the script's own are those of a GPU node
DEMO = (
    "epic_phase2 --demo --name mine search.trials=1 train.checkpoint_minutes=1000 train.patience=null "
    "data.kitchen=small data.size=16 model.temporal_width=512 model.dim_feedforward=1024"
)
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")


class Job:
    """A submitted batch job of a test.

    Args:
        options: of sbatch.
        words: after the script's name.
        python: where it should find raylab.
        variables: more of its environment.
    """

    def __init__(self, slurm: Slurm, options: str, words: str, python: str = sys.executable, **variables: str) -> None:
        self.slurm = slurm
        self.folder = slurm.shared / f"job-{time.monotonic_ns()}"
        self.folder.mkdir()
        self.folder.chmod(0o777)
        environment = {
            "RAYLAB_PYTHON": python,
            "OMP_NUM_THREADS": "1",
            "RAYLAB_CACHE": str(slurm.home() / "cache"),
            **variables,
        }
        script = f"{CHECKOUT}/cluster/raylab.sbatch {words} --storage {self.folder}/results"
        command = f"sbatch --parsable --output={self.folder}/log {SMALL} {options} {script}"
        self.id = slurm.run(command, environment=environment, cwd=self.folder).out.strip()

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def show(self) -> dict:
        jobs = json.loads(self.slurm.run("squeue --json --states=all").out)["jobs"]
        return next(job for job in jobs if job["job_id"] == int(self.id))

    def wait(self, seconds: float = 240) -> int:
        """Until it has ended; its exit code."""
        end = time.monotonic() + seconds
        while (job := self.show())["job_state"] in ALIVE:
            assert time.monotonic() < end, self.log
            time.sleep(0.5)
        return job["exit_code"] >> 8

    def wait_for(self, what, seconds: float = 180):
        """Until `what()` is true, while the job has not ended."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, self.log
            assert self.show()["job_state"] in ALIVE, self.log
            time.sleep(0.2)
        return found

    def sweep(self) -> SweepFolder:
        return SweepFolder(Folder.open(self.folder / "results" / "mine"))

    def trial(self):
        """The only trial's run folder, once it is there."""
        return next(iter(self.sweep().runs()), None) if (self.folder / "results/mine/trials").exists() else None

    def training(self):
        """The only trial, once it has made its first steps."""
        run = self.trial()
        return run if run and list((Path(run.folder.path) / "tensorboard").glob("*")) else None

    def weights(self):
        return load_file(Path(self.trial().latest().folder.path) / "model.safetensors")

    def progress(self):
        """What the trial's newest checkpoint says of it."""
        return load_tree(Path(self.trial().latest().folder.path) / "training")["progress"]


def test_a_node_lost_in_the_middle_costs_no_epoch(slurm):
    """Two nodes of one CPU each, and four workers asked for: two start, and one goes on."""
    words = "train.epochs=12 train.keep_every=12 data.max_clips=60 data.batch_size=4 resources.workers=4"
    job = Job(slurm, "--nodes=2", f"{DEMO} {words}")
    job.wait_for(lambda: job.trial() and job.trial().history())
    assert job.progress()["workers"] == 2
    _, lost = slurm.run(f"scontrol show hostnames {job.show()['nodes']}").out.split()
    slurm.down(lost)
    assert job.wait() == 0, job.log
    assert f"training goes on without {lost}" in job.log
    assert job.trial().status()["state"] == "finished"
    assert [row["epoch"] for row in job.trial().history()] == list(range(1, 13))
    assert job.progress()["workers"] == 1


def test_a_job_whose_time_is_up_goes_on_later_with_the_same_bits(slurm):
    """The signal before the time limit, and at another time a preemption; beside it a job that nothing disturbs."""
    words = f"{DEMO} train.epochs=2 train.keep_every=2 data.max_clips=120 data.batch_size=2"
    job, undisturbed = (Job(slurm, "--nodes=1", words) for _ in range(2))
    run = job.wait_for(job.training)
    slurm.run(f"scancel --batch --signal=USR1 {job.id}")
    job.wait_for(lambda: "requeued" in job.log, 70)
    saved = run.latest().step
    assert saved > 0
    job.wait_for(lambda: job.show()["restart_cnt"] == 1 and run.latest().step > saved)
    slurm.run(f"scontrol requeue {job.id}", user="root")
    job.wait_for(lambda: job.show()["restart_cnt"] == 2)

    for each in (job, undisturbed):
        assert each.wait() == 0, each.log
        assert each.trial().status()["state"] == "finished"
    ours, theirs = job.weights(), undisturbed.weights()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_clusters_of_one_user_on_one_node_do_not_meet(slurm):
    words = f"{DEMO} train.epochs=1 data.max_clips=120 data.batch_size=2"
    jobs = [Job(slurm, "--nodes=1 --nodelist=node1", words) for _ in range(2)]
    for job in jobs:
        job.wait_for(job.training)
    addresses = set()
    for job in jobs:
        join = f"export RAY_ADDRESS=$(cat /tmp/raylab-{job.id}-node1/ray/ray_current_cluster)"
        lines = "from raylab.cluster.connect import connect; nodes = connect(); assert len(nodes) == 1, nodes"
        there = f"{join}; python -c '{lines}' && echo $RAY_ADDRESS"
        addresses.add(slurm.run(there, node="node1").out.strip())
    assert len(addresses) == 2
    for job in jobs:
        assert job.wait() == 0, job.log
        assert job.trial().status()["state"] == "finished"
    assert not slurm.run("ls -d /tmp/raylab-[0-9]* 2>/dev/null; true", node="node1").out


def test_the_jobs_exit_code_is_the_verbs(slurm):
    job = Job(slurm, "--nodes=1", "epic_phase9")
    assert job.wait() == 2, job.log
    assert "epic_phase9" in job.log


@pytest.mark.parametrize("python", ["/nowhere/bin/python", "/usr/bin/python3", ""])
def test_a_wrong_python_is_said_at_once(slurm, python):
    job = Job(slurm, "--nodes=1", DEMO, python)
    assert job.wait(30) == 1
    wrong = python or f"{job.folder}/.venv/bin/python"
    assert f"{wrong} cannot import raylab: submit from the folder with its .venv" in job.log


def test_a_node_on_which_ray_does_not_come_up_ends_the_job(slurm):
    following = int(slurm.run("sbatch --parsable --hold --wrap=true").out) + 1
    theirs = temp_path(str(following)).parent / f"raylab-{following}-node2"
    slurm.run(f"mkdir {theirs}", user="eve", node="node2")
    job = Job(slurm, "--nodes=2 --nodelist=node1,node2", DEMO)
    assert int(job.id) == following
    assert job.wait(60) == 1
    assert "Ray on node2 ended with exit code 1" in job.log
    assert f"{theirs} is not a folder of yours" in job.log

    job = Job(slurm, "--nodes=2", DEMO, RAYLAB_START_SECONDS="0.5")
    assert job.wait(60) == 1
    assert "after 0.5 s (RAYLAB_START_SECONDS)" in job.log
