"""SLURM's own commands: what they take and say, no policy.

Jobs are named by their id as text, e.g. `"4711"`. `cluster` is for sites with several SLURM clusters behind one login
node (`--clusters`); empty means the default one.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raylab.errors import RaylabError

Option = str | int | bool | None

ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
FIELDS = ("%i", "%T", "%L", "%N", "%j", "%r", "%k")  # the last may hold anything
SEPARATOR = "\x1f"
REMEDIES = {
    "Invalid account": "set your account (`sacctmgr show associations user=$USER` lists yours)",
    "invalid partition": "set a partition that `sinfo --summarize` lists, and its cluster",
    "invalid qos": "set a QOS that `sacctmgr show associations user=$USER` lists",
    "node configuration is not available": "ask for less of a node (`sinfo -o '%P %c %m %G'`)",
    "time limit": "ask for less time (`sinfo -o '%P %l'` shows each partition's limit)",
    "Unable to contact slurm controller": "the SLURM controller does not answer: try again in a minute",
    "permission denied": "the job is another user's",
    "Invalid job id": "the job has ended or never was: `squeue --me` lists yours",
    "already completing": "the job has ended: `squeue --me` lists yours",
    "No such file or directory": "check the path, on the compute nodes too",
}


@dataclass(frozen=True)
class Job:
    """What SLURM says of a job.

    Attributes:
        state: SLURM's name, e.g. `PENDING`, `RUNNING`, `NODE_FAIL`.
        nodes: names of its nodes, the batch node first; empty while it waits.
        reason: why it waits or ended, e.g. `Resources`, `TimeLimit`; empty where there is none.
        time_left: seconds to its time limit; None without one.
    """

    id: str
    name: str
    state: str
    nodes: tuple[str, ...]
    reason: str
    time_left: float | None
    comment: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED or self.state == "COMPLETING"

    def __str__(self) -> str:
        return f"SLURM job {self.id} is {self.state}" + (f" ({self.reason})" if self.reason else "")

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"


@dataclass(frozen=True)
class Allocation:
    """The job that this process runs in.

    Attributes:
        nodes: names of its nodes, the batch node first.
        tasks: processes that `srun` starts by default.
        gpus: on each node; what SLURM gave this node where they differ.
        cpus: on each node, likewise.
        restarts: how often the job was requeued.
        ends: when its time limit is reached, in seconds since the epoch; None without one.
        cluster: SLURM's name of the cluster.
    """

    job: str
    nodes: tuple[str, ...]
    tasks: int
    gpus: int
    cpus: int
    restarts: int
    ends: float | None
    cluster: str

    @classmethod
    def current(cls) -> Allocation | None:
        """From the variables that SLURM sets; None outside a job."""
        env = os.environ
        if not (job := env.get("SLURM_JOB_ID")):
            return None
        ends: float | None = float(env["SLURM_JOB_END_TIME"]) if "SLURM_JOB_END_TIME" in env else None
        if ends is None and (here := jobs([job]).get(job)) and here.time_left is not None:
            ends = time.time() + here.time_left
        nodes = hostnames(env["SLURM_JOB_NODELIST"])
        gpus = env.get("SLURM_GPUS_ON_NODE") or env.get("SLURM_GPUS_PER_NODE") or "0"
        cpus = env.get("SLURM_CPUS_ON_NODE") or env.get("SLURM_JOB_CPUS_PER_NODE") or str(os.cpu_count())
        return cls(
            job=job,
            nodes=nodes,
            tasks=int(env.get("SLURM_NTASKS") or len(nodes)),
            gpus=int(gpus.rpartition(":")[2]),  # a100:4
            cpus=int(re.match(r"\d+", cpus).group()),  # type: ignore[union-attr]  # 36(x2)
            restarts=int(env.get("SLURM_RESTART_COUNT") or 0),
            ends=ends,
            cluster=env.get("SLURM_CLUSTER_NAME", ""),
        )

    @property
    def time_left(self) -> float | None:
        """Seconds to the time limit."""
        return None if self.ends is None else self.ends - time.time()


def submit(script: str, options: Mapping[str, Option], environment: Mapping[str, str] | None = None) -> str:
    """`sbatch` a script.

    Args:
        script: its text, beginning with `#!`.
        options: `sbatch`'s long options; True for one without a value, None and False are left out.
        environment: that the job inherits; default `clean_environment()`.

    Returns:
        The job's id.
    """
    return _run(["sbatch", "--parsable", *flags(options)], environment, script).strip().partition(";")[0]


def jobs(ids: Iterable[str] | None = None, names: Iterable[str] | None = None, cluster: str = "") -> dict[str, Job]:
    """This user's jobs by id, those that ended in the last minutes among them.

    Args:
        ids, names: only these; default all. Jobs that SLURM has forgotten are left out.
    """
    form = SEPARATOR.join(FIELDS)
    command = ["squeue", f"--user={os.getuid()}", "--states=all", "--noheader", f"--format={form}", *_at(cluster)]
    found = (_job(line) for line in _run(command).splitlines() if SEPARATOR in line)
    wanted, called = (None if only is None else set(only) for only in (ids, names))
    return {
        job.id: job for job in found if (wanted is None or job.id in wanted) and (called is None or job.name in called)
    }


def cancel(ids: Sequence[str], cluster: str = "", signal: str = "") -> None:
    """`scancel` jobs; those that have ended already are no error.

    Args:
        signal: send this to their batch scripts instead, e.g. `USR1`.
    """
    if ids:
        kind = ["--batch", f"--signal={signal}"] if signal else []
        _run(["scancel", "--quiet", *kind, *_at(cluster), *ids])


def requeue(job: str, cluster: str = "") -> None:
    """Put a running job back into the queue under its id. It needs `--requeue`."""
    _run(["scontrol", *_at(cluster), "requeue", job])


def step(
    job: str,
    command: Sequence[str],
    *,
    node: str = "",
    cluster: str = "",
    pty: bool = False,
    options: Mapping[str, Option] | None = None,
) -> list[str]:
    """The `srun` arguments that run one process inside a running job, beside what runs there already.

    To be run with `clean_environment()`: inside another job srun would take that one's shape for its own.

    Args:
        node: which of the job's nodes; default its first.
        pty: give the process a terminal.
        options: more long options of `srun`.
    """
    chosen: dict[str, Option] = {
        "overlap": True,
        "jobid": job,
        "nodes": 1,
        "ntasks": 1,
        "nodelist": node or None,
        "clusters": cluster or None,
        "pty": pty,
        **(options or {}),
    }
    return ["srun", *flags(chosen), *command]


def hostnames(expression: str) -> tuple[str, ...]:
    """`node[1-3]` → `("node1", "node2", "node3")`."""
    if not re.search(r"[\[,]", expression):
        return (expression,) if expression else ()
    return tuple(_run(["scontrol", "show", "hostnames", expression]).split())


def flags(options: Mapping[str, Option]) -> list[str]:
    """`{"gpus-per-node": 2, "requeue": True}` → `["--gpus-per-node=2", "--requeue"]`."""
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in options.items()
        if value is not None and value is not False
    ]


def clean_environment() -> dict[str, str]:
    """This process's variables without the job's that it runs in: they would be read as options."""
    keep = {"SLURM_CONF", "SLURM_CLUSTERS"}
    job = ("SLURM_", "SBATCH_", "SRUN_", "SLURMD_")
    return {name: value for name, value in os.environ.items() if name in keep or not name.startswith(job)}


def failure(command: Sequence[str], said: str) -> RaylabError:
    """The error for a SLURM command that failed with `said` on stderr."""
    remedy = next((remedy for sign, remedy in REMEDIES.items() if sign.lower() in said.lower()), "see its manual page")
    return RaylabError(f"`{shlex.join(command)}` failed: {said.strip() or 'it says nothing'}: {remedy}")


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None, stdin: str = "") -> str:
    environment = clean_environment() if environment is None else environment
    try:
        done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise RaylabError(
            f"`{command[0]}` is not on PATH: run this on a node of the cluster, or install SLURM's commands"
        ) from None
    except subprocess.TimeoutExpired as error:
        raise failure(command, f"no answer within {error.timeout:g} s; Unable to contact slurm controller") from None
    if done.returncode:
        raise failure(command, done.stderr)
    return done.stdout


def _at(cluster: str) -> list[str]:
    return flags({"clusters": cluster or None})


def _job(line: str) -> Job:
    id_, state, left, nodes, name, reason, comment = line.split(SEPARATOR, len(FIELDS) - 1)
    reason, comment = ("" if text in ("None", "(null)") else text for text in (reason, comment))
    return Job(id_, name, state, hostnames(nodes), reason, seconds(left), comment)


def seconds(duration: str) -> float | None:
    """`1-02:03:04`, `02:03:04` or `03:04` in seconds; None for `UNLIMITED` and what is not known."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+)*", duration):
        return None
    days, _, clock = duration.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = total * 60 + int(part)
    return float(int(days or 0) * 86400 + total)
