"""`raylab dashboard` as a process: what it serves, where, to whom, and what it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import optuna
import psutil
import pytest
import torch
from optuna.storages.journal import JournalFileBackend

from raylab import dashboard
from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.monitor import INSTALL
from raylab.sweeps.space import SearchSpace
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder

SECONDS = 120  # to wait for, at most, on a busy machine


@pytest.fixture(scope="module")
def storage(tmp_path_factory, small_experiment) -> Path:
    """Two sweeps, `old` and `new`, of one trial each, and a run of its own."""
    folder = tmp_path_factory.mktemp("results")
    experiment = small_experiment.override({"data.max_clips": 16, "train.epochs": 1})
    space = {
        "description": "small",
        "experiment": experiment.to_dict(),
        "space": {"model.dropout": {"uniform": [0.0, 0.5]}},
        "search": {"scheduler": "none"},
    }
    runs = [RunFolder(Folder.open(folder / "alone"))]
    for name in ("old", "new"):
        sweep = SweepFolder(Folder.open(folder / name))
        sweep.create(SearchSpace.parse(space, name, "small.yaml"), {})
        study = optuna.create_study(storage=stored(sweep.journal()), study_name=name, direction="maximize")
        study.add_trial(optuna.create_trial(value=0.5, params={}, distributions={}))
        runs.append(sweep.run("trial_0"))
    for run in runs:
        run.create(experiment)
    train(experiment, load_dataset(experiment.data), runs[0], Worker(torch.device("cpu")), lambda row: None)
    for run in runs[1:]:
        run.folder.upload(Path(runs[0].folder.path) / "tensorboard", "tensorboard")
    return folder


def stored(journal):
    return optuna.storages.JournalStorage(JournalFileBackend(str(journal)))


class Serving:
    """A dashboard that runs, and what it has said."""

    def __init__(self, *words, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "raylab.dashboard", *map(str, words)],
            env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("Ctrl-C"):
                break

    def __enter__(self):
        assert self.process.poll() is None, self.lines
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def said(self, server):
        return next(line for line in self.lines if line.startswith(f"{server}:")).partition(":")[2].strip()

    def address(self, server):
        return re.match(r"http://127\.0\.0\.1:\d+", self.said(server))[0]

    def ask(self, server, path="/", method="GET"):
        """What a server answers with status 200; else the status."""
        connection = HTTPConnection(self.address(server).removeprefix("http://"), timeout=SECONDS)
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else answer.status

    def runs(self):
        """The runs that TensorBoard has read, once it has read any."""
        deadline = time.monotonic() + SECONDS
        while not (runs := json.loads(self.ask("TensorBoard", "/data/runs"))):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return runs

    def studies(self):
        return [study["study_name"] for study in json.loads(self.ask("Optuna", "/api/studies"))["study_summaries"]]


def listening(process):
    """Hosts and ports at which a process and its children accept connections."""
    every = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return {c.laddr for p in every for c in p.net_connections() if c.status == psutil.CONN_LISTEN}


def ends_without_a_trace(serving, number):
    """Whether a signal ends a dashboard, all its processes and its servers."""
    every = [psutil.Process(serving.process.pid), *psutil.Process(serving.process.pid).children(recursive=True)]
    ports = [port for _, port in listening(serving.process)]
    serving.process.send_signal(number)
    assert serving.process.wait(timeout=SECONDS) == 0
    assert not [process for process in every if process.is_running()]
    for port in ports:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    assert "Traceback" not in "".join(serving.process.stdout)
    return True


def test_a_sweep_is_shown_on_loopback_until_ctrl_c(storage):
    journal = (storage / "new" / "study.journal").read_bytes()
    with Serving("new", "--storage", storage) as serving:
        assert serving.runs() == ["trial_0/tensorboard"]
        assert b"<title>TensorBoard</title>" in serving.ask("TensorBoard")
        tags = json.loads(serving.ask("TensorBoard", "/data/plugin/images/tags"))
        assert len(tags["trial_0/tensorboard"]) == 4

        assert b"Optuna Dashboard" in serving.ask("Optuna", "/dashboard")
        assert serving.studies() == ["new"]
        study = json.loads(serving.ask("Optuna", "/api/studies/0"))
        assert [trial["values"] for trial in study["trials"]] == [[0.5]]
        for method, path in (("DELETE", "/api/studies/0"), ("POST", "/api/studies"), ("PUT", "/api/studies/0/note")):
            assert serving.ask("Optuna", path, method) == 405

        ours = [serving.address(name) for name in ("TensorBoard", "Optuna")]
        assert {f"http://{host}:{port}" for host, port in listening(serving.process)} == set(ours)
        assert serving.said("Ray") == "no cluster of yours runs here"
        (line,) = [line.strip() for line in serving.lines if line.strip().startswith("ssh ")]
        forwarded = re.findall(r"-L (\d+):127\.0\.0\.1:(\d+)", line)
        assert [f"http://127.0.0.1:{port}" for port, same in forwarded if port == same] == ours
        assert ends_without_a_trace(serving, signal.SIGINT)
    assert (storage / "new" / "study.journal").read_bytes() == journal


def test_without_a_name_all_is_shown_and_the_study_that_changed_last(storage):
    os.utime(storage / "old" / "study.journal", (1, 1))
    with Serving("--storage", storage) as serving:
        trials = {f"{name}/trials/trial_0/tensorboard" for name in ("old", "new")}
        assert set(serving.runs()) == {"alone/tensorboard", *trials}
        assert serving.studies() == ["new"]
        assert serving.said("Optuna").endswith("; name another sweep for its own: old")
        assert ends_without_a_trace(serving, signal.SIGTERM)


def test_a_run_is_shown_on_a_chosen_port_and_without_optuna_dashboard_a_line_says_how_to_get_it(storage, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "optuna_dashboard.py").write_text("raise ImportError('not here')")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with Serving("new", "--storage", storage, "--tensorboard-port", port, PYTHONPATH=path) as serving:
        assert listening(serving.process) == {("127.0.0.1", port)}
        assert serving.runs() == ["trial_0/tensorboard"]
        assert serving.said("Optuna") == INSTALL


def test_what_cannot_be_shown_is_an_error(storage, tmp_path):
    with pytest.raises(RaylabError, match=r"unknown sweep or run in .*'nw': did you mean 'new'"):
        dashboard.Shown.find("nw", str(storage))
    with pytest.raises(RaylabError, match=r"no sweep or run under .* start one with raylab tune"):
        dashboard.Shown.find(None, str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:
        port = server.getsockname()[1]
        message = "port {} for {}: Address already in use: choose another, or 0 for any"
        with pytest.raises(RaylabError, match=message.format(port, "TensorBoard")):
            dashboard.show_events(Folder.open(storage), port)
        with pytest.raises(RaylabError, match=message.format(port, "optuna-dashboard")):
            dashboard.show_study([SweepFolder(Folder.open(storage / "new"))], port, stack)


def test_where_there_is_no_study_a_line_says_so(storage, tmp_path):
    alone = dashboard.Shown.find("alone", str(storage))
    assert (alone.logs.local, alone.studies) == (storage / "alone", [])
    with ExitStack() as stack:
        assert dashboard.show_study([], 0, stack).text == "there is no sweep, so no study"
        begun = SweepFolder(Folder.open(tmp_path / "begun"))
        begun.create(SweepFolder(Folder.open(storage / "new")).space, {})
        assert "begun has no study yet" in dashboard.show_study([begun], 0, stack).text
        assert not begun.folder.exists("study.journal")


def test_of_remote_storage_a_copy_of_the_study_is_shown(storage):
    from pyarrow import fs

    remote = Folder(fs.SubTreeFileSystem(str(storage), fs.LocalFileSystem()), "new", urlsplit("s3://bucket/new"))
    said = dashboard.show_events(remote / "trials")
    assert (said.text, said.port) == (f"reads local folders only: copy {remote}/trials, and name the copy", None)
    with ExitStack() as stack:
        said = dashboard.show_study([SweepFolder(remote)], 0, stack)
        assert "as it is now" in said.text
        connection = HTTPConnection("127.0.0.1", said.port, timeout=SECONDS)
        connection.request("GET", "/api/studies")
        (study,) = json.load(connection.getresponse())["study_summaries"]
        assert study["study_name"] == "new"


@pytest.mark.parametrize(
    ("submitted", "jump"),
    [(None, ""), ("login1", "-J me@login1 "), ("node7.cluster", "")],
    ids=["own machine", "compute node", "login node"],
)
def test_the_tunnel_goes_by_way_of_the_login_node(monkeypatch, submitted, jump):
    monkeypatch.setenv("LOGNAME", "me")
    monkeypatch.setattr(socket, "getfqdn", lambda: "node7.cluster")
    monkeypatch.delenv("SLURM_SUBMIT_HOST", raising=False)
    if submitted:
        monkeypatch.setenv("SLURM_SUBMIT_HOST", submitted)
    forwarded = "-L 6006:127.0.0.1:6006 -L 8080:127.0.0.1:8080"
    assert dashboard.tunnel([6006, 8080]) == f"ssh -N {jump}{forwarded} me@node7.cluster"
