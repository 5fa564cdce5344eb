"""One SLURM allocation: Ray on all of its nodes, a verb on the first, a clean end with the verb's exit code.

    python -m raylab.cluster.batch [VERB] ARGUMENTS…       inside a job: cluster/raylab.sbatch

Shortly before the time limit (the signal USR1), and when the job is preempted (TERM), the verb is asked to save what it
trains; then Ray is stopped, and the job goes back into the queue, to go on from there.

Exit codes: the verb's own; 1 when Ray did not start; 2 bad input; 130 interrupted and not to be requeued.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ray._raylet import Config, GcsClient  # type: ignore[attr-defined]
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.exceptions import RayError

from raylab.cli import VERBS
from raylab.cluster import node, slurm
from raylab.errors import RaylabError

START_SECONDS = 180.0  # until all nodes are up: Python's first import from a busy shared disk takes most of it
SAVE_SECONDS = 60.0  # of the 90 before the time limit; the rest is for stopping
STOP_SECONDS = 15.0
INTERRUPTED = 130
REASONS: dict[int, str] = {signal.SIGUSR1: "the time limit is near", signal.SIGTERM: "the job is to end"}


def main() -> None:
    try:
        code = run(sys.argv[1:])
    except StartFailed as error:
        say(f"error: {error}")
        code = 1
    except RaylabError as error:
        say(f"error: {error}")
        code = 2
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run `raylab ARGUMENTS` on all nodes of this job; without a verb, `raylab tune`.

    Returns:
        The exit code.

    Raises:
        StartFailed: a node is not up in time, or its Ray ended at once.
        RaylabError: this is no SLURM job.
    """
    allocation = slurm.Allocation.current()
    if allocation is None:
        raise RaylabError("no SLURM job: submit it with `sbatch cluster/raylab.sbatch SWEEP`")
    asked = Asked()
    seconds = float(os.environ.get("RAYLAB_START_SECONDS", START_SECONDS))
    with Cluster(allocation) as cluster:
        cluster.start(seconds, asked)
        code = drive(command(arguments, allocation.restarts), cluster, asked) if not asked else INTERRUPTED
    ended = code in (0, 1, 2)  # by itself, before it was told to
    return code if ended or not asked else leave(allocation.job)


def command(arguments: list[str], restarts: int) -> list[str]:
    """The verb's command line. Started again it goes on, even if it was to start afresh at first."""
    verb, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in VERBS else ("tune", arguments)
    if restarts:
        rest = [word for word in rest if word != "--fresh"]
    return [sys.executable, "-m", VERBS[verb], *rest]


def drive(verb: list[str], cluster: Cluster, asked: Asked) -> int:
    """Run the verb to its end; on a signal, have it save and end."""
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    deadline = float("inf")
    with subprocess.Popen(verb, env=environment) as driver:
        try:
            while (code := driver.poll()) is None:
                if asked and deadline == float("inf"):
                    say(f"{asked}: saving")
                    driver.terminate()
                    deadline = time.monotonic() + SAVE_SECONDS
                if time.monotonic() > deadline:
                    say(f"not saved within {SAVE_SECONDS:g} s: going on from the checkpoints there are")
                    return INTERRUPTED
                if lost := cluster.lost():
                    say(f"error: {lost}")
                    return 1
                time.sleep(0.2)
        finally:
            driver.kill()
    return code if code >= 0 else 128 - code


def leave(job: str) -> int:
    """Put the job back into the queue, unless its owner has cancelled it or SLURM requeues it itself."""
    found = slurm.jobs([job]).get(job)
    if found is None or not found.running:
        say("saved; the same command goes on from here")
        return INTERRUPTED
    try:
        say("saved; requeued, to go on from here")
        slurm.requeue(job)
    except RaylabError as error:
        say(f"saved, but not requeued ({error}): submit the same command again to go on")
        return INTERRUPTED
    time.sleep(600)  # SLURM ends this process
    return INTERRUPTED


class StartFailed(RaylabError):
    """Ray does not run on all nodes."""


class Asked:
    """Whether SLURM has asked to end, by a signal; as text, why."""

    def __init__(self) -> None:
        self.reason = ""
        for number in REASONS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.reason = self.reason or REASONS[number]

    def __bool__(self) -> bool:
        return bool(self.reason)

    def __str__(self) -> str:
        return self.reason


class Cluster:
    """Ray on the nodes of an allocation, from `start` to the end of the `with` block.

    Attributes:
        address: HOST:PORT, once started.
    """

    def __init__(self, allocation: slurm.Allocation) -> None:
        self.job = allocation.job
        self.first, *self.others = allocation.nodes
        self.address = ""
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        node.remove_temp_dir(self.job)  # of an earlier start of this job
        self.temp = node.temp_dir(self.job)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in [*self.others, self.first]:  # the head last: without it the others would search for it
            if process := self.running.get(name):
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        if head := self.running.get(self.first):
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)  # what is left of its session
        node.remove_temp_dir(self.job)

    def start(self, seconds: float, asked: Asked) -> None:
        """Start Ray everywhere, and wait until all nodes are up.

        Raises:
            StartFailed: one is not up within `seconds`, or ended.
        """
        os.environ.update(node.environment(self.first, *self.others))
        Config.initialize("")  # Ray read its settings when it was imported
        node.ensure_token()
        self.deadline = time.monotonic() + seconds
        ip = node.node_ip(self.others[0]) if self.others else node.LOOPBACK
        self._spawn(self.first, node.start_head(self.temp, ip, options=["--block"]), dict(os.environ), own_session=True)
        self._wait(lambda: [] if node.address(self.temp) else [self.first], seconds, asked)
        self.address = node.address(self.temp) or ""
        start = [sys.executable, "-m", "raylab.cluster.node", "worker", self.address, "--block"]
        for name in self.others:
            step = slurm.step(self.job, start, node=name, options={"kill-on-bad-exit": 0, "cpu-bind": "none"})
            self._spawn(name, step, slurm.clean_environment())
        self._wait(self._missing, seconds, asked)

    def lost(self) -> str:
        """Why it cannot go on: empty while it can. Another node than the first may end: it is said once."""
        for name in [name for name, process in self.running.items() if process.poll() is not None]:
            process = self.running.pop(name)
            what = f"Ray on {name} ended with exit code {process.returncode}:"
            if name == self.first:
                return f"{what}\n{self._log(name)}"
            say(f"warning: {what}\n{self._log(name, lines=1)}")
            say(f"training goes on without {name}, from the last checkpoint")
        return ""

    def _spawn(self, name: str, command: list[str], environment: dict[str, str], own_session: bool = False) -> None:
        with self._path(name).open("wb") as log:
            self.running[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=own_session,  # Ray's reaper kills its whole process group
            )

    def _wait(self, missing: Callable[[], list[str]], seconds: float, asked: Asked) -> None:
        while (names := missing()) and not asked:
            for name, process in self.running.items():
                if process.poll() is not None:
                    raise StartFailed(
                        f"Ray on {name} ended with exit code {process.returncode}:\n{self._log(name)}\n"
                        f"is {sys.executable} there, with the same packages? `srun --nodelist={name} {sys.executable} "
                        "-m raylab.doctor` says more"
                    )
            if time.monotonic() > self.deadline:
                raise StartFailed(
                    f"no Ray on {', '.join(names)} after {seconds:g} s (RAYLAB_START_SECONDS):\n"
                    + "\n".join(self._log(name) for name in names)
                )
            time.sleep(0.2)

    def _missing(self) -> list[str]:
        """Nodes that have not joined yet."""
        try:
            known = GcsClient(address=self.address).get_all_node_info(timeout=5)
        except RayError:
            return [self.first]
        alive = {info.node_name for info in known.values() if info.state == GcsNodeInfo.ALIVE}
        return [name for name in [self.first, *self.others] if name not in alive]

    def _path(self, name: str) -> Path:
        return self.temp / f"{name}.log"

    def _log(self, name: str, lines: int = 15) -> str:
        """The end of what a node's Ray has said."""
        said = self._path(name).read_text(errors="replace").splitlines()
        return "\n".join(f"    {name}: {line}" for line in said[-lines:])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
