"""A sweep around the best trial of another one."""

import pytest

from raylab.errors import RaylabError
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.space import SearchSpace
from raylab.training.runfolder import RunFolder
from raylab.tune import best_values, choose, introduction

METRIC = "val/action_top1"


@pytest.fixture
def storage(tmp_path):
    """Results with a sweep `epic_phase2` of three trials: the best still runs, the next has ended."""
    results = Folder.open(tmp_path)
    space = SearchSpace.load("epic_phase2")
    sweep = SweepFolder(results / "epic_phase2")
    sweep.create(space, {})
    for name, score, state in (("config2", 0.3, "finished"), ("config4", 0.9, "running"), ("config5", 0.1, "stopped")):
        add_trial(sweep, name, score, state)
    return results


def add_trial(sweep, name, score, state):
    run = sweep.run(name)
    run.create(sweep.space.trial(sweep.space.documented[name]), sweep.space.name)
    run.write_history([{"epoch": 1, "best": score, "best_epoch": 1, METRIC: score}])
    run.set_status(state)


def phase3(storage, **settings):
    return choose("epic_phase3", [], start="epic_phase2", storage=storage, **settings)


def test_the_best_trial_that_has_ended_is_taken(storage):
    space = phase3(storage)
    assert space.taken == SearchSpace.load("epic_phase2").documented["config2"]
    first = space.trial(space.documented["from_epic_phase2"])
    assert (first.model.name, first.optim.lr, first.data.batch_size) == ("cross_attention", 1e-4, 24)
    assert "from_epic_phase2: optim.lr 0.0001" in introduction(space, SweepFolder(storage / "x"))


def test_overrides_and_the_demo_apply_on_top(storage):
    demo = choose("epic_phase3", ["model.dropout=0.6"], demo=True, start="epic_phase2", storage=storage)
    assert (demo.experiment.model.dropout, demo.experiment.data.dataset) == (0.6, "kitchen")
    assert "model.dropout" not in demo.space


def test_a_sweep_that_has_begun_keeps_what_it_took(storage):
    begun = phase3(storage)
    SweepFolder(storage / "epic_phase3").create(begun, {})
    sweep = SweepFolder(storage / "epic_phase2")
    sweep.run("config4").set_status("finished")  # now the best that has ended
    assert best_values("epic_phase2", storage)["model.dropout"] == 0.6
    assert phase3(storage) == begun
    SweepFolder(storage / "epic_phase3").create(phase3(storage), {})  # may go on
    assert phase3(storage, fresh=True) != begun


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("epic_phase9", "did you mean 'epic_phase2'"),
        ("lonely", "single run: name a sweep"),
        ("young", "no trial of .*"),
    ],
)
def test_what_cannot_be_started_from_is_named(storage, name, message):
    RunFolder(storage / "lonely").create(SearchSpace.load("epic_phase2").experiment)
    SweepFolder(storage / "young").create(SearchSpace.load("epic_phase2"), {})
    add_trial(SweepFolder(storage / "young"), "config1", 0.5, "running")
    with pytest.raises(RaylabError, match=message):
        best_values(name, storage)
