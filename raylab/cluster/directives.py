"""What `vsc.yaml` says of a node, as a batch job: SLURM's directives, the shell lines before Ray, the Python."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylab.cluster.slurm import Option
from raylab.errors import RaylabError, unknown_name

SETTINGS = ("slurm", "setup", "python")
INSTANCE = "RAY_CLOUD_INSTANCE_ID"  # by this Ray tells the autoscaler which of its nodes it is
PROVIDER = (*SETTINGS, "type", "module", "folder")
OURS = ("nodes", "ntasks", "output", "error", "job-name", "comment", "requeue", "no-requeue", "array", "wrap")


@dataclass(frozen=True)
class Directives:
    """How a node is asked for. What a node type leaves open is the provider's; lists and values replace, not add.

    Attributes:
        slurm: `sbatch`'s long options.
        setup: shell lines that make Python runnable on the node, e.g. `module load …`.
        python: the interpreter that has raylab; by default the one that reads this.
    """

    slurm: Mapping[str, Option]
    setup: tuple[str, ...]
    python: str

    @classmethod
    def parse(
        cls, provider: Mapping[str, Any], node_config: Mapping[str, Any], where: str = "node_config"
    ) -> Directives:
        """Raises RaylabError: a field is unknown, or not of its type."""
        for given, known, place in ((provider, PROVIDER, "provider"), (node_config, SETTINGS, where)):
            for name in given:
                if name not in known:
                    raise unknown_name(f"field in {place}:", name, known)
            if not isinstance(given.get("slurm") or {}, Mapping):
                raise RaylabError(f"{place}: slurm = {given['slurm']!r}: give options of sbatch, `name: value`")
        settings = merged(provider, node_config)
        slurm = settings["slurm"]
        for name, value in slurm.items():
            if name in OURS:
                raise RaylabError(f"{where}: slurm: {name} = {value!r}: the provider sets this itself: leave it out")
            if not isinstance(value, str | int | bool | None):
                raise RaylabError(f"{where}: slurm: {name} = {value!r}: give one value, as `sbatch --{name}=VALUE`")
            if name == "time" and isinstance(value, int):
                raise RaylabError(f"{where}: slurm: time = {value}: put it in quotes, YAML takes 12:00:00 for a number")
            if value == "" or "EDIT" in str(value):
                raise RaylabError(f"{where}: slurm: {name} = {value!r}: put in your own")
        setup = settings["setup"]
        if isinstance(setup, str) or not all(isinstance(line, str) for line in setup):
            raise RaylabError(f"{where}: setup = {setup!r}: give a list of shell lines")
        python = settings["python"] or sys.executable
        expanded = {name: os.path.expandvars(v) if isinstance(v, str) else v for name, v in slurm.items()}
        return cls(expanded, tuple(setup), os.path.expandvars(python))

    @property
    def cluster(self) -> str:
        """The SLURM cluster, where the site has several."""
        return str(self.slurm.get("clusters") or "")

    def resources(self) -> dict[str, int]:
        """What Ray may count on: CPUs and GPUs of one such node.

        Raises:
            RaylabError: GPUs are asked for in a way that does not say how many a node has.
        """
        gpus = self.slurm.get("gpus-per-node", self.slurm.get("gpus", self.slurm.get("gres", 0))) or 0
        count = re.fullmatch(r"(?:.*:)?(\d+)", str(gpus))  # 2, a100:2, gpu:a100:2
        if not count:
            raise RaylabError(f"slurm: gpus-per-node = {gpus!r}: say how many, as in `gpus-per-node: 2`")
        number = int(count[1])
        cpus = int(self.slurm.get("cpus-per-task") or 0) or int(self.slurm.get("cpus-per-gpu") or 0) * number or 1
        return {"CPU": cpus, "GPU": number} if number else {"CPU": cpus}

    def script(self, role: str, folder: Path, environment: Mapping[str, Any]) -> str:
        """The batch script of a node.

        Args:
            role: head or worker.
            folder: the cluster's. What the job prints goes to JOB.log there.
            environment: variables for Ray; values that are not text become JSON.
        """
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in environment.items()}
        # The job's own id can be known only in the job.
        instance = f'export {INSTANCE}="$SLURM_JOB_ID{"@" + self.cluster if self.cluster else ""}"'
        return "\n".join(
            [
                "#!/bin/bash -l",
                *self.prelude(),
                f'export RAYLAB_JOB_LOG={shlex.quote(str(folder))}/"$SLURM_JOB_ID".log',
                *(f"export {name}={shlex.quote(text)}" for name, text in texts.items()),
                instance,
                f"exec {shlex.quote(self.python)} -m raylab.cluster.job {role} {shlex.quote(str(folder))}",
                "",
            ]
        )

    def prelude(self) -> list[str]:
        """Shell lines that every script and command on a node begins with."""
        found = f"command -v {shlex.quote(self.python)} >/dev/null"
        missing = shlex.quote(f"no Python at {self.python}: mend `python` or `setup` in the cluster's file")
        lines = ['fail() { echo "error: $(hostname): $1" >&2; exit 1; }']
        for line in self.setup:
            lines += [line, f"[ $? = 0 ] || fail {shlex.quote(f'the setup line `{line}` failed')}"]
        lines.append(f"{found} || fail {missing}")
        if "/" in self.python:
            lines.append(f"export PATH={shlex.quote(str(Path(self.python).parent))}:$PATH")
        return lines


def merged(provider: Mapping[str, Any], node_config: Mapping[str, Any]) -> dict[str, Any]:
    """A node type's settings with those of the provider that it leaves open."""
    return {
        "slurm": {**(provider.get("slurm") or {}), **(node_config.get("slurm") or {})},
        "setup": node_config.get("setup", provider.get("setup")) or [],
        "python": node_config.get("python", provider.get("python")),
    }
