"""How long a report of 200 recorded trials of 30 epochs takes to write, and how large it is.

    python benchmarks/report.py

Trials are written as sweeps leave them, nothing is trained, no model is asked. Seconds of CPU time are those of one
thread, matplotlib's and Plotly's imports included.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from recorded import record_sweep

from raylab.sweeps.space import SearchSpace

TRIALS, EPOCHS = 200, 30
DEMAND = {"workers": 2, "cpus": 4.0, "gpus": 1.0}


def main() -> None:
    with tempfile.TemporaryDirectory() as storage:
        sweep = record_sweep(Path(storage), SearchSpace.load("epic_phase2"), TRIALS, EPOCHS, demand=DEMAND)
        started, worked = time.monotonic(), time.process_time()
        from raylab.report import write

        write(str(sweep.folder), judge=False)
        seconds, cpu = time.monotonic() - started, time.process_time() - worked
        folder = Path(sweep.folder.path)
        files = [path for path in (folder / "report").iterdir() if path.is_file()]
        page = (folder / "report.html").stat().st_size
        print(
            f"{TRIALS} trials, {EPOCHS} epochs: {seconds:.1f} s, {cpu:.1f} s of CPU; page {page / 1e6:.1f} MB", end=""
        )
        print(f"; {len(files)} files for papers, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
