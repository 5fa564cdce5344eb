"""Look at sweeps and runs in a browser, while they run or afterwards.

    python -m raylab.dashboard                    all under results/; of the studies, that which changed last
    python -m raylab.dashboard epic_phase2        one sweep

TensorBoard and optuna-dashboard are started on loopback and end with this command. It prints their addresses, that of
the Ray dashboard if a cluster of yours runs here, and the line that reaches all of them from your own computer.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import typer

from raylab.cli import console, run_verb
from raylab.errors import RaylabError
from raylab.results import DEFAULT_STORAGE, locate
from raylab.storage import Folder
from raylab.sweeps import monitor
from raylab.sweeps.folder import JOURNAL, SweepFolder
from raylab.training.runfolder import RunFolder


@dataclass(frozen=True)
class Shown:
    """What there is to look at.

    Attributes:
        logs: a folder with event files somewhere inside.
        studies: sweeps, the one that changed last first.
    """

    logs: Folder
    studies: list[SweepFolder]

    @classmethod
    def find(cls, name: str | None, storage: str) -> Shown:
        """One sweep or run, or all there are.

        Raises:
            RaylabError: there is no such sweep or run, or none at all.
        """
        if name is not None:
            folder = locate(name, storage)
            sweep = SweepFolder(folder)
            return cls(folder / "trials", [sweep]) if sweep.exists() else cls(folder, [])
        parent = Folder.open(storage)
        sweeps = [SweepFolder(parent / name) for name in parent.folders()]
        found = [sweep for sweep in sweeps if sweep.exists()]
        if not found and not any(RunFolder(sweep.folder).exists() for sweep in sweeps):
            raise RaylabError(f"no sweep or run under {parent} yet: start one with raylab tune, or set --storage")
        begun = [sweep for sweep in found if sweep.folder.exists(JOURNAL)]
        return cls(parent, sorted(begun, key=lambda sweep: _changed(sweep.folder), reverse=True))


def _changed(folder: Folder) -> int:
    when: int = folder.filesystem.get_file_info((folder / JOURNAL).path).mtime_ns or 0
    return when


class Said(NamedTuple):
    """One line about a server.

    Attributes:
        text: its address and what it shows, or why there is none.
        port: on this machine's loopback, if it listens there.
    """

    text: str
    port: int | None = None


def dashboard(
    sweep: Annotated[str | None, typer.Argument(help="A sweep or a run; all when left out.")] = None,
    storage: Annotated[str, typer.Option(help="Results folder: a path or a URI.")] = DEFAULT_STORAGE,
    tensorboard_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    optuna_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
) -> None:
    """Show sweeps and runs in a browser: TensorBoard, optuna-dashboard, and where the Ray dashboard is.

    Example: raylab dashboard epic_phase2
    """
    shown = Shown.find(sweep, storage)
    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with ExitStack() as stack:
        servers = {
            "TensorBoard": show_events(shown.logs, tensorboard_port),
            "Optuna": show_study(shown.studies, optuna_port, stack),
            "Ray": show_cluster(),
        }
        for name, said in servers.items():
            console.print(f"{name + ':':12} {said.text}", markup=False)
        if forwarded := [said.port for said in servers.values() if said.port]:
            console.print("To open these addresses on your own computer, run there:")
            console.print(f"    {tunnel(forwarded)}", markup=False)
            console.print("Ctrl-C ends TensorBoard and optuna-dashboard.")
            ended.wait()


def show_events(logs: Folder, port: int = 0) -> Said:
    """Start a TensorBoard for the event files in a folder."""
    if logs.local is None:
        return Said(f"reads local folders only: copy {logs}, and name the copy")
    address = monitor.tensorboard(logs.local, port)
    return Said(f"{address} shows {logs}", urlsplit(address).port)


def show_study(sweeps: Sequence[SweepFolder], port: int, stack: ExitStack) -> Said:
    """Start an optuna-dashboard for the first of some sweeps; `stack` ends what it needs."""
    if not sweeps:
        return Said("there is no sweep, so no study")
    sweep, *others = sweeps
    if not sweep.folder.exists(JOURNAL):
        return Said(f"{sweep.name} has no study yet: ask again when its first trial has begun")
    text = f"shows the study of {sweep.name}"
    if sweep.folder.local:
        journal = sweep.folder.local / JOURNAL
    else:
        journal = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raylab-study-"))) / JOURNAL
        journal.write_text(sweep.folder.read_text(JOURNAL))
        text += " as it is now: start this again for what is new"
    if others:
        text += f"; name another sweep for its own: {', '.join(other.name for other in others)}"
    address = monitor.study(journal, port)
    return Said(f"{address} {text}", urlsplit(address).port) if address else Said(monitor.INSTALL)


def show_cluster() -> Said:
    """Where the Ray dashboard is; it runs as long as its cluster."""
    from raylab.cluster.connect import find_dashboards

    found = find_dashboards()
    if not found:
        return Said("no cluster of yours runs here")
    address, *others = found
    also = f"; also {', '.join(others)}" if others else ""
    port = urlsplit(address).port if urlsplit(address).hostname == monitor.LOOPBACK else None
    return Said(f"{address} asks for the token in ~/.ray/auth_token{also}", port)


def tunnel(forwarded: Sequence[int]) -> str:
    """The ssh command that makes ports of this machine's loopback those of another's.

    In a SLURM job it goes by way of the login node that the job was submitted from.
    """
    user, host = getpass.getuser(), socket.getfqdn()
    host = socket.gethostname() if host.startswith("localhost") else host
    login = os.environ.get("SLURM_SUBMIT_HOST", host)
    jump = ["-J", f"{user}@{login}"] if login.partition(".")[0] != host.partition(".")[0] else []
    options = [word for port in forwarded for word in ("-L", f"{port}:{monitor.LOOPBACK}:{port}")]
    return " ".join(["ssh", "-N", *jump, *options, f"{user}@{host}"])


if __name__ == "__main__":
    run_verb(dashboard)
