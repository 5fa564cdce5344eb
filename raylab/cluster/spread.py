"""Many independent pieces of work over the whole cluster."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from raylab.errors import RaylabError

J = TypeVar("J")
R = TypeVar("R")

AHEAD = 2  # jobs waiting for each CPU: enough to keep it busy, and a reason for an autoscaler to add nodes


def spread(function: Callable[[J], R], jobs: Iterable[J], cpus: float = 1, gpus: float = 0) -> Iterator[R]:
    """`function` of each job, in the order in which they end; jobs are drawn as room for them becomes free.

    A job whose process or node is lost is run again, so it must come to the same when run twice.

    Args:
        function: what to do; sent to each node once.
        jobs: its arguments.
        cpus, gpus: what one job holds while it runs. Ray sets OMP_NUM_THREADS to the CPUs.

    Raises:
        RaylabError: `function` raised it, or a job was lost several times.
        KeyboardInterrupt: a Ctrl-C, even one that came while Ray lets no exception through.
    """
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(_call)
    shared = ray.put(function)  # sent to each node once, not with each job
    running: set[ray.ObjectRef] = set()
    waiting = iter(jobs)
    before = signal.getsignal(signal.SIGINT)
    asked: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.default_int_handler(number, frame)

    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, end)
    try:
        while True:
            if asked:  # raised where Ray, while it waits, lets no exception through
                raise KeyboardInterrupt
            most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1) / cpus))
            while len(running) < most and (job := next(waiting, None)) is not None:
                running.add(task.remote(shared, job))
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            running.difference_update(done)
            yield from ray.get(done)
    except RayTaskError as error:
        if isinstance(error.cause, RaylabError):
            raise RaylabError(str(error.cause)) from None
        raise
    except RayError as error:
        raise RaylabError(
            f"a piece of work was lost again and again ({error}): see the logs of Ray's dashboard"
        ) from error
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
        for reference in running:
            ray.cancel(reference, force=True)


def _call(function: Callable[[J], R], job: J) -> R:
    return function(job)
