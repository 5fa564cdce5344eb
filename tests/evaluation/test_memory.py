"""The most that is held at a time, of tensors whose sizes are known."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from raylab.evaluation import memory
from raylab.evaluation.memory import peak_bytes

CPU = torch.device("cpu")
LARGE = 64 * 2**20


def one_after_another() -> None:
    for _ in range(4):
        torch.ones(LARGE, dtype=torch.uint8)


def two_at_once() -> None:
    first, second = (torch.ones(LARGE, dtype=torch.uint8) for _ in range(2))
    assert first.shape == second.shape


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_what_is_held_at_once_counts() -> None:
    for _ in range(2):  # what was given back in between counts again
        assert peak_bytes(one_after_another, CPU) == pytest.approx(LARGE, rel=0.1)
        assert peak_bytes(two_at_once, CPU) == pytest.approx(2 * LARGE, rel=0.1)


def test_where_the_system_does_not_tell_there_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "none")
    assert math.isnan(peak_bytes(one_after_another, CPU))
