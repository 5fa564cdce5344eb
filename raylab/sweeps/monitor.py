"""TensorBoard and optuna-dashboard on what runs leave: on loopback, in threads of this process, which they end with."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Thread
from typing import Any

from raylab.errors import RaylabError

LOOPBACK = "127.0.0.1"
PICTURES = 100  # of each sample clip that TensorBoard keeps at hand; it would keep 10
INSTALL = "not installed: pip install 'raylab[dashboard]'"
REFUSED = b'{"reason": "raylab serves studies for reading alone"}'


def tensorboard(logs: Path, port: int = 0) -> str:
    """Serve all event files under a folder, also those to come; the address.

    Args:
        logs: need not exist yet.
        port: 0: any free one.

    Raises:
        RaylabError: the port is in use.
    """
    from tensorboard.program import TensorBoard

    check_port(port, "TensorBoard")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = TensorBoard()
    options = {
        "logdir": logs,
        "host": LOOPBACK,
        "port": port,
        "load_fast": "false",  # fast is another process
        "samples_per_plugin": f"images={PICTURES}",
    }
    server.configure(argv=[None, *(f"--{name}={value}" for name, value in options.items())])
    return str(server.launch()).rstrip("/")


def study(journal: Path, port: int = 0) -> str | None:
    """Serve the study in a journal file, as it grows; the address, or None where optuna-dashboard is not installed.

    Other users of this machine reach loopback too, so nothing can be changed from there.

    Raises:
        RaylabError: the port is in use.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        return None
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from werkzeug.serving import make_server

    check_port(port, "optuna-dashboard")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = reading(wsgi(optuna.storages.JournalStorage(JournalFileBackend(str(journal)))))
    server = make_server(LOOPBACK, port, application, threaded=True)
    Thread(target=server.serve_forever, name="optuna-dashboard", daemon=True).start()
    return f"http://{LOOPBACK}:{server.server_port}"


def reading(application: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """A WSGI application without what changes something."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(environ, start_response)
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Type", "application/json")])
        return [REFUSED]

    return answer


def check_port(port: int, server: str) -> None:
    """Refuse a port that cannot be had.

    Raises:
        RaylabError: it is in use, or not ours to take.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise RaylabError(f"port {port} for {server}: {error.strerror}: choose another, or 0 for any") from None
