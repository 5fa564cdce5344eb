"""A node of a `ray up` cluster, from inside: what the SLURM job that is this node runs.

    python -m raylab.cluster.job head FOLDER      the head's job: waits until it is told to start Ray
    python -m raylab.cluster.job worker FOLDER    a worker's job: joins the cluster of the head
    python -m raylab.cluster.job start [options]  tells the head's job, from another step of it: `ray start`
    python -m raylab.cluster.job stop             `ray stop`, for this node only

Ray is a child of the job itself: what a command run through `srun` leaves behind ends with its step. FOLDER is the
cluster's, on storage that all nodes share; `address` in it says where the head is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from raylab.cluster import node
from raylab.cluster.growth import FOLDER
from raylab.errors import RaylabError
from raylab.storage import replacing

ADDRESS = "address"
DASHBOARD = "dashboard"  # its port, on the head's loopback
DOOR = "job.sock"  # in the node's folder, which is the user's alone
UP = 180  # seconds in which Ray must have started; a cold file system makes the import of Python take most of it
DAY = 24 * 3600
AUTOSCALER = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "10",  # each one asks SLURM once
    "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": str(30 * DAY),  # a queue may take days: keep the place in it
    "RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S": "120",  # but leave it when no trial waits any more
}


def main() -> None:
    verb, *rest = sys.argv[1:] or [""]
    try:
        if verb == "head":
            Head(Path(rest[0])).serve()
        elif verb == "worker":
            work(Path(rest[0]))
        elif verb in ("start", "stop"):
            sys.exit(ask({"verb": verb, "options": rest, "environment": ray_variables()}))
        else:
            raise RaylabError("say head, worker, start or stop")
    except RaylabError as error:
        sys.exit(f"error: {socket.gethostname()}: {error}")


class Head:
    """The head's job: starts and stops Ray as it is asked to, ends when Ray fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temp = node.temp_dir()
        self.ray: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Until the job ends. The exit code is Ray's when it ends by itself."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        door = socket.socket(socket.AF_UNIX)
        door.bind(str(self.temp / DOOR))
        door.listen()
        door.settimeout(1.0)
        try:
            while True:
                if self.ray and self.ray.poll() is not None:
                    raise RaylabError(f"Ray ended by itself, with exit code {self.ray.returncode}: see this log above")
                with suppress(TimeoutError):
                    caller, _ = door.accept()
                    with caller, suppress(OSError):  # who asked may have been interrupted
                        caller.settimeout(None)
                        code, said = self.answer(json.loads(caller.makefile().readline()))
                        caller.sendall(json.dumps([code, said]).encode() + b"\n")
        finally:
            self.stop()
            node.remove_temp_dir()

    def answer(self, request: dict[str, Any]) -> tuple[int, str]:
        if request["verb"] == "stop":
            self.stop()
            return 0, "Ray has stopped on this node"
        if self.ray:
            return 0, f"Ray runs at {node.address(self.temp)} already: nothing to start"
        try:
            return 0, self.start(request["options"], request["environment"])
        except RaylabError as error:
            self.stop()
            return 1, f"error: {socket.gethostname()}: {error}"

    def start(self, options: list[str], environment: dict[str, str]) -> str:
        node.ensure_token()
        known = [option for option in options if option not in ("--head", "--block")]
        (dashboard,) = node.free_ports(1)
        fixed = [f"--dashboard-port={dashboard}", "--block"]
        command = node.start_head(self.temp, node.node_ip(), options=[*fixed, *known])
        shutil.rmtree(self.temp / node.RAY, ignore_errors=True)  # of a Ray that was stopped: its address
        # Of a head that trains nothing Ray thinks it has no CPU, and starts trials' drivers one by one.
        ours = {FOLDER: str(self.folder), "RAY_worker_maximum_startup_concurrency": str(node.share()[0])}
        self.ray = subprocess.Popen(command, env={**AUTOSCALER, **node.environment(), **environment, **ours})
        end = time.monotonic() + UP
        while not (address := node.address(self.temp)):
            if self.ray.poll() is not None:
                raise RaylabError(f"`ray start` failed with exit code {self.ray.returncode}: see {log()}")
            if time.monotonic() > end:
                raise RaylabError(f"Ray was not up after {UP} s: see {log()}, and {self.temp} on this node")
            time.sleep(0.2)
        for name, text in ((DASHBOARD, str(dashboard)), (ADDRESS, address)):
            with replacing(self.folder / name) as writing:
                writing.write_text(text)
        return f"Ray runs at {address}, in job {os.environ.get('SLURM_JOB_ID')} on {socket.gethostname()}"

    def stop(self) -> None:
        """End Ray on this node, if it runs."""
        if self.ray:
            with suppress(FileNotFoundError):
                (self.folder / ADDRESS).unlink()
            end(self.ray)
        self.ray = None


def work(folder: Path) -> None:
    """Be a worker until the head, the job or Ray ends."""
    try:
        address = (folder / ADDRESS).read_text()
    except FileNotFoundError:
        raise RaylabError(f"the cluster's head does not run ({folder / ADDRESS} is missing): `ray up` again") from None
    temp = node.temp_dir()
    node.ensure_token()
    command = node.start_worker(address, temp, node.node_ip(address), options=["--block"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray = subprocess.Popen(command, env=node.environment())
    try:
        sys.exit(ray.wait())
    finally:
        end(ray)
        node.remove_temp_dir()


def ask(request: dict[str, Any]) -> int:
    """Hand a request to the job of this node, print what it says.

    Returns:
        An exit code.
    """
    with socket.socket(socket.AF_UNIX) as door:
        try:
            for _ in range(UP):  # the job may have begun a moment ago
                with suppress(FileNotFoundError, ConnectionRefusedError):
                    door.connect(str(node.temp_path() / DOOR))
                    break
                time.sleep(1)
            door.sendall(json.dumps(request).encode() + b"\n")
            code, said = json.loads(door.makefile().readline())
        except (OSError, ValueError):
            print(f"error: the head's job does not answer: see {log()}", file=sys.stderr)
            return 1
    print(said, file=sys.stderr if code else sys.stdout)
    return int(code)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ray_variables() -> dict[str, str]:
    """What the launcher sets before `ray start`; never the token, nor the address of a Ray that was stopped."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("RAY_") and "TOKEN" not in name}
    ours.pop("RAY_ADDRESS", None)
    return ours


def log() -> str:
    return os.environ.get("RAYLAB_JOB_LOG", "the job's log")


if __name__ == "__main__":
    main()
