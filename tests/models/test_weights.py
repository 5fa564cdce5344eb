"""Finding and reading weight files: the cache, a hub served here, and files that are not weights."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.encoders import FrameEncoder
from raylab.models.weights import fetch_encoder_weights, read_weights, resolve_weights

COMMIT = "0" * 40
REPO = "timm/test_resnet.r160_in1k"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and a hub address where nobody listens."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    serve_from(monkeypatch, port=1)
    return folder


def serve_from(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """What the environment variable HF_ENDPOINT does when it is set before Python starts."""
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download uses, for `files` (name → content)."""

    files: dict[str, bytes]
    requests: list[str]

    def do_HEAD(self) -> None:
        name = self.path.removeprefix(f"/{REPO}/resolve/main/").removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        self.requests.append(f"{self.command} {name}")
        content = self.files.get(name)
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if content and self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Handler", (Hub,), {"files": {}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serve_from(monkeypatch, server.server_port)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_are_downloaded_once(hub: type[Hub], cache: Path, weights: Path, file: str, tmp_path: Path) -> None:
    if file.endswith(".bin"):
        torch.save(read_weights(weights), tmp_path / file)
    hub.files[file] = (tmp_path / file).read_bytes()

    path = resolve_weights(ModelConfig(name="resnet50_avg", encoder="test_resnet"))
    assert path is not None
    assert path.is_relative_to(cache)
    assert path.read_bytes() == hub.files[file]
    assert f"GET {file}" in hub.requests

    hub.requests.clear()
    assert fetch_encoder_weights("test_resnet", True) == path
    assert hub.requests == []
    conv = FrameEncoder("test_resnet", path).encoder.conv1[0].weight
    assert torch.equal(conv, read_weights(weights)["conv1.0.weight"])


@pytest.mark.parametrize("name", ["resnet50_avg", "r2plus1d_r50"])
def test_a_repository_of_the_hub_may_be_named(hub: type[Hub], cache: Path, weights: Path, name: str) -> None:
    hub.files["model.safetensors"] = weights.read_bytes()
    path = resolve_weights(ModelConfig(name=name, pretrained=f"hf-hub:{REPO}"))
    assert path is not None
    assert path.is_relative_to(cache)
    assert path.read_bytes() == weights.read_bytes()
    with pytest.raises(RaylabError, match=r"the weights that model\.pretrained names \(nobody/nothing\)"):
        resolve_weights(ModelConfig(name=name, pretrained="hf-hub:nobody/nothing"))


def test_a_repository_without_weights(hub: type[Hub]) -> None:
    with pytest.raises(RaylabError, match=r"timm/test_resnet\.r160_in1k holds none of model\.safetensors"):
        fetch_encoder_weights("test_resnet", True)


def check_unreachable(cache: Path) -> None:
    with pytest.raises(RaylabError) as error:
        resolve_weights(ModelConfig(name="resnet50_lstm"))
    for part in ("resnet50 (timm/resnet50.a1_in1k)", str(cache), "--dry-run", "/path/to/", "model.pretrained=false"):
        assert part in str(error.value)


def test_no_hub_to_reach(cache: Path) -> None:
    check_unreachable(cache)


def test_offline_mode(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    check_unreachable(cache)


def test_no_weights_are_looked_for_when_none_are_wanted(cache: Path) -> None:
    assert resolve_weights(ModelConfig(name="resnet50_lstm", pretrained=False)) is None


def test_an_encoder_without_published_weights(cache: Path) -> None:
    with pytest.raises(RaylabError, match="timm publishes no weights for botnet50ts_256"):
        fetch_encoder_weights("botnet50ts_256", True)


def test_a_local_file(weights: Path) -> None:
    config = ModelConfig(name="resnet50_lstm", encoder="test_resnet", pretrained=str(weights))
    assert resolve_weights(config) == weights
    with pytest.raises(RaylabError, match=r"nowhere\.pth: no such file"):
        resolve_weights(config.model_copy(update={"pretrained": "nowhere.pth"}))


def test_the_model_is_checked_before_its_weights() -> None:
    with pytest.raises(RaylabError, match=r"model\.drop_path"):
        resolve_weights(ModelConfig(name="resnet50_lstm", drop_path=0.1))
    with pytest.raises(RaylabError, match="did you mean 'resnet50'"):
        resolve_weights(ModelConfig(name="resnet50_lstm", encoder="resnet5"))


class Malicious:
    """Writes a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_reading_weights_runs_no_code(save, tmp_path: Path) -> None:
    save({"weight": Malicious(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(RaylabError, match=r"weights\.pth: cannot be read as weights") as error:
        read_weights(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"truncated"])
def test_damaged_files(content: bytes, suffix: str, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(weights.read_bytes()[:5000] if content == b"truncated" else content)
    with pytest.raises(RaylabError, match=rf"damaged\{suffix}: cannot be read as weights"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "it is empty"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({"net": {"weight": torch.zeros(1)}}, "'net' is a dict"),
        ([torch.zeros(1)], "cannot be read as weights"),
    ],
)
def test_files_that_hold_something_else(content: object, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(RaylabError, match=reason):
        read_weights(tmp_path / "weights.pth")
