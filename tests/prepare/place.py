"""A data set to prepare, and commands that do."""

import csv
import os
import shutil
import subprocess
import sys
import time

import pyarrow as pa
import yaml

from raylab.data.kitchen import kitchen_root
from raylab.data.store.manifest import Manifest
from raylab.data.store.shards import shard_path
from raylab.data.video import probe

STORE = "4f-256px-q90"
CLIPS = 72  # of the tiny kitchen: 48 and 24, six in each of 12 videos

# Runs a module as `python -m` does, and says at its end which of the slow packages were imported.
MODULE = """
import runpy, sys
module = sys.argv.pop(1)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print("imported:", *sorted({"ray", "torch"} & set(sys.modules)), file=sys.stderr)
"""


class Place:
    """A data set in EPIC's layout, an experiment on it, and its clip store."""

    def __init__(self, folder, experiment, repeats=1):
        self.folder, self.root, self.file = folder, folder / "data", folder / "mine.yaml"
        shutil.copytree(kitchen_root("tiny"), self.root, ignore=shutil.ignore_patterns("clip-stores"))
        self.experiment = experiment.override({"data.dataset": "epic", "data.root": str(self.root)})
        self.file.write_text(yaml.safe_dump(self.experiment.to_dict()))
        for split in ("train", "validation"):
            repeat_rows(self.root / f"EPIC_100_{split}.csv", repeats)

    @property
    def store(self):
        return self.root / "clip-stores" / STORE

    @property
    def manifest(self):
        return Manifest.read(self.store)

    @property
    def videos(self):
        """Video files, shortest first."""
        return sorted(self.root.glob("*/videos/*.MP4"), key=lambda path: probe(path).duration)

    def shards(self):
        """Shard → its file's `stamp`."""
        return {name: stamp(shard_path(self.store, name)) for name in self.manifest.shards}

    def ids(self, shards):
        """Ids of the clips that these shards hold."""
        files = [pa.ipc.open_file(str(shard_path(self.store, name))) for name in shards]
        return {id for file in files for id in file.read_all()["id"].to_pylist()}


def stamp(path):
    """What changes when a file is written again."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def repeat_rows(path, repeats):
    """Every row of an annotation file so many times, under other ids."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *([f"{row[0]}_{i}", *row[1:]] for i in range(repeats) for row in rows)])


def start(*words, code=None, **options):
    """`python -m raylab.prepare …` in a process and a session of its own."""
    command = [sys.executable, *(["-c", code] if code else ["-m"]), "raylab.prepare", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("environment", {})}
    return subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, **options)


def wait_for(condition, process, seconds=240):
    """Wait until `condition()`, as long as the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the command ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)
