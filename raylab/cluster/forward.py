"""Ports of this machine that lead to ports of a job's node, through `srun`."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from raylab.cluster import slurm
from raylab.errors import RaylabError

# On the node: what comes from standard input goes to the port, what the port says to standard output.
RELAY = """
import os, socket, sys, threading
there = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def send():
    while data := os.read(0, 65536):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := there.recv(65536):
    while data:
        data = data[os.write(1, data):]
"""


class Forward:
    """While this context lasts, connections to the loopback of this machine are answered on the node's.

    Args:
        step: makes of a command the one that runs it on the node and passes on every byte at once.
        ports: (port here, port there) pairs.

    Raises:
        RaylabError: on entering: a port here is taken.
    """

    def __init__(self, step: Callable[[list[str]], list[str]], ports: list[tuple[int, int]]) -> None:
        self.step = step
        self.ports = ports
        self.servers: list[socket.socket] = []
        self.relays: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Forward:
        for here, there in self.ports:
            try:
                server = socket.create_server(("127.0.0.1", here))
            except OSError as error:
                raise RaylabError(f"port {here} of this machine cannot be used ({error}): name another") from None
            self.servers.append(server)
            threading.Thread(target=self.accept, args=(server, there), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server in self.servers:
            server.close()
        for relay in self.relays:
            relay.terminate()

    def accept(self, server: socket.socket, port: int) -> None:
        with suppress(OSError):  # closed
            while True:
                caller, _ = server.accept()
                with caller:  # srun holds it from here on
                    self.relays = [relay for relay in self.relays if relay.poll() is None]
                    command = self.step(["python3", "-c", RELAY, str(port)])
                    end, null = caller.fileno(), subprocess.DEVNULL
                    relay = subprocess.Popen(command, env=slurm.clean_environment(), stdin=end, stdout=end, stderr=null)
                    self.relays.append(relay)
