"""The notebook, executed as it is."""

from __future__ import annotations

import ast
import base64
import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

import raylab

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "raylab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_without_outputs_and_has_20_lines(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert sum(len(ast.parse(cell.source).body) for cell in cells) <= 20
    assert sum(bool(line.strip()) for cell in cells for line in cell.source.splitlines()) <= 20


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if "data" in output]
    assert any("val/action_top1" in data.get("text/html", "") for data in shown)
    plots = [Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) for data in shown if "image/png" in data]
    assert len(plots) == 2
    assert all(len(plot.convert("RGB").getcolors(1_000_000)) > 20 for plot in plots)
    assert {run.name for run in raylab.runs(tmp_path / "results") if run.state == "finished"} >= {"first"}
    assert raylab.best_checkpoint("rates", storage=tmp_path / "results").epoch > 0
