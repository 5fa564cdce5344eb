"""One Ray node on a machine that others use too: its ports, its folder, its token, its share of CPUs and GPUs.

    python -m raylab.cluster.node head [options of ray start]
    python -m raylab.cluster.node worker HOST:PORT [options of ray start]

Every way to start Ray under SLURM ends here, on the node itself. The command becomes `ray start`: without `--block` it
returns once the node is up; with it the node ends with the command, and its folder goes.

What another user of the machine meets: a folder that only its owner may enter, a dashboard on loopback, and servers
that refuse every call without the owner's token. Ports are the kernel's choice, so clusters do not collide.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from raylab.cluster.connect import SETTINGS
from raylab.errors import RaylabError
from raylab.storage import private_folder

LONGEST = 38  # Ray adds up to 68 characters to its folder, and a Unix socket's path ends at 107
LOOPBACK = "127.0.0.1"
QUIET = {  # metrics, for a Prometheus that is not there, would be served to everybody
    "RAY_enable_metrics_collection": "false",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}
RAY = "ray"  # inside the folder that only its owner may enter: Ray opens its own to everybody
NOBODY = "192.0.2.1"  # of TEST-NET: nothing is ever sent there, the kernel only says from where it would be


def main() -> None:
    """`ray start` with everything chosen; options given here win."""
    role, *rest = sys.argv[1:] or [""]
    try:
        if role == "head":
            command = start_head(temp_dir(), node_ip(), options=rest)
        elif role == "worker" and rest:
            address, *rest = rest
            command = start_worker(address, temp_dir(), node_ip(address), options=rest)
        else:
            raise RaylabError("say `head`, or `worker HOST:PORT`, and then options of `ray start`")
        ensure_token()
    except RaylabError as error:
        sys.exit(f"error: {socket.gethostname()}: {error}")
    if "--block" not in rest:
        os.execve(command[0], command, environment())  # noqa: S606 - its exit code is this one's
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    with subprocess.Popen(command, env=environment(), start_new_session=True) as process:
        code = process.wait()
    remove_temp_dir()
    sys.exit(code)


def start_head(temp: Path, ip: str, port: int = 0, *, options: Iterable[str] = ()) -> list[str]:
    """The command that starts a cluster's first node; to be run with `environment()`.

    Args:
        temp: of `temp_dir`.
        ip: the address at which other nodes reach this one; loopback where there are none.
        port: of the cluster's address; 0: the kernel's choice, which `address(temp)` then tells.
        options: more of `ray start`; they win over ours.
    """
    dashboard, client = free_ports(2)
    return [
        *_ray_start(temp, ip),
        "--head",
        f"--port={port}",
        "--include-dashboard=true",  # without its State API a stopped trial's resources are never freed
        f"--dashboard-host={LOOPBACK}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        *options,
    ]


def start_worker(address: str, temp: Path, ip: str, *, options: Iterable[str] = ()) -> list[str]:
    """The command that adds a node to the cluster at `address`, `HOST:PORT`; else as `start_head`."""
    return [*_ray_start(temp, ip), f"--address={address}", *options]


def _ray_start(temp: Path, ip: str) -> list[str]:
    cpus, gpus = share()
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        f"--node-ip-address={ip}",
        *([f"--node-name={name}"] if (name := os.environ.get("SLURMD_NODENAME")) else []),
        f"--temp-dir={temp / RAY}",
        "--node-manager-port=0",
        "--object-manager-port=0",
        "--runtime-env-agent-port=0",
        "--dashboard-agent-grpc-port=0",
        "--dashboard-agent-listen-port=0",
        "--metrics-export-port=0",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--disable-usage-stats",
        *([f"--num-cpus={cpus}", f"--num-gpus={gpus}"] if cpus else []),
    ]


def share() -> tuple[int, int]:
    """CPUs and GPUs of this node that are this SLURM job's; (0, 0) outside one, where Ray counts itself."""
    env = os.environ
    if "SLURM_JOB_ID" not in env:
        return 0, 0
    cpus = int(env.get("SLURM_CPUS_ON_NODE") or len(os.sched_getaffinity(0)))
    gpus = env.get("SLURM_GPUS_ON_NODE", "").rpartition(":")[2]  # `2`, or `a100:2`
    visible = [gpu for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    return cpus, int(gpus) if gpus else len(visible)


def environment(*hosts: str) -> dict[str, str]:
    """This process's variables with what Ray needs on every node: settings, token mode, no proxy between nodes.

    Args:
        hosts: names and addresses of the other nodes.
    """
    env = {**os.environ, **SETTINGS, **QUIET}
    direct = ["localhost", LOOPBACK, "::1", socket.gethostname(), *hosts]
    for name in ("no_proxy", "NO_PROXY"):
        env[name] = ",".join(dict.fromkeys([*filter(None, env.get(name, "").split(",")), *direct]))
    env.pop("RAY_ADDRESS", None)  # of another cluster
    return env


def free_ports(count: int, host: str = "") -> list[int]:
    """Ports that nobody listens on at this moment, all different."""
    with ExitStack() as held:
        ports = []
        for _ in range(count):
            server = held.enter_context(socket.socket())
            server.bind((host, 0))
            ports.append(server.getsockname()[1])
        return ports


def node_ip(peer: str = "") -> str:
    """This machine's address as `peer` sees it, a host or HOST:PORT; by default as the way out of here has it."""
    host = peer.rpartition(":")[0] or peer or NOBODY
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            if peer:
                raise RaylabError(f"{host} cannot be reached from {socket.gethostname()}: {error}") from None
            return LOOPBACK
        return str(probe.getsockname()[0])


def temp_dir(job: str | None = None) -> Path:
    """A SLURM job's folder on this node: mode 0700, short enough for Ray's sockets. Made when it is not there.

    Args:
        job: its id; default the one this process runs in, or none.

    Raises:
        RaylabError: something else has its name.
    """
    return private_folder(temp_path(job), "have its owner or an administrator remove it")


def temp_path(job: str | None = None) -> Path:
    """Where `temp_dir` is. The node's name is in it for clusters on which nodes share /tmp."""
    job = job or os.environ.get("SLURM_JOB_ID") or f"u{os.getuid()}"
    node = re.sub(r"\W", "", socket.gethostname().partition(".")[0])
    return Path(f"/tmp/raylab-{job}-{node}"[:LONGEST])  # noqa: S108 - checked to be ours


def remove_temp_dir(job: str | None = None) -> None:
    shutil.rmtree(temp_path(job), ignore_errors=True)


def address(temp: Path) -> str | None:
    """HOST:PORT of the cluster that the Ray node in this folder belongs to; None before it is up."""
    try:
        return (temp / RAY / "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


def token_path() -> Path:
    """The file with the token that Ray's servers ask for and its clients bring: `ray` looks in the same places."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"


def ensure_token() -> Path:
    """Make the user's token if there is none, readable for nobody else. It is never printed.

    Raises:
        RaylabError: the file is empty, or cannot be written.
    """
    path = token_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            writing = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            writing.touch(mode=0o600, exist_ok=False)
            writing.write_text(secrets.token_hex(32))
            try:
                os.link(writing, path)  # unlike a rename, it leaves the token of another process that was quicker
            except FileExistsError:
                pass
            finally:
                writing.unlink()
        path.chmod(0o600)  # Ray leaves its own readable for everybody
        if not path.stat().st_size:
            raise RaylabError(f"{path} is empty: delete it, and a new token is made")
    except OSError as error:
        raise RaylabError(f"{path}: the cluster's token cannot be kept there ({error}): mend that") from None
    return path


if __name__ == "__main__":
    main()
