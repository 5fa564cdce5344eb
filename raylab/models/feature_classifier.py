"""scikit-learn's classifiers of feature vectors, as models like the others: fitted, saved and loaded without pickle."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raylab.errors import RaylabError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sklearn.pipeline import Pipeline

FILE = "model.skops"

# What a file may hold, and how skops may read it: estimators by name, arrays, numbers, text; nothing that is called.
ESTIMATORS = {"Pipeline", "StandardScaler", "LogisticRegression", "LinearSVC"}
PLAIN = {"dict", "list", "tuple", "str", "int", "float", "bool", "NoneType"}
ARRAYS = {"ndarray", "float64", "float32", "int64", "int32", "bool", "bool_", "dtype"}
LOADERS = {"ObjectNode", "DictNode", "ListNode", "TupleNode", "JsonNode", "TypeNode", "NdArrayNode", "DTypeNode"}


class FeatureClassifier(nn.Module):
    """A scikit-learn pipeline: float (B, features) → head → logits (B, classes), float64.

    For two classes scikit-learn gives one number z, the distance from the boundary; the logits are (0, z), so that
    softmax gives its sigmoid.

    Args:
        pipeline: ends in a classifier with a `decision_function`.
        head: the name of the one thing it tells.
        classes: their number.
        features: names of what it is given, in order; known once it is fitted.
    """

    def __init__(self, pipeline: Pipeline, head: str, classes: int, features: Sequence[str] = ()) -> None:
        super().__init__()
        self.pipeline, self.head, self.classes, self.features = pipeline, head, classes, tuple(features)

    def fit(self, values: NDArray[np.float64], labels: NDArray[np.int64], features: Sequence[str]) -> None:
        """Fit it to vectors, (clips, features), and classes, (clips,).

        Raises:
            RaylabError: a class has no clip.
        """
        import numpy as np

        missing = sorted(set(range(self.classes)) - set(labels.tolist()))
        if missing:
            raise RaylabError(f"train has no clip of class {missing[0]} of {self.head}: there is nothing to fit")
        self.pipeline.fit(np.asarray(values, np.float64), labels)
        self.features = tuple(features)

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        distances = torch.from_numpy(self.pipeline.decision_function(values.double().cpu().numpy()))
        logits = torch.stack([torch.zeros_like(distances), distances], 1) if distances.ndim == 1 else distances
        return {self.head: logits.to(values.device)}

    def save(self, folder: Path) -> None:
        """Write `model.skops` and `features.json`."""
        from skops.io import dump

        dump(self.pipeline, folder / FILE)
        (folder / "features.json").write_text(json.dumps(self.features, indent=1))

    def load(self, folder: Path) -> FeatureClassifier:
        """Take up what was saved.

        Raises:
            RaylabError: the file is damaged, is of another model, or holds anything but the types such a model is made
                of: nothing in it is run.
        """
        from skops.io import get_untrusted_types, load

        path = folder / FILE
        try:
            strange = sorted(set(_strange(path))) or get_untrusted_types(file=path)
            if strange:
                raise RaylabError(
                    f"{path}: holds {', '.join(strange)}, which no model of raylab is made of: it was not loaded; take "
                    "a checkpoint that raylab has written"
                )
            pipeline = load(path, trusted=[])
            features = json.loads((folder / "features.json").read_text())
        except RaylabError:
            raise
        except Exception as error:  # zip, JSON, NumPy and skops reject a damaged file each in its own way
            raise RaylabError(f"{path}: not a model ({type(error).__name__}: {error})") from None
        kinds = [
            [type(step) for step in getattr(found, "named_steps", {}).values()] for found in (pipeline, self.pipeline)
        ]
        if kinds[0] != kinds[1]:
            raise RaylabError(f"{path}: not a {type(self.pipeline[-1]).__name__} of raylab")
        self.pipeline, self.features = pipeline, tuple(features)
        return self


def _strange(path: Path) -> Iterator[str]:
    """What stands in a file of skops besides what is allowed: a stricter look than its own, at each node."""
    with zipfile.ZipFile(path) as file:
        yield from _strangers(json.loads(file.read("schema.json")))


def _strangers(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "__loader__" in node or "__class__" in node:
            module, name, loader = (str(node.get(f"__{part}__", "")) for part in ("module", "class", "loader"))
            known = {"sklearn": ESTIMATORS, "numpy": ARRAYS, "builtins": PLAIN}.get(module.partition(".")[0], set())
            if name not in known or loader not in LOADERS:
                yield f"{module}.{name} ({loader})"
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from _strangers(inner)
