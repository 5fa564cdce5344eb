"""A report in Chromium: nothing but itself, all plots drawn, no wider than the window, readable in light and dark."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recorded import record_sweep

from raylab.report import write
from raylab.sweeps.space import SearchSpace

# Optuna's parallel coordinates are drawn by WebGL.
CHROMIUM_ARGUMENTS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
CONTRAST = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const weights = [0.2126, 0.7152, 0.0722];
  const of = (c) => weights.reduce((sum, weight, at) => sum + weight * linear(c[at] / 255), 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const kinds = "h1, h2, h3, p, dt, dd, th, td, a:not(.skip), footer, .xtick text, .ytick text";
  const texts = [...document.querySelectorAll(kinds)];
  return texts.filter((node) => node.textContent.trim() && node.getClientRects().length).map((node) => {
    const style = getComputedStyle(node);
    const [a, b] = [of(parse(node instanceof SVGElement ? style.fill : style.color)), of(ground(node))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.textContent.slice(0, 40)];
  }).sort((a, b) => a[0] - b[0])[0];
}
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    storage = tmp_path_factory.mktemp("storage")
    demand = {"workers": 1, "cpus": 4.0, "gpus": 1.0}
    sweep = record_sweep(storage, SearchSpace.load("epic_phase2"), trials=16, epochs=12, demand=demand)
    write(str(sweep.folder), judge=False)
    return Path(sweep.folder.path) / "report.html"


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_is_drawn(report: Path, open_page, width: int, scheme: str) -> None:
    seen = open_page(report.as_uri(), width, color_scheme=scheme)
    page = seen.page
    plots = page.locator(".canvas")
    page.wait_for_function("document.querySelectorAll('.canvas:not([data-drawn])').length === 0")
    assert plots.count() == 8
    for number in range(plots.count()):
        plot = plots.nth(number)
        plot.scroll_into_view_if_needed()
        pixels = np.asarray(Image.open(io.BytesIO(plot.screenshot())).convert("L"), float)
        assert pixels.std() > 3, plot.get_attribute("data-name")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title().startswith("epic_phase2"), "a message of a failed trial has run as a script"
    contrast, text = page.evaluate(CONTRAST)
    assert contrast >= 4.5, text
    assert seen.errors == []
    assert [address for address in seen.requests if not address.startswith(("data:", "blob:"))] == [report.as_uri()]


def test_a_report_is_reached_by_keyboard(report: Path, open_page) -> None:
    page = open_page(report.as_uri()).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('nav a')")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    wanted, reached = {"Leaderboard", "What results cost"}, set()
    for _ in range(200):  # every plot has a bar of buttons
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        if wanted <= reached:
            break
    assert wanted <= reached
