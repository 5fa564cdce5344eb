"""The fixture `slurm`: a real cluster of three nodes, with two users and a login node, for the whole session."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120
from harness import Slurm


def pytest_collection_modifyitems(items):
    for item in items:
        if "/cluster/slurm/" in str(item.path):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="module", autouse=True)
def one_cluster():
    """These tests start their own clusters, on the nodes."""
    if ray := sys.modules.get("ray"):
        ray.shutdown()


@pytest.fixture(scope="session")
def _slurm():
    if reason := Slurm.missing():
        pytest.skip(reason)
    cluster = Slurm()
    try:
        cluster.start()
    except RuntimeError as error:
        if "Operation not permitted" in str(error):
            pytest.skip(f"this machine allows no namespaces: {error}")
        raise
    yield cluster
    cluster.stop()


@pytest.fixture
def slurm(_slurm):
    """Every node up and idle before the test; no job after it."""
    for node in _slurm.nodes:
        if node not in _slurm._powered:
            _slurm.up(node)
    _slurm.wait_idle()
    yield _slurm
    for user in _slurm.users:
        _slurm.run(f"scancel --user={user}", user="root")
    for node in _slurm.nodes:
        if node not in _slurm._powered:
            _slurm.up(node)
    _slurm.wait_idle(60)
