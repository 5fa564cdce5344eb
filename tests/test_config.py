import pytest

from raylab.config import DataConfig, DistillConfig, Experiment
from raylab.errors import RaylabError
from raylab.schema import parse_overrides, read_yaml, settings


def test_every_setting_survives_a_round_trip_through_a_plain_dict():
    experiment = Experiment().override({"optim.lr": 3e-5, "train.clip_norm": None, "loss.weights.noun": 0.5})
    assert Experiment.parse(experiment.to_dict()) == experiment
    assert experiment.get("loss.weights.noun") == 0.5


def test_an_override_changes_only_what_it_names():
    base = Experiment()
    changed = base.override(parse_overrides(["model.dropout=0.4", "data.batch_size=16", "train.patience=null"]))
    different = {path for path in settings(Experiment) if base.get(path) != changed.get(path)}
    assert different == {"model.dropout", "data.batch_size"}


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("model.dropuot=0.4", ["unknown setting model.dropuot", "did you mean model.dropout?"]),
        ("dropout=0.4", ["unknown setting dropout", "did you mean model.dropout?"]),
        ("model.name.x=1", ["unknown setting model.name.x"]),
        ("optim.lr=-1", ["optim.lr = -1", "greater than 0"]),
        ("data.batch_size=many", ["data.batch_size = 'many'", "integer"]),
        ("model.dropout=1", ["model.dropout = 1", "less than 1"]),
        ("train.precision=fp8", ["train.precision = 'fp8'", "'fp32', 'fp16' or 'bf16'"]),
        ("data.root=$RAYLAB_NOT_SET/x", ["data.root", "RAYLAB_NOT_SET", "not set"]),
        ("optim.lr=[1", ["optim.lr=[1", "not valid YAML"]),
        ("data.variants=0", ["data.variants = 0", "greater than or equal to 1"]),
        ("distill.hidden_layers_to_align=0", ["distill.hidden_layers_to_align = 0", "-1 is the last, 1 the first"]),
        ("distill.hidden_layers_to_align=[-1,-1]", ["distill.hidden_layers_to_align", "each once"]),
        ("distill.hidden_layers_to_align=", ["distill.hidden_layers_to_align", "e.g. [-1, -2, -3]"]),
        ("train.stages=[{epochs: 1}]", ["train.stages.0.lr", "required"]),
        ("train.stages=[{epochs: 1, lr: 1, freez: encoder}]", ["did you mean train.stages.0.freeze?"]),
        ("train.stages=[{epochs: 1, lr: 1, freeze: encoder, unfreeze_blocks: 2}]", ["contradict each other: remove"]),
        ("train.stages.0.lr=1", ["unknown setting train.stages.0.lr: the list is shorter"]),
        ("fast", ["'fast' is not an override", "optim.lr=1e-4"]),
    ],
)
def test_bad_overrides_name_the_field_the_value_and_the_remedy(word, parts):
    with pytest.raises(RaylabError) as error:
        Experiment().override(parse_overrides([word]))
    for part in parts:
        assert part in str(error.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(RaylabError) as error:
        Experiment.parse({"optim": {"lr": 0}, "model": {"dropout": 2}}, "mine.yaml")
    assert str(error.value).count("mine.yaml") == 2


@pytest.mark.parametrize(
    ("text", "value"), [("5e-5", 5e-5), ("1E-4", 1e-4), ("1e5", 1e5), (".5e-3", 5e-4), ("-2e-3", -2e-3)]
)
def test_numbers_are_read_as_yaml_1_2_reads_them(text, value):
    assert parse_overrides([f"optim.lr={text}"]) == {"optim.lr": value}


def test_user_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("DATA_DISK", "/data")
    assert Experiment().override({"data.root": "$DATA_DISK/epic"}).data.root == "/data/epic"


def test_yaml_files_refuse_repeated_keys_code_and_other_shapes(tmp_path):
    file = tmp_path / "x.yaml"
    for text, part in [
        ("a: 1\na: 2\n", "'a' stands twice"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("- 1\n", "expected settings"),
        ("a: [1\n", "not valid YAML"),
    ]:
        file.write_text(text)
        with pytest.raises(RaylabError, match=part) as error:
            read_yaml(file)
        assert str(file) in str(error.value)
    with pytest.raises(RaylabError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("changes", "repeats", "draws"),
    [
        ({}, False, [0, 1, 2, 3]),  # augmented
        ({"augment": "none"}, True, [0, 1, 2, 3]),  # of which nothing depends
        ({"augment": "none", "sampling": "segments"}, False, [0, 1, 2, 3]),
        ({"variants": 3}, True, [0, 1, 2, 0]),
        ({"variants": 1, "sampling": "segments"}, True, [0, 0, 0, 0]),
    ],
    ids=str,
)
def test_training_meets_the_same_pixels_again_where_nothing_or_few_things_are_drawn(changes, repeats, draws):
    data = DataConfig(**changes)
    assert data.repeats == repeats
    assert [data.draw(epoch) for epoch in range(4)] == draws


@pytest.mark.parametrize("written", ["[-1, 2, -12]", "-1,2,-12", " -1 , 2,-12 ", [-1, 2, -12], (-1, 2, -12)])
def test_layers_are_a_list_or_its_text(written):
    distill = DistillConfig(hidden_layers_to_align=written)
    assert distill.hidden_layers_to_align == "-1,2,-12"
    assert distill.layers == (-1, 2, -12)
    assert DistillConfig(hidden_layers_to_align=-1).layers == (-1,)


@pytest.mark.parametrize(
    ("changes", "sources"),
    [
        ({}, {"teacher": 1.0, "assistant": 0.8}),
        ({"teacher": None}, {"assistant": 0.8}),
        ({"assistant": None}, {"teacher": 1.0}),
        ({"assistant": None, "assistant_model_path": "mine.pth"}, {"teacher": 1.0, "assistant": 0.8}),
        ({"teacher_feature_weight": 0, "assistant_feature_weight": 0.3}, {"assistant": 0.3}),
        ({"feature_distillation_weight": 0, "attention_distillation_weight": 0}, {"teacher": 1.0, "assistant": 0.8}),
        ({f"{term}_distillation_weight": 0 for term in ("feature", "attention", "asymmetric", "logit")}, {}),
    ],
    ids=str,
)
def test_sources_are_those_that_are_named_and_weigh_something(changes, sources):
    assert DistillConfig(**changes).sources == sources


STAGES = [{"epochs": 10, "lr": 1e-4, "freeze": "encoder"}, {"epochs": 20, "lr": 1e-5, "unfreeze_blocks": 2, "clip": 1}]


def test_stages_are_overridden_one_setting_at_a_time():
    staged = Experiment().override({"train.stages": STAGES})
    assert (Experiment().train.length, staged.train.length) == (25, 30)
    assert Experiment.parse(staged.to_dict()) == staged
    changed = staged.override(parse_overrides(["train.stages.1.lr=3e-5", "train.stages.0.epochs=2"]))
    assert (changed.get("train.stages.1.lr"), changed.train.length) == (3e-5, 22)
    assert changed.stages[0].model_copy(update={"epochs": 10}) == staged.stages[0]
    assert staged.has("train.stages.1.clip")
    assert not any(staged.has(path) for path in ("train.stages.2.clip", "train.stages.x.clip", "train.stages.0.x"))


def test_a_run_without_stages_is_one():
    (stage,) = Experiment().override({"train.epochs": 7, "optim.lr": 2e-3, "train.clip_norm": 3}).stages
    assert (stage.epochs, stage.lr, stage.clip, stage.freeze, stage.unfreeze_blocks) == (7, 2e-3, 3, None, None)


@pytest.mark.parametrize(
    ("setting", "own"), [("train.epochs", "epochs"), ("optim.lr", "lr"), ("train.clip_norm", "clip")]
)
def test_what_stages_have_of_their_own_is_refused_beside_them(setting, own):
    staged = Experiment().override({"train.epochs": 3}).override({"train.stages": STAGES})  # which replace them
    section, name = setting.split(".")
    message = rf"{setting}: every stage .* its own {own}: remove {setting}.*stages\.0\.{own}"
    with pytest.raises(RaylabError, match=message):
        staged.override({setting: Experiment().get(setting)})
    written = staged.to_dict()
    written[section][name] = 1
    with pytest.raises(RaylabError, match=f"mine.yaml: {message}"):
        Experiment.parse(written, "mine.yaml")
    assert staged.override({"train.stages": [], setting: 2}).get(setting) == 2
