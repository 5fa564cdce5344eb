"""What a process that looks at videos may take, the files of a page, and names that are safe."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylab.cli import app
from raylab.errors import RaylabError
from raylab.webapp.files import Files, plain_name
from raylab.webapp.limits import Limits, clock
from raylab.webapp.messages import lengths, pack
from raylab.webapp.pool import Child
from raylab.webapp.server import is_local

HELD = """
import time
from raylab.webapp.files import Files
from raylab.webapp.limits import Limits
with Files(Limits()) as files:
    print(files.folder, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_too_much_memory_or_time_ends_the_process_alone() -> None:
    async def look() -> None:
        greedy = Child({}, "cpu", Limits(memory=20_000_000), threads=1)
        with pytest.raises(RaylabError, match="this page: took more than 20 MB of memory"):
            await greedy.start()
        slow = Child({}, "cpu", Limits(timeout=0.5), threads=1)
        await slow.start()
        assert slow._process
        first = slow._process.pid
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(RaylabError, match=r"a\.mp4: was not done after 0 s"):
            await slow.ask({"do": "keyframes", "video": "/x/a.mp4"})
        await slow.start()
        assert slow._process.pid != first
        with pytest.raises(RaylabError, match=r"a\.mp4: could not be looked at \(KeyError"):
            await slow.ask({"do": "nothing", "video": "/x/a.mp4"})
        await slow.end()

    asyncio.run(look())


def test_what_a_killed_page_left_goes_when_the_next_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    start = [sys.executable, "-c", HELD]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with (
        subprocess.Popen(start, stdout=subprocess.PIPE, text=True, env=environment) as killed,
        subprocess.Popen(start, stdout=subprocess.PIPE, text=True, env=environment) as living,
    ):
        assert killed.stdout and living.stdout
        left, kept = Path(killed.stdout.readline().strip()), Path(living.stdout.readline().strip())
        assert left.stat().st_mode & 0o777 == left.parent.stat().st_mode & 0o777 == 0o700
        killed.kill()
        killed.wait()
        assert left.is_dir()
        with Files(Limits()) as files:
            assert not left.exists()
            assert kept.is_dir()
            assert files.folder.is_dir()
        assert not files.folder.exists()
        living.kill()


def test_results_make_room_for_newer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Files(Limits(kept=2500)) as files:
        tokens = []
        for number in range(3):
            made = tmp_path / str(number)
            made.mkdir()
            with zipfile.ZipFile(made / "keyframes.zip", "w") as archive:
                archive.writestr("film/a.jpg", bytes(1000))
            tokens.append(files.keep(made, "film"))
        assert [files.get(token) is not None for token in tokens] == [False, True, True]
        assert len(list(files.folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("a film.mp4", "a film.mp4"),
        ("../../etc/passwd", "passwd"),
        ("C:\\films\\a.mp4", "a.mp4"),
        ("..", "video"),
        ("", "video"),
        ("%d<script>.mp4", "_d_script_.mp4"),
        ("-rf\n.mp4", "rf_.mp4"),
        ("été 映画.mkv", "été 映画.mkv"),
        ("a" * 300 + ".mp4", "a" * 96 + ".mp4"),
    ],
)
def test_names_are_made_plain(given: str, safe: str) -> None:
    assert plain_name(given) == safe


def test_messages_know_their_lengths() -> None:
    packed = pack({"a": "é"}, b"123")
    text, content = lengths(packed[:8])
    assert (packed[8 : 8 + text], packed[8 + text :], content) == (rb'{"a": "\u00e9"}', b"123", 3)
    with pytest.raises(ValueError, match="a message of"):
        lengths(b"\xff" * 8)


def test_only_this_machine_is_local() -> None:
    hosts = ["127.0.0.1:7860", "localhost", "[::1]:80", "evil.example", "localhost.evil.example", "10.0.0.1", ""]
    assert [is_local(host) for host in hosts] == [True, True, True, False, False, False, False]
    assert [clock(seconds) for seconds in (5, 125, 7200)] == ["0:05", "2:05", "2:00:00"]


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    def error(*words: str) -> str:
        result = CliRunner().invoke(app(), ["app", *words])
        assert isinstance(result.exception, RaylabError)
        return str(result.exception)

    assert error().startswith("nothing to show: give --actions")
    assert "no sweep or run" in error("--actions", "absent", "--storage", str(tmp_path))
    assert "--device tpu" in error("--actions", "absent", "--device", "tpu")


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    for name in [name for name in sys.modules if name.startswith("raylab.webapp.")]:
        monkeypatch.delitem(sys.modules, name)
    result = CliRunner().invoke(app(), ["app", "--actions", "any"])
    assert str(result.exception) == "raylab app needs psutil: pip install 'raylab[app]'"
