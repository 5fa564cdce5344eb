"""Search-space files: a base experiment, the space around it, and the documented configurations."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import raylab
from raylab.config import Experiment, ModelConfig
from raylab.errors import RaylabError, unknown_name
from raylab.models.registry import find_model
from raylab.schema import Count, Section, parse_overrides, read_yaml, validate
from raylab.sweeps.ranges import Range, Scalar

RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]  # also a folder's name
Own = dict[str, dict[str, dict[str, Scalar]]]
Published = dict[str, dict[str, float | list[float]]]
FOLD = "data.fold"


class SearchConfig(Section):
    """How a space is searched."""

    metric: str = Field("val/action_top1", description="what decides between trials")
    mode: Literal["max", "min"] = Field("max", description="whether more or less of it is better")
    trials: Count = Field(32, description="trials in all, the documented ones included; a grid's size at most")
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="multivariate TPE, independent draws, or every point of the space once"
    )
    scheduler: Literal["asha", "none"] = Field("asha", description="asynchronous successive halving, or none")
    grace_epochs: Count = Field(5, description="epochs before a trial may be stopped")
    reduction_factor: float = Field(3, gt=1, description="one in this many trials passes a rung")
    max_concurrent: int | None = Field(None, ge=1, description="null: as many as the cluster holds")
    keep_trials: Count = Field(5, description="trials whose checkpoints are kept")


class _File(Section):
    """The layout of a search-space file."""

    description: str
    source: str = ""
    experiment: dict[str, Any]
    space: dict[str, Range]
    documented: dict[RowName, dict[str, Scalar]] = Field(default_factory=dict)
    published: Published = Field(default_factory=dict)
    own: Own = Field(default_factory=dict)
    search: SearchConfig = SearchConfig()
    demo: dict[str, Any] = Field(default_factory=dict)


class SearchSpace(Section):
    """A validated sweep.

    Attributes:
        name: the sweep's name, also that of its folder.
        experiment: what every trial shares.
        space: dotted setting → range.
        documented: name → a value for every setting of the space; run first.
        published: what others report: a documented configuration, or any other name → metric → figure, or its range.
        own: searched setting → value of it → dotted settings that trials with this value have of their own.
        search: metric, trials, sampler, scheduler.
        demo: overrides that make it run on the built-in data set.
        models: of those that are searched the ones to run; None: all. The others stay part of the sweep.
        taken: what it took over from another sweep's best trial: dotted setting → value.
    """

    name: str
    description: str
    source: str
    experiment: Experiment
    space: dict[str, Range]
    documented: dict[str, dict[str, Scalar]]
    own: Own = Field(default_factory=dict)
    search: SearchConfig
    demo: dict[str, Any]
    published: Published = Field(default_factory=dict)
    models: list[str] | None = None
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
            **{
                key: getattr(file, key)
                for key in ("description", "source", "space", "published", "own", "search", "demo")
            },
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
        for path, table in self.own.items():
            for value, changes in table.items():
                where = f"{origin}: own.{path}.{value}"
                if path not in self.space or value not in map(str, self.space[path].ends):
                    raise RaylabError(f"{where}: {value} is not a choice of a searched setting {path}")
                self.experiment.override(changes, where)
        if self.cross_validated and max(self.values(FOLD)) >= self.experiment.data.folds:
            raise RaylabError(
                f"{origin}: space: {FOLD} goes to {max(self.values(FOLD))}: data.folds = "
                f"{self.experiment.data.folds} are numbered from 0"
            )
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
        another value of it are left out. `search.…` settings are changed likewise. `models=NAME,NAME` leaves of the
        models that are searched only these.
        """
        changes = parse_overrides(words)
        models = str(changes.pop("models")).split(",") if "models" in changes else None
        space = self.change(changes, "the command line") if changes else self
        return space if models is None else space.only(models)

    def only(self, models: Sequence[str]) -> SearchSpace:
        """A copy that searches only these models, in its own order.

        Raises:
            RaylabError: it does not search models, or not one of these.
        """
        found = self.space.get("model.name")
        if self.search.sampler != "grid" or found is None or found.choice is None:
            raise RaylabError(f"models={','.join(models)}: {self.name} is no grid over models: set model.name")
        for name in models:
            if name not in found.choice:
                raise RaylabError(f"models={','.join(models)}: {unknown_name('model', name, map(str, found.choice))}")
        chosen = [name for name in found.choice if name in models]
        base = self.experiment.model.name
        experiment = self.experiment.override({"model.name": base if base in chosen else chosen[0]})
        return self.model_copy(update={"models": chosen, "experiment": experiment})

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
        brought = [table.get(str(fixed[path]), {}) for path, table in self.own.items() if path in fixed]
        experiment = self.experiment.override(
            {**dict(chain.from_iterable(b.items() for b in brought)), **fixed}, origin
        )
        space = {path: values for path, values in self.space.items() if path not in fixed}
        if not space:
            raise RaylabError(f"{origin}: every searched setting is fixed: use `raylab train` for one run")
        documented = {
            row: {path: value for path, value in values.items() if path in space}
            for row, values in self.documented.items()
            if all(experiment.get(path) == values[path] for path in fixed if path in values)
        }
        if "data.folds" in fixed and FOLD in space:
            space[FOLD] = Range(choice=list(range(experiment.data.folds)))
        own = {
            path: {value: {k: v for k, v in its.items() if k not in fixed} for value, its in table.items()}
            for path, table in self.own.items()
            if path in space
        }
        merged = validate(SearchConfig, {**self.search.model_dump(), **search}, f"{origin}: search")
        changed = self.model_copy(
            update={"experiment": experiment, "space": space, "documented": documented, "own": own, "search": merged}
        )
        changed.check(origin)
        return changed

    def trial(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment of one trial, monitored by the sweep's metric.

        Where models are searched, what the base experiment says of models holds for those that have such a part.
        """
        changes: dict[str, Any] = {}
        if "model.name" in self.space:
            entry = find_model(values.get("model.name", self.experiment.model.name))
            changes |= {f"model.{setting}": ModelConfig.model_fields[setting].default for setting in entry.lacks}
        for path, table in self.own.items():
            changes |= table.get(str(values.get(path, self.experiment.get(path))), {})
        monitor = {"train.monitor": self.search.metric, "train.mode": self.search.mode}
        return self.experiment.override({**changes, **values, **monitor}, self.name)

    @property
    def cross_validated(self) -> bool:
        """Whether trials differ in the part of the data that is held back."""
        return FOLD in self.space

    @property
    def rows(self) -> dict[str, dict[str, Scalar]]:
        """Configurations by name, in the order in which they run: the documented, and models × folds of a grid."""
        documented = {name: values for name, values in self.documented.items() if self.holds(values)}
        return documented | ({fold_name(point): point for point in self.grid} if self.cross_validated else {})

    def values(self, path: str) -> list[Any]:
        """Every value that trials may give a setting of the experiment.

        Raises:
            RaylabError: they cannot be counted.
        """
        values = self.space.get(path)
        if values is None:
            return [self.experiment.get(path)]
        if path == "model.name" and self.models is not None:
            return list(self.models)
        if math.isinf(values.count):
            raise RaylabError(f"{self.name}: space: {path} is continuous: search it by choice or randint")
        return values.values

    @property
    def points(self) -> float:
        """The number of points of the space."""
        every = math.prod(values.count for values in self.space.values())
        return every if self.models is None else every // self.space["model.name"].count * len(self.models)

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
        found = (dict(zip(self.space, values, strict=True)) for values in points)
        return [point for point in found if point not in known and self.holds(point)]

    @property
    def variants(self) -> list[Experiment]:
        """Trials that stand for all: the documented ones, a grid's, and one for each value of each choice."""
        choices = [{path: value} for path, found in self.space.items() if found.choice for value in self.values(path)]
        return [self.trial(values) for values in (*self.rows.values(), *self.grid, *choices)]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial with these values is to be run: one of the chosen `models`."""
        return self.models is None or values.get("model.name") in self.models

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
    left = {path: experiment.get(path) for path in space if path not in row and experiment.has(path)}
    return {**row, **{path: value for path, value in left.items() if value is not None}}


def fold_name(values: Mapping[str, Scalar]) -> str:
    """The name of one point of a cross-validation: its values, `vit_gru-fold2`."""
    words = [f"fold{value}" if path == FOLD else str(value) for path, value in values.items()]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(words))


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
