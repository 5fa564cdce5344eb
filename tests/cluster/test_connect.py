"""Whose cluster is joined."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from raylab.cluster.connect import dashboard_url, find_dashboards

JOIN = """
import ray
from raylab.cluster.connect import connect
connect()
print(ray.get_runtime_context().gcs_address)
"""


@pytest.fixture
def address():
    """A cluster of this user."""
    return ray.get_runtime_context().gcs_address


def joined(home: Path) -> str:
    """The cluster that another process of a user with this home joins."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    result = subprocess.run(
        [sys.executable, "-c", JOIN],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    return result.stdout.strip()


@pytest.mark.slow
def test_another_users_cluster_is_not_joined(address: str, tmp_path: Path) -> None:
    first = joined(tmp_path)  # without a token
    second = joined(tmp_path)  # with one, but not this
    assert (tmp_path / ".ray" / "auth_token").exists()
    assert "" not in (first, second)
    assert address not in (first, second)


def test_the_dashboard_of_a_cluster_is_found_without_joining_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_url() in find_dashboards()  # among those of this machine
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert find_dashboards() == [dashboard_url()]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert find_dashboards() == []


@pytest.mark.parametrize("token", ["0" * 64, None])
def test_that_of_another_user_is_not(address: str, tmp_path: Path, token: str | None) -> None:
    program = "from raylab.cluster.connect import find_dashboards; print(find_dashboards())"
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(token)
    environment = {**os.environ, "HOME": str(tmp_path), "RAY_ADDRESS": address}
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    assert said.strip() == "[]"


def test_a_cluster_that_is_gone_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"127.0.0.1:{server.getsockname()[1]}"
    environment = {**os.environ, "RAY_ADDRESS": gone}
    result = subprocess.run([sys.executable, "-c", JOIN], env=environment, capture_output=True, text=True, timeout=120)
    assert f"RAY_ADDRESS = {gone}: no cluster answers there" in result.stderr


def test_ray_keeps_a_warning_of_no_use_to_itself() -> None:
    """On two CPUs it would come with every sweep; others still come."""
    code = """
import raylab
from ray._private.ray_logging import stdout_deduplicator
warning = "WARNING: 8 PYTHON worker processes, which is 4x the maximum expected startup concurrency (2)."
for line in (warning, "a node died"):
    print(*(l for d in stdout_deduplicator.deduplicate({"lines": [line], "pid": "raylet"}) for l in d["lines"]))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    assert said.splitlines() == ["", "a node died"]
