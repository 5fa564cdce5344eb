import pytest

from raylab.cluster.directives import Directives
from raylab.cluster.growth import AUTOSCALING, FOLDER, at_most
from raylab.cluster.slurm import Allocation, flags, seconds
from raylab.errors import RaylabError

PROVIDER = {"type": "external", "slurm": {"account": "lp_a", "time": "1:00:00"}, "setup": ["true"]}


def test_a_node_type_wins_over_the_provider(monkeypatch):
    monkeypatch.setenv("VSC_DATA", "/data/me")
    node = {"slurm": {"time": "2:00:00", "gpus-per-node": "a100:2"}, "python": "$VSC_DATA/bin/python"}
    found = Directives.parse(PROVIDER, node)
    assert flags(found.slurm) == ["--account=lp_a", "--time=2:00:00", "--gpus-per-node=a100:2"]
    assert found.setup == ("true",)
    assert found.python == "/data/me/bin/python"


@pytest.mark.parametrize(
    "asked, resources",
    [
        ({}, {"CPU": 1}),
        ({"cpus-per-task": 8}, {"CPU": 8}),
        ({"cpus-per-task": 8, "gpus-per-node": 2}, {"CPU": 8, "GPU": 2}),
        ({"cpus-per-gpu": 8, "gpus-per-node": "a100:2"}, {"CPU": 16, "GPU": 2}),
        ({"gres": "gpu:h100:4", "cpus-per-task": 64}, {"CPU": 64, "GPU": 4}),
    ],
)
def test_resources_are_what_slurm_is_asked_for(asked, resources):
    assert Directives.parse({}, {"slurm": asked}).resources() == resources


@pytest.mark.parametrize(
    "node, message",
    [
        ({"slrum": {}}, "did you mean 'slurm'"),
        ({"slurm": {"account": "lp_EDIT"}}, "account = 'lp_EDIT': put in your own"),
        ({"slurm": {"nodes": 2}}, "nodes = 2: the provider sets this itself"),
        ({"slurm": {"time": 43200}}, "put it in quotes"),
        ({"slurm": "--time=1"}, "give options of sbatch"),
        ({"slurm": {"mem": [1]}}, "give one value"),
        ({"setup": "module load"}, "give a list of shell lines"),
    ],
)
def test_what_is_wrong_is_named(node, message):
    with pytest.raises(RaylabError, match=message):
        Directives.parse(PROVIDER, node)


def test_gpus_without_a_number():
    with pytest.raises(RaylabError, match="say how many"):
        Directives.parse({}, {"slurm": {"gpus-per-node": "a100"}}).resources()


def test_a_growing_cluster_counts_what_may_come(tmp_path, monkeypatch):
    head = {"CPU": 0.0, "node:__internal_head__": 1.0}
    worker = {"CPU": 16, "GPU": 1}
    assert at_most([head, worker]) == [head, worker]
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert at_most([head, worker]) == [head, worker]
    (tmp_path / AUTOSCALING).write_text(
        '{"max_workers": 3, "head_node_type": "head", "available_node_types": {"head": {"max_workers": 0}, '
        '"gpu": {"resources": {"CPU": 16, "GPU": 1}, "max_workers": 4}}}'
    )
    assert at_most([head, worker]) == [head, worker, worker, worker]


@pytest.mark.parametrize(
    "text, number",
    [("1-02:03:04", 93784), ("02:03:04", 7384), ("03:04", 184), ("UNLIMITED", None), ("INVALID", None)],
)
def test_time_left(text, number):
    assert seconds(text) == number


def test_an_allocation_is_read_from_the_environment(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert Allocation.current() is None
    given = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_JOB_CPUS_PER_NODE": "36(x2)",
        "SLURM_JOB_END_TIME": "2000000000",
        "SLURM_RESTART_COUNT": "1",
    }
    for name in ("SLURM_CPUS_ON_NODE", "SLURM_NTASKS", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Allocation.current() == Allocation("7", ("node1",), 1, 2, 36, 1, 2e9, "")
