"""Settings as validated plain data: pydantic schemas, dotted paths, overrides and YAML, without any code in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeGuard, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from raylab.errors import RaylabError

Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _expand(path: str) -> str:
    expanded = os.path.expandvars(path)
    if "$" in expanded:
        raise ValueError(f"the environment variable in {path!r} is not set")
    return str(Path(expanded).expanduser()) if expanded.startswith("~") else expanded


UserPath = Annotated[str, AfterValidator(_expand)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


S = TypeVar("S", bound=BaseModel)


def validate(schema: type[S], data: Mapping[str, Any], origin: str) -> S:
    """`schema` built from `data`; every problem in one `RaylabError` that names `origin`."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        lines = [_explain(schema, problem) for problem in error.errors()]
    raise RaylabError("\n".join(f"{origin}: {line}" for line in dict.fromkeys(lines)))


def settings(schema: type[BaseModel], prefix: str = "", number: str | None = None) -> Iterator[str]:
    """Every dotted path of a schema, in order; with a number, also those of the item of that number in each list."""
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if _is_section(kind):
            yield from settings(kind, f"{prefix}{name}.", number)
            continue
        yield f"{prefix}{name}"
        item = next(iter(get_args(kind)), None)
        if number is not None and get_origin(kind) is tuple and _is_section(item):
            yield from settings(item, f"{prefix}{name}.{number}.")


def _is_section(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """`["optim.lr=1e-4", …]` → `{"optim.lr": 0.0001, …}`; values are read as YAML.

    Raises:
        RaylabError: a word has no `=`, or its value is not YAML.
    """
    changes: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise RaylabError(f"{word!r} is not an override: write setting=value, e.g. optim.lr=1e-4")
        try:
            changes[path] = _load(text)
        except yaml.YAMLError as error:
            raise RaylabError(f"{word!r}: the value is not valid YAML ({error.__class__.__name__})") from None
    return changes


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dict. Plain data only; a key written twice is an error.

    Raises:
        RaylabError: the file is missing, not YAML, or not a mapping.
    """
    try:
        data = _load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RaylabError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise RaylabError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise RaylabError(f"{path}: expected settings (key: value), found {type(data).__name__}")
    return data


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 5e-5 as a number (as YAML 1.2 does) and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _explain(schema: type[BaseModel], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"] if part in _names(schema) or isinstance(part, int))
    full = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return str(unknown_setting(schema, full))
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{path or full} = {problem['input']!r}: {message.removeprefix('value error, ')}"


def _names(schema: type[BaseModel]) -> set[str]:
    return {part for path in settings(schema, number="0") for part in path.split(".")}


def unknown_setting(schema: type[BaseModel], path: str, origin: str = "") -> RaylabError:
    """The error for a dotted path that a schema does not have; it names the nearest one."""
    number = next((part for part in path.split(".") if part.isdecimal()), None)
    known = list(settings(schema, number=number))
    if path in known:
        return RaylabError(f"{origin}: unknown setting {path}: the list is shorter".removeprefix(": "))
    leaf = path.rpartition(".")[2]
    near = get_close_matches(path, known, n=1, cutoff=0.6) or [p for p in known if p.rpartition(".")[2] == leaf]
    hint = f"did you mean {near[0]}?" if near else "settings: " + ", ".join(known)
    return RaylabError(f"{origin}: unknown setting {path}: {hint}".removeprefix(": "))
