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
from transformers import VideoMAEConfig

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.encoders import FrameEncoder
from raylab.models.registry import build_model
from raylab.models.videomae import load_network, network, read_config
from raylab.models.weights import fetch_encoder_weights, find_network, read_weights, resolve_weights

COMMIT = "0" * 40
REPO = "timm/test_resnet.r160_in1k"
VIDEOMAE = "MCG-NJU/videomae-base"


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
    """The part of the hub's protocol that a download uses, for `files` (name → content) of one repository."""

    repo: str
    files: dict[str, bytes]
    requests: list[str]

    def do_HEAD(self) -> None:
        place = f"/{self.repo}/resolve/"
        name = self.path.removeprefix(f"{place}main/").removeprefix(f"{place}{COMMIT}/")
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
    handler = type("Handler", (Hub,), {"repo": REPO, "files": {}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serve_from(monkeypatch, server.server_port)
    thread = Thread(target=server.serve_forever, args=(0.01,))
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


FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


@pytest.fixture
def videomae(hub: type[Hub], tmp_path: Path) -> type[Hub]:
    """The hub holds a small VideoMAE under the name of the published one."""
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    network(VideoMAEConfig(**small, patch_size=8, image_size=16, num_frames=2)).save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}'
    )
    hub.repo, hub.files = VIDEOMAE, {file: (tmp_path / "own" / file).read_bytes() for file in FILES}
    return hub


def test_a_network_is_downloaded_once(videomae: type[Hub], cache: Path) -> None:
    path = resolve_weights(ModelConfig(name="videomae_base"))
    assert path is not None
    assert path.is_relative_to(cache)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == videomae.files
    videomae.requests.clear()
    assert find_network(VIDEOMAE, "distill.teacher") == path
    model = build_model(ModelConfig(name="videomae_base"), {"label": 3})
    assert (model.depth, model.mean) == (1, (0.5, 0.5, 0.5))
    assert videomae.requests == []
    assert resolve_weights(ModelConfig(name="videomae_small", student=VIDEOMAE)) == path


def test_the_structure_of_a_network_needs_no_weights(videomae: type[Hub]) -> None:
    config = ModelConfig(name="videomae_base", student=VIDEOMAE, pretrained=False)
    assert resolve_weights(config) is None
    assert build_model(config, {"label": 3}).mean == (0.5, 0.5, 0.5)
    assert not any("model.safetensors" in request for request in videomae.requests)
    assert load_network(find_network(VIDEOMAE, "distill.teacher")).depth == 1


def test_the_authors_networks_are_known_to_have_other_heads_than_their_hub_says(
    videomae: type[Hub], caplog: pytest.LogCaptureFixture
) -> None:
    config = VideoMAEConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=12, intermediate_size=8)
    videomae.files["config.json"] = config.to_json_string().encode()
    path = find_network(VIDEOMAE, "distill.teacher", weights=False)
    assert read_config(path).num_attention_heads == 6
    assert f"{path}: num_attention_heads = 12" in caplog.messages[0]
    videomae.repo = "nobody/videomae-small"
    with pytest.raises(RaylabError, match=r"config\.json: num_attention_heads = 12: .* trained with 6"):
        read_config(find_network(videomae.repo, "distill.teacher", weights=False))


def test_a_network_without_settings_of_its_images(videomae: type[Hub]) -> None:
    del videomae.files["preprocessor_config.json"]
    assert load_network(find_network(VIDEOMAE, "distill.teacher")).mean == (0.485, 0.456, 0.406)


def test_a_network_without_a_configuration(videomae: type[Hub]) -> None:
    del videomae.files["config.json"]
    with pytest.raises(RaylabError, match=r"config\.json: cannot be read .*: name a folder of transformers"):
        load_network(find_network(VIDEOMAE, "distill.teacher"))


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize(
    ("setting", "without"),
    [
        ("model.student", "model.pretrained=false"),
        ("distill.teacher", "distill.teacher=null"),
        ("distill.assistant_model_path", "distill.assistant_feature_weight=0"),
    ],
)
def test_a_network_that_cannot_be_fetched(
    cache: Path, setting: str, without: str, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(RaylabError) as error:
        find_network(VIDEOMAE, setting)
    for part in (f"{setting} names ({VIDEOMAE})", str(cache), "--dry-run", f"{setting}=/path/to/folder", without):
        assert part in str(error.value)
