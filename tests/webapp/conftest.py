from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_page import Page, running, train_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with runs of which each tab can show one."""
    return train_models(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def page(models: Path) -> Iterator[Page]:
    """A page with all tabs."""
    with running(models, "--jobs", 2, "--memory", 3) as found:
        yield found
