import sys

import pytest
from place import Place

from raylab import cli


@pytest.fixture
def place(tmp_path, small_experiment):
    return Place(tmp_path, small_experiment)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the `raylab` console script in this process, on the cluster of these tests: exit code, output, errors."""

    def main(*words):
        monkeypatch.setattr(sys, "argv", ["raylab", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return main
