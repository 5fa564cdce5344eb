"""Metrics on disk: the history file and TensorBoard, written by rank 0."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL.Image import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from raylab.config import Experiment
from raylab.schema import settings
from raylab.training.runfolder import RunFolder
from raylab.training.samples import jpeg


class Recorder:
    """Writes one run's metrics.

    Args:
        run: the run's folder.
        experiment: its settings, shown as TensorBoard hyperparameters.
        step: the step the run starts from; events of an earlier attempt past it are hidden.
    """

    def __init__(self, run: RunFolder, experiment: Experiment, step: int) -> None:
        self.run = run
        self.experiment = experiment
        self.described = False
        self.scratch = None if run.folder.local else Path(tempfile.mkdtemp(prefix="tensorboard-"))
        logdir = self.scratch or Path(run.folder.path) / "tensorboard"
        self.writer = SummaryWriter(str(logdir), purge_step=step + 1 if step else None, flush_secs=10)

    def step(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def epoch(self, history: list[dict[str, Any]], pictures: dict[str, Image], done: bool) -> None:
        """Record the newest row with its pictures, the first time with hyperparameters; `done` closes the files."""
        self.run.write_history(history)
        row = history[-1]
        self.step(row["step"], {name: value for name, value in row.items() if name not in ("step", "epoch", "lr")})
        for name, picture in pictures.items():  # as JPEG: tensorboardX would write PNG, several times as large
            image = Summary.Image(height=picture.height, width=picture.width, encoded_image_string=jpeg(picture))
            value = Summary.Value(tag=name, image=image)
            self.writer.file_writer.add_summary(Summary(value=[value]), row["step"])
        if not self.described:
            # Through the run's own event file, so that the table follows `best` whoever ends the run.
            hyperparameters = {path: _plain(self.experiment.get(path)) for path in settings(Experiment)}
            for summary in hparams(hyperparameters, {"best": row["best"]}):
                self.writer.file_writer.add_summary(summary)
            self.described = True
        self.writer.flush()
        if self.scratch:
            self.run.folder.upload(self.scratch, "tensorboard")
        if done:
            self.close()

    def close(self) -> None:
        self.writer.close()
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
