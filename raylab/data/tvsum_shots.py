"""Find the shots of TVSum's videos, where nothing but `ydata-tvsum50.mat` is at hand, which has none.

    python -m raylab.data.tvsum_shots PATH/TO/TVSUM

They are written to `tvsum_shots.json` beside the annotations, where the reader finds them. See `raylab.data.shots`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from joblib import Parallel, delayed

from raylab.cli import console, run_verb
from raylab.config import DataConfig
from raylab.data.shots import find_shots
from raylab.data.tvsum import annotation_files, find_sources, recordings, write_shots
from raylab.errors import RaylabError


def tvsum_shots(
    root: Annotated[Path, typer.Argument(help="Folder with the annotations and videos/.")],
    workers: Annotated[int, typer.Option(help="Processes; -1: one for each CPU.")] = -1,
) -> None:
    """Find the shots of every video, and keep them beside the annotations.

    Example: python -m raylab.data.tvsum_shots data/tvsum
    """
    config = DataConfig(dataset="tvsum", root=str(root))
    found = recordings(annotation_files(config))
    sources = find_sources(config, dict.fromkeys(found, ""))
    jobs = (delayed(_changes)(sources[video], about.frames, about.rate) for video, about in found.items())
    shots = {}
    for video, changes in zip(found, Parallel(workers, "loky", return_as="generator")(jobs), strict=True):
        shots[video] = changes
        console.print(f"{video}: {len(changes) + 1} shots", markup=False)
    try:
        console.print(f"{write_shots(config, shots)}", markup=False)
    except OSError as error:
        raise RaylabError(f"{root}: cannot be written ({error.strerror}): make it writable, or copy it") from None


def _changes(source: Path, frames: int, rate: float) -> list[int]:
    changes: list[int] = find_shots(source, frames, rate)[1:, 0].tolist()
    return changes


if __name__ == "__main__":
    run_verb(tvsum_shots)
