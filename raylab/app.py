"""A page that takes a video: its keyframes, what is done in it, whether it is real; or what a webcam sees.

    python -m raylab.app --actions epic_phase2 --keyframes keyframes --labels aura
    python -m raylab.app --keyframes keyframes --minutes 60 --port 8000

Videos do not leave this machine, and the page asks no other machine for anything.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from raylab.cli import console, errors, run_verb
from raylab.dashboard import tunnel
from raylab.errors import RaylabError
from raylab.results import DEFAULT_STORAGE, find_checkpoint

if TYPE_CHECKING:
    from raylab.webapp.server import Server

LOOPBACK, PORT = "127.0.0.1", 7860
Several = list[str] | None


def app(
    actions: Annotated[Several, typer.Option(help="A sweep, run or checkpoint that names classes of clips.")] = None,
    keyframes: Annotated[Several, typer.Option(help="One that scores frames.")] = None,
    labels: Annotated[Several, typer.Option(help="One that tells what a whole video is: real or generated.")] = None,
    megabytes: Annotated[float, typer.Option(min=0.001, help="Of one video, at most.")] = 500,
    minutes: Annotated[float, typer.Option(min=0.01, help="Of one video, at most.")] = 30,
    jobs: Annotated[int, typer.Option(min=1, help="Videos looked at at once, each by a process of its own.")] = 2,
    waiting: Annotated[int, typer.Option(min=0, help="Videos that wait besides, at most.")] = 32,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one video may take.")] = 600,
    memory: Annotated[float, typer.Option(min=0.5, help="GB that each process may hold.")] = 4,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default this machine alone can connect.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = PORT,
    storage: Annotated[str, typer.Option(help="Results folder: a path or a URI.")] = DEFAULT_STORAGE,
) -> None:
    """Serve a page that takes videos and a webcam, until Ctrl-C.

    Each of --actions, --keyframes and --labels may be given several times; the page then lets choose.

    Example: raylab app --keyframes keyframes --actions epic_phase2
    """
    given = {"keyframes": keyframes, "actions": actions, "labels": labels}
    if not any(given.values()):
        raise RaylabError("nothing to show: give --actions, --keyframes or --labels, each a sweep, run or checkpoint")
    if device not in (None, "cpu", "cuda"):
        raise RaylabError(f"--device {device}: write cpu or cuda")
    try:
        from raylab.webapp.limits import MB, Limits
        from raylab.webapp.server import Server
    except ModuleNotFoundError as error:
        raise RaylabError(f"raylab app needs {error.name}: pip install 'raylab[app]'") from None
    checkpoints = {tab: [find_checkpoint(name, storage) for name in names] for tab, names in given.items() if names}
    limits = Limits(
        size=int(megabytes * MB),
        seconds=60 * minutes,
        jobs=jobs,
        waiting=waiting,
        timeout=timeout,
        memory=int(1000 * memory * MB),
    )
    asyncio.run(_serve(Server(checkpoints, device, limits, local=host == LOOPBACK), host, port))


async def _serve(server: Server, host: str, port: int) -> None:
    """Answer until SIGINT or SIGTERM."""
    from aiohttp import web

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    listening = _listen(host, port)
    runner = web.AppRunner(server.application(), handler_cancellation=True, access_log=None)
    try:
        waiting = errors.status("loading models") if errors.is_terminal else nullcontext()
        with waiting:
            setup = asyncio.ensure_future(runner.setup())
            await asyncio.wait([setup, ending := asyncio.ensure_future(ended.wait())], return_when="FIRST_COMPLETED")
            if ending.done():
                setup.cancel()
            await setup
        await web.SockSite(runner, listening, shutdown_timeout=1).start()
        announce(host, listening.getsockname()[1])
        await ended.wait()
    except asyncio.CancelledError:
        pass
    finally:
        await runner.cleanup()
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise RaylabError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror or error}): name another, "
            "--port 0 for any that is free"
        ) from None


def announce(host: str, port: int) -> None:
    """Say where the page is, and how to reach it from a laptop."""
    console.print(f"page     http://{host}:{port}", soft_wrap=True)
    if host == LOOPBACK:
        console.print(f"laptop   {tunnel([port])}, then http://localhost:{port}", soft_wrap=True)
    else:
        console.print(
            "warning  whoever reaches this address can use the page; browsers give webcams to https and localhost only",
            soft_wrap=True,
        )
    console.print("Ctrl-C ends it")


if __name__ == "__main__":
    run_verb(app)
