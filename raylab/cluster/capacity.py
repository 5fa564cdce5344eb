"""What a training run asks for, against what the cluster can ever give."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

from raylab.config import ResourceConfig
from raylab.errors import RaylabError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demand:
    """Resources of one training run: `workers` processes, each with these CPUs and GPUs."""

    workers: int
    cpus: float
    gpus: float

    @classmethod
    def of(cls, config: ResourceConfig, nodes: list[dict[str, Any]]) -> Demand:
        """Fill in what the experiment leaves open from the cluster's nodes.

        Args:
            config: `resources` of the experiment.
            nodes: resources of each living node, e.g. `{"CPU": 16, "GPU": 4}`.
        """
        gpus = config.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
        cpus = config.cpus_per_worker
        if cpus is None:
            shares = [node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU", 0) >= 1]
            cpus = max(1.0, math.floor(min(shares) * gpus)) if gpus and shares else 1.0
        return cls(config.workers, cpus, gpus)

    def per_worker(self) -> dict[str, float]:
        return {"CPU": self.cpus, "GPU": self.gpus} if self.gpus else {"CPU": self.cpus}

    def fits(self, nodes: list[dict[str, Any]]) -> int:
        """How many such runs the nodes hold at once."""
        return self._held(nodes) // self.workers

    def within(self, nodes: list[dict[str, Any]]) -> Demand:
        """The same with as many of the workers as the nodes hold.

        Raises:
            RaylabError: not even one.
        """
        held = self._held(nodes)
        if held >= self.workers:
            return self
        if held:
            log.warning(
                "resources.workers = %d, but the nodes hold %d: a run trains on these, with more batches to a step",
                self.workers,
                held,
            )
            return replace(self, workers=held)
        have = ", ".join(f"{node.get('CPU', 0):g} CPUs + {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise RaylabError(
            f"one run asks for {self.workers} × ({self.cpus:g} CPUs + {self.gpus:g} GPUs), but the cluster's nodes "
            f"({have}) hold no such worker: lower resources.cpus_per_worker or resources.gpus_per_worker, or add nodes"
        )

    def _held(self, nodes: list[dict[str, Any]]) -> int:
        return sum(self._on(node) for node in nodes)

    def _on(self, node: dict[str, Any]) -> int:
        cpus = node.get("CPU", 0) // self.cpus
        return int(min(cpus, node.get("GPU", 0) // self.gpus) if self.gpus else cpus)
