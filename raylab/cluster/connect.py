"""Connecting to a Ray cluster: the one at hand, or one on this machine."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
from ray._private.services import canonicalize_bootstrap_address, find_gcs_addresses
from ray._raylet import Config, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

from raylab.cluster.growth import at_most
from raylab.errors import RaylabError

SETTINGS = {
    "RAY_AUTH_MODE": "token",  # explicit, and alike on driver, head and workers
    "RAY_prestart_worker_first_driver": "0",  # one process for each CPU, without the runtime_env below: never used
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # reports pass one per interval; the default is 2 s
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # then it is seen whether a node was lost meanwhile
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # fills the dashboard's Train page
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same on driver and workers
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the training loop writes its own records
    "RAY_AIR_NEW_OUTPUT": "0",  # raylab shows its own table
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TORCHINDUCTOR_CACHE_DIR": os.environ["TORCHINDUCTOR_CACHE_DIR"],  # as raylab/__init__.py has set it
}
KNOCK_SECONDS = 10.0
HOOK = "raylab.cluster.connect.remember_address"


def connect() -> list[dict[str, Any]]:
    """Join `$RAY_ADDRESS`, else a cluster of this user on this machine, else start one on loopback.

    Returns:
        The resources of each node that a run may count on: see `present_nodes`.

    Raises:
        RaylabError: `$RAY_ADDRESS` names a cluster that does not answer.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    Config.initialize("")  # Ray read its settings when it was imported; without this, not the token mode
    if not ray.is_initialized():
        common: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "warning",
            # A copy of the settings, since Ray adds the hook to it.
            "runtime_env": {"env_vars": {**SETTINGS}, "worker_process_setup_hook": HOOK},
        }
        named = address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            if named == "local":
                raise ConnectionError
            if named == "auto":
                address = canonicalize_bootstrap_address(named) or ""
            if "://" not in address:
                ask(address)
            ray.init(address=address, **common)
        except (ConnectionError, AuthenticationError) as error:
            if named not in ("auto", "local"):
                raise RaylabError(
                    f"RAY_ADDRESS = {named}: no cluster answers there, or it is not yours ({error}): start it, "
                    "unset RAY_ADDRESS, or bring its token (~/.ray/auth_token)"
                ) from None
            ray.shutdown()  # what is left of a cluster that has gone meanwhile
            # Without the dashboard's State API a stopped trial's resources are never freed.
            ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1", **common)
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)  # Ray leaves it readable for everybody
    return present_nodes()


def ask(address: str) -> bytes | None:
    """Where the dashboard of a cluster is, as the cluster itself says.

    Ray would try an address at which nothing listens for a quarter of an hour, and another user's cluster twenty times.

    Args:
        address: of the cluster, HOST:PORT.

    Raises:
        ConnectionError: nothing answers there, or not to this user.
    """
    found = re.fullmatch(r"\[?([^/]+?)\]?:(\d+)", address)
    if not found:
        raise ConnectionError(f"{address!r} is not HOST:PORT")
    try:
        socket.create_connection((found[1], int(found[2])), timeout=KNOCK_SECONDS).close()
        ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one the client would end this process
        said: bytes | None = GcsClient(address).internal_kv_get(
            DASHBOARD_ADDRESS.encode(), KV_NAMESPACE_DASHBOARD, timeout=KNOCK_SECONDS
        )
    except (OSError, RayError) as error:
        raise ConnectionError(error) from None
    return said


def present_nodes() -> list[dict[str, Any]]:
    """The resources of each node that a run may count on at this moment: see `at_most`."""
    return at_most(living_nodes())


def living_nodes() -> list[dict[str, Any]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def dashboard_url() -> str | None:
    url = ray.get_runtime_context().worker.node.address_info.get("webui_url")
    return f"http://{url}" if url else None


def find_dashboards() -> list[str]:
    """Addresses of the dashboards of this user's clusters: that which `$RAY_ADDRESS` names, else all on this machine.

    None is joined, and none is started.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    Config.initialize("")
    named = os.environ.get("RAY_ADDRESS", "auto")
    asked = sorted(find_gcs_addresses()) if named in ("auto", "local") else [named]
    found = []
    for address in asked:
        with suppress(ConnectionError):
            if said := ask(address):
                found.append(f"http://{said.decode()}")
    return found


def remember_address() -> None:
    """In each worker process: name the cluster it belongs to.

    Ray's clean-up of a stopped trial looks its cluster up and fails where two run on one machine.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
