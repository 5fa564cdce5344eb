"""The study and the scheduler across restarts, without a cluster."""

import json

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.experiment import Trial

from raylab.errors import RaylabError
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.search import NAME, OBJECTIVE, ResumedASHA, StudySearch, mend_journal, trial_name
from raylab.sweeps.space import SearchSpace
from raylab.sweeps.sweep import Keeper, Turn, settle


@pytest.fixture
def space():
    return SearchSpace.load("epic_phase2").override(["search.trials=20"])


def objective(values):
    """Smooth, with its best inside the space."""
    return 1 - abs(values.get("model.dropout", 0.5) - 0.45) - values.get("model.drop_path", 0.1)


def run_trials(search, count, first=0):
    """Ask and tell as Ray Tune does, one trial at a time."""
    asked = []
    for index in range(first, first + count):
        config = search.suggest(f"id{index}")
        search.on_trial_complete(f"id{index}", {OBJECTIVE: objective(config["values"]), "training_iteration": 1})
        asked.append(config)
    return asked


def suggest(search, index):
    return run_trials(search, 1, first=index)[0]


def test_documented_configurations_come_first_by_name_and_in_order(space, tmp_path):
    asked = run_trials(StudySearch(space, tmp_path / "study"), 10)
    assert [config["name"] for config in asked] == [*space.documented, "trial009", "trial010"]
    assert [config["values"] for config in asked[:8]] == list(space.documented.values())
    assert all(space.space[path].holds(value) for config in asked for path, value in config["values"].items())


def test_a_grid_is_walked_once_whoever_walks_it(tmp_path):
    space = SearchSpace.load("epic_resnet18")
    points = [space.documented["baseline"], *space.grid]
    started = StudySearch(space.override(["search.sampler=random"]), tmp_path / "study")  # as killed in mid-queue
    assert len(started.trials) == 1
    first = [suggest(StudySearch(space, tmp_path / "study"), index) for index in range(11)]
    search = StudySearch(space, tmp_path / "study")
    rest = [suggest(search, index) for index in range(11, 27)]
    assert [config["values"] for config in first + rest] == points
    assert [config["name"] for config in first][:3] == ["baseline", "trial002", "trial003"]
    assert search.remaining == []


def test_a_grid_may_be_walked_model_by_model(tmp_path):
    whole = SearchSpace.load("aura").override(["data.folds=2"])
    some = whole.override(["models=vit_gru"])
    killed = StudySearch(whole, tmp_path / "study", concurrent=2)
    assert [killed.suggest("a")["name"], killed.suggest("b")["name"]] == [
        f"logistic_regression-fold{n}" for n in (0, 1)
    ]
    killed.on_trial_complete("a", {OBJECTIVE: 0.5, "training_iteration": 1})

    search = StudySearch(some, tmp_path / "study")
    assert [config["name"] for config in run_trials(search, some.trials)] == ["vit_gru-fold0", "vit_gru-fold1"]
    assert all(trial.state.is_finished() for trial in search.ours)

    rest = StudySearch(whole, tmp_path / "study")
    asked = run_trials(rest, whole.trials - 3)
    done = {"logistic_regression-fold0", "vit_gru-fold0", "vit_gru-fold1"}
    assert [config["name"] for config in asked] == [name for name in whole.rows if name not in done]
    assert all(whole.rows[config["name"]] == config["values"] for config in asked)
    assert rest.remaining == []


def test_a_grid_that_was_begun_with_some_models_takes_others_in(tmp_path):
    whole = SearchSpace.load("aura")
    folder = SweepFolder(Folder.open(tmp_path / "aura"))
    for space in (whole.override(["models=vit_gru"]), whole, whole.override(["models=svm,x3d"])):
        folder.create(space, {})
    assert folder.space.models == ["svm", "x3d"]
    for word in ("data.folds=3", "optim.lr=1e-3", "data.fold_seed=1"):
        with pytest.raises(RaylabError, match="holds a sweep with other settings"):
            folder.create(whole.override([word]), {})


def test_a_new_process_proposes_what_the_old_one_would_have(space, tmp_path):
    whole = run_trials(StudySearch(space, tmp_path / "whole"), 16)
    first = run_trials(StudySearch(space, tmp_path / "parts"), 11)
    rest = run_trials(StudySearch(space, tmp_path / "parts"), 5, first=11)
    assert [*first, *rest] == whole


def test_another_seed_proposes_something_else(space, tmp_path):
    other = space.override(["seed=1"])
    one, two = (run_trials(StudySearch(s, tmp_path / str(s.experiment.seed)), 12)[8:] for s in (space, other))
    assert all(a["values"] != b["values"] for a, b in zip(one, two, strict=True))


def test_tpe_beats_chance_after_its_start(space, tmp_path):
    asked = run_trials(StudySearch(space, tmp_path / "study"), 40)
    sampled = [objective(config["values"]) for config in asked[10:]]
    assert sum(sampled[-15:]) / 15 > sum(objective(c["values"]) for c in asked[8:12]) / 4


def test_unfinished_trials_are_handed_out_again_under_their_names(space, tmp_path):
    search = StudySearch(space, tmp_path / "study", concurrent=3)
    run_trials(search, 7)
    lost = [search.suggest("lost8"), search.suggest("lost9")]  # never told: the process dies here
    again = StudySearch(space, tmp_path / "study", concurrent=3)
    assert [trial_name(t) for t in again.unfinished] == ["config8", "trial009"]
    assert [again.suggest("a"), again.suggest("b")] == lost
    assert again.suggest("c")["name"] == "trial010"


def test_trials_that_ended_unheard_are_told_to_the_study(space, tmp_path):
    folder = SweepFolder(Folder.open(tmp_path / "sweep"))
    folder.create(space, {})
    search = StudySearch(space, folder.journal(), concurrent=3)
    for index in range(3):
        config = search.suggest(str(index))
        folder.run(config["name"]).create(space.trial(config["values"]), space.name)
    folder.run("config1").set_status("finished")
    folder.run("config1").write_history([{"epoch": 30, OBJECTIVE: 0.25}])
    folder.run("config2").set_status("failed", "out of memory")
    folder.run("config3").set_status("running")

    search = StudySearch(space, folder.journal())
    settle(folder, search)
    states = {trial_name(t): t.state for t in search.trials}
    assert (states["config1"], states["config2"], states["config3"]) == (
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.RUNNING,
    )
    assert search.trials[0].value == 0.25
    assert [trial_name(t) for t in search.unfinished] == ["config3"]
    assert folder.run("config3").status()["state"] == "created"  # it waits for its turn again


def test_one_trial_more_than_run_at_once_is_proposed_when_one_of_them_has_reported(space, tmp_path):
    search = StudySearch(space, tmp_path / "study", concurrent=2)
    assert [search.suggest(name)["name"] for name in "ab"] == ["config1", "config2"]
    assert search.suggest("c") is None
    search.on_trial_result("b", {OBJECTIVE: 0.1, "training_iteration": 1})
    assert search.suggest("c")["name"] == "config3"
    assert search.suggest("d") is None
    search.on_trial_complete("a", error=True)  # without a single report
    assert search.suggest("d")["name"] == "config4"


def test_trials_train_in_the_order_of_their_proposals_and_no_more_at_once_than_fit(space, tmp_path):
    folder = SweepFolder(Folder.open(tmp_path / "sweep"))
    folder.create(space, {})
    trials = [
        Trial("driver", config={NAME: name, "values": {}}, stub=True) for name in ("config1", "config2", "config3")
    ]
    runs = [folder.run(trial.config[NAME]) for trial in trials]
    for run in runs:
        run.create(space.trial({}), space.name)
    keeper = Keeper(folder, keep_trials=1, concurrent=1)
    keeper.on_trial_start(0, trials, trials[1])  # its driver was up first
    assert [run.status()["state"] for run in runs] == ["running", "created", "created"]
    keeper.on_trial_complete(0, trials, trials[0])
    assert [run.status()["state"] for run in runs] == ["stopped", "running", "created"]
    Turn(runs[1]).before_worker_group_start(None)  # returns


def test_a_torn_journal_and_a_dead_lock_are_mended(space, tmp_path):
    journal = tmp_path / "study"
    run_trials(StudySearch(space, journal), 3)
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "worker')
    (tmp_path / "study.lock").symlink_to(journal)
    mend_journal(journal)
    assert journal.read_bytes() == whole
    search = StudySearch(space, journal)
    assert sum(t.state == TrialState.COMPLETE for t in search.trials) == 3
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    mend_journal(tmp_path / "absent")


def test_the_study_opens_with_optunas_own_tools(space, tmp_path):
    run_trials(StudySearch(space, tmp_path / "study"), 9)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study"))
    study = optuna.load_study(study_name=space.name, storage=optuna.storages.JournalStorage(backend))
    assert study.best_value == max(t.value for t in study.trials if t.value is not None)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


class FakeTrial:
    """What ASHA looks at in a trial."""

    def __init__(self, name):
        self.trial_id = f"id-{name}"
        self.config = {"name": name}


def test_asha_remembers_what_earlier_processes_measured():
    rows = {f"run{i}": [{"epoch": e, OBJECTIVE: 0.1 * i} for e in (1, 2, 3)] for i in range(1, 7)}
    settings = {
        "metric": OBJECTIVE,
        "mode": "max",
        "time_attr": "epoch",
        "max_t": 10,
        "grace_period": 1,
        "reduction_factor": 3,
        "stop_last_trials": False,
    }
    informed = ResumedASHA(lambda name: rows.get(name, []), list(rows), **settings)
    ignorant = ResumedASHA(lambda name: [], [], **settings)
    poor = FakeTrial("new")
    for scheduler, decision in ((informed, "STOP"), (ignorant, "CONTINUE")):
        scheduler.on_trial_add(None, poor)
        assert scheduler.on_trial_result(None, poor, {"epoch": 1, OBJECTIVE: 0.05}) == decision
    good = FakeTrial("better")
    informed.on_trial_add(None, good)
    assert informed.on_trial_result(None, good, {"epoch": 1, OBJECTIVE: 0.9}) == "CONTINUE"


def test_asha_does_not_hear_a_resumed_trial_twice():
    rows = {"half": [{"epoch": e, OBJECTIVE: 0.5} for e in (1, 2, 3)]}
    settings = {"metric": OBJECTIVE, "mode": "max", "time_attr": "epoch", "max_t": 10, "grace_period": 1}
    scheduler = ResumedASHA(lambda name: rows.get(name, []), [], reduction_factor=3, **settings)
    half = FakeTrial("half")
    scheduler.on_trial_add(None, half)
    before = [dict(recorded) for _, recorded in scheduler._brackets[0]._rungs]
    scheduler.on_trial_result(None, half, {"epoch": 3, OBJECTIVE: 0.5})
    assert [dict(recorded) for _, recorded in scheduler._brackets[0]._rungs] == before


def test_one_process_at_a_time_works_on_a_sweep(tmp_path):
    from raylab.errors import RaylabError

    folder = SweepFolder(Folder.open(tmp_path / "sweep"))
    with (
        folder.locked(),
        pytest.raises(RaylabError, match="another process is working on this sweep"),
        folder.locked(),
    ):
        pass
    with folder.locked():
        pass


def test_a_sweep_goes_on_with_more_trials_but_not_with_other_settings(space, tmp_path):
    from raylab.errors import RaylabError

    folder = SweepFolder(Folder.open(tmp_path / "sweep"))
    folder.create(space, {})
    folder.create(space.override(["search.trials=50", "resources.workers=4", "search.keep_trials=2"]), {})
    assert folder.space.search.trials == 50
    for changed in ("optim.weight_decay=0.1", "search.metric=val/verb_top1", "model.dropout=0.5"):
        with pytest.raises(RaylabError, match="--fresh"):
            folder.create(space.override([changed]), {})
