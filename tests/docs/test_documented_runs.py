"""The documented commands, run. What needs a cluster, published data or hours is run in its nearest form: `NEAREST`.

Three pages are followed to the letter, in an empty folder: your own data, your own sweep, your own model.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documented import PAGES, PROJECT, all_commands, blocks, commands

pytestmark = pytest.mark.slow

TINY = "data.max_clips=48 train.epochs=1"
SHORT = f"{TINY} search.trials=2 search.grace_epochs=1"
DATA = r"data\.root=\S+"
# Pattern of a command → what is run instead: the first that fits. What none fits is run as it stands.
NEAREST = [
    (rf"(prepare \w+) {DATA}$", r"\1 --demo"),
    (rf"(tune aura) {DATA} (models=\S+)$", r"\1 --demo --dry-run \2"),
    (rf"((?:tune|train) \w+)(?: {DATA})?((?: resources\.workers=\d+)?)(?: --dry-run)?$", r"\1 --demo --dry-run\2"),
    (r"(tune epic_phase2 --demo)$", rf"\1 {SHORT}"),
    (r"(train epic_phase2) --config config3 resources\.workers=4$", r"\1 --config config3 --demo --dry-run"),
    (r"(train distillation) distill\.teacher.*", r"\1 --demo --dry-run distill.teacher=null distill.assistant=null"),
    (r"(raylab[. ](?:app|dashboard))( .*)?$", r"\1 --help"),  # run by tests/browser and the tests of the dashboard
    (r"\b(\w+) epic_phase2_demo$", r"\1 epic_phase2"),
    (r"( epic_phase2 epic_phase3 --ensemble)$", r"\1 data.max_clips=24"),
    (r"raylab\.doctor$", "raylab.doctor --quick"),
]
# What is not run from here: of a site or its SLURM (typed by tests/cluster/slurm), or the suites themselves.
ELSEWHERE = re.compile(r"make |sbatch |ray |ssh |srun |module |git |cd |exit|tail |squeue|\.venv/bin/|python -m venv")
LETTER = ("docs/data.md", "docs/your-model.md")
MODELS = {"epic_phase1": "train", "epic_phase2": "tune", "epic_phase3": "train", "keyframes": "train"}


def shell(command, folder, **environment):
    """Run a command as bash does, and return what it printed."""
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    paths["RAYLAB_CACHE"] = os.environ["RAYLAB_CACHE"] + "-documented"  # clip stores that are made do not serve others
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "VSC_SCRATCH": str(folder), "PYTHONPATH": str(PROJECT), **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
    return done.stdout


def nearest(command):
    for pattern, instead in NEAREST:
        if re.search(pattern, command):
            return re.sub(pattern, instead, command, count=1)
    return command


def three_videos(folder):
    from raylab.data.kitchen import kitchen_root

    found = sorted(kitchen_root("tiny").rglob("*.MP4")) + sorted(kitchen_root("tiny").rglob("*.mp4"))
    folder.mkdir(parents=True)
    for number, source in enumerate(found[:3], start=1):
        (folder / f"v{number}.mp4").symlink_to(source)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the models that the guides name have been trained, on the built-in data, and videos lie."""
    place = tmp_path_factory.mktemp("place")
    three_videos(place / "videos")
    for name in ("kitchen.mp4", "match.mp4"):
        (place / name).symlink_to(place / "videos" / "v1.mp4")
    for name, verb in MODELS.items():
        small = SHORT if verb == "tune" else TINY if name != "keyframes" else "data.max_clips=4"
        shell(f"python -m raylab.{verb} {name} --demo --name {name} {small}", place)
    shell("python -m raylab.train aura --demo --config naive_cnn-fold0 --name aura train.epochs=1", place)
    return place


def runnable():
    own = {c for page in LETTER for b in blocks(PROJECT / page, "bash") for c in commands(b)}
    found = {}
    for command, where in all_commands().items():
        if command in own or "my_sweep" in command or ELSEWHERE.match(command):
            continue
        found.setdefault(nearest(command.replace("raylab ", "python -m raylab.", command.startswith("raylab "))), where)
    return [pytest.param(command, id=where) for command, where in found.items()]


@pytest.mark.parametrize("command", runnable())
def test_a_documented_command_runs(place, command):
    command = command.replace("--start 12.5 --stop 15", "--start 0.5 --stop 1.5")
    assert shell(command, place).strip()


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"{page.relative_to(PROJECT)}:{block.line}")
        for page in PAGES
        for block in blocks(page, "python")
        if not block.file
    ],
)
def test_documented_python_runs(place, block):
    text = block.text.replace('"cuda"', '"cpu"').replace("epic_phase2_demo", "epic_phase2").replace("5x3", "1x1")
    shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(text)}", place)


def follow(page, folder, instead=lambda command: command, start=None):
    """Do what a page says, in its order: save its files, run its commands."""
    said = {}
    for block in blocks(PROJECT / page):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            for command in commands(block):
                if start is None or start in command:
                    said[command] = shell(instead(command), folder, PYTHONPATH=f"{PROJECT}:{folder / 'site'}")
    return said


def test_own_data_and_own_sweep_to_the_letter(tmp_path):
    three_videos(tmp_path / "mine" / "videos")
    said = follow("docs/data.md", tmp_path)
    assert "train: 2 clips" in said["python -m raylab.train mine.yaml --dry-run"]
    assert "finished after 3 epochs" in said["python -m raylab.train mine.yaml --name mine"]
    assert "wave" in said["python -m raylab.predict mine mine/videos/v3.mp4"]
    said = follow("docs/sweeps.md", tmp_path, start="my_sweep")
    assert "best: " in said["python -m raylab.tune my_sweep.yaml"]
    assert (tmp_path / "results" / "my_sweep" / "report.html").exists()


def test_own_model_to_the_letter(tmp_path):
    """The package is installed into a folder of this test, not into the environment that runs it."""
    three_videos(tmp_path / "videos")

    def here(command):
        return command.replace("-e ./", "--target site ./").replace("VIDEO.mp4", "videos/v1.mp4")

    said = follow("docs/your-model.md", tmp_path, here)
    assert "mean_colour" in said["python -m raylab.models --task classification"]
    trained = next(words for command, words in said.items() if "raylab.train" in command)
    assert "finished after 3 epochs" in trained
