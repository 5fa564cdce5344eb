"""One sweep: a search space, explored by Ray Tune with Optuna, each trial a Ray Train run."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback

from raylab.cluster.capacity import Demand
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.search import NAME, OBJECTIVE, ResumedASHA, StudySearch, mend_journal, trial_name
from raylab.sweeps.space import SearchSpace
from raylab.training.runfolder import ENDED, RunFolder
from raylab.training.trainer import TrainingFailed, launch


def run_sweep(
    space: SearchSpace,
    folder: SweepFolder,
    nodes: list[dict[str, Any]],
    watch: Callable[[SweepFolder, int, int], Callback] | None = None,
) -> None:
    """Run a sweep to its end, going on from whatever an earlier process left.

    Args:
        space: what to search.
        folder: where it lives, created; its lock must be held.
        nodes: resources of the cluster's nodes.
        watch: (folder, trials in all, trials at once) → a Ray Tune callback that shows progress.

    Raises:
        RaylabError: one trial asks for more than the cluster can give.
        KeyboardInterrupt: Ctrl-C; the same call goes on from there.
    """
    demand = Demand.of(space.experiment.resources, nodes).within(nodes)
    concurrent = min(demand.fits(nodes), space.search.max_concurrent or sys.maxsize)
    journal = folder.journal()
    mend_journal(journal)
    search = StudySearch(space, journal, concurrent)
    settle(folder, search)

    ended = [trial_name(trial) for trial in search.trials if trial.state.is_finished()]
    left = max(space.trials - sum(trial.state.is_finished() for trial in search.ours), 0)
    keeper = Keeper(folder, space.search.keep_trials, concurrent)
    if left:
        callbacks = [keeper, *([watch(folder, space.trials, concurrent)] if watch else [])]
        # The driver of a trial waits on its workers: it takes no CPU, and stays on the head.
        driver = tune.with_resources(
            tune.with_parameters(run_trial, space=space, folder=folder.folder, demand=demand),
            {"node:__internal_head__": 0.001},
        )
        tune_config = tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler(space, folder, ended),
            num_samples=left,
            max_concurrent_trials=min(concurrent + 1, left),  # one is made ready while the others train: `Turn`
        )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial's cause is in the table
        with tempfile.TemporaryDirectory(prefix="raylab-tune-") as bookkeeping:
            run_config = tune.RunConfig(name=space.name, storage_path=bookkeeping, callbacks=callbacks, verbose=0)
            tune.Tuner(driver, tune_config=tune_config, run_config=run_config).fit()
    keeper.settle()
    if sum(trial.state.is_finished() for trial in search.ours) < space.trials:
        raise KeyboardInterrupt  # Ray Tune ends quietly on Ctrl-C


def run_trial(config: dict[str, Any], space: SearchSpace, folder: Folder, demand: Demand) -> None:
    """The driver of one trial: it launches the training run and hands its metrics to Ray Tune."""
    run = SweepFolder(folder).run(config[NAME])
    run.create(space.trial(config["values"]), sweep=space.name)
    try:
        launch(run, demand, callbacks=[TuneReportCallback(), Turn(run)])
    except TrainingFailed as error:
        raise RuntimeError(str(error)) from None
    tune.report(run.history()[-1])  # a run that had ended before reports nothing else


class Turn(WorkerGroupCallback):  # type: ignore[misc]
    """Holds a run's workers back until its state is `running`, which is for the `Keeper` to say.

    The driver and the controller of a trial need seconds to start, so they do it while another trial trains.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        while self.run.status()["state"] != "running":
            time.sleep(0.2)


class Keeper(Callback):  # type: ignore[misc]
    """Keeps the sweep's folder true as trials begin and end: states, pruned checkpoints, study and leaderboard."""

    def __init__(self, folder: SweepFolder, keep_trials: int, concurrent: int) -> None:
        self.folder = folder
        self.keep_trials = keep_trials
        self.concurrent = concurrent
        self.started: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.give_turns(trials)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        run = self.folder.run(trial.config[NAME])
        if run.status()["state"] not in ENDED:
            run.set_status("stopped")
        self.settle(run)
        self.give_turns([other for other in trials if other is not trial])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        run = self.folder.run(trial.config[NAME])
        details = Path(trial.error_file).read_text() if trial.error_file else "the trial's driver was lost"
        status = run.status()
        known = status["error"] if status["state"] == "failed" else None  # the worker itself may have said why
        run.fail(known or details.strip().splitlines()[-1].removeprefix("RuntimeError: "), details)
        self.settle(run)
        self.give_turns([other for other in trials if other is not trial])

    def give_turns(self, trials: list[Trial]) -> None:
        """Let trials train where others have ended, in the order in which they were proposed."""
        alive = [trial.config[NAME] for trial in trials if not trial.is_finished()]
        for name in alive[: self.concurrent]:
            if name not in self.started:
                self.started.add(name)
                self.folder.run(name).set_status("running")

    def settle(self, run: RunFolder | None = None) -> None:
        if run:
            run.folder.remove("ray")  # a stopped driver could not
        self.folder.prune(self.keep_trials)
        self.folder.publish_journal()
        self.folder.write_leaderboard()


def settle(folder: SweepFolder, search: StudySearch) -> None:
    """Bring study and run folders to agree on what ended in the moment an earlier process was killed."""
    for trial in search.trials:
        run = folder.run(trial_name(trial))
        if trial.state.is_finished() and run.exists() and run.status()["state"] not in ENDED:
            run.set_status("failed" if trial.state == optuna.trial.TrialState.FAIL else "stopped")
    for trial in search.remaining:
        run = folder.run(trial_name(trial))
        status = run.status()
        history = run.history()
        if status["state"] == "failed":
            search.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        elif status["state"] in ("finished", "stopped") and history:
            search.study.tell(trial.number, history[-1][OBJECTIVE])
        elif status["state"] != "created":
            run.set_status("created")  # until it has its turn again
    search.unfinished = search.interrupted


def scheduler(space: SearchSpace, folder: SweepFolder, ended: list[str]) -> ResumedASHA | None:
    """ASHA over epochs, informed of what was measured before; None where every trial is to run to its end."""
    if space.search.scheduler == "none":
        return None
    return ResumedASHA(
        past=lambda name: folder.run(name).history(),
        ended=ended,
        metric=OBJECTIVE,
        mode=space.search.mode,
        time_attr="epoch",
        # Above the last epoch: at max_t Ray kills the trial before it has cleaned up.
        max_t=space.experiment.train.length + 1,
        grace_period=space.search.grace_epochs,
        reduction_factor=space.search.reduction_factor,
        stop_last_trials=False,
    )
