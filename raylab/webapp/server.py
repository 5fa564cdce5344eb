"""The page's server: what it serves, to whom, and how many at once.

| address | what is there |
|---|---|
| `GET /`, `/style.css`, `/app.js` | the page; it asks no other host for anything |
| `GET /api/page` | limits, tabs, model cards |
| `POST /api/{tab}?name=FILE` | the body is a video: JSON of what was found, or `{"error": …}` |
| `GET /api/live` | a websocket: see `raylab.webapp.live` |
| `GET /results/{token}/…` | what was found, for a while: `keyframes.zip`, `thumb/N`, `frame/FILE` |

A name in an address is only ever looked up, never made part of a path.
"""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from importlib import resources
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

from aiohttp import web

from raylab.errors import RaylabError
from raylab.webapp.cards import card
from raylab.webapp.files import Files, plain_name
from raylab.webapp.limits import Limits
from raylab.webapp.live import LARGEST, watch
from raylab.webapp.pool import Checkpoints, Child, Pool, threads_each

PAGE = {"/": "index.html", "/style.css": "style.css", "/app.js": "app.js", "/icon.svg": "icon.svg"}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """One page: its models, its files, its processes.

    Args:
        checkpoints: tab (`keyframes`, `actions`, `labels`) → the checkpoints to choose from.
        device: where models run; None: the GPU if there is one.
        limits: of the page.
        local: only answer requests that name this machine, whatever reaches its loopback address.
    """

    def __init__(self, checkpoints: Checkpoints, device: str | None, limits: Limits, local: bool = True) -> None:
        self.checkpoints, self.limits, self.local = checkpoints, limits, local
        self.files = Files(limits)
        actions = {"actions": checkpoints["actions"]} if "actions" in checkpoints else {}
        threads = threads_each(limits.jobs + bool(actions))
        self.pool = Pool(checkpoints, device, limits, threads)
        self.watcher = Child(actions, device, limits, threads) if actions else None
        self.watching = asyncio.Lock()
        self.viewers, self.uploads = 0, 0
        self.page: dict[str, Any] = {}
        self.references: list[dict[str, Any]] = []

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self.guard])
        for address in PAGE:
            application.router.add_get(address, self.static)
        application.router.add_get("/api/page", self.about)
        application.router.add_get("/api/live", self.live)
        application.router.add_post("/api/{tab}", self.upload)
        application.router.add_get("/results/{token}/{kind}", self.result)
        application.router.add_get("/results/{token}/{kind}/{name}", self.result)
        application.cleanup_ctx.append(self.run)
        return application

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Load the models; end the processes and remove the files when the server ends."""
        with self.files:
            try:
                await asyncio.gather(self.pool.start(), *([self.watcher.start()] if self.watcher else []))
                await self._describe()
                tidying = asyncio.create_task(self._tidy())
                yield
                tidying.cancel()
            finally:
                await self.pool.end()
                if self.watcher:
                    await self.watcher.end()

    async def _describe(self) -> None:
        counted = self.pool.children[0].parameters
        tabs = {
            tab: [card(checkpoint, count) for checkpoint, count in zip(several, counted[tab], strict=True)]
            for tab, several in self.checkpoints.items()
        }
        limits = {"size": self.limits.size, "seconds": self.limits.seconds}
        self.page = {"tabs": tabs, "limits": limits}
        for model in range(len(self.checkpoints.get("labels", ()))):
            self.references.append(await self.pool.children[0].ask({"do": "reference", "model": model}))

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(60)
            self.files.tidy()

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let nobody use the page through a user's browser from another site; answer errors as the page expects."""
        origin = request.headers.get("Origin")
        elsewhere = origin is not None and urlsplit(origin).netloc != request.host
        if elsewhere or (self.local and not is_local(request.host)):
            return _refused(403, f"{origin or request.host}: this page answers to itself alone")
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _refused(error.status, f"{request.path}: {error.reason}")
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def static(self, request: web.Request) -> web.Response:
        name = PAGE[request.path]
        content = resources.files("raylab.webapp").joinpath("page").joinpath(name).read_bytes()
        return web.Response(body=content, content_type=KINDS[name.rpartition(".")[2]], charset="utf-8")

    async def about(self, request: web.Request) -> web.Response:
        return web.json_response(self.page)

    async def upload(self, request: web.Request) -> web.Response:
        """Receive a video, wait for a turn, say what was found."""
        tab, query = request.match_info["tab"], request.query
        name = plain_name(query.get("name", ""))
        try:
            asked = self._asked(tab, query)
        except (ValueError, LookupError, RaylabError) as error:
            return _refused(400, f"{name}: {error}")
        if self.uploads >= self.limits.jobs + self.limits.waiting:
            return _refused(
                503, f"{name}: no place is free among videos that wait ({self.uploads}): try again in a minute"
            )
        self.uploads += 1
        try:
            with self.files.place() as place:
                video, made = place / name, place.with_suffix(".made")
                made.mkdir()
                try:
                    await self.files.receive(request.content, request.content_length, video)
                    async with self.pool.turn() as child:
                        found = await child.ask(asked | {"do": tab, "video": str(video), "out": str(made)})
                    if tab == "keyframes":
                        found["token"] = await asyncio.to_thread(self.files.keep, made, video.stem)
                finally:
                    self.files.remove(made)
        except RaylabError as error:
            return _refused(422, str(error))
        finally:
            self.uploads -= 1
        if tab == "labels":
            found["reference"] = self.references[asked["model"]]
        return web.json_response(found)

    def _asked(self, tab: str, query: Any) -> dict[str, Any]:
        if tab not in self.checkpoints:
            raise LookupError(f"this page has no model for {tab}")
        model = int(query.get("model", 0))
        if not 0 <= model < len(self.checkpoints[tab]):
            raise LookupError(f"there is no model {model}")
        start, stop = moment(query.get("start"), "start"), moment(query.get("stop"), "stop")
        return {"model": model, "start": start or 0.0, "stop": stop}

    async def live(self, request: web.Request) -> web.StreamResponse:
        """A webcam's websocket."""
        try:
            model = self._asked("actions", request.query)["model"]
        except (ValueError, LookupError) as error:
            return _refused(400, str(error))
        if self.viewers >= self.limits.viewers:
            return _refused(503, f"{self.viewers} webcams are being watched: try again later")
        assert self.watcher  # noqa: S101 - there are actions
        self.viewers += 1
        try:
            socket = web.WebSocketResponse(max_msg_size=LARGEST, heartbeat=20, compress=False)
            await socket.prepare(request)
            frames = self.checkpoints["actions"][model].experiment.data.frames
            await watch(socket, self.watcher, self.watching, model, frames)
            return socket
        finally:
            self.viewers -= 1

    async def result(self, request: web.Request) -> web.Response:
        """A part of what was found."""
        result, kind = self.files.get(request.match_info["token"]), request.match_info["kind"]
        name = request.match_info.get("name", "")
        with suppress(OSError, KeyError, zipfile.BadZipFile):
            if result and kind == "keyframes.zip":
                title = f"attachment; filename*=UTF-8''{quote(result.title)}_keyframes.zip"
                path = result.folder / "keyframes.zip"
                headers = {"Content-Disposition": title, "Content-Type": "application/zip", **HEADERS}
                return web.FileResponse(path, headers=headers)  # type: ignore[return-value]  # it streams
            if result and kind in ("thumb", "frame"):
                picture = await asyncio.to_thread(result.picture, kind, name)
                return web.Response(body=picture, content_type="image/jpeg")
        return _refused(404, "this result is gone: upload the video again")


def moment(text: str | None, option: str) -> float | None:
    """Seconds of `75.5`, `1:15.5` or `00:01:15.5`; None of nothing."""
    from raylab.predict import seconds

    return seconds(text.strip() or None if text else None, option)


def is_local(host: str) -> bool:
    """Whether a Host header names the loopback: a site that has its own name point there is not meant."""
    name = urlsplit(f"//{host}").hostname or ""
    with suppress(ValueError):
        return ip_address(name).is_loopback
    return name == "localhost"


def _refused(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status, headers=HEADERS)
