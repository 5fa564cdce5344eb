"""One training run on the cluster: the loop inside Ray Train's `TorchTrainer`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import ray.train
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.execution.callback import RayTrainCallback, WorkerGroupCallback
from ray.train.v2._internal.state.state_actor import get_or_create_state_actor

from raylab.cluster.capacity import Demand
from raylab.cluster.connect import present_nodes
from raylab.config import Experiment
from raylab.errors import RaylabError
from raylab.models.registry import find_model
from raylab.training.runfolder import RunFolder


class TrainingFailed(RuntimeError):
    """A run that ended in an error; the message is the cause."""


class NodesLost(RuntimeError):
    """The cluster no longer holds all workers of a run."""


class Room(WorkerGroupCallback):  # type: ignore[misc]
    """Ends a run whose workers can no longer all have a place, so that it can begin again with fewer.

    Ray itself would wait for the node that is lost.
    """

    def __init__(self, demand: Demand) -> None:
        self.demand = demand

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        nodes = present_nodes()
        if not self.demand.fits(nodes):
            raise NodesLost(f"{len(nodes)} nodes are left")


def launch(run: RunFolder, demand: Demand, callbacks: list[RayTrainCallback] | None = None) -> None:
    """Train the experiment of `run` on `demand.workers` workers, resuming what is there.

    Args:
        run: an existing run folder.
        demand: what each worker reserves. When a node is lost it goes on, from the last checkpoint, with as many
            workers as the others hold.
        callbacks: Ray Train callbacks, e.g. one that forwards metrics to Ray Tune.

    Raises:
        TrainingFailed: the run failed more often than `train.max_failures` allows, or cannot be mended
            by a restart. The caller records it: a trial that is stopped from outside ends in an error here too.
        KeyboardInterrupt: it was interrupted.
    """
    if run.status()["state"] == "finished":
        return
    if find_model(run.experiment.model.name).handcrafted:
        demand = replace(demand, workers=1, gpus=0.0)  # one process fits it, on the CPU
    while True:
        try:
            demand = demand.within(present_nodes())
            run.note(demand=asdict(demand))
            _fit(run, demand, callbacks or [])
            break
        except ControllerError as error:
            if not isinstance(error.controller_failure, NodesLost):
                raise TrainingFailed(root_cause(error)) from error
        except Exception as error:
            raise TrainingFailed(root_cause(error)) from error
        finally:
            run.folder.remove("ray")
    status = run.status()
    if status["state"] == "failed":
        raise TrainingFailed(status["error"])
    if status["state"] == "running":
        raise KeyboardInterrupt


def _fit(run: RunFolder, demand: Demand, callbacks: list[RayTrainCallback]) -> None:
    """One `TorchTrainer`, with exactly these workers."""
    experiment = run.experiment
    # Ray keeps its own bookkeeping apart; raylab's checkpoints and metrics do not depend on it.
    bookkeeping = run.folder / "ray"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"run": run.folder},
        scaling_config=ScalingConfig(
            num_workers=demand.workers,
            use_gpu=demand.gpus > 0,
            resources_per_worker=demand.per_worker(),
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=bookkeeping.path,
            storage_filesystem=bookkeeping.filesystem,
            # -1: workers that find no place wait until another trial ends, or a node comes.
            failure_config=FailureConfig(max_failures=experiment.train.max_failures, controller_failure_limit=-1),
            callbacks=[*callbacks, Room(demand)],
        ),
    )
    # A cluster's first controller would start these two and wait; so they start while it does.
    get_or_create_autoscaling_coordinator()
    get_or_create_state_actor()
    trainer.fit()


def train_worker(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    # Imported here: the driver of a trial has no use for models and metrics, which take seconds to import.
    from raylab.data.datasets import load_dataset
    from raylab.training.loop import Worker, train

    run = RunFolder(config["run"])
    experiment: Experiment = run.experiment
    worker = Worker.current(get_device())
    if worker.rank == 0:
        run.set_status("running")

    def report(row: dict[str, Any]) -> None:
        ray.train.report(row)

    try:
        dataset = load_dataset(experiment.data)
        if find_model(experiment.model.name).handcrafted:
            from raylab.training.fit import fit

            fit(experiment, dataset, run, report)
        else:
            train(experiment, dataset, run, worker, report)
        outcome: tuple[Any, ...] = ("finished",)
    except RaylabError as error:  # a restart would meet it again, so it ends the run
        outcome = ("failed", str(error))
    if worker.rank == 0:
        run.set_status(*outcome)


def root_cause(error: BaseException) -> str:
    """The last line that says what went wrong, without Ray's frames."""
    while error.__cause__ is not None:
        error = error.__cause__
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
