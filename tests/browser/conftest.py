import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass
class Observed:
    """A page, and what it said and asked for while it was open.

    Attributes:
        page: Playwright's page.
        errors: what it wrote to the console as an error, and exceptions that nobody caught.
        requests: the addresses that it asked for.
    """

    page: object
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def chromium(request) -> Iterator[object]:
    """A headless Chromium, with the switches of the module's `CHROMIUM_ARGUMENTS`."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # Containers run as root, where Chromium refuses to start inside its sandbox.
        switches = ["--no-sandbox", "--disable-dev-shm-usage", *getattr(request.module, "CHROMIUM_ARGUMENTS", [])]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=switches)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """`open_page(address, width=1400, **context)` → an `Observed` page, closed at the test's end.

    What it has asked for and complained of is in `requests` and `errors`; `context` is Playwright's: `permissions`,
    `color_scheme`, `accept_downloads`, …
    """
    contexts = []

    def open_page(address: str, width: int = 1400, height: int = 900, **context: object) -> Observed:
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, **context))
        observed = Observed(contexts[-1].new_page())
        page = observed.page
        page.on("console", lambda said: observed.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: observed.errors.append(str(error)))
        page.on("request", lambda request: observed.requests.append(request.url))
        page.goto(address)
        return observed

    yield open_page
    for context in contexts:
        context.close()
