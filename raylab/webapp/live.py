"""A webcam in the browser: it sends pictures as they come, and gets an answer about the newest, again and again.

Pictures that come while the model is busy are let go: an answer is never about a picture of long ago.
"""

from __future__ import annotations

import asyncio
import struct
import time
from contextlib import suppress

from aiohttp import WSMsgType, web

from raylab.data.recent import Recent
from raylab.errors import RaylabError
from raylab.webapp.pool import Child

WINDOW = 2.0  # seconds looked at
MOST = 120  # pictures kept
LARGEST = 256_000  # bytes of one
SENT = struct.Struct(">d")  # before each picture: when it was taken, on the browser's clock; the answer says it again


async def watch(socket: web.WebSocketResponse, child: Child, turn: asyncio.Lock, model: int, frames: int) -> None:
    """Answer a webcam until it ends.

    Each answer is JSON: `top`, as of `raylab.Predictor`; `sent`; and as of a `Sighting` `frame`, `latency`, `skipped`,
    `rate`, `camera_rate`; or `error`, which is the last.

    Args:
        socket: gives the pictures, each JPEG behind its time.
        child: has the model.
        turn: of webcams that share the child.
        model: which of its.
        frames: that the model looks at.
    """
    recent: Recent[bytes] = Recent(WINDOW, MOST)
    changed = asyncio.Event()
    answering = asyncio.create_task(_answer(socket, recent, changed, (child, turn, model, frames)))
    try:
        async for message in socket:
            if message.type is not WSMsgType.BINARY or len(message.data) <= SENT.size:
                break
            recent.add(message.data, time.monotonic())
            changed.set()
    finally:
        answering.cancel()
        with suppress(asyncio.CancelledError, ConnectionError):
            await answering


async def _answer(
    socket: web.WebSocketResponse,
    recent: Recent[bytes],
    changed: asyncio.Event,
    asked: tuple[Child, asyncio.Lock, int, int],
) -> None:
    child, turn, model, frames = asked
    began, last, answers = 0.0, 0, 0
    while True:
        await changed.wait()
        async with turn:
            changed.clear()
            began = began or time.monotonic()
            chosen = recent.evenly(frames)
            pictures = {shot.number: shot.thing[SENT.size :] for shot in chosen}
            sizes = [(shot.number, len(pictures[shot.number])) for shot in chosen]
            request = {"do": "look", "model": model, "pictures": sizes}
            # Shielded: a webcam that leaves must not take the others' process with it.
            asking = asyncio.create_task(child.ask(request, b"".join(pictures.values())))
            try:
                top = await asyncio.shield(asking)
            except RaylabError as error:
                await socket.send_json({"error": str(error)})
                await socket.close()
                return
            except asyncio.CancelledError:
                await asyncio.wait([asking])
                asking.exception()
                raise
        now, newest, answers = time.monotonic(), chosen[-1], answers + 1
        await socket.send_json(
            {
                "top": top,
                "sent": SENT.unpack_from(newest.thing)[0],
                "frame": newest.number,
                "latency": now - newest.at,
                "skipped": newest.number - last - 1,
                "rate": answers / max(now - began, 1e-9),
                "camera_rate": recent.rate,
            }
        )
        last = newest.number
