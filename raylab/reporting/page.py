"""One HTML file that needs nothing else: style, script and Plotly are in it, and nothing is asked of any network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from raylab import __version__
from raylab.reporting.content import Report, Section

HERE = Path(__file__).parent


def render(reports: Sequence[Report], overview: Section | None = None, refresh: float | None = None) -> str:
    """The page.

    Names, paths, classes and messages are text in it, whatever they hold; a browser runs the two scripts whose digests
    the page declares, and no other.

    Args:
        reports: what is shown, one after another.
        overview: what stands before them.
        refresh: seconds after which the browser loads the page again.
    """
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), (HERE / "page.js").read_text()]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["data"] = data
    template = environment.from_string((HERE / "page.html.j2").read_text())
    return template.render(
        reports=reports,
        overview=overview,
        title=", ".join(report.subject.name for report in reports),
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - our own, and Plotly's
        digests=[digest(script) for script in scripts],
        style=Markup((HERE / "page.css").read_text()),  # noqa: S704 - our own
        refresh=refresh,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


def data(value: Any) -> Markup:
    """JSON to stand in a script element: nothing in it can end that."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))  # noqa: S704 - made safe here


def digest(script: str) -> str:
    """A script's digest, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
