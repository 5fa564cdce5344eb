"""The doctor against what is really broken: packages, decoders, folders, ports, limits."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from raylab.cluster import checks
from raylab.cluster.checks import EACH, Row, Site, examine

ONE_CHECK = "from raylab.cluster.checks import EACH, Site; print(repr(EACH[{!r}](Site())))"


@pytest.fixture
def doctor(tmp_path):
    """Runs `python -m raylab.doctor --quick --json`; its exit code, and its rows by what they are about."""

    def run(*words, **environment):
        done = python("-m", "raylab.doctor", "--quick", "--json", *words, cwd=tmp_path, **environment)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, {row["what"]: row for row in json.loads(done.stdout)}

    return run


def python(*words, cwd=None, **environment):
    path = os.pathsep.join(filter(None, [environment.pop("first", ""), *sys.path]))
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check(what, **environment) -> Row:
    """The row of one check, made in a process of its own."""
    done = python("-c", ONE_CHECK.format(what), **environment)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout, {"Row": Row})  # noqa: S307 - our own repr


def distribution(folder: Path, name: str, version: str, *lines: str) -> None:
    """What pip leaves of an installed package."""
    home = folder / f"{name}-{version}.dist-info"
    home.mkdir()
    text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
    (home / "METADATA").write_text(f"{text}\n")


def test_a_machine_that_runs_these_tests_is_fit_and_remedies_stand_beside_what_is_not_ok(doctor, tmp_path):
    code, rows = doctor("--storage", str(tmp_path / "deep" / "results"))
    assert (code, [row for row in rows.values() if row["state"] == "failure"]) == (0, [])
    assert {"SLURM", "results", *EACH} == set(rows)
    assert all(bool(row["remedy"]) == (row["state"] != "ok") for row in rows.values())
    assert rows["results"]["detail"].startswith(f"{tmp_path}:")
    assert not (tmp_path / "deep").exists()  # looking leaves nothing behind


def test_an_old_package_is_found_where_it_lies_and_ends_with_code_1(doctor, tmp_path):
    distribution(tmp_path, "ray", "2.9.0")
    code, rows = doctor(first=str(tmp_path))
    assert code == 1
    assert rows["packages"]["state"] == "failure"
    assert rows["packages"]["detail"].startswith(f"ray 2.9.0 in {tmp_path} is not ")
    assert "unset PYTHONPATH" in rows["packages"]["remedy"]
    assert rows["imports"]["state"] == "ok"  # the others are still looked at


def test_a_missing_package_and_the_wrong_python_are_named(tmp_path):
    distribution(
        tmp_path, "raylab", "0.1.0", "Requires-Python: >=3.99", "Requires-Dist: absent>=1", "Requires-Dist: numpy"
    )
    row = check("packages", first=str(tmp_path))
    assert (row.state, row.detail) == ("failure", "absent is missing")
    row = check("Python", first=str(tmp_path))
    assert row.state == "failure"
    assert row.detail.endswith(f"{sys.executable}: raylab needs >=3.99")


@pytest.mark.parametrize(
    ("module", "what", "state", "remedy"),
    [
        ("av", "decoder pyav", "failure", "pip install --force-reinstall av"),
        ("decord", "decoder decord", "warning", "data.decoder=pyav"),
        ("torchcodec", "decoder torchcodec", "warning", "module load FFmpeg"),
        ("simplejpeg", "JPEG", "failure", "pip install"),
        ("torchmetrics", "imports", "failure", "pip install"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_told_with_its_reason(tmp_path, module, what, state, remedy):
    pytest.importorskip(module)
    shadow = f"raise OSError('lib{module}.so.58: cannot open shared object file')\n"
    (tmp_path / f"{module}.py").write_text(shadow)
    done = python(
        "-c",
        "from raylab.cluster.checks import EACH, Site, examine; "
        f"print(*map(repr, examine({{{what!r}: EACH[{what!r}]}}, Site())))",
        first=str(tmp_path),
    )
    row = eval(done.stdout, {"Row": Row})  # noqa: S307 - our own repr
    assert (row.what, row.state) == (what, state)
    assert f"lib{module}.so.58: cannot open shared object file" in row.detail
    assert remedy in row.remedy


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of 1 MiB; `options` of mount."""
    mounted = []

    def mount(options):
        if os.geteuid():
            pytest.skip("mounting needs root")
        folder = tmp_path / "disk"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=1m,{options}", "tmpfs", folder], check=False)
        if done.returncode:
            pytest.skip("this machine mounts nothing")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_scratch_folder_is_a_failure(small_disk):
    folder = small_disk("ro")
    (row,) = examine({"results": checks.scratch}, Site(str(folder / "results")))
    assert (row.state, row.detail) == ("failure", f"{folder} cannot be written: Read-only file system")
    assert "--storage" in row.remedy


def test_a_full_scratch_folder_is_a_failure(small_disk):
    folder = small_disk("rw")
    row = checks.scratch(Site(str(folder)))
    assert (row.state, row.detail) == ("failure", f"{folder}: 0.0 GiB free")


def test_little_room_is_a_warning(tmp_path):
    row = checks.room("results", tmp_path, failing=1, warning=2**60, remedy="go elsewhere")
    assert (row.state, row.remedy) == ("warning", "delete what is old, or go elsewhere")


def test_a_scratch_address_that_is_none_is_a_failure():
    (row,) = examine({"results": checks.scratch}, Site("ftp://host/results"))
    assert row.state == "failure"
    assert "ftp://host/results" in row.detail


def test_another_users_server_on_rays_port_is_told_and_ones_own_is_not(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(checks, "RAY_PORTS", {port: "its dashboard"})
        assert checks.ports(Site()).state == "ok"
    if os.geteuid():
        pytest.skip("a server of another user needs root")
    listen = (
        "import os, socket; os.setuid(65534); server = socket.create_server(('127.0.0.1', 0));"
        "print(server.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", listen], stdin=-1, stdout=-1, text=True) as other:
        port = int(other.stdout.readline())
        monkeypatch.setattr(checks, "RAY_PORTS", {port: "its dashboard"})
        row = checks.ports(Site())
        other.communicate("\n")
    assert row.state == "warning"
    assert row.detail.startswith(f"taken: {port} (its dashboard) by ")


def test_a_host_whose_name_leads_nowhere_is_a_failure(tmp_path):
    if os.geteuid():
        pytest.skip("a host name of its own needs root")
    script = ONE_CHECK.format("ports")
    done = subprocess.run(
        ["unshare", "--uts", "bash", "-c", 'hostname nowhere.invalid && exec "$@"', "", sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("this machine allows no namespaces")
    row = eval(done.stdout, {"Row": Row})  # noqa: S307 - our own repr
    assert row.state == "failure"
    assert row.detail.startswith("nowhere.invalid does not reach itself")


def test_a_token_that_others_can_read_is_a_failure(tmp_path):
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(0o644)
    row = check("token", HOME=str(tmp_path))
    assert row.state == "failure"
    assert f"{token} is -rw-r--r--" in row.detail
    assert "aaa" not in repr(row)
    token.chmod(0o600)
    assert check("token", HOME=str(tmp_path)).state == "ok"
    assert check("token", HOME=str(tmp_path), RAY_AUTH_MODE="disabled").state == "failure"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_a_proxy_is_a_warning(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    row = checks.proxies(Site())
    assert (row.state, row.remedy) == ("warning", "unset https_proxy")


def test_low_limits_are_a_warning():
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
    done = python("-c", limited + ONE_CHECK.format("limits"))
    row = eval(done.stdout, {"Row": Row})  # noqa: S307 - our own repr
    assert row.state == "warning"
    assert "256 open files" in row.detail


def test_a_check_that_fails_itself_is_a_failure_and_the_next_is_made():
    rows = list(examine({"first": lambda site: 1 / 0, "second": lambda site: Row("second", "ok", "")}, Site()))
    assert [(row.what, row.state) for row in rows] == [("first", "failure"), ("second", "ok")]
    assert rows[0].detail == "ZeroDivisionError: division by zero"
