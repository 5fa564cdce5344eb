"""Writes the reference pages: verbs from their `--help`, settings from their schema, models from the registry."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

import raylab
from raylab.cli import VERBS, app
from raylab.config import Experiment
from raylab.models.__main__ import row
from raylab.models.registry import list_models
from raylab.sweeps.space import SearchConfig


def write_reference(folder: Path) -> None:
    """Write every page; a page that would not change is left alone, so that Sphinx does not read it again."""
    folder.mkdir(exist_ok=True)
    for name, text in {"verbs": verbs(), "settings": settings(), "models": models(), "python": python()}.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def verbs() -> str:
    """What `raylab VERB --help` prints, for every verb."""
    os.environ |= {"TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    os.environ.setdefault("COLUMNS", "100")
    page = ["# Verbs", "", "`raylab VERB …` and `python -m raylab.VERB …` are the same.", ""]
    for verb in VERBS:
        shown = CliRunner().invoke(app(), [verb, "--help"], prog_name="raylab", terminal_width=100)
        page += [f"## {verb}", "", "```text", shown.output.strip(), "```", ""]
    return "\n".join(page)


def settings() -> str:
    """Every setting of an experiment and of a search, with what it may be, its default and its meaning."""
    page = [
        "# Settings",
        "",
        "Each may stand in a YAML file, or be changed on the command line by its dotted name: `optim.lr=1e-4`.",
        "An experiment's own file has all but those of `search`, which decide how a sweep is searched.",
        "",
    ]
    page += _table("Of a whole experiment", {n: f for n, f in Experiment.model_fields.items() if not _section(f)}, "")
    for name, field in Experiment.model_fields.items():
        if kind := _section(field):
            page += [*_table(name, kind.model_fields, f"{name}.", kind.__doc__ or "")]
            for item, stage in _lists(kind):
                page += _table(f"{name}.{item}", stage.model_fields, f"{name}.{item}.N.", stage.__doc__ or "")
    return "\n".join([*page, *_table("search", SearchConfig.model_fields, "search.", SearchConfig.__doc__ or "")])


def models() -> str:
    """The table of `python -m raylab.models`, and what each model is."""
    page = [(Path(__file__).parent / "models.md.in").read_text(encoding="utf-8")]
    heading = ("model", "task", "encoder", "documented", "counted", "trainable", "GFLOPs a clip", "clip", "batch")
    lines = [[*heading, "documented epochs"], ["---"] * 10]
    for entry in list_models():
        name, task, encoder, *rest = row(entry)
        lines.append([f"[`{name}`](#{name})", task, encoder if encoder == "–" else f"`{encoder}`", *rest])
    page += ["| " + " | ".join(cells) + " |" for cells in lines]
    for entry in list_models():
        taken = ", ".join(f"`model.{name}`" for name in sorted(entry.settings)) or "none"
        page += ["", f"({entry.name})=", f"## {entry.name}", "", entry.description, "", f"Settings: {taken}."]
    return "\n".join(page) + "\n"


def python() -> str:
    """Autodoc of what `import raylab` offers."""
    page = ["# Python", "", "Everything below is reached as `raylab.NAME`.", ""]
    functions = [name for name in raylab.__all__ if isinstance(getattr(raylab, name), types.FunctionType)]
    for name in [*functions, *(name for name in raylab.__all__ if name not in functions)]:
        value = getattr(raylab, name)
        kind = "function" if name in functions else "exception" if issubclass(value, Exception) else "class"
        members = "" if kind != "class" or issubclass(value, BaseModel) else "\n   :members:"
        home = f"{value.__module__}.{value.__qualname__}"
        page += [f"## {name}", "", "```{eval-rst}", f".. auto{kind}:: {home}{members}", "```", ""]
    return "\n".join(page)


def _table(title: str, fields: dict[str, Any], prefix: str, about: str = "") -> list[str]:
    rows = [f"## {title}", "", *([about.strip().split("\n\n")[0], ""] if about else [])]
    rows += ["| setting | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        missing = field.default is PydanticUndefined
        default = field.default_factory() if missing and field.default_factory else field.default
        shown = "needed" if default is PydanticUndefined else f"`{json.dumps(default)}`"
        values = ", ".join(_values(field.annotation, field.metadata))
        rows.append(f"| `{prefix}{name}` | {values} | {shown} | {field.description or ''} |".replace("| |", "|  |"))
    return [*rows, ""]


def _values(kind: Any, metadata: Any = ()) -> Iterator[str]:
    bounds = [f"{sign} {getattr(m, key)}" for m in metadata for key, sign in BOUNDS.items() if hasattr(m, key)]
    if get_origin(kind) in (Union, types.UnionType):
        for part in get_args(kind):
            yield from _values(part, metadata if part in (int, float) else ())
    elif get_origin(kind) is Literal:
        yield from (f"`{value}`" for value in get_args(kind))
    elif hasattr(kind, "__metadata__"):
        nested = [m for found in kind.__metadata__ for m in getattr(found, "metadata", [found])]
        yield from _values(kind.__origin__, nested)
    elif kind is bool:
        yield from ("`true`", "`false`")
    elif kind is type(None):
        yield "`null`"
    else:
        yield " ".join([NAMES.get(get_origin(kind) or kind, "text"), *bounds])


def _section(field: Any) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _lists(kind: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in kind.model_fields.items():
        item = next(iter(get_args(field.annotation)), None)
        if get_origin(field.annotation) is tuple and isinstance(item, type) and issubclass(item, BaseModel):
            yield name, item


BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
NAMES = {int: "integer", float: "number", str: "text", dict: "mapping", tuple: "list"}
