"""Takes the picture of the README: the top of a report, in a headless Chromium.

python -m raylab.tune epic_phase2 --demo data.max_clips=null data.size=32
python docs/screenshots.py results/epic_phase2_demo/report.html
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGE = Path(__file__).parent / "images" / "report.png"
WIDTH, HEIGHT = 1400, 1560


def picture(report: Path, image: Path = IMAGE) -> None:
    """Write the first screen of a report as PNG."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(report.resolve().as_uri())
        page.wait_for_timeout(3000)
        image.parent.mkdir(exist_ok=True)
        page.screenshot(path=image)
        browser.close()


if __name__ == "__main__":
    picture(Path(sys.argv[1]))
