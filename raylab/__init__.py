"""Distributed training and hyperparameter sweeps for video-understanding models, on Ray.

import raylab

raylab.sweep("epic_phase2", demo=True)                       # search hyperparameters
raylab.fit(raylab.Experiment(...))                           # train once
raylab.best_checkpoint("epic_phase2").load_model("cuda")     # use the best
raylab.judge("epic_phase2").scores["val"].figures()          # judge it
raylab.runs()                                                # what there is
raylab.compare(["epic_phase1", "epic_phase2"])               # side by side, as a DataFrame
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raylab.config import Experiment
    from raylab.errors import RaylabError
    from raylab.evaluate import Judgement, judge
    from raylab.prediction.classes import Predictor
    from raylab.prediction.keyframes import KeyframePredictor
    from raylab.results import Checkpoint, Run, best_checkpoint, compare, runs
    from raylab.sweeps.space import SearchSpace
    from raylab.train import fit
    from raylab.tune import sweep

__version__ = "0.1.0"
__all__ = [
    "Checkpoint",
    "Experiment",
    "Judgement",
    "KeyframePredictor",
    "Predictor",
    "RaylabError",
    "Run",
    "SearchSpace",
    "best_checkpoint",
    "compare",
    "fit",
    "judge",
    "runs",
    "sweep",
]

# PyTorch makes this folder when timm or transformers are imported: by default in /tmp, readable by all, under a name
# that anybody can take first.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "torchinductor"))

# Ray, which reads this when it is imported, says so of any few trials on a machine of few CPUs.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "maximum expected startup concurrency")

# Loaded on first use: `import raylab` alone costs nothing, and `python -m raylab.tune` imports its module once.
_HOMES = {
    "Checkpoint": "results",
    "Experiment": "config",
    "Judgement": "evaluate",
    "KeyframePredictor": "prediction.keyframes",
    "Predictor": "prediction.classes",
    "RaylabError": "errors",
    "Run": "results",
    "SearchSpace": "sweeps.space",
    "best_checkpoint": "results",
    "compare": "results",
    "fit": "train",
    "judge": "evaluate",
    "runs": "results",
    "sweep": "tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raylab' has no attribute {name!r}")
    return getattr(import_module(f"raylab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
