"""Find out what would keep training from running, on this machine or in a SLURM job, and how to mend it.

    python -m raylab.doctor --storage $VSC_SCRATCH/results
    python -m raylab.doctor --quick      # this machine only, without Ray
    python -m raylab.doctor --json

Each line is ok, a warning or a failure, the last two with a remedy; the exit code is 1 if there is a failure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from raylab.cli import console, run_verb
from raylab.cluster.checks import EACH, ONCE, Row, Site, examine, promised_gpus, said
from raylab.cluster.slurm import Allocation
from raylab.errors import RaylabError

COLOURS = {"ok": "green", "warning": "yellow", "failure": "bold red"}
SLOW = 1e9
"""Bytes a second: GPUs on several nodes that exchange gradients slower than this mostly wait for them."""
LOST = 120
"""Seconds after which a node that has not answered is given up."""


def diagnose(site: Site, seconds: float = 10, quick: bool = False) -> Iterator[Row]:
    """Every check's row, as it is found.

    Args:
        site: what the checks are told.
        seconds: how long workers exchange data.
        quick: check this machine only, and start nothing.
    """
    yield from examine({**ONCE, **EACH}, site)
    if not quick:
        try:
            yield join()
        except Exception as error:
            remedy = "see what failed above; --quick leaves Ray out"
            yield Row("Ray", "failure", str(error) if isinstance(error, RaylabError) else said(error), remedy)
            return
        yield from other_nodes(site)
        yield from examine({"all-reduce": lambda _: exchange(seconds)}, site)


def join() -> Row:
    """Ray answers or starts, on every node of the job, with every GPU that SLURM gave."""
    import ray

    from raylab.cluster.connect import connect
    from raylab.cluster.node import address, temp_path

    allocation = Allocation.current()
    if allocation and (here := address(temp_path())):
        os.environ.setdefault("RAY_ADDRESS", here)
    nodes = connect()
    names = {node["NodeManagerHostname"].partition(".")[0] for node in ray.nodes() if node["Alive"]}
    has = [f"{sum(node.get(kind, 0) for node in nodes):g} {kind}s" for kind in ("CPU", "GPU")]
    detail = f"{len(nodes)} nodes ({', '.join(sorted(names))}): {', '.join(has)}, {ray.__version__}"
    if allocation and (missing := sorted(set(allocation.nodes) - names)):
        remedy = "start it on all nodes: sbatch cluster/raylab.sbatch, or ray up cluster/vsc.yaml"
        return Row("Ray", "failure", f"{detail}; not on {', '.join(missing)} of job {allocation.job}", remedy)
    return Row("Ray", "ok", detail)


def other_nodes(site: Site) -> Iterator[Row]:
    """This machine's checks on every other node of the cluster, and on all what Ray has of their GPUs."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    look = ray.remote(num_cpus=0, max_retries=0)(examine_node)
    answers = {
        node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            site, node != here
        )
        for node in alive
    }
    for node, answer in answers.items():
        name = alive[node]["NodeManagerHostname"].partition(".")[0]
        try:
            promised, rows = ray.get(answer, timeout=LOST)
        except (RayError, GetTimeoutError) as error:
            yield Row(
                name, "failure", f"does not answer: {said(error)}", "leave it out: sbatch --exclude, and tell support"
            )
            continue
        if (has := alive[node]["Resources"].get("GPU", 0)) != promised:
            giver = "SLURM gave" if Allocation.current() else "the node has"
            remedy = "start Ray by raylab.sbatch or `ray up`; by hand: ray start --num-gpus=$SLURM_GPUS_ON_NODE"
            yield Row(f"{name}: Ray's GPUs", "failure", f"Ray has {has:g}, {giver} {promised}", remedy)
        bad = [row for row in rows if row.state != "ok"]
        yield from (Row(f"{name}: {row.what}", row.state, row.detail, row.remedy) for row in bad)
        if rows:
            yield Row(name, "ok", f"{len(rows) - len(bad)} of these {len(rows)} checks")


def examine_node(site: Site, checks: bool) -> tuple[int, list[Row]]:
    """In a worker process: what SLURM gave the node, and its rows if wanted."""
    return promised_gpus(), list(examine(EACH, site)) if checks else []


def exchange(seconds: float) -> Row:
    """Workers on all nodes, on every GPU, sum gradients: they reach one another, and come to the right sums."""
    from raylab.cluster.allreduce import MIB, measure

    try:
        speed = measure(seconds)
    except RaylabError as error:
        remedy = (
            "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the interface that joins the nodes (`ip -brief address`)"
        )
        return Row("all-reduce", "failure", str(error), remedy)
    detail = (
        f"{speed.workers} workers on {speed.nodes} nodes ({speed.backend}): {speed.size / MIB:g} MiB "
        f"in {speed.seconds * 1e3:.3g} ms, {speed.bandwidth / 1e9:.3g} GB/s"
    )
    if speed.backend == "nccl" and speed.nodes > 1 and speed.bandwidth < SLOW:
        remedy = "see with NCCL_DEBUG=INFO whether it uses InfiniBand; else keep each trial on one node"
        return Row("all-reduce", "warning", detail, remedy)
    return Row("all-reduce", "ok", detail)


def doctor(
    storage: Annotated[str | None, typer.Option(help="Results folder to be: a path or a URI.")] = None,
    seconds: Annotated[float, typer.Option(help="How long workers exchange data.", min=0.1)] = 10,
    quick: Annotated[bool, typer.Option("--quick", help="This machine only, without Ray.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Check Python, packages, decoders, GPUs, folders, ports and the network; say what to mend.

    Example: raylab doctor --storage $VSC_SCRATCH/results
    """
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")  # read when Ray is imported: else it waits for minutes
    rows = []
    for row in diagnose(Site(storage), seconds, quick):
        rows.append(row)
        if not as_json:
            show(row)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    if any(row.state == "failure" for row in rows):
        raise typer.Exit(1)


def show(row: Row) -> None:
    """One row on the console; its remedy below."""
    console.print(f"[{COLOURS[row.state]}]{row.state:8}[/] {escape(row.what):18} {escape(row.detail)}")
    if row.state != "ok":
        console.print(f"{'':8} {'':18} → {escape(row.remedy)}")


if __name__ == "__main__":
    run_verb(doctor)
