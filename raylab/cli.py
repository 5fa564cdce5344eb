"""The command line: `raylab VERB …` and `python -m raylab.VERB …` are the same.

Exit codes: 0 done, 1 a run failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from raylab.errors import RaylabError

VERBS = {
    "prepare": "raylab.prepare",
    "tune": "raylab.tune",
    "train": "raylab.train",
    "evaluate": "raylab.evaluate",
    "report": "raylab.report",
    "predict": "raylab.predict",
    "app": "raylab.app",
    "results": "raylab.results",
    "dashboard": "raylab.dashboard",
    "models": "raylab.models.__main__",
    "doctor": "raylab.doctor",
}
PLAIN: dict[str, Any] = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}

# In a file or a pipe there is no width to keep to: long lines stay whole, tables take what they need.
console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def app() -> typer.Typer:
    """All verbs in one application."""
    application = typer.Typer(name="raylab", no_args_is_help=True, **PLAIN)
    for verb, module in VERBS.items():
        application.command(verb)(getattr(importlib.import_module(module), verb))
    return application


def main() -> None:
    """The `raylab` console script."""
    _exit(app())


def run_verb(verb: Callable[..., Any]) -> None:
    """Run one verb as `python -m raylab.VERB`."""
    application = typer.Typer(name=f"python -m raylab.{verb.__name__}", **PLAIN)
    application.command()(verb)
    _exit(application)


def _exit(application: typer.Typer) -> None:
    try:
        application()
    except RaylabError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
