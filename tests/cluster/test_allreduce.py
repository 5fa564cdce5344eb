"""Sums between real worker processes."""

import pytest

from raylab.cluster import allreduce
from raylab.cluster.allreduce import SIZES, measure
from raylab.doctor import exchange


def test_two_workers_of_one_machine_come_to_the_right_sum():
    speed = measure(0.1)
    assert (speed.workers, speed.nodes, speed.backend, speed.size) == (2, 1, "gloo", SIZES["gloo"])
    assert speed.bandwidth == pytest.approx(speed.size / speed.seconds)  # two workers send it once each


def test_workers_that_do_not_meet_are_a_failure_with_a_remedy(monkeypatch):
    monkeypatch.setattr(allreduce, "START", 0.0)
    row = exchange(0.1)
    assert (row.what, row.state) == ("all-reduce", "failure")
    assert "2 workers did not start" in row.detail
    assert "GLOO_SOCKET_IFNAME" in row.remedy
