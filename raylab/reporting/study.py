"""Optuna's own plots of a sweep."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raylab.reporting.chart import BAD, MUTED, PALETTE
from raylab.reporting.interactive import Figure
from raylab.reporting.subject import Subject
from raylab.sweeps.folder import JOURNAL

if TYPE_CHECKING:
    from optuna import Study


@dataclass(frozen=True)
class StudyPlot:
    """One plot of Optuna's.

    Attributes:
        name: of its files.
        title: what is shown.
        about: how to read it.
        interactive: as Plotly's JSON.
        files: the same for papers: name of a file → content.
        wide: the least width at which it can be read, in pixels.
    """

    name: str
    title: str
    about: str
    interactive: Figure
    files: dict[str, bytes]
    wide: int = 0


SCALE = [[0, "#8cc5ef"], [1, "#0f5ea8"]]  # seen on white and on near-black
COLOURS = {"blue": PALETTE[0], "red": BAD, "orange": PALETTE[4], "green": PALETTE[2], "gray": MUTED}

ABOUT = {
    "param_importances": (
        "What mattered",
        "How much of the difference between trials each setting explains (PED-ANOVA).",
    ),
    "slice": ("Settings one by one", "Each point is a trial, the later the darker."),
    "parallel_coordinate": ("Settings together", "Each line is a trial. Drag along an axis to choose a range of it."),
    "timeline": ("When trials ran", "A bar for each trial, in the order in which they were proposed."),
}


def plots(subject: Subject) -> tuple[list[StudyPlot], str]:
    """Those that the study is enough for, and why there are no others."""
    if subject.space is None:
        return [], ""
    if not subject.folder.exists(JOURNAL):
        return [], f"{JOURNAL} is not there."
    with _opened(subject) as study:
        if study is None:
            return [], f"{JOURNAL} holds no study of this name."
        done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        varied = [path for path in subject.space.space if len({repr(t.params.get(path)) for t in done}) > 1]
        names, reason = ["timeline"], ""
        if subject.cross_validated:
            reason = "models and folds are not settings that one tunes: there is no importance of them; see the folds."
        elif len(done) < 2 or not varied:
            reason = "fewer than two trials with different settings have ended: nothing can be said of settings yet."
        else:
            names = list(ABOUT)
        found = []
        for name in names:
            try:
                found.append(_plot(study, name, subject, varied))
            except (ValueError, RuntimeError, ZeroDivisionError) as error:
                reason = f"{ABOUT[name][0].lower()}: not enough to go by ({error})."
        return found, reason


@contextmanager
def _opened(subject: Subject) -> Iterator[Study | None]:
    """The study, from a copy: the sweep that writes the journal may run, and its folder may be read-only or remote."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert subject.space is not None  # noqa: S101 - for the type checker; `plots` has looked
    text = subject.folder.read_text(JOURNAL)
    with tempfile.TemporaryDirectory(prefix="raylab-report-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, all of it
        copy = Path(scratch) / JOURNAL
        copy.write_text(text[: text.rfind("\n") + 1])
        storage = JournalStorage(JournalFileBackend(str(copy)))
        known = [study.study_name for study in storage.get_all_studies()]
        name = subject.space.name if subject.space.name in known else next(iter(known), None)
        yield optuna.load_study(study_name=name, storage=storage) if name else None


def _plot(study: Study, name: str, subject: Subject, varied: list[str]) -> StudyPlot:
    settings: dict[str, Any] = {} if name == "timeline" else {"params": varied, "target_name": subject.metric}
    drawn = getattr(optuna.visualization, f"plot_{name}")(study, **settings)
    content: Figure = json.loads(drawn.to_json())
    for trace in content["data"]:
        marker = trace.get("marker", {})
        if isinstance(marker.get("color"), str):
            marker["color"] = COLOURS.get(marker["color"], marker["color"])
        for scaled in (marker, trace.get("line", {})):
            if "colorscale" in scaled:
                scaled["colorscale"] = SCALE
    content["layout"] = {key: value for key, value in content["layout"].items() if key not in ("template", "title")}
    content["layout"].pop("width", None)
    content["layout"]["height"] = 120 + 36 * len(varied) if name == "param_importances" else 420
    wide = {"slice": 190 * len(varied), "parallel_coordinate": 130 * (len(varied) + 1)}.get(name, 0)
    title, about = ABOUT[name]
    return StudyPlot(name, title, about, content, _files(name, lambda own: own(study, **settings)), wide)


def _files(name: str, draw: Callable[[Any], Any]) -> dict[str, bytes]:
    """Optuna's plot of the same name by matplotlib."""
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as own

    found = {}
    with plt.ioff(), plt.rc_context():
        before = set(plt.get_fignums())
        try:
            axes = draw(getattr(own, f"plot_{name}"))
            figure = getattr(axes, "flat", [axes])[0].figure
            for kind in ("png", "pdf"):
                content = io.BytesIO()
                figure.savefig(content, format=kind, dpi=150, bbox_inches="tight")
                found[f"{name}.{kind}"] = content.getvalue()
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)
    return found
