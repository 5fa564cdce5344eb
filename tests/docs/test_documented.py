"""Every documented command is one that exists: its verb, options, sweeps, settings and values. Nothing is trained here.

Those that can run are run by `test_documented_runs.py`.
"""

import re
import shlex
import subprocess

import pytest
import typer
from documented import PAGES, PROJECT, all_commands, blocks

from raylab.cli import app
from raylab.errors import RaylabError
from raylab.schema import parse_overrides
from raylab.sweeps.space import SearchSpace
from raylab.train import load_experiment

# What belongs to a site, its SLURM or a shell. Those of SLURM are typed for real by tests/cluster/slurm.
SHELL = {
    r"ssh ": "needs a login node",
    r"srun .*--pty bash": "an interactive job",
    r"(module|git clone|cd|exit|tail -f|squeue)\b": "of a shell, or a site",
    r"python -m venv|\.venv/bin/pip install -c constraints.txt -e \.$": "what make does",
    r"(mkdir|cat) ": "run by test_documented_runs.py",
    r"python -m pip install .* -e ./my_models$": "run by test_documented_runs.py",
}
SBATCH = {"--nodes", "--time", "--gpus-per-node", "--cpus-per-task"}
COMMANDS = all_commands()


@pytest.fixture(autouse=True)
def scratch(monkeypatch, tmp_path):
    monkeypatch.setenv("VSC_SCRATCH", str(tmp_path))


@pytest.mark.parametrize("command", COMMANDS, ids=COMMANDS.values())
def test_a_documented_command_exists(command):
    understand(command)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("python -m raylab.tune epic_phase2 --dry", "No such option"),
        ("raylab tunes", "no verb 'tunes'"),
        ("raylab train epic_phase2 optim.learn=1", "unknown setting optim.learn"),
        ("raylab tune epic_phase9", "unknown sweep"),
        ("raylab train epic_phase2 --config config99", "unknown configuration"),
        ("sbatch cluster/raylab.sbatch tune epic_phase2 data.frames=0", "data.frames = 0"),
        ("ray exec cluster/vsc.yaml 'raylab tune no_such_sweep'", "unknown sweep"),
        ("ray up --what cluster/vsc.yaml", "No such option"),
        ("make everything", "non-zero exit status"),
        ("rm -rf somewhere", "nobody knows how to try this"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(wrong, said):
    with pytest.raises(Exception, match=said):
        understand(wrong)


def understand(command):
    command = command.replace("model.name=mean_colour", "model.name=naive_cnn")  # registered by the guide's package
    program, *words = shlex.split(command)
    if program == "make":
        subprocess.run(["make", "--dry-run", *words], cwd=PROJECT, check=True, capture_output=True)
    elif program == "raylab":
        understand_verb(words)
    elif program == "python" and words[:1] == ["-m"] and words[1].startswith("raylab.") and words[1].count(".") == 1:
        understand_verb([words[1].removeprefix("raylab."), *words[2:]])
    elif program == "sbatch":
        at = words.index("cluster/raylab.sbatch")
        assert {word.partition("=")[0] for word in words[:at]} <= SBATCH
        rest = words[at + 1 :]
        understand_verb(rest if rest[0] in ("prepare", "tune", "train", "evaluate", "doctor") else ["tune", *rest])
    elif program == "ray":
        understand_ray(words)
    else:
        known = [why for pattern, why in SHELL.items() if re.match(pattern, command)]
        assert known, f"{command!r}: nobody knows how to try this; add it to a table of tests/docs"


def understand_verb(words):
    """Parse as the command line does, and validate every setting, sweep and configuration."""
    verb, arguments = words[0], words[1:]
    command = typer.main.get_command(app()).get_command(None, verb)
    assert command is not None, f"there is no verb {verb!r}"
    if arguments == ["--help"]:
        return
    given = command.make_context(verb, [*arguments]).params
    changes = given.get("overrides") or []
    name = given.get("space") or given.get("experiment")
    if verb not in ("prepare", "tune", "train") or name is None or name.endswith(".yaml"):
        parse_overrides(changes)
    elif verb == "tune":
        space = SearchSpace.load(name)
        (space.for_demo() if given["demo"] else space).override(changes)
        if given.get("start"):
            SearchSpace.load(given["start"])
    else:
        load_experiment(name, given.get("config"), given["demo"], parse_overrides(changes))


def understand_ray(words):
    from ray.scripts.scripts import cli

    group, at = cli, 0
    while hasattr(group, "commands"):
        group = group.commands[words[at]]
        at += 1
    group.make_context(words[at - 1], words[at:])
    if words[0] == "exec":
        understand(words[-1])
    if "--" in words:
        understand(shlex.join(words[words.index("--") + 1 :]))


def refused():
    for page in PAGES:
        for block in blocks(page, "console"):
            command, *expected = block.text.strip().splitlines()
            yield pytest.param(command.removeprefix("$ "), "\n".join(expected), id=f"{page.name}:{block.line}")


@pytest.mark.parametrize(("command", "expected"), refused())
def test_a_documented_message_is_what_is_said(command, expected, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    said = CliRunner().invoke(app(), [words[2].removeprefix("raylab."), *words[3:]])
    assert isinstance(said.exception, RaylabError), said.output
    assert expected in f"error: {said.exception}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_files_that_a_page_links_to_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    written = {"verbs.md", "settings.md", "models.md", "python.md"}  # docs/reference.py, when pages are built
    missing = [
        link
        for link in links
        if link
        and not (page.parent / link).exists()
        and not (link.startswith("generated/") and link.removeprefix("generated/") in written)
    ]
    assert not missing


def test_every_page_is_in_the_contents():
    index = (PROJECT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^[\w/-]+$", index, flags=re.MULTILINE))
    assert {page.stem for page in (PROJECT / "docs").glob("*.md")} - {"index"} <= listed
