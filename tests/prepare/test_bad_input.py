"""What `raylab prepare` refuses, in processes of its own."""

import subprocess

import pytest
import yaml
from place import MODULE, start


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["epic_phase22"], ["unknown sweep 'epic_phase22': did you mean 'epic_phase2'?"]),
        (["epic_phase2", "optim.lrr=1"], ["unknown setting optim.lrr: did you mean optim.lr?"]),
        (["epic_phase2"], ["annotations not found", "set data.root=PATH"]),
        (["absent.yaml"], ["absent.yaml: no such file"]),
        (
            ["experiment.yaml", "--demo"],
            ["experiment.yaml is one experiment: it has neither documented configurations nor a demo"],
        ),
        (["sweep.yaml"], ["space: data.frames is continuous: search it by choice or randint"]),
        (["experiment.yaml", "--quality", "0"], ["quality = 0: input should be greater than or equal to 1"]),
        (["experiment.yaml", "--fps", "-1"], ["fps = -1.0: input should be greater than 0"]),
        (["experiment.yaml", "--fps", "0"], ["fps = 0.0: input should be greater than 0"]),
        (["experiment.yaml", "--short-side", "0"], ["short_side = 0: input should be greater than or equal to 16"]),
        (["experiment.yaml", "--short-side", "100"], ["--short-side 100: the trials need 256 (data.size × 256/224)"]),
        (["experiment.yaml", "--tolerance", "2"], ["Invalid value for '--tolerance'", "less than or equal to 1"]),
        (
            ["experiment.yaml", "data.store=sweep.yaml"],
            ["cannot be written (Not a directory)", "set data.store=FOLDER"],
        ),
        (
            ["experiment.yaml", "data.store=/proc/stores"],
            ["/proc/stores/", "cannot be written", "set data.store=FOLDER"],
        ),
        (["experiment.yaml", "data.store=made/store"], ["made/store: is one store: name the folder that holds it"]),
        (["experiment.yaml", "--verify"], ["no complete clip store to verify: run the command without --verify"]),
    ],
    ids=lambda value: "_".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_code_2_and_a_message_before_ray_and_torch_are_imported(tmp_path, words, messages):
    experiment = {"data": {"dataset": "kitchen", "kitchen": "tiny"}}
    sweep = {"description": "mine", "experiment": experiment, "space": {"data.frames": {"uniform": [4, 8]}}}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "search": {"grace_epochs": 1}}))
    (tmp_path / "made" / "store").mkdir(parents=True)
    (tmp_path / "made" / "store" / "manifest.json").write_text("{}")
    process = start(*words, code=MODULE, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said, errors = process.communicate(timeout=120)
    assert (process.returncode, said) == (2, "")
    for message in messages:
        assert message in errors
    assert "Traceback" not in errors
    assert errors.endswith("imported:\n")
