"""Gradients exchanged by two real processes, which fail here and there."""

import json
import subprocess
import sys
from pathlib import Path


def test_two_workers_get_what_ddp_gives_and_go_on_where_one_fails(tmp_path):
    program = [sys.executable, Path(__file__).with_name("two_exchange.py")]
    processes = [subprocess.Popen([*program, str(rank), tmp_path]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"found{rank}.json").read_text())
        assert found["as DDP"] == [True, True]  # the same bits, also after steps that failed
        assert found["unsound"] == [None, None]
        assert found["buckets"] > 2
        assert 0 < found["sent early"] < found["buckets"]  # while backward goes on
        assert found["unused"]
        assert 0 < found["of a stage"][0] < found["buckets"]
        assert found["of a stage"][1] == 0  # nothing is sent for a stage that has ended
