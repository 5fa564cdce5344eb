"""What made a result: command, time, versions and data."""

from __future__ import annotations

import platform
import re
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from raylab import __version__
from raylab.config import DataConfig
from raylab.data.datasets import fingerprint


def provenance(data: DataConfig) -> dict[str, Any]:
    """`{"command", "started", "versions", "data"}`, to be kept beside what the command makes.

    Args:
        data: what it reads; see `raylab.data.datasets.fingerprint`.

    Raises:
        RaylabError: the data is not there.
    """
    return {
        "command": re.sub(r"//[^/@]+@", "//", shlex.join(sys.argv)),  # no credentials of a storage address
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "raylab": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("ray", "torch", "optuna", "scikit-learn")},
        },
        "data": fingerprint(data),
    }
