"""A node provider for `ray up` in which a node is a SLURM job.

`provider: {type: external, module: raylab.cluster.provider.SlurmNodeProvider}`; `cluster/vsc.yaml` is a whole example.
A node's id is its job's, with `@CLUSTER` behind it where the site has several SLURM clusters. Which jobs are whose, and
what they are, stands in the jobs' own names and comments; the tags that Ray changes later stand in one small file a
job, in the cluster's folder on shared storage. So the login node and the head see the same, and nothing must be
running for it to be known. Ray is started on a worker by its own job, so no command has to reach it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from raylab.cluster import slurm
from raylab.cluster.command_runner import SlurmCommandRunner
from raylab.cluster.directives import INSTANCE, SETTINGS, Directives, merged
from raylab.cluster.growth import AUTOSCALING
from raylab.cluster.job import ADDRESS, DASHBOARD
from raylab.errors import RaylabError
from raylab.storage import replacing

FOLDER = "~/.raylab/clusters"
FRESH = 1.0  # seconds that an answer of SLURM is good for
PATIENCE = (30.0, 600.0)  # seconds to the next try after SLURM refused a job: at first, at most


class SlurmNodeProvider(NodeProvider):  # type: ignore[misc]
    """The jobs of one Ray cluster. Safe to use from several threads.

    Args:
        provider_config: `provider` of the cluster's YAML file: `slurm`, `setup` and `python` hold for all nodes that do
            not say otherwise in their `node_config`; `folder` is where clusters keep their files, default
            `~/.raylab/clusters`.
        cluster_name: unique among this user's clusters.

    Raises:
        click.ClickException: a setting is not what it should be, or SLURM refused.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        if not re.fullmatch(r"[\w.-]+", cluster_name):
            raise click.ClickException(f"cluster_name = {cluster_name!r}: use letters, digits, `-`, `_` and `.`")
        folder = os.path.expandvars(provider_config.get("folder") or FOLDER)
        self.folder = Path(folder).expanduser() / cluster_name
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._known: dict[str, slurm.Job] = {}
        self._asked = -FRESH
        self._refused = ("", 0.0, 0.0)  # what SLURM said, when to try again, how long that was

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        for node_type in cluster_config["available_node_types"].values():
            node_type.setdefault("resources", {})
            node_type.setdefault("node_config", {})
        return cluster_config

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """What holds for all nodes goes into each node type: Ray looks there for what has changed since `ray up`.

        Resources that a node type does not name are those it asks SLURM for.
        """
        provider = cluster_config["provider"]
        types = cluster_config["available_node_types"]
        try:
            for name, node_type in types.items():
                directives = Directives.parse(provider, node_type["node_config"], name)
                node_type["resources"] = {**directives.resources(), **node_type["resources"]}
                node_type["node_config"] = merged(provider, node_type["node_config"])
        except RaylabError as error:
            raise click.ClickException(str(error)) from None
        shared = {name: value for name, value in provider.items() if name not in SETTINGS}
        clusters = sorted(
            {str(node_type["node_config"]["slurm"].get("clusters") or "") for node_type in types.values()}
        )
        ours = {"clusters": clusters, "disable_node_updaters": True}  # a worker's job starts Ray itself
        return {**cluster_config, "provider": {**shared, **ours}}

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[str]:
        return self._nodes(tag_filters, leaving=False)

    def nodes_for_teardown(self, tag_filters: Mapping[str, str]) -> list[str]:
        """Those that are about to be gone too: `ray down` ends when they are."""
        return self._nodes(tag_filters, leaving=True)

    def is_running(self, node_id: str) -> bool:
        job = self._job(node_id)
        return job is not None and job.running

    def is_terminated(self, node_id: str) -> bool:
        job = self._job(node_id)
        return job is None or job.ended

    def node_tags(self, node_id: str) -> dict[str, str]:
        job = self._job(node_id)
        tags = self._tags(job) if job else {}
        with suppress(FileNotFoundError):
            tags |= json.loads(self._file(node_id).read_text())
        return tags

    def set_node_tags(self, node_id: str, tags: Mapping[str, str]) -> None:
        with self._lock, replacing(self._file(node_id)) as writing:
            writing.write_text(json.dumps({**self.node_tags(node_id), **tags}))

    def internal_ip(self, node_id: str) -> str:
        """The address at which other nodes reach it; empty while the job waits."""
        job = self._job(node_id)
        if not job or not job.nodes:
            return ""
        if job.name == f"{self._prefix}{NODE_KIND_HEAD}" and (address := self._address()):
            return address.rpartition(":")[0]
        try:
            return socket.gethostbyname(job.nodes[0])
        except OSError:
            return job.nodes[0]

    def external_ip(self, node_id: str) -> str:
        return self.internal_ip(node_id)

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        self.create_node_with_resources_and_labels(node_config, tags, count, {}, {})

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        """Queue `count` jobs. After a refusal the next one is put off, longer each time: SLURM is not to be flooded."""
        kind = tags[TAG_RAY_NODE_KIND]
        with self._lock:
            said, later, _ = self._refused
            if time.monotonic() < later:
                raise click.ClickException(said)
            try:
                self._submit(node_config, tags, count, kind, resources, labels)
            except RaylabError as error:
                pause = min(max(PATIENCE[0], 2 * self._refused[2]), PATIENCE[1])
                self._refused = (str(error), time.monotonic() + pause, pause)
                raise click.ClickException(str(error)) from None
            finally:
                self._asked = -FRESH
            self._refused = ("", 0.0, 0.0)

    def terminate_node(self, node_id: str) -> None:
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """Cancel jobs. The autoscaler does not cancel the one it runs in, though it may see Ray stop there first:
        `ray down` would not get to the others."""
        node_ids = [node_id for node_id in node_ids if node_id != os.environ.get(INSTANCE)]
        with self._lock:
            self._asked = -FRESH
            by_cluster: dict[str, list[str]] = {}
            for node_id in node_ids:
                job, _, cluster = node_id.partition("@")
                by_cluster.setdefault(cluster, []).append(job)
            for cluster, ids in by_cluster.items():
                slurm.cancel(ids, cluster=cluster)

    def get_command_runner(
        self,
        log_prefix: str,
        node_id: str,
        auth_config: dict[str, Any],
        cluster_name: str,
        process_runner: Any,
        use_internal_ip: bool,
        docker_config: dict[str, Any] | None = None,
    ) -> SlurmCommandRunner:
        if docker_config and docker_config.get("container_name"):
            raise click.ClickException("docker: a SLURM node runs no Docker: leave it out")
        job, _, cluster = node_id.partition("@")
        config = json.loads(self.node_tags(node_id).get("config") or "{}")
        directives = Directives.parse({}, config)
        return SlurmCommandRunner(job, cluster, self.folder, directives, self.folder / f"{job}.log")

    def cleanup_cluster_resources(self) -> None:
        """After `ray down`: the files of jobs that are gone, but for what they printed."""
        for file in [*self.folder.glob("*.tags"), *(self.folder / name for name in (ADDRESS, DASHBOARD, AUTOSCALING))]:
            file.unlink(missing_ok=True)

    def _submit(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        kind: str,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        directives = Directives.parse({}, node_config, tags.get(TAG_RAY_USER_NODE_TYPE, kind))
        if kind == NODE_KIND_HEAD:
            self._forget_head()
        options: dict[str, slurm.Option] = {
            **directives.slurm,
            "output": f"{self.folder}/%j.log",
            "nodes": 1,
            "ntasks": 1,
            "no-requeue": True,  # under its old id a job would be a node that Ray has seen die
            "job-name": f"{self._prefix}{kind}",
            "comment": json.dumps(tags, separators=(",", ":")),
        }
        variables: dict[str, Any] = {"RAY_NODE_TYPE_NAME": tags.get(TAG_RAY_USER_NODE_TYPE, "")}
        if kind == NODE_KIND_WORKER:
            variables |= {"RAY_OVERRIDE_RESOURCES": resources, "RAY_enable_autoscaler_v2": "1"}
            if labels:
                variables["RAY_OVERRIDE_LABELS"] = labels
        environment = {name: v for name, v in slurm.clean_environment().items() if not name.startswith("RAY_")}
        script = directives.script(kind, self.folder, variables)
        for _ in range(count):
            job = slurm.submit(script, options, environment)
            node_id = f"{job}@{directives.cluster}" if directives.cluster else job
            name, comment = str(options["job-name"]), str(options["comment"])
            self._known[node_id] = slurm.Job(job, name, "PENDING", (), "", None, comment)
            self.set_node_tags(node_id, {**tags, "config": json.dumps(node_config)})

    def _forget_head(self) -> None:
        """What a head that is no more has left: its address, its workers."""
        (self.folder / ADDRESS).unlink(missing_ok=True)
        if orphans := self._nodes({TAG_RAY_NODE_KIND: NODE_KIND_WORKER}, leaving=False):
            self.terminate_nodes(orphans)

    @property
    def _prefix(self) -> str:
        return f"ray-{self.cluster_name}-"

    def _nodes(self, tag_filters: Mapping[str, str], leaving: bool) -> list[str]:
        with self._lock:
            self._refresh()
            here = [
                node_id
                for node_id, job in self._known.items()
                if not job.ended or (leaving and job.state == "COMPLETING")
            ]
            return [node_id for node_id in here if tag_filters.items() <= self.node_tags(node_id).items()]

    def _job(self, node_id: str) -> slurm.Job | None:
        with self._lock:
            if time.monotonic() - self._asked > 5 * FRESH:
                self._refresh()
            return self._known.get(node_id)

    def _refresh(self) -> None:
        if time.monotonic() - self._asked < FRESH:
            return
        names = [f"{self._prefix}{kind}" for kind in (NODE_KIND_HEAD, NODE_KIND_WORKER)]
        known = {}
        for cluster in self._clusters():
            try:
                jobs = slurm.jobs(names=names, cluster=cluster)
            except RaylabError as error:
                raise click.ClickException(str(error)) from None
            for job in jobs.values():
                known[f"{job.id}@{cluster}" if cluster else job.id] = job
        self._known, self._asked = known, time.monotonic()

    def _clusters(self) -> set[str]:
        """The SLURM clusters that nodes may be on: those of the settings, and those where nodes were once asked for."""
        shared = (self.provider_config.get("slurm") or {}).get("clusters") or ""  # `ray get-head-ip` bootstraps nothing
        named = {os.path.expandvars(name) for name in self.provider_config.get("clusters", [shared])}
        return named | {file.stem.partition("@")[2] for file in self.folder.glob("*.tags")}

    def _tags(self, job: slurm.Job) -> dict[str, str]:
        """What the job was given when it was queued. Some sites write comments of their own; its name is kept."""
        tags = {TAG_RAY_NODE_KIND: job.name.removeprefix(self._prefix)}
        try:
            return {**tags, **json.loads(job.comment)}
        except (ValueError, TypeError):
            return tags

    def _file(self, node_id: str) -> Path:
        return self.folder / f"{node_id}.tags"

    def _address(self) -> str:
        try:
            return (self.folder / ADDRESS).read_text()
        except FileNotFoundError:
            return ""
