"""Saving runs at once when their time is up: before a job's time limit, or its preemption.

The process that is to end asks, by a file in the folder of each run that trains. Rank 0 looks for it every other
second, all ranks save, and the file goes: that is the answer.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist

from raylab.training.runfolder import ENDED, RunFolder

REQUEST = "save"
LOOK_SECONDS = 2.0  # between two looks, and a hundred times what one takes: storage may be far
PATIENCE = 45.0  # seconds that runs have to save: of the 90 before a time limit


class Requests:
    """Whether a checkpoint was asked for; to be called by every rank after each step, and all hear the same.

    Args:
        run: whose folder rank 0 looks into.
        device: where ranks exchange what was found. They do so only when rank 0 looks, at steps that all know.
        rank: of this worker.
    """

    def __init__(self, run: RunFolder, device: torch.device, rank: int) -> None:
        self.run, self.device, self.rank = run, device, rank
        self.every = self.left = 1
        self.looked = time.monotonic()

    def __call__(self) -> bool:
        self.left -= 1
        if self.left:
            return False
        asked = False
        if self.rank == 0:
            now = time.monotonic()
            asked = pending(self.run)
            pause = max(LOOK_SECONDS, 100 * (time.monotonic() - now))
            steps = self.every * pause / max(now - self.looked, 1e-3)
            self.every = max(1, min(round(steps), 10 * self.every))  # the first steps are slow ones
            self.looked = now
        if dist.is_initialized() and dist.get_world_size() > 1:
            found = torch.tensor([asked, self.every], device=self.device)
            dist.broadcast(found, src=0)
            asked, self.every = bool(found[0]), int(found[1])
        self.left = self.every
        return asked


def ask(run: RunFolder) -> None:
    """Have a run that trains save as soon as it can."""
    run.folder.write_text(REQUEST, "")


def pending(run: RunFolder) -> bool:
    """Whether it was asked and has not answered yet."""
    return run.folder.exists(REQUEST)


def answer(run: RunFolder) -> None:
    """Say that a checkpoint is written: whoever asked may go on."""
    with suppress(FileNotFoundError):
        run.folder.filesystem.delete_file((run.folder / REQUEST).path)


@contextmanager
def saving(runs: Callable[[], Iterable[RunFolder]]) -> Iterator[None]:
    """Inside, SIGTERM is a Ctrl-C that comes when the runs that train have saved; another one changes nothing.

    Only in the main thread of a process: elsewhere it does nothing.

    Args:
        runs: those that may be training.

    Raises:
        KeyboardInterrupt: it was asked to end, and has not come to its end by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending: list[threading.Thread] = []

    def end(number: int, frame: object) -> None:
        if not ending:
            ending.append(threading.Thread(target=save_and_interrupt, args=(runs,), daemon=True))
            ending[0].start()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException as error:  # Ray answers a Ctrl-C in several ways
        if ending:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def save_and_interrupt(runs: Callable[[], Iterable[RunFolder]]) -> None:
    """Ask the runs that train, wait until they have saved or ended, and send this process a Ctrl-C."""
    asked = [run for run in runs() if run.status()["state"] == "running"]
    for run in asked:
        ask(run)
    end = time.monotonic() + PATIENCE
    while any(pending(run) and run.status()["state"] not in ENDED for run in asked) and time.monotonic() < end:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
