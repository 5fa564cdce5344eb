from itertools import product

import pytest

from raylab.config import Experiment
from raylab.errors import RaylabError
from raylab.models.registry import batches, find_model
from raylab.schema import read_yaml
from raylab.sweeps.space import SearchSpace, find, shipped

DOCUMENTED = {  # lr, batch size, dropout, label smoothing, drop path
    "config1": (5e-5, 24, 0.5, 0.1, 0.1),
    "config2": (1e-4, 24, 0.4, 0.1, 0.1),
    "config3": (5e-5, 32, 0.5, 0.15, 0.1),
    "config4": (5e-5, 24, 0.6, 0.1, 0.15),
    "config5": (3e-5, 24, 0.5, 0.1, 0.1),
    "config6": (5e-5, 16, 0.5, 0.1, 0.1),
    "config7": (5e-5, 24, 0.5, 0.2, 0.1),
    "config8": (5e-5, 24, 0.4, 0.1, 0.05),
}


def small(**changes):
    data = {
        "description": "a space",
        "experiment": {"train": {"epochs": 10}},
        "space": {"optim.lr": {"loguniform": [1e-5, 1e-3]}, "data.batch_size": {"choice": [8, 16]}},
        "documented": {"first": {"optim.lr": 1e-4, "data.batch_size": 16}},
        **changes,
    }
    return SearchSpace.parse(data, "mine", "mine.yaml")


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_space_is_valid_and_survives_a_round_trip(name):
    space = SearchSpace.load(name)
    assert space.source
    assert SearchSpace.model_validate(space.model_dump(mode="json")) == space
    if space.demo:
        built_in = ("kitchen", "kitchen_labelled", "kitchen_keyframes", "kitchen_aura")
        assert space.for_demo().experiment.data.dataset in built_in
        assert space.for_demo().name == f"{name}_demo"


def test_phase_2_holds_the_published_grid():
    space = SearchSpace.load("epic_phase2")
    paths = ("optim.lr", "data.batch_size", "model.dropout", "loss.label_smoothing", "model.drop_path")
    assert {row: tuple(values[path] for path in paths) for row, values in space.documented.items()} == DOCUMENTED
    assert set(space.space) == set(paths)
    first = space.trial(space.documented["config1"])
    assert (first.optim.weight_decay, first.train.clip_norm, first.data.frames, first.data.size) == (1e-4, 1.0, 16, 224)
    assert (first.train.precision, first.optim.schedule) == ("fp16", "cosine_warm_restarts")


def test_phase_1_compares_the_six_architectures_and_nothing_else():
    space = SearchSpace.load("epic_phase1")
    names = space.space["model.name"].values
    assert names == list(space.documented) == [row["model.name"] for row in space.documented.values()]
    assert set(space.space) == {"model.name"}
    assert (space.trials, space.search.scheduler, space.experiment.train.patience) == (6, "none", None)
    trials = [trial.override({"model.name": "resnet50_avg"}) for trial in space.variants]
    assert all(trial == trials[0] for trial in trials)


def test_the_simple_baseline_has_the_published_27_points():
    space = SearchSpace.load("epic_resnet18")
    points = [space.documented["baseline"], *space.grid]
    found = {(p["data.batch_size"], p["optim.lr"], p["data.frames"]) for p in points}
    assert found == set(product((16, 32, 64), (5e-5, 1e-4, 2e-4), (8, 12, 16)))
    assert len(points) == space.trials == 27
    trial = space.trial(space.documented["baseline"])
    optim, train = trial.optim, trial.train
    assert (optim.schedule, optim.plateau_factor, optim.plateau_patience) == ("plateau", 0.5, 3)
    assert (trial.monitor, train.mode, train.epochs, train.keep_every) == ("val/action_top1", "max", 30, 5)
    assert (trial.model.dropout, trial.loss.label_smoothing, optim.weight_decay) == (0.3, 0, 1e-4)


def test_phase_3_begins_where_phase_2_was_best():
    phase2, phase3 = SearchSpace.load("epic_phase2"), SearchSpace.load("epic_phase3")
    first = phase3.trial(phase3.documented["phase2_best"])
    best = phase2.trial(phase2.documented["config1"])
    assert (
        first.override({"model.name": best.model.name, "model.temporal_width": None, "model.temporal_layers": None})
        == best
    )


def grid(**changes):
    space = {"data.batch_size": {"choice": [8, 16]}, "optim.restart_epochs": {"randint": [2, 4]}}
    settings = {"space": space, "documented": {"first": {"data.batch_size": 16, "optim.restart_epochs": 3}}}
    return small(**{**settings, "search": {"sampler": "grid"}, **changes})


def test_a_grid_holds_every_point_once_the_documented_ones_first():
    space = grid()
    points = [tuple(point.values()) for point in (space.documented["first"], *space.grid)]
    assert points == [(16, 3), (8, 2), (8, 3), (8, 4), (16, 2), (16, 4)]
    assert space.trials == 6
    assert space.override(["search.trials=4"]).trials == 4


def test_a_fixed_setting_makes_a_grid_smaller():
    space = grid().override(["data.batch_size=8"])
    assert (space.trials, space.documented) == (3, {})
    assert space.grid == [{"optim.restart_epochs": epochs} for epochs in (2, 3, 4)]


def test_variants_show_every_choice():
    space = small(
        space={"model.name": {"choice": ["resnet50_avg", "resnet50_lstm"]}, "optim.lr": {"uniform": [1e-4, 1]}},
        documented={},
    )
    assert [variant.model.name for variant in space.variants] == ["resnet50_avg", "resnet50_lstm"]


def test_a_sweep_starts_from_a_configuration_of_another():
    phase3 = SearchSpace.load("epic_phase3")
    values = {"optim.lr": 3e-4, "model.dropout": 0.4, "data.batch_size": 16, "loss.label_smoothing": 0.2}
    space = phase3.starting_from(values, "from_epic_phase2")
    first, second = space.documented
    assert (first, second) == ("from_epic_phase2", "phase2_best")
    trial = space.trial(space.documented[first])
    assert {path: trial.get(path) for path in values} == values == space.taken
    other = space.trial(space.documented[second])
    assert (other.data.batch_size, other.loss.label_smoothing, other.optim.lr) == (16, 0.2, 5e-5)
    assert space.space["optim.lr"].ends == [2e-5, 3e-4]
    assert space.space["model.dropout"] == phase3.space["model.dropout"]
    space.check("mine")
    assert SearchSpace.model_validate(space.model_dump(mode="json")) == space


def test_settings_that_a_model_does_not_have_are_not_taken():
    values = {"model.drop_path": 0.1, "model.dropout": 0.2}
    space = SearchSpace.load("epic_resnet18").starting_from(values, "from_other")
    assert space.taken == {"model.dropout": 0.2}
    assert space.experiment.model.dropout == 0.2


def test_a_row_takes_what_it_leaves_open_from_the_base_experiment():
    space = small(documented={"first": {"optim.lr": 1e-4}}, experiment={"data": {"batch_size": 8}})
    assert space.documented["first"] == {"optim.lr": 1e-4, "data.batch_size": 8}


def test_trials_are_experiments_monitored_by_the_sweeps_metric():
    trial = small(search={"metric": "val/verb_top1", "grace_epochs": 2}).trial({"optim.lr": 2e-4})
    assert isinstance(trial, Experiment)
    assert (trial.optim.lr, trial.train.monitor) == (2e-4, "val/verb_top1")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"space": {"optim.lrr": {"uniform": [0.1, 1]}}, "documented": {}}, ["optim.lrr", "optim.lr"]),
        ({"space": {"optim.lr": {"uniform": [-1.0, 1]}}, "documented": {}}, ["optim.lr = -1.0", "greater than 0"]),
        ({"space": {"optim.lr": {"loguniform": [1, 0.1]}}, "documented": {}}, ["less than the second"]),
        ({"space": {"optim.lr": {"loguniform": [0, 1]}}, "documented": {}}, ["above 0"]),
        ({"space": {"optim.lr": {"normal": [0, 1]}}, "documented": {}}, ["normal"]),
        ({"space": {"optim.lr": {"choice": []}}, "documented": {}}, ["at least 1 item"]),
        ({"space": {"optim.lr": {}}, "documented": {}}, ["choice, uniform, loguniform, randint"]),
        ({"space": {}, "documented": {}}, ["space is empty"]),
        ({"space": {"resources.workers": {"choice": [1, 2]}}, "documented": {}}, ["resources.workers", "whole sweep"]),
        ({"space": {"data.batch_size": {"choice": [8, "x"]}}, "documented": {}}, ["data.batch_size = 'x'"]),
        ({"documented": {"bad": {"optim.lr": 0.5}}}, ["documented.bad", "optim.lr = 0.5", "outside the space"]),
        ({"documented": {"bad": {"model.dropout": 0.5}}}, ["documented.bad", "model.dropout"]),
        ({"search": {"trails": 3}}, ["trails", "trials"]),
        ({"search": {"grace_epochs": 20}}, ["search.grace_epochs = 20", "train.epochs = 10"]),
        ({"experiment": {"optim": {"lr": "fast"}}}, ["optim.lr = 'fast'"]),
        ({"search": {"sampler": "grid"}}, ["search.sampler = grid", "optim.lr is continuous", "search.sampler=tpe"]),
    ],
)
def test_bad_spaces_are_refused_when_they_are_read(changes, parts):
    with pytest.raises(RaylabError) as error:
        small(**changes)
    for part in ["mine.yaml", *parts]:
        assert part in str(error.value)


def test_settings_of_stages_are_searched_and_fixed_like_others():
    stages = [{"epochs": 2, "lr": 1e-3, "freeze": "encoder"}, {"epochs": 4, "lr": 1e-4}]
    space = small(
        experiment={"train": {"stages": stages}},
        space={"train.stages.1.lr": {"choice": [1e-4, 1e-5]}, "model.dropout": {"uniform": [0, 0.5]}},
        documented={"mine": {"model.dropout": 0.2}, "other": {"train.stages.1.lr": 1e-5, "model.dropout": 0.1}},
    )
    assert space.documented["mine"] == {"model.dropout": 0.2, "train.stages.1.lr": 1e-4}
    assert [stage.lr for stage in space.trial({"train.stages.1.lr": 1e-5}).stages] == [1e-3, 1e-5]
    fixed = space.override(["train.stages.1.lr=1e-5", "train.stages.0.epochs=1"])
    assert list(fixed.documented) == ["other"]
    assert fixed.trial({}).train.length == 5
    with pytest.raises(RaylabError, match=r"grace_epochs = 7 is more than the 6 epochs of train\.stages"):
        space.override(["search.grace_epochs=7"])
    with pytest.raises(RaylabError, match=r"train\.epochs: every stage of train\.stages has its own epochs"):
        space.override(["train.epochs=3"])


def test_fixing_a_searched_setting_drops_it_and_the_rows_that_disagree():
    space = SearchSpace.load("epic_phase2").override(["model.dropout=0.4", "search.trials=9"])
    assert "model.dropout" not in space.space
    assert list(space.documented) == ["config2", "config8"]
    assert space.search.trials == 9
    assert space.trial({}).model.dropout == 0.4


def test_a_space_with_everything_fixed_is_no_sweep():
    with pytest.raises(RaylabError, match="raylab train"):
        small().override(["optim.lr=1e-4", "data.batch_size=8"])


def test_spaces_are_found_by_name_and_by_path(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(find("epic_phase2").read_text())
    assert SearchSpace.load(str(mine)).name == "mine"
    with pytest.raises(RaylabError, match="did you mean 'epic_phase2'"):
        find("epic_phase_2")
    with pytest.raises(RaylabError, match="no such file"):
        find("absent.yaml")


def test_models_by_folds_in_the_documented_order():
    space = SearchSpace.load("aura")
    assert list(space.rows)[:7] == [*(f"logistic_regression-fold{fold}" for fold in range(5)), "svm-fold0", "svm-fold1"]
    assert len(space.rows) == space.trials == 35
    chosen = space.override(["models=slowfast,vit_gru", "data.folds=3"])
    assert chosen.values("model.name") == ["vit_gru", "slowfast"]
    assert list(chosen.rows) == [f"{model}-fold{fold}" for model in ("vit_gru", "slowfast") for fold in range(3)]
    assert chosen.trials == 6
    assert {trial.data.folds for trial in chosen.variants} == {3}
    one = space.override(["models=x3d", "data.fold=2"])
    assert one.trials == 1
    assert not one.cross_validated


def test_every_model_has_its_documented_clip_and_batches():
    space = SearchSpace.load("aura")
    found = {}
    for values in space.grid:
        trial = space.trial(values)
        found[trial.model.name] = (*batches(trial), trial.data.frames)
    assert found == {
        "logistic_regression": (64, 1, 16),
        "svm": (64, 1, 16),
        "naive_cnn": (16, 1, 16),
        "vit_gru": (4, 4, 16),
        "vit_transformer": (2, 8, 16),
        "slowfast": (2, 8, 64),
        "x3d": (4, 4, 16),
    }
    fixed = space.override(["data.frames=32"])
    assert {fixed.trial(values).data.frames for values in fixed.grid} == {32}
    assert space.override(["model.name=slowfast"]).trial({}).data.frames == 64


def test_a_model_is_not_given_what_it_has_no_part_for():
    space = SearchSpace.load("aura").override(["model.pretrained=false", "model.dropout=0.1"])
    trials = [space.trial(values) for values in space.grid]
    for trial in trials:
        find_model(trial.model.name).check(trial.model)
    assert {t.model.dropout for t in trials if t.model.name == "vit_gru"} == {0.1}
    assert {t.model.dropout for t in trials if t.model.name == "svm"} == {0.3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models=vit_grru"], "did you mean 'vit_gru'"),
        (["models="], "unknown model 'None'"),
        (["models=svm,"], "unknown model ''"),
    ],
)
def test_wrong_choices_of_models(words, message):
    with pytest.raises(RaylabError, match=message):
        SearchSpace.load("aura").override(words)


def test_models_cannot_be_chosen_where_there_is_one():
    with pytest.raises(RaylabError, match=r"is no grid over models: set model\.name"):
        SearchSpace.load("epic_phase2").override(["models=resnet50_avg"])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"model.name": {"vit": {"data.frames": 8}}}, r"own\.model\.name\.vit: vit is not a choice"),
        ({"optim.lr": {"1": {"data.frames": 8}}}, "is not a choice of a searched setting optim.lr"),
        ({"model.name": {"svm": {"data.frame": 8}}}, "own.model.name.svm: unknown setting data.frame"),
    ],
)
def test_what_a_value_has_of_its_own_is_checked(own, message):
    data = read_yaml(find("aura")) | {"own": own}
    with pytest.raises(RaylabError, match=message):
        SearchSpace.parse(data, "aura", "aura.yaml")
