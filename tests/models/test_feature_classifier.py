"""scikit-learn's classifiers as models: the same logits before and after, and no file that runs code."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.feature_classifier import FILE, FeatureClassifier
from raylab.models.registry import build_model, list_models

NAMES = [entry.name for entry in list_models() if entry.handcrafted]
FEATURES = [f"feature {at}" for at in range(5)]


def data(classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    return rng.normal(size=(60, 5)) * [1, 1e6, 1e-6, 1, 1] + labels[:, None] * [1, 1e6, 1e-6, 0, 0], labels


def fitted(name: str, classes: int = 2) -> FeatureClassifier:
    model = build_model(ModelConfig(name=name), {"label": classes})
    assert isinstance(model, FeatureClassifier)
    model.fit(*data(classes), FEATURES)
    return model


def fresh(name: str = "logistic_regression") -> FeatureClassifier:
    model = build_model(ModelConfig(name=name), {"label": 2})
    assert isinstance(model, FeatureClassifier)
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_saved_model_says_the_same_bit_by_bit(name: str, classes: int, tmp_path: Path) -> None:
    model, (values, labels) = fitted(name, classes), data(classes)
    model.save(tmp_path)
    loaded = build_model(ModelConfig(name=name), {"label": classes})
    assert isinstance(loaded, FeatureClassifier)
    said = loaded.load(tmp_path)(torch.from_numpy(values))["label"]
    assert said.shape == (60, classes)
    assert torch.equal(said, model(torch.from_numpy(values))["label"])
    assert loaded.features == tuple(FEATURES)
    assert (said.argmax(1).numpy() == labels).mean() > 0.6
    assert (said.argmax(1).numpy() == model.pipeline.predict(values)).all()


def test_probabilities_are_those_of_the_logistic_regression_and_the_sigmoid_of_the_machines_distance() -> None:
    values, _ = data()
    for name in NAMES:
        model = fitted(name)
        said = model(torch.from_numpy(values))["label"].softmax(1).numpy()
        pipeline = model.pipeline
        expected = 1 / (1 + np.exp(-pipeline.decision_function(values)))
        np.testing.assert_allclose(said[:, 1], expected, rtol=1e-12)
        if name == "logistic_regression":
            np.testing.assert_allclose(said, pipeline.predict_proba(values), rtol=1e-9)


def test_a_class_without_clips_is_named() -> None:
    values, _ = data()
    with pytest.raises(RaylabError, match="no clip of class 1 of label"):
        fresh().fit(values, np.zeros(60, np.int64), FEATURES)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('run')",))


def write(folder: Path, content: object) -> None:
    (folder / "features.json").write_text(json.dumps(FEATURES))
    skops.io.dump(content, folder / FILE)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (make_pipeline(StandardScaler(), RandomForestClassifier(n_estimators=1)), "RandomForestClassifier"),
        (make_pipeline(FunctionTransformer(np.sum), LogisticRegression()), "FunctionTransformer"),
        (make_pipeline(FunctionTransformer(print), LogisticRegression()), "FunctionTransformer"),
        ({"model": Path("x")}, "PosixPath"),
    ],
)
def test_anything_but_its_own_types_is_refused(content: object, named: str, tmp_path: Path) -> None:
    if hasattr(content, "fit") and "Function" not in named:
        content.fit(*data())
    write(tmp_path, content)
    with pytest.raises(RaylabError, match=rf"{FILE}: holds .*{named}"):
        fresh().load(tmp_path)


def test_a_node_that_calls_what_it_names_is_refused_where_skops_alone_would_ask_nothing(tmp_path: Path) -> None:
    fitted("svm").save(tmp_path)
    for loader in ("MethodNode", "OperatorFuncNode", "PartialNode", "FunctionNode"):
        change(tmp_path, lambda schema, loader=loader: schema["content"].update({"__loader__": loader}))
        with pytest.raises(RaylabError, match=f"holds .*{loader}"):
            fresh("svm").load(tmp_path)


def change(folder: Path, how) -> None:
    with zipfile.ZipFile(folder / FILE) as file:
        members = {name: file.read(name) for name in file.namelist()}
    schema = json.loads(members["schema.json"])
    how(schema)
    with zipfile.ZipFile(folder / FILE, "w") as file:
        for name, content in {**members, "schema.json": json.dumps(schema).encode()}.items():
            file.writestr(name, content)


def test_a_pickled_array_inside_is_not_opened(tmp_path: Path) -> None:
    fitted("svm").save(tmp_path)
    with zipfile.ZipFile(tmp_path / FILE) as file:
        members = {name: file.read(name) for name in file.namelist()}
    evil = io.BytesIO()
    np.lib.format.write_array(evil, np.array([Evil()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / FILE, "w") as file:
        for name, content in members.items():
            file.writestr(name, evil.getvalue() if name.endswith(".npy") else content)
    with pytest.raises(RaylabError, match="not a model"):
        fresh("svm").load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps(Evil())])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(RaylabError, match=f"{FILE}: not a model"):
        fresh().load(tmp_path)


def test_a_file_of_the_other_model_is_named(tmp_path: Path) -> None:
    fitted("svm").save(tmp_path)
    with pytest.raises(RaylabError, match="not a LogisticRegression"):
        fresh().load(tmp_path)


def test_two_heads_are_refused() -> None:
    with pytest.raises(RaylabError, match="tells one thing, and the data has verb, noun"):
        build_model(ModelConfig(name="svm"), {"verb": 3, "noun": 4})
