"""The nodes of a cluster that grows by itself, at its largest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FOLDER = "RAYLAB_CLUSTER"  # the variable with the cluster's folder, on its nodes
AUTOSCALING = "autoscaling.json"  # in there: what the head's autoscaler goes by


def at_most(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes that a run may count on: those there are, or those there may be where SLURM jobs come when trials wait.

    Args:
        nodes: resources of each living node, e.g. `{"CPU": 16, "GPU": 4}`.
    """
    try:
        config = json.loads((Path(os.environ[FOLDER]) / AUTOSCALING).read_text())
    except (KeyError, FileNotFoundError):
        return nodes
    types = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    workers = [kind["resources"] for kind in types for _ in range(kind["max_workers"])]
    return [node for node in nodes if "node:__internal_head__" in node] + workers[: config["max_workers"]]
