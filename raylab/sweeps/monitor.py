"""TensorBoard beside a running sweep."""

from __future__ import annotations

import logging

from raylab.sweeps.folder import SweepFolder


def tensorboard(folder: SweepFolder) -> str:
    """Serve the sweep's event files on loopback until this process ends; the address, or why there is none."""
    if folder.folder.local is None:
        return "reads local folders only; copy the sweep's trials/ and open it there"
    from tensorboard.program import TensorBoard

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = TensorBoard()
    trials = folder.folder.local / "trials"
    server.configure(argv=[None, "--logdir", str(trials), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"])
    return str(server.launch())
