"""The command line, in processes of its own: what it answers, with which exit code, and before what is imported."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from raylab.cli import VERBS
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.space import SearchSpace, shipped

PROJECT = Path(__file__).resolve().parents[1]
EXECUTABLE = Path(sys.executable).with_name("raylab")
# Runs a module as `python -m` does, and says at its end which of the slow packages were imported.
MODULE = """
import runpy, sys
module = sys.argv.pop(1)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print("imported:", *sorted({"ray", "torch", "timm", "optuna"} & set(sys.modules)), file=sys.stderr)
"""
SMALL = {
    "model": {"name": "resnet18_avg", "pretrained": False},
    "data": {"dataset": "kitchen", "kitchen": "tiny", "batch_size": 8},
}


@pytest.fixture
def command(tmp_path):
    """Runs a command in an empty folder."""

    def run(*words, **environment):
        return subprocess.run(
            [str(word) for word in words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def verb(command):
    """Runs `python -m raylab.VERB …`."""
    return lambda name, *words, **environment: command(
        sys.executable, "-c", MODULE, f"raylab.{name}", *words, **environment
    )


def space_file(folder, **space):
    data = {"description": "mine", "experiment": SMALL, "space": space, "search": {"grace_epochs": 1}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(data))


# Bad input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tune", "epic_phase2"], "set data.root=PATH"),
        (["tune", "epic_phase2", "optim.lrr=1e-4"], "unknown setting optim.lrr: did you mean optim.lr?"),
        (["tune", "epic_phase2", "optim.lr=-1"], "optim.lr = -1: input should be greater than 0"),
        (["tune", "epic_phase2", "optim.lr"], "'optim.lr' is not an override: write setting=value"),
        (["tune", "epic_phase2", "search.trials=0"], "trials = 0: input should be greater than or equal to 1"),
        (["tune", "epic_phase2", "model.name=resnet50_lstmm"], "did you mean 'resnet50_lstm'?"),
        (["tune", "epic_phase22"], "unknown sweep 'epic_phase22': did you mean 'epic_phase2'?"),
        (["tune", "absent.yaml"], "absent.yaml: no such file"),
        (["tune"], "which sweep? One of aura, distillation, epic_phase1"),
        (["tune", "epic_phase2", "--demo", "--storage", "ftp://host/results"], "storage 'ftp://host/results'"),
        (["train", "epic_phase2", "data.root=$NOWHERE/epic"], "the environment variable in '$NOWHERE/epic' is not set"),
        (["train", "epic_phase2", "--config", "config9"], "unknown configuration 'config9': did you mean 'config8'?"),
        (["results", "epic_phase2"], "results holds none"),
    ],
    ids=lambda value: "_".join(value[:3]) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_code_2_and_a_message_before_ray_and_torch_are_imported(verb, words, message):
    done = verb(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("imported:\n")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("optim.lr", {"choice": [1e-3, -1e-3]}, "mine.yaml: space: optim.lr = -0.001: input should be greater than 0"),
        ("model.dropout", {"uniform": [0.1, 1.5]}, "mine.yaml: space: model.dropout = 1.5: input should be less than"),
        ("model.dropuot", {"uniform": [0.1, 0.5]}, "unknown setting model.dropuot: did you mean model.dropout?"),
        ("optim.lr", {"loguniform": [0.0, 0.1]}, "space: optim.lr = [0, 0.1]: loguniform needs values above 0"),
    ],
)
def test_every_value_of_a_search_space_is_checked_when_its_file_is_read(verb, tmp_path, path, values, message):
    space_file(tmp_path, **{path: values})
    done = verb("tune", "mine.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: mine.yaml: ")
    assert message in done.stderr
    assert done.stderr.endswith("imported:\n")


def test_pretrained_weights_that_cannot_be_had_end_a_dry_run_with_one_message(verb, tmp_path):
    experiment = {**SMALL, "model": {"name": "resnet18_avg", "pretrained": True}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment))
    done = verb("train", "mine.yaml", "--dry-run", HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ImageNet weights for resnet18 (timm/resnet18.")
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    for remedy in ("--dry-run", "model.pretrained=/path/to/weights.safetensors", "model.pretrained=false"):
        assert f" {remedy}\n" in done.stderr


# What is there


@pytest.mark.parametrize("name", VERBS)
def test_help_of_every_verb_shows_an_example(command, name):
    done = command(EXECUTABLE, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: raylab {name} " in done.stdout
    assert f"Example: raylab {name}" in done.stdout


def test_the_console_script_knows_every_verb_and_the_nearest_to_a_wrong_one(command):
    done = command(EXECUTABLE, "--help")
    listed = done.stdout.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in listed if line.strip()] == list(VERBS)
    loaded = "import sys, raylab.cli; raylab.cli.app(); print({'ray', 'torch', 'timm'} & set(sys.modules))"
    assert command(sys.executable, "-c", loaded).stdout == "set()\n"  # all verbs: help comes at once
    wrong = command(EXECUTABLE, "tuna")
    assert wrong.returncode == 2
    assert "Did you mean 'tune'?" in wrong.stderr


def test_the_list_of_sweeps_is_the_same_either_way(command, verb):
    done = verb("tune", "--list")
    assert done.returncode == 0
    assert done.stderr == "imported:\n"
    for name in shipped():
        (line,) = [line for line in done.stdout.splitlines() if f" {name} " in line]
        space = SearchSpace.load(name)
        assert f" {space.trials} " in line
        assert f" {len(space.documented)} " in line
        assert f" {space.search.metric} " in line
    assert command(EXECUTABLE, "tune", "--list").stdout == done.stdout


def test_a_dry_run_says_what_it_found_and_leaves_no_run(verb, tmp_path):
    done = verb("tune", "epic_phase2", "data.kitchen=tiny", "--demo", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "train: 48 clips",
        "val: 24 clips",
        "8 verb classes, 10 noun classes",
        "frames: 12 videos, by pyav; `raylab prepare` makes training faster",
        "weights: random",
    ]
    assert "ray" not in done.stderr.split()
    assert not any((tmp_path / "results").iterdir())


def test_results_of_an_empty_folder_say_so(verb):
    done = verb("results", "--storage", "nothing [here]")
    assert done.returncode == 0
    assert done.stdout.startswith("no runs under nothing [here]")
    assert done.stderr == "imported:\n"


def test_results_list_runs_and_show_a_leaderboard_with_the_cause_of_a_failure(verb, tmp_path):
    space_file(tmp_path, **{"optim.lr": {"choice": [0.001, 0.01]}})
    space = SearchSpace.load(str(tmp_path / "mine.yaml"))
    sweep = SweepFolder(Folder.open(tmp_path / "results" / "mine"))
    sweep.create(space, {})
    sweep.run("waiting").create(space.trial({"optim.lr": 0.001}), "mine")
    sweep.run("broken").create(space.trial({"optim.lr": 0.01}), "mine")
    sweep.run("broken").set_status("failed", "[/gloo/pair.cc:1] connection closed")

    listed = verb("results")
    assert listed.returncode == 0
    rows = [line.split("│")[1:-1] for line in listed.stdout.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row][:4] for row in rows] == [
        ["broken", "mine", "failed", "0"],
        ["waiting", "mine", "created", "0"],
    ]
    assert listed.stderr == "imported:\n"

    board = verb("results", "mine")
    assert board.returncode == 0, board.stderr
    assert "mine: mine" in board.stdout
    assert "[/gloo/pair.cc:1] connection closed" in board.stdout


# The installed package


def test_a_wheel_carries_the_search_spaces(command, tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", PROJECT, "--no-deps", "--quiet", "--wheel-dir", tmp_path / "wheels"]
    built = command(*build)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = "import raylab; print(raylab.__file__)"
    where = command(sys.executable, "-c", program, PYTHONPATH=str(tmp_path / "site"))
    assert Path(where.stdout.strip()) == tmp_path / "site" / "raylab" / "__init__.py"
    done = command(sys.executable, "-m", "raylab.tune", "--list", PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert all(f" {name} " in done.stdout for name in shipped())
