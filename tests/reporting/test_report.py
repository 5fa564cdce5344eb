"""What a report says of recorded sweeps, and of runs that have lost, failed or not yet begun."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from recorded import CAUSE, record_sweep

import raylab
from raylab.errors import RaylabError
from raylab.provenance import provenance
from raylab.report import after_sweep, write
from raylab.reporting import charts, judged, page, study
from raylab.reporting.judged import Judged
from raylab.reporting.subject import Subject
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.space import SearchSpace
from raylab.training.runfolder import RunFolder

GPUS = {"workers": 2, "cpus": 4.0, "gpus": 1.0}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> SweepFolder:
    storage = tmp_path_factory.mktemp("storage")
    return record_sweep(storage, SearchSpace.load("epic_phase2"), trials=14, epochs=6, demand=GPUS)


@pytest.fixture(scope="module")
def written(sweep: SweepFolder) -> Path:
    _, target = write(str(sweep.folder), judge=False)
    return Path(target.path)


def figures(html: str) -> list[dict]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html, re.S)]


def test_one_file_that_asks_for_nothing(written: Path) -> None:
    html = (written / "report.html").read_text()
    outside = re.sub(r"<script>.*?</script>", "", html, flags=re.S)  # Plotly's own code names addresses
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", outside)
    assert not re.findall(r"<(?:script|img|link)[^>]* (?:src|href)=\"(?!data:)", outside)
    assert len(html) < 15e6
    assert "default-src 'none'" in outside


def test_every_section_of_a_sweep(written: Path, sweep: SweepFolder) -> None:
    html = (written / "report.html").read_text()
    for name in ("leaderboard", "curves", "search", "gap", "best", "cost", "documented", "provenance"):
        assert f'id="r1-{name}"' in html
    assert len(figures(html)) == 8  # metric, loss, four of Optuna's, gap, cost
    subject = Subject.read(sweep.folder)
    assert f"{100 * subject.best.best['val/action_top1']:.2f} %" in html
    assert "raylab tune &lt;b&gt;this" in html
    assert "0123456789abcdef" in html
    assert "no checkpoint with metrics is left" in html.lower()


def test_names_and_messages_are_text(written: Path, sweep: SweepFolder) -> None:
    html = (written / "report.html").read_text()
    assert "<script>document" not in html
    assert "&lt;script&gt;document" in html
    found = Judged("run", 1, 2, {}, {"label": ["<script>alert(1)</script>", "</script>"]}, {"label": [[0, 1, 2]]}, [])
    (heat, bars) = charts.judgement(found)
    assert heat.heat.rows == found.names["label"]
    for chart in (heat, bars):
        text = str(page.data(page_figure(chart)))
        assert "<" not in text
        assert "&lt;script&gt;" in json.dumps(json.loads(text))


def page_figure(chart: charts.Chart) -> dict:
    from raylab.reporting.interactive import figure

    return figure(chart)


def test_stopped_and_failed_trials_show(sweep: SweepFolder) -> None:
    subject = Subject.read(sweep.folder)
    curves, losses = charts.curves(subject)
    states = [trial.state for trial in subject.trials]
    ends = {series.name: series for series in curves.series if series.kind == "points"}
    assert set(ends) == {f"stopped here ({states.count('stopped')})", "failed here (1)"}
    assert all(series.symbol == "x" for series in ends.values())
    lines = [series for series in curves.series if series.kind == "line"]
    assert [series.dash for series in lines if "stopped" in series.name] == [True] * len(
        [series for series in lines if "stopped" in series.name]
    )
    hovered = {name for series in lines for name in series.hover if name}
    assert hovered >= {trial.name for trial in subject.trials if trial.state != "failed"}
    assert [series.name for series in losses.series] == ["train", "val"]


def test_cost_joins_what_nothing_beats(sweep: SweepFolder) -> None:
    subject = Subject.read(sweep.folder)
    (chart,) = charts.cost(subject)
    points, front = chart.series
    assert chart.x.startswith("GPU hours")
    assert subject.trials[0].gpu_hours == pytest.approx(2 * subject.trials[0].seconds / 3600)
    for x, y in zip(points.x, points.y, strict=True):
        assert any(a <= x and b >= y for a, b in zip(front.x, front.y, strict=True))


def test_plots_for_papers_and_tables(written: Path, sweep: SweepFolder) -> None:
    folder = written / "report"
    for name in ("curves", "losses", "gap", "cost", "param_importances", "slice", "parallel_coordinate", "timeline"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    board = pd.read_csv(folder / "leaderboard.csv")
    assert list(board["trial"]) == list(sweep.leaderboard()["trial"])
    assert board["val/action_top1"].max() == sweep.leaderboard()["val/action_top1"].max()
    latex = (folder / "leaderboard.tex").read_text()
    assert r"\toprule" in latex
    assert r"action\_top1" in latex
    captions = json.loads((folder / "contents.json").read_text())
    assert set(captions) == {path.name for path in folder.iterdir()} - {"contents.json"}


def test_documented_figures_stand_beside_ours(sweep: SweepFolder) -> None:
    from raylab.reporting.tables import documented

    ours, published = documented(Subject.read(sweep.folder))
    assert list(ours.frame["configuration"]) == [f"config{number}" for number in range(1, 9)]
    assert list(published.frame["value"]) == ["36.00 %", "27.00 %"]
    history = sweep.run("config1").history()
    best = next(row for row in history if row["epoch"] == history[-1]["best_epoch"])
    assert list(published.frame["ours"]) == [best["train/action_top1"], best["val/action_top1"]]


def test_optuna_says_why_there_is_nothing_to_say(tmp_path: Path) -> None:
    one = record_sweep(tmp_path, SearchSpace.load("epic_phase2"), trials=1, epochs=2)
    found, reason = study.plots(Subject.read(one.folder))
    assert [plot.name for plot in found] == ["timeline"]
    assert "fewer than two trials" in reason
    Path(one.folder.path, "study.journal").unlink()
    assert study.plots(Subject.read(one.folder)) == ([], "study.journal is not there.")


def test_a_sweep_that_runs_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    sweep = record_sweep(tmp_path, SearchSpace.load("epic_phase2"), trials=4, epochs=3)
    begun = sweep.run("trial099")
    begun.create(sweep.space.trial({}), sweep.space.name)
    sweep.run("config1").set_status("running")
    with Path(sweep.folder.path, "study.journal").open("a") as journal:
        journal.write('{"op_code": 4, "half')
    (report,), _ = write(str(sweep.folder), judge=False, refresh=30)
    assert not report.subject.over
    html = Path(sweep.folder.path, "report.html").read_text()
    assert "still running" in html
    assert 'http-equiv="refresh" content="30"' in html
    assert report.subject.trials[-1].name in ("trial099", "config3")


def test_a_run_alone_and_several_on_one_page(sweep: SweepFolder, tmp_path: Path) -> None:
    run = sweep.run("config1")
    write(str(run.folder), judge=False, output=tmp_path / "alone")
    alone = (tmp_path / "alone" / "report.html").read_text()
    assert "Run" in alone
    assert len(figures(alone)) == 3  # metric, loss, gap
    write([str(sweep.folder), str(run.folder)], judge=False, output=tmp_path / "both")
    both = (tmp_path / "both" / "report.html").read_text()
    assert "Side by side" in both
    assert {path.name for path in (tmp_path / "both" / "report").iterdir()} >= {
        "epic_phase2_curves.png",
        "config1_curves.png",
    }
    with pytest.raises(RaylabError, match="nothing"):
        write("nothing", tmp_path)


def test_what_goes_wrong_with_a_report_is_not_the_sweeps_end(tmp_path: Path, caplog) -> None:
    sweep = record_sweep(tmp_path, SearchSpace.load("epic_phase2"), trials=2, epochs=2)
    Path(sweep.run("config2").folder.path, "run.json").write_text("{")
    after_sweep(sweep)
    assert f"raylab report epic_phase2 --storage {tmp_path}" in caplog.text


def test_compare_is_one_row_a_name(sweep: SweepFolder, tmp_path: Path) -> None:
    table = raylab.compare([str(sweep.folder), str(sweep.run("config2").folder)])
    best = sweep.leaderboard().iloc[0]
    assert list(table["run"]) == [best["trial"], "config2"]
    assert table["val/action_top1"][0] == best["val/action_top1"]
    assert table["gpu_hours"][0] == pytest.approx(table["seconds"][0] * 2 / 3600)
    assert {"optim.lr", "model.dropout"} & set(table.columns)
    assert "data.root" not in table.columns
    assert table["parameters"].isna().all()
    with pytest.raises(RaylabError, match="nothing"):
        raylab.compare("nothing", tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_experiment) -> RunFolder:
    import torch

    from raylab.data.datasets import load_dataset
    from raylab.training.loop import Trainer, Worker

    run = RunFolder(Folder.open(tmp_path_factory.mktemp("runs") / "small"))
    run.create(small_experiment, made=lambda: provenance(small_experiment.data))
    trainer = Trainer(small_experiment, load_dataset(small_experiment.data), run, Worker(torch.device("cpu")))
    while not trainer.done:
        trainer.train_epoch()
        trainer.finish_epoch()
    run.set_status("finished")
    return run


def test_the_best_checkpoint_is_judged_once(trained: RunFolder, monkeypatch) -> None:
    subject = Subject.read(trained.folder)
    found, reason = judged.judged(subject)
    assert found is not None, reason
    history = trained.history()
    best = next(row for row in history if row["epoch"] == history[-1]["best_epoch"])
    assert found.figures["action_top1"] == pytest.approx(best["val/action_top1"])
    for head in ("verb", "noun"):
        right = sum(count for true, said, count in found.confusion[head] if true == said)
        assert right / found.clips == pytest.approx(best[f"val/{head}_top1"])
        assert sum(count for *_, count in found.confusion[head]) == found.clips
    monkeypatch.setattr(judged._Job, "__call__", None)  # would fail if it were asked again
    assert judged.judged(subject) == (found, "")


def test_a_judgement_can_be_left_out(trained: RunFolder, monkeypatch) -> None:
    subject = Subject.read(trained.folder)
    Path(trained.folder.path, judged.FILE).unlink(missing_ok=True)
    assert "has not been judged" in judged.judged(subject, wanted=False)[1]
    monkeypatch.setattr(judged, "ON_CPU", 0)
    assert "no GPU" in judged.judged(subject)[1]


def test_provenance_tells_data_apart(trained: RunFolder, small_experiment) -> None:
    data = trained.info["data"]
    assert data == provenance(small_experiment.data)["data"]
    assert data != provenance(small_experiment.override({"data.kitchen": "small"}).data)["data"]
    assert data["train"] == 48
    assert re.fullmatch(r"[0-9a-f]{32}", data["annotations"])


def test_parameters_are_counted_without_loading_them(trained: RunFolder) -> None:
    checkpoint = trained.best("val/action_top1", "max")
    model = raylab.best_checkpoint(str(trained.folder)).load_model()
    for name in (str(trained.folder), str(checkpoint.folder)):
        table = raylab.compare(name)
        assert table["parameters"][0] == sum(parameter.numel() for parameter in model.parameters())
        assert table["val/action_top1"][0] == checkpoint.metrics["val/action_top1"]


def test_of_many_classes_the_most_confused_are_shown() -> None:
    names = [f"class {number}" for number in range(300)]
    pairs = [[at, at, 5] for at in range(300)] + [[7, 200, 9], [12, 13, 4]]
    heat, bars = charts.judgement(Judged("run", 1, 1513, {}, {"noun": names}, {"noun": pairs}, []))
    assert len(heat.heat.rows) == charts.CLASSES
    assert {"class 7", "class 200", "class 12", "class 13"} <= set(heat.heat.rows)
    row = heat.heat.rows.index("class 7")
    assert heat.heat.values[row][heat.heat.columns.index("class 200")] == pytest.approx(9 / 14)
    assert len(bars.series[0].y) == charts.CLASSES


def test_a_resumed_sweep_keeps_what_began_it(tmp_path: Path) -> None:
    space = SearchSpace.load("epic_phase2")
    sweep = SweepFolder(Folder.open(tmp_path / "epic_phase2"))
    sweep.create(space, {"command": "first", "started": "1", "data": {"annotations": "a"}})
    sweep.create(space, {"command": "second", "started": "2", "data": {"annotations": "b"}})
    assert sweep.info["command"] == "first"
    assert [again["command"] for again in sweep.info["resumed"]] == ["second"]


def test_the_cause_of_a_failure_is_in_the_table(sweep: SweepFolder) -> None:
    from raylab.reporting.tables import leaderboard

    table = leaderboard(Subject.read(sweep.folder))
    assert list(table.notes.values()) == [CAUSE]


def test_two_hundred_trials_fit_into_a_page(tmp_path: Path) -> None:
    sweep = record_sweep(tmp_path, SearchSpace.load("epic_phase2"), trials=200, epochs=30, demand=GPUS)
    write(str(sweep.folder), judge=False)
    page_file = Path(sweep.folder.path) / "report.html"
    assert page_file.stat().st_size < 15e6
    curves = next(figure for figure in figures(page_file.read_text()) if "epoch" in str(figure["layout"]["xaxis"]))
    assert len(curves["data"]) < 12, "a legend of 200 lines cannot be read"
