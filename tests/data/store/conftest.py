from pathlib import Path

import pytest
from scenes import encode, extract


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Video id → source, 50 frames each: wide, tall, square, 2:1 and odd-sized pictures, and extracted frames."""
    root = tmp_path_factory.mktemp("videos")
    sizes = {"wide": (96, 64), "tall": (48, 80), "square": (64, 64), "double": (128, 64), "odd": (97, 55)}
    videos = {name: encode(root / f"{name}.mp4", *size) for name, size in sizes.items()}
    return {**videos, "frames": extract(root / "frames")}
