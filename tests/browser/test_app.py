"""The page that takes a video, in a browser: what is uploaded, what a webcam sees, and how it looks."""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "webapp"))
from running_page import Page, eventually, running, train_models, videos

WEBCAM = Path("/tmp/raylab-test-webcam.mjpeg")  # noqa: S108 - Chromium is told of it before there are fixtures
CHROMIUM_ARGUMENTS = [
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    f"--use-file-for-fake-video-capture={WEBCAM}",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with running(train_models(tmp_path_factory.mktemp("results"))) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def webcam() -> Iterator[None]:
    """What the browser takes for a webcam: a second of black, a second of bright stripes, again and again."""
    stripes = np.zeros((240, 320, 3), np.uint8)
    stripes[:, ::16] = stripes[:, 1::16] = 255
    with av.open(str(WEBCAM), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=15)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuvj420p"
        for number in range(90):
            picture = stripes if number // 45 else np.zeros_like(stripes)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    yield
    WEBCAM.unlink()


def upload(seen, tab: str, video: Path) -> None:
    seen.page.click(f"#tab-{tab}")
    seen.page.set_input_files(f"#panel-{tab} .file", video)


def until(seen, condition: str) -> None:
    """Wait for an expression to be true: Playwright's own way needs what the page's security policy forbids."""
    eventually(lambda: seen.page.wait_for_timeout(50) or seen.page.evaluate(condition))


def is_drawn(png: bytes) -> bool:
    from PIL import Image

    colours = Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24)
    return len(colours or []) > 8


@pytest.mark.parametrize("width", [1400, 420])
def test_keyframes_of_an_upload(page: Page, open_page, width: int, tmp_path: Path) -> None:
    seen = open_page(page.address, width=width, accept_downloads=True)
    video = max(videos("keyframes"), key=lambda path: path.stat().st_size)
    upload(seen, "keyframes", video)
    seen.page.wait_for_selector("#panel-keyframes .gallery img", timeout=120_000)
    tiles = seen.page.locator(".gallery button")
    stamps = [re.match(r"[\d:.]+", text)[0] for text in tiles.all_inner_texts()]
    with seen.page.expect_download() as download:
        seen.page.click("text=Download as ZIP")
    assert download.value.suggested_filename == f"{video.stem}_keyframes.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        kept = [name for name in archive.namelist() if "keyframe_" in name]
    written = [f"{name[-16:-4]}".replace("-", ":").removeprefix("00:") for name in kept]
    assert stamps == written
    until(seen, "document.querySelector('.gallery img').naturalWidth > 0")
    curve = seen.page.locator(".curve")
    assert is_drawn(curve.screenshot())
    until(seen, "document.querySelector('video').readyState > 0")
    box = curve.bounding_box()
    curve.click(position={"x": box["width"] / 2, "y": 20})
    where = "document.querySelector('video').currentTime / document.querySelector('video').duration"
    assert seen.page.evaluate(where) == pytest.approx(0.5, abs=0.02)
    until(seen, "Math.abs(document.querySelector('.curve .now').getAttribute('x1') - 500) < 20")
    curve.press("ArrowRight")
    assert seen.page.evaluate(where) > 0.5
    tiles.first.click()
    minutes, seconds = stamps[0].split(":")
    time = seen.page.evaluate("document.querySelector('video').currentTime")
    assert time == pytest.approx(60 * int(minutes) + float(seconds), abs=0.01)
    check(seen, page, width, tmp_path / f"keyframes{width}.png")


@pytest.mark.parametrize("width", [1400, 420])
def test_real_or_generated(page: Page, open_page, width: int, tmp_path: Path) -> None:
    seen = open_page(page.address, width=width)
    upload(seen, "labels", videos("logistic")[0])
    seen.page.wait_for_selector("#panel-labels .verdict", timeout=120_000)
    assert seen.page.inner_text("#tab-labels") == "Real or generated"
    answer = page.post("labels", videos("logistic")[0].read_bytes(), "a.mp4").json()
    (top,) = answer["top"].values()
    assert seen.page.inner_text(".verdict").endswith(top[0]["name"])
    assert seen.page.locator("#panel-labels tbody tr").count() == len(answer["features"])
    assert is_drawn(seen.page.locator("#panel-labels .card").nth(1).screenshot())
    check(seen, page, width, tmp_path / f"labels{width}.png")
    seen.page.click("#tab-models")
    assert seen.page.locator("article").count() == 4
    check(seen, page, width, tmp_path / f"models{width}.png")


def test_a_webcam_gets_labels_that_change(page: Page, open_page, tmp_path: Path) -> None:
    seen = open_page(page.address, permissions=["camera"])
    seen.page.click("#tab-actions")
    seen.page.click("#panel-actions .webcam button")
    seen.page.wait_for_selector("#panel-actions .guesses", timeout=120_000)
    assert seen.page.locator("#panel-actions .heads section").count() == 3
    assert seen.page.locator("[data-head=action] li").count() == 5
    first = seen.page.inner_text("#panel-actions .heads")
    until(seen, f"document.querySelector('#panel-actions .heads').innerText !== {json.dumps(first)}")
    assert re.search(r"\d+ ms behind, [\d.]+ answers/s, camera \d+ pictures/s", seen.page.inner_text(".pace"))
    check(seen, page, 1400, tmp_path / "webcam.png")
    seen.page.click("text=Stop the webcam")
    assert seen.page.locator("video").count() == 0


def test_a_bad_file_is_said(page: Page, open_page) -> None:
    seen = open_page(page.address)
    name = "<img src=x onerror=alert(1)>.mp4"
    seen.page.set_input_files(
        "#panel-keyframes .file", {"name": name, "mimeType": "video/mp4", "buffer": b"PK\x03\x04 and so on"}
    )
    seen.page.wait_for_selector("#panel-keyframes .bad", timeout=60_000)
    assert "is a ZIP archive, not a video: unpack it" in seen.page.inner_text("#panel-keyframes .bad")
    assert seen.page.locator("img[src=x]").count() == 0
    assert all("422" in error for error in seen.errors)  # which the browser itself reports


def test_the_keyboard_reaches_everything(page: Page, open_page) -> None:
    seen = open_page(page.address)
    seen.page.wait_for_selector("[role=tab]")
    reached = []
    for _ in range(8):
        seen.page.keyboard.press("Tab")
        reached.append(seen.page.evaluate(FOCUSED))
    assert reached[:4] == ["tab-keyframes", "start", "stop", "file"]
    seen.page.focus("#tab-keyframes")
    seen.page.keyboard.press("ArrowRight")
    assert seen.page.evaluate("document.activeElement.id") == "tab-actions"
    assert seen.page.is_visible("#panel-actions")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert seen.page.evaluate(outline) == "solid"
    seen.page.keyboard.press("End")
    assert seen.page.is_visible("#panel-models")


FOCUSED = "(({ id, name, className }) => id || name || className)(document.activeElement)"
CONTRAST = """() => {
  const light = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c; } return "rgb(255,255,255)"; };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!text || !e.checkVisibility() || e.closest("svg, video")) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push(`${e.tagName} ${e.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(page: Page, open_page, scheme: str) -> None:
    seen = open_page(page.address, color_scheme=scheme)
    upload(seen, "labels", videos("logistic")[0])
    seen.page.wait_for_selector("#panel-labels .verdict", timeout=120_000)
    assert seen.page.evaluate(CONTRAST) == []
    for tab in ("models", "keyframes"):
        seen.page.click(f"#tab-{tab}")
        assert seen.page.evaluate(CONTRAST) == []


def check(seen, page: Page, width: int, picture: Path) -> None:
    """Nothing in the console, nothing asked of other hosts, nothing beyond the edge."""
    seen.page.screenshot(path=picture, full_page=True)
    assert seen.errors == []
    assert all(address.startswith((page.address, f"blob:{page.address}")) for address in seen.requests), seen.requests
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
