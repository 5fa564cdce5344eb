"""Search-space files: a base experiment, the space around it, and the documented configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer

import raylab
from raylab.config import Experiment
from raylab.errors import RaylabError, unknown_name
from raylab.models.registry import find_model
from raylab.schema import Count, Section, parse_overrides, read_yaml, validate

Scalar = bool | int | float | str
RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]  # also a folder's name


class SearchConfig(Section):
    """How a space is searched."""

    metric: str = Field("val/action_top1", description="what decides between trials")
    mode: Literal["max", "min"] = "max"
    trials: Count = Field(32, description="trials in all, the documented ones included; a grid's size at most")
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="multivariate TPE, independent draws, or every point of the space once"
    )
    scheduler: Literal["asha", "none"] = Field("asha", description="asynchronous successive halving, or none")
    grace_epochs: Count = Field(5, description="epochs before a trial may be stopped")
    reduction_factor: float = Field(3, gt=1, description="one in this many trials passes a rung")
    max_concurrent: int | None = Field(None, ge=1, description="null: as many as the cluster holds")
    keep_trials: Count = Field(5, description="trials whose checkpoints are kept")


class Range(Section):
    """One searched setting; exactly one of the four."""

    choice: list[Scalar] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    randint: tuple[int, int] | None = Field(None, description="both ends included")

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def ends(self) -> list[Any]:
        """The values that must be valid for every value to be: all choices, or the two ends."""
        return list(getattr(self, self.kind))

    @property
    def count(self) -> float:
        """How many values it holds."""
        if self.choice is not None:
            return len(self.choice)
        return self.randint[1] - self.randint[0] + 1 if self.randint else math.inf

    def holds(self, value: Any) -> bool:
        if self.choice is not None:
            return value in self.choice
        low, high = self.ends
        return isinstance(value, int | float) and low <= value <= high

    @property
    def values(self) -> list[Any]:
        """All values of a range that can be counted."""
        if self.choice is not None:
            return self.choice
        assert self.randint is not None, "a continuous range"  # noqa: S101
        return list(range(self.randint[0], self.randint[1] + 1))

    def including(self, value: Any) -> Range:
        """This range, widened where it does not hold `value`."""
        if self.holds(value):
            return self
        if self.choice is not None:
            return Range(choice=[*self.choice, value])
        low, high = self.ends
        return Range.model_validate({self.kind: (min(low, value), max(high, value))})

    @model_serializer
    def _only_kind(self) -> dict[str, Any]:
        return {self.kind: getattr(self, self.kind)}

    def __str__(self) -> str:
        if self.choice is not None:
            return "{" + ", ".join(map(str, self.choice)) + "}"
        low, high = self.ends
        return f"{low:g} … {high:g}" + (" (log)" if self.loguniform else "")


class _File(Section):
    """The layout of a search-space file."""

    description: str
    source: str = ""
    experiment: dict[str, Any]
    space: dict[str, Range]
    documented: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], dict[str, Scalar]] = Field(
        default_factory=dict
    )
    search: SearchConfig = SearchConfig()
    demo: dict[str, Any] = Field(default_factory=dict)


class SearchSpace(Section):
    """A validated sweep.

    Attributes:
        name: the sweep's name, also that of its folder.
        experiment: what every trial shares.
        space: dotted setting → range.
        documented: name → a value for every setting of the space; run first.
        search: metric, trials, sampler, scheduler.
        demo: overrides that make it run on the built-in data set.
        taken: what it took over from another sweep's best trial: dotted setting → value.
    """

    name: str
    description: str
    source: str
    experiment: Experiment
    space: dict[str, Range]
    documented: dict[str, dict[str, Scalar]]
    search: SearchConfig
    demo: dict[str, Any]
    taken: dict[str, Scalar] = Field(default_factory=dict)

    @classmethod
    def load(cls, name: str) -> SearchSpace:
        """A shipped search space by name, or any by the path of its file.

        Raises:
            RaylabError: no such file, or anything in it is invalid; every value is checked.
        """
        path = find(name)
        return cls.parse(read_yaml(path), path.stem, str(path))

    @classmethod
    def parse(cls, data: Mapping[str, Any], name: str, origin: str) -> SearchSpace:
        """Validate the content of a search-space file. `origin` is named in errors."""
        file = validate(_File, data, origin)
        experiment = Experiment.parse(file.experiment, f"{origin}: experiment")
        space = cls(
            name=name,
            experiment=experiment,
            documented={row: _complete(values, file.space, experiment) for row, values in file.documented.items()},
            **{key: getattr(file, key) for key in ("description", "source", "space", "search", "demo")},
        )
        space.check(origin)
        return space

    def check(self, origin: str) -> None:
        """Validate every value a trial may get.

        Raises:
            RaylabError: a range is malformed, a setting is unknown, or a value is refused.
        """
        if not self.space:
            raise RaylabError(f"{origin}: space is empty: name at least one setting to search")
        for path, values in self.space.items():
            where = f"{origin}: space: {path}"
            if len(values.model_fields_set) != 1:
                raise RaylabError(f"{where}: write one of choice, uniform, loguniform, randint")
            if values.choice is None:
                low, high = values.ends
                if not low < high:
                    raise RaylabError(f"{where} = [{low:g}, {high:g}]: the first must be less than the second")
                if values.loguniform and low <= 0:
                    raise RaylabError(f"{where} = [{low:g}, {high:g}]: loguniform needs values above 0")
            if path.startswith(("resources.", "train.monitor", "train.mode")):
                raise RaylabError(f"{where}: this setting is one for the whole sweep: set it in experiment")
            for value in values.ends:
                self.experiment.override({path: value}, f"{origin}: space")
        for row, values_by_path in self.documented.items():
            where = f"{origin}: documented.{row}"
            for path, value in values_by_path.items():
                if path not in self.space:
                    raise RaylabError(f"{where}: {unknown_name('searched setting', path, self.space)}")
                if not self.space[path].holds(value):
                    raise RaylabError(f"{where}: {path} = {value!r} lies outside the space, {self.space[path]}")
            self.experiment.override(values_by_path, where)
        if self.search.sampler == "grid" and math.isinf(self.points):
            endless = next(path for path, values in self.space.items() if math.isinf(values.count))
            raise RaylabError(
                f"{origin}: search.sampler = grid: {endless} is continuous: give it a choice or a randint, or set "
                "search.sampler=tpe"
            )
        train, grace = self.experiment.train, self.search.grace_epochs
        if self.search.scheduler == "asha" and grace > train.length:
            epochs = f"the {train.length} epochs of train.stages" if train.stages else f"train.epochs = {train.length}"
            raise RaylabError(
                f"{origin}: search.grace_epochs = {grace} is more than {epochs}: lower it, or set search.scheduler=none"
            )

    def override(self, words: list[str]) -> SearchSpace:
        """A copy changed by `setting=value` words.

        A searched setting that is given a value is searched no more, and documented configurations with
        another value of it are left out. `search.…` settings are changed likewise.
        """
        return self.change(parse_overrides(words), "the command line")

    def for_demo(self) -> SearchSpace:
        """The same sweep on the built-in data set, under a name of its own.

        Raises:
            RaylabError: the file has no `demo` section.
        """
        if not self.demo:
            raise RaylabError(f"{self.name} has no demo section: it runs on its own data only")
        changed = self.change(self.demo, f"{self.name}: demo")
        return changed.model_copy(update={"name": f"{self.name}_demo"})

    def change(self, changes: Mapping[str, Any], origin: str) -> SearchSpace:
        """A copy with dotted settings of the experiment and of `search.` replaced."""
        search = {k.removeprefix("search."): v for k, v in changes.items() if k.startswith("search.")}
        fixed = {k: v for k, v in changes.items() if not k.startswith("search.")}
        experiment = self.experiment.override(fixed, origin)
        space = {path: values for path, values in self.space.items() if path not in fixed}
        if not space:
            raise RaylabError(f"{origin}: every searched setting is fixed: use `raylab train` for one run")
        documented = {
            row: {path: value for path, value in values.items() if path in space}
            for row, values in self.documented.items()
            if all(experiment.get(path) == values[path] for path in fixed if path in values)
        }
        merged = validate(SearchConfig, {**self.search.model_dump(), **search}, f"{origin}: search")
        changed = self.model_copy(
            update={"experiment": experiment, "space": space, "documented": documented, "search": merged}
        )
        changed.check(origin)
        return changed

    def trial(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment of one trial, monitored by the sweep's metric."""
        monitor = {"train.monitor": self.search.metric, "train.mode": self.search.mode}
        return self.experiment.override({**values, **monitor}, self.name)

    def values(self, path: str) -> list[Any]:
        """Every value that trials may give a setting of the experiment.

        Raises:
            RaylabError: they cannot be counted.
        """
        values = self.space.get(path)
        if values is None:
            return [self.experiment.get(path)]
        if math.isinf(values.count):
            raise RaylabError(f"{self.name}: space: {path} is continuous: search it by choice or randint")
        return values.values

    @property
    def points(self) -> float:
        """The number of points of the space."""
        return math.prod(values.count for values in self.space.values())

    @property
    def size(self) -> str:
        """The number of points of the space, as text."""
        return "continuous" if math.isinf(self.points) else f"{self.points:,} points"

    @property
    def trials(self) -> int:
        """How many trials the sweep has: `search.trials`, or the size of a smaller grid."""
        return int(min(self.search.trials, self.points)) if self.search.sampler == "grid" else self.search.trials

    @property
    def grid(self) -> list[dict[str, Scalar]]:
        """A grid's points besides the documented ones, in order, the last setting changing fastest; else none."""
        if self.search.sampler != "grid":
            return []
        points = product(*(values.values for values in self.space.values()))
        known = list(self.documented.values())
        return [point for values in points if (point := dict(zip(self.space, values, strict=True))) not in known]

    @property
    def variants(self) -> list[Experiment]:
        """Trials that stand for all: the documented ones, a grid's, and one for each value of each choice."""
        choices = [{path: value} for path, values in self.space.items() for value in values.choice or []]
        return [self.trial(values) for values in (*self.documented.values(), *self.grid, *choices)]

    def starting_from(self, values: Mapping[str, Scalar], row: str) -> SearchSpace:
        """The same sweep around a configuration of another one.

        Settings that are searched here too become the first documented configuration, and their ranges are widened
        where they do not hold it; the others are fixed. Settings that the model does not have are left out.

        Args:
            values: dotted setting → value.
            row: the name of that configuration here.
        """
        models = [find_model(name) for name in self.values("model.name")]
        fits = {
            path: value
            for path, value in values.items()
            if not path.startswith("model.") or all(path.removeprefix("model.") in model.settings for model in models)
        }
        first = {path: value for path, value in fits.items() if path in self.space}
        base = self.change({path: value for path, value in fits.items() if path not in self.space}, row)
        space = {path: found.including(first[path]) if path in first else found for path, found in base.space.items()}
        documented = {row: _complete(first, space, base.experiment), **base.documented}
        started = base.model_copy(update={"space": space, "documented": documented, "taken": fits})
        started.check(row)
        return started


def _complete(row: Mapping[str, Scalar], space: Mapping[str, Range], experiment: Experiment) -> dict[str, Scalar]:
    """A documented row, with the base experiment's value for each searched setting it leaves open."""
    left = [path for path in space if path not in row and experiment.has(path)]
    return {**row, **{path: experiment.get(path) for path in left}}


def folder() -> Path:
    """Where the shipped search spaces are: in the installed package, or in a checkout."""
    package = Path(raylab.__file__).parent
    installed = package / "search_spaces"
    return installed if installed.is_dir() else package.parent / "search_spaces"


def shipped() -> list[str]:
    """Names of the search spaces that come with raylab."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a shipped search space, or of a user's own.

    Raises:
        RaylabError: there is none.
    """
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or "/" in name:
        if path.is_file():
            return path
        raise RaylabError(f"search space {name}: no such file")
    if name not in shipped():
        raise unknown_name("sweep", name, shipped())
    return folder() / f"{name}.yaml"
