"""Commands on a node that is a SLURM job: `srun --overlap` in the place of SSH."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from ray._private.ray_constants import DEFAULT_DASHBOARD_PORT
from ray.autoscaler._private.command_runner import _with_environment_variables
from ray.autoscaler._private.subprocess_output_util import ProcessRunnerError
from ray.autoscaler.command_runner import CommandRunnerInterface

from raylab.cluster import node, slurm
from raylab.cluster.connect import SETTINGS
from raylab.cluster.directives import Directives
from raylab.cluster.forward import Forward
from raylab.cluster.growth import AUTOSCALING, FOLDER
from raylab.cluster.job import ADDRESS, DASHBOARD

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # one name for all of a user's clusters: each gets its own in its place
STOP = "ray stop"  # when it fails `ray down` goes on, if it is told by an error
SHUTDOWN = "sudo shutdown -h now"
TEMP = "/tmp/ray/"  # noqa: S108 - where Ray's own commands look for logs
ASK = 2.0  # seconds between two questions to SLURM
TELL = 60.0


class NodeError(ProcessRunnerError, click.ClickException):  # type: ignore[misc]
    """A node that cannot be reached, or a command that failed there: the launcher prints one line."""

    def __init__(self, message: str, code: int | None = None, command: str | None = None) -> None:
        ProcessRunnerError.__init__(self, message, "ssh_command_failed", code=code, command=command)


class SlurmCommandRunner(CommandRunnerInterface):  # type: ignore[misc]
    """Runs what Ray's launcher wants run on a node.

    `ray start` and `ray stop` in such a command mean this node's Ray, which the job holds; other commands find the
    cluster in `RAY_ADDRESS`.

    Args:
        job: the SLURM job's id.
        cluster: the SLURM cluster it is on.
        folder: of the Ray cluster, on shared storage.
        directives: of the node's type.
        log: what the job prints.
    """

    def __init__(self, job: str, cluster: str, folder: Path, directives: Directives, log: Path) -> None:
        self.job = job
        self.cluster = cluster
        self.folder = folder
        self.directives = directives
        self.log = log

    def run(
        self,
        cmd: str | None = None,
        timeout: int = 120,
        exit_on_fail: bool = False,
        port_forward: list[tuple[int, int]] | None = None,
        with_output: bool = False,
        environment_variables: dict[str, object] | None = None,
        run_env: str = "auto",
        ssh_options_override_ssh_key: str = "",
        shutdown_after_run: bool = False,
    ) -> str:
        """Run a shell command on the node, once its job runs: that may be long after it was queued.

        Args:
            port_forward: (port here, port there) pairs that stay open until the command ends; without a command, until
                it is interrupted.
            timeout: of SSH's connection: a queue has none.

        Returns:
            What it printed, if `with_output`.

        Raises:
            NodeError: it failed, or the job has ended.
            SystemExit: it failed and `exit_on_fail` is set; with its exit code.
        """
        self.wait()
        pairs = [port_forward] if isinstance(port_forward, tuple) else port_forward or []
        with Forward(self.relay, [(int(here), self.port(int(there))) for here, there in pairs]):
            if not cmd:
                print("Ctrl-C closes it.", flush=True)
                while pairs:
                    time.sleep(3600)
            line = _with_environment_variables(cmd or "true", environment_variables or {})
            if shutdown_after_run:
                line += f"; {SHUTDOWN}"
            terminal = sys.stdin.isatty() and sys.stdout.isatty() and not with_output
            done = subprocess.run(
                self.step(["bash", "--login", "-c", self.script(line)], pty=terminal),
                env=slurm.clean_environment(),
                stdin=None if terminal else subprocess.DEVNULL,
                stdout=subprocess.PIPE if with_output else None,
                text=True,
            )
        if done.returncode and exit_on_fail and cmd != STOP:
            sys.exit(done.returncode)
        self.check(done.returncode, line)
        return done.stdout or ""

    def run_rsync_up(self, source: str, target: str, options: dict[str, Any] | None = None) -> None:
        """Copy a file, or what a folder holds, to the node. A file appears whole or not at all."""
        if target.endswith("/") and not Path(source).is_dir():
            target += Path(source).name
        target = self.place(target)
        if Path(source).is_dir():
            packed = ["tar", "--create", "--directory", source, *excludes(options), "."]
            unpack = f"mkdir -p {target} && tar --extract --directory {target}"
            with subprocess.Popen(packed, stdout=subprocess.PIPE) as sending:
                done = subprocess.run(self.shell(unpack), env=slurm.clean_environment(), stdin=sending.stdout)
            self.check(sending.returncode, shlex.join(packed))
        else:
            receive = f"mkdir -p $(dirname {target}) && cat > {target}.partial && mv {target}.partial {target}"
            with Path(source).open("rb") as file:
                done = subprocess.run(self.shell(receive), env=slurm.clean_environment(), stdin=file)
        self.check(done.returncode, f"copying {source} to {target}")

    def run_rsync_down(self, source: str, target: str, options: dict[str, Any] | None = None) -> None:
        """Copy a file, or what a folder holds, from the node."""
        source, folder = self.place(source), Path(target)
        is_folder = source.endswith("/")
        if not is_folder and target.endswith("/"):
            folder /= Path(source).name
        (folder if is_folder else folder.parent).mkdir(parents=True, exist_ok=True)
        send = f"tar --create --directory {source} ." if is_folder else f"cat {source}"
        with subprocess.Popen(
            self.shell(send), env=slurm.clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as sending:
            if is_folder:
                subprocess.run(["tar", "--extract", "--directory", folder], stdin=sending.stdout)
            else:
                content = sending.stdout.read() if sending.stdout else b""
        self.check(sending.returncode, f"copying {source} to {target}")
        if not is_folder:
            folder.write_bytes(content)

    def remote_shell_command_str(self) -> str:
        return shlex.join(self.step(["bash", "--login"], pty=True))

    def run_init(self, *, as_head: bool, file_mounts: Mapping[str, str], sync_run_yet: bool) -> bool:
        return False

    def wait(self) -> None:
        """Until the job runs, saying now and then why it does not.

        Raises:
            NodeError: it has ended.
        """
        told = 0.0
        while True:
            job = slurm.jobs([self.job], cluster=self.cluster).get(self.job)
            if job and job.running:
                return
            if job is None or job.ended:
                state = str(job or f"SLURM job {self.job} is gone")
                print(f"{state}. The end of {self.log}:\n{tail(self.log)}", file=sys.stderr)
                raise NodeError(state)
            if time.monotonic() - told > TELL:
                told = time.monotonic()
                print(f"{job}. Ctrl-C leaves it queued.", flush=True)
            time.sleep(ASK)

    def step(self, command: list[str], pty: bool = False) -> list[str]:
        return slurm.step(self.job, command, cluster=self.cluster, pty=pty)

    def relay(self, command: list[str]) -> list[str]:
        return slurm.step(self.job, command, cluster=self.cluster, options={"unbuffered": True})

    def shell(self, line: str) -> list[str]:
        return self.step(["bash", "-c", line])

    def script(self, line: str) -> str:
        """A command as the node is to run it: after the setup lines, and with this cluster's address and Ray."""
        line = line.replace(BOOTSTRAP, shlex.quote(str(self.folder / AUTOSCALING)))
        line = line.replace(TEMP, f"/tmp/raylab-{self.job}-*/{node.RAY}/")  # noqa: S108
        scancel = ["scancel", *slurm.flags({"clusters": self.cluster or None}), self.job]
        line = line.replace(SHUTDOWN, shlex.join(scancel))
        ours = f"{shlex.quote(self.directives.python)} -m raylab.cluster.job"
        return "\n".join(
            [
                *self.directives.prelude(),
                *(f"export {name}={shlex.quote(value)}" for name, value in SETTINGS.items()),
                f"export RAYLAB_JOB_LOG={shlex.quote(str(self.log))}",
                f"export {FOLDER}={shlex.quote(str(self.folder))}",
                f"RAY_ADDRESS=$(cat {shlex.quote(str(self.folder / ADDRESS))} 2>/dev/null) && export RAY_ADDRESS",
                f'ray() {{ case "$1" in start|stop) {ours} "$@";; *) command ray "$@";; esac; }}',
                "export -f ray",
                line,
            ]
        )

    def place(self, path: str) -> str:
        """A path on the node, for its shell."""
        if path == BOOTSTRAP:
            return shlex.quote(str(self.folder / AUTOSCALING))
        home, _, rest = path.rpartition("~/")
        return f'"$HOME"/{shlex.quote(rest)}' if path.startswith("~/") and not home else shlex.quote(path)

    def port(self, asked: int) -> int:
        """The port on the node: the dashboard's own, where Ray's usual one is meant."""
        try:
            return int((self.folder / DASHBOARD).read_text()) if asked == DEFAULT_DASHBOARD_PORT else asked
        except FileNotFoundError:
            return asked

    def check(self, code: int, command: str) -> None:
        if code:
            raise NodeError("Command failed", code, command)


def excludes(options: Mapping[str, Any] | None) -> list[str]:
    return [f"--exclude={pattern}" for pattern in (options or {}).get("rsync_exclude") or []]


def tail(file: Path, lines: int = 20) -> str:
    try:
        return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(there is none)"
