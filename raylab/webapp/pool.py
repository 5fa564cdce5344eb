"""The processes that look at videos, from the server's side: as many as look at once, each ended when it oversteps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any

import psutil

from raylab.errors import RaylabError
from raylab.results import Checkpoint
from raylab.webapp.limits import MB, Limits
from raylab.webapp.messages import HEAD, lengths, pack

WATCH = 0.05  # seconds between looks at a process's memory
CALM = {
    "MALLOC_ARENA_MAX": "2",  # or threads keep what they have given back
    "OMP_WAIT_POLICY": "PASSIVE",  # or they spin while they wait, where others want the CPU
}
LOADING = 300  # seconds that models may take to load
Checkpoints = dict[str, list[Checkpoint]]


class Child:
    """One process with the models of a page; it is started when it is first needed, and again after it has died.

    Attributes:
        parameters: tab → learned numbers of each model, once it has been started.
    """

    def __init__(self, checkpoints: Checkpoints, device: str | None, limits: Limits, threads: int) -> None:
        self._limits = limits
        self._first = {
            "checkpoints": {tab: [(c.path, c.run) for c in several] for tab, several in checkpoints.items()},
            "device": device,
            "limits": asdict(limits),
            "threads": threads,
        }
        self._process: asyncio.subprocess.Process | None = None
        self.parameters: dict[str, list[int | None]] = {}

    async def start(self) -> None:
        """Load the models, unless that is done.

        Raises:
            RaylabError: a checkpoint cannot be used.
        """
        if self._process and self._process.returncode is None:
            return
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "raylab.webapp.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **CALM},
            start_new_session=True,  # Ctrl-C is the server's affair
        )
        try:
            self.parameters = await self._ask(self._first, b"", LOADING)
        except RaylabError:
            await self.end()
            raise

    async def ask(self, request: dict[str, Any], content: bytes = b"") -> Any:
        """The answer to one request; whoever is cancelled meanwhile ends the process.

        Raises:
            RaylabError: what is wrong with the video, or that it has taken too long, too much memory or the process.
        """
        await self.start()
        return await self._ask(request, content, self._limits.timeout)

    async def end(self) -> None:
        """Kill the process, if there is one."""
        if self._process:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None

    async def _ask(self, request: dict[str, Any], content: bytes, seconds: float) -> Any:
        assert self._process  # noqa: S101 - started
        name = os.path.basename(request.get("video", "this page"))  # noqa: PTH119
        watching = asyncio.create_task(self._watch(self._process))
        try:
            reply = await asyncio.wait_for(self._exchange(self._process, pack(request, content)), seconds)
        except asyncio.TimeoutError:
            await self.end()
            raise RaylabError(
                f"{name}: was not done after {seconds:.0f} s: upload a shorter or smaller one, or start the page "
                "with a larger --timeout"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            code = await self._process.wait() if self._process else 0
            raise RaylabError(f"{name}: {await self._cause(watching, code)}") from None
        except asyncio.CancelledError:
            await self.end()
            raise
        finally:
            watching.cancel()
        if "error" in reply:
            raise RaylabError(reply["error"])
        return reply["result"]

    @staticmethod
    async def _exchange(process: asyncio.subprocess.Process, message: bytes) -> Any:
        assert process.stdin and process.stdout  # noqa: S101 - pipes
        process.stdin.write(message)
        await process.stdin.drain()
        text, _ = lengths(await process.stdout.readexactly(HEAD.size))
        return json.loads(await process.stdout.readexactly(text))

    async def _watch(self, process: asyncio.subprocess.Process) -> bool:
        """Kill a process that holds more memory than it may, and say so."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            seen = psutil.Process(process.pid)
            while seen.memory_info().rss < self._limits.memory:
                await asyncio.sleep(WATCH)
            process.kill()
            return True
        return False

    async def _cause(self, watching: asyncio.Task[bool], code: int) -> str:
        done, _ = await asyncio.wait([watching], timeout=1)
        if done and watching.result():
            return (
                f"took more than {self._limits.memory / MB:,.0f} MB of memory: upload a smaller copy, e.g. ffmpeg -i "
                "FILE -vf scale=1280:-2 out.mp4"
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"ended the process that looked at it ({how}): convert it, ffmpeg -i FILE out.mp4, and upload that"


def threads_each(processes: int) -> int:
    """How many threads so many processes may use, each, that together they use all CPUs there are."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // processes)


class Pool:
    """Children that take turns.

    Args:
        checkpoints: tab → of each, in order.
        device: where models run; None: the GPU if there is one.
        limits: `jobs` children, and what each may take.
        threads: of each.
    """

    def __init__(self, checkpoints: Checkpoints, device: str | None, limits: Limits, threads: int) -> None:
        self.children: Sequence[Child] = [Child(checkpoints, device, limits, threads) for _ in range(limits.jobs)]
        self._idle: asyncio.LifoQueue[Child] = asyncio.LifoQueue()
        for child in self.children:
            self._idle.put_nowait(child)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Child]:
        """A child that nobody else asks meanwhile."""
        child = await self._idle.get()
        try:
            yield child
        finally:
            self._idle.put_nowait(child)

    async def start(self) -> None:
        """Load all models, once in each process.

        Raises:
            RaylabError: a checkpoint cannot be used.
        """
        await asyncio.gather(*(child.start() for child in self.children))

    async def end(self) -> None:
        for child in self.children:
            await child.end()
