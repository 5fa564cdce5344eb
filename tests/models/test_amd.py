"""Checkpoints of the original VideoMAE code, and their download from a server run here."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from torch import Tensor

from raylab.errors import RaylabError
from raylab.models import amd
from raylab.models.amd import Published, fetch_assistant, read_original
from raylab.models.videomae import load_network, network, network_like

State = dict[str, Tensor]


def original(width: int, depth: int, classes: int = 174, patch: int = 16) -> State:
    """A network as the original code saves it, every weight drawn so that it shows in the logits."""
    torch.manual_seed(0)

    def linear(name: str, rows: int, *columns: int) -> State:
        weight = torch.empty(rows, *columns).uniform_(-1, 1) * math.sqrt(3 / math.prod(columns))
        return {f"{name}.weight": weight, f"{name}.bias": torch.empty(rows).uniform_(-0.5, 0.5)}

    def norm(name: str) -> State:
        weight, bias = torch.empty(width).uniform_(0.5, 1.5), torch.empty(width).uniform_(-0.5, 0.5)
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    state = linear("patch_embed.proj", width, 3, 2, patch, patch)
    for block in (f"blocks.{number}" for number in range(depth)):
        qkv = linear(f"{block}.attn.qkv", 3 * width, width)
        biases = qkv.pop(f"{block}.attn.qkv.bias")
        state |= {f"{block}.attn.q_bias": biases[:width].clone(), f"{block}.attn.v_bias": biases[-width:].clone()} | qkv
        state |= norm(f"{block}.norm1") | linear(f"{block}.attn.proj", width, width) | norm(f"{block}.norm2")
        state |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
    return state | norm("fc_norm") | linear("head", classes, width)


def forward(state: State, video: Tensor, heads: int) -> Tensor:
    """The fine-tuned network of the paper, of a clip (T, 3, H, W), by its definition."""
    kernel = state["patch_embed.proj.weight"]
    width, _, tubelet, side, _ = kernel.shape
    frames, _, height, breadth = video.shape
    cut = video.reshape(frames // tubelet, tubelet, 3, height // side, side, breadth // side, side)
    cubes = cut.permute(0, 3, 5, 2, 1, 4, 6).reshape(-1, 3 * tubelet * side * side)  # by time, then row, then column
    x = cubes @ kernel.flatten(1).T + state["patch_embed.proj.bias"]
    index = torch.arange(width)
    angles = torch.arange(len(x)).double()[:, None] / 10000 ** (2 * (index // 2) / width)
    x = x + torch.where(index % 2 == 0, angles.sin(), angles.cos()).to(x)

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    blocks = dict.fromkeys(found[0] for key in state if (found := re.match(r"blocks\.\d+", key)))
    for block in blocks:
        bias = torch.cat([state[f"{block}.attn.q_bias"], x.new_zeros(width), state[f"{block}.attn.v_bias"]])
        mixed = norm(x, f"{block}.norm1") @ state[f"{block}.attn.qkv.weight"].T + bias
        q, k, v = mixed.reshape(len(x), 3, heads, width // heads).permute(1, 2, 0, 3)
        attention = (q @ k.mT / math.sqrt(width // heads)).softmax(-1)
        x = x + linear((attention @ v).transpose(0, 1).reshape(len(x), width), f"{block}.attn.proj")
        inner = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + linear(inner * (1 + torch.erf(inner / math.sqrt(2))) / 2, f"{block}.mlp.fc2")
    return linear(norm(x.mean(0), "fc_norm"), "head")


def small() -> State:
    return original(width=64, depth=2, classes=5, patch=8)


def write(content: object, folder: Path) -> Path:
    torch.save(content, folder / "amd.pth")
    return folder / "amd.pth"


def check_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@torch.no_grad()
@pytest.mark.parametrize(
    ("width", "heads", "parameters", "frames", "size"),
    [
        (384, 6, 21_946_926, 16, 224),
        (768, 12, 86_361_006, 4, 112),
        pytest.param(768, 12, 86_361_006, 16, 224, marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_original_code(
    width: int, heads: int, parameters: int, frames: int, size: int, tmp_path: Path
) -> None:
    state, video = original(width, depth=12), torch.randn(frames, 3, size, size)
    model = load_network(write({"module": state}, tmp_path))
    assert sum(value.numel() for value in model.parameters()) == parameters
    expected = forward(state, video, heads)
    assert 0.3 < expected.std() < 3
    torch.testing.assert_close(model(video[None])["label"][0], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_norms_have_the_epsilon_of_the_original_code(tmp_path: Path) -> None:
    state = small()
    for key, value in state.items():
        if "proj" in key or "fc2" in key:  # all that is added up: norms see a variance near 1e-6
            value *= 1e-3
    state["patch_embed.proj.bias"][1::2] -= 1  # the position of the only token
    video = torch.randn(2, 3, 8, 8).double()
    found = load_network(write(state, tmp_path)).double()(video[None])["label"][0]
    expected = forward({key: value.double() for key, value in state.items()}, video, heads=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_another_number_of_heads_would_be_another_network(tmp_path: Path) -> None:
    state, video = original(384, depth=2), torch.randn(4, 3, 64, 64)
    config, weights = read_original(write(state, tmp_path))
    expected = forward(state, video, heads=6)
    for heads, within in ((6, True), (12, False)):
        config.num_attention_heads = heads
        model = network(config).eval()
        model.load_state_dict(weights)
        difference = (model(video[None])["label"][0] - expected).abs().max()
        assert difference < 1e-4 if within else difference > 0.1

    model.save_pretrained(tmp_path / "folder")
    message = r"config\.json: num_attention_heads = 12: VideoMAE of width 384 is trained with 6"
    with pytest.raises(RaylabError, match=message):
        load_network(tmp_path / "folder")


@pytest.mark.parametrize("prefix", ["", "backbone.", "encoder."])
@pytest.mark.parametrize(
    "pack",
    [
        lambda state: state,
        lambda state: {"module": {"head.weight": torch.zeros(1)}, "model": state},
        lambda state: {"epoch": 29, "module": state, "optimizer": {"state": {0: torch.ones(2)}, "param_groups": [{}]}},
        lambda state: {"model": state, "scaler": None, "args": Namespace(lr=1e-3, data_set="SSV2", opt_betas=[0.9])},
    ],
    ids=["raw", "model", "module", "settings"],
)
def test_containers_and_prefixes(pack: Callable[[State], object], prefix: str, tmp_path: Path) -> None:
    state = small()
    _, expected = read_original(write(state, tmp_path))
    config, found = read_original(write(pack({prefix + key: value for key, value in state.items()}), tmp_path))
    check_equal(found, expected)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_labels) == (2, 1, 5)


def test_weights_in_half_precision_are_read_as_float32(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in small().items()}
    _, found = read_original(write(state, tmp_path))
    check_equal(found, read_original(write({key: value.float() for key, value in state.items()}, tmp_path))[1])
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_a_classifier_of_another_size_is_dropped_with_a_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(small(), tmp_path)
    whole = load_network(path).state_dict()
    check_equal(load_network(path, 5).state_dict(), whole)
    assert not caplog.messages
    other = load_network(path, 7).state_dict()
    assert caplog.messages == [
        f"{path}: its classifier has 5 classes, not 7: it is dropped, a new one begins at random"
    ]
    assert other["classifier.weight"].shape == (7, 64)
    kept = {key for key in whole if not key.startswith("classifier.")}
    check_equal({key: other[key] for key in kept}, {key: whole[key] for key in kept})


def test_a_network_of_the_same_structure(tmp_path: Path) -> None:
    path = write(small(), tmp_path)
    like, loaded = network_like(path, 7), load_network(path, 7)
    assert like.config.to_dict() == loaded.config.to_dict()
    assert not torch.equal(
        like.videomae.encoder.layer[0].output.dense.weight, loaded.videomae.encoder.layer[0].output.dense.weight
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("head.weight"), r"no 'head\.weight'"),
        (lambda state: state.pop("patch_embed.proj.weight"), r"no 'patch_embed\.proj\.weight'"),
        (lambda state: state.pop("blocks.1.norm2.bias"), r"without videomae\.encoder\.layer\.1\.layernorm_after\.bias"),
        (lambda state: state.pop("blocks.0.attn.q_bias"), r"without .*layer\.0\.attention\.attention\.query\.bias"),
        (lambda state: state.update({"pos_embed": torch.zeros(1)}), "pos_embed: .* no such tensor"),
        (lambda state: state.update({"norm.weight": torch.zeros(64)}), r"norm\.weight: .* no such tensor"),
        (lambda state: state.update({"blocks.0.gamma_1": torch.zeros(64)}), r"blocks\.0\.gamma_1: .* no such tensor"),
        (lambda state: state.update({"decoder.norm.bias": torch.zeros(1)}), r"decoder\.norm\.bias: .* no such tensor"),
        (lambda state: state.update({"fc_norm.running": torch.zeros(1)}), r"with fc_norm\.running"),
        (lambda state: state.update({"blocks.1.norm1.weight": torch.zeros(3)}), r"mismatch for .*layernorm_before"),
        (lambda state: state.update({"blocks.1.attn.qkv.weight": torch.zeros(4, 64)}), "mismatch for .*attention"),
        (
            lambda state: state.update({"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)}),
            "tensors have other shapes",
        ),
        (lambda state: state.update({"patch_embed.proj.weight": torch.zeros(200, 3, 2, 8, 8)}), "width 200: "),
        (lambda state: state.update(epoch=3), "holds no state dict under model or module, nor is it one"),
        (lambda state: state.update({0: torch.zeros(1)}), "holds no state dict"),
        (lambda state: state.clear(), "no 'patch_embed"),
    ],
)
def test_what_is_not_a_fine_tuned_network_is_named(
    change: Callable[[State], object], named: str, tmp_path: Path
) -> None:
    state = small()
    change(state)
    with pytest.raises(RaylabError, match=rf"amd\.pth: (?s:.)*{named}"):
        load_network(write(state, tmp_path))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>Quota exceeded</html>", b"truncated"])
def test_files_that_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    path = write(small(), tmp_path)
    path.write_bytes(path.read_bytes()[:5000] if content == b"truncated" else content)
    with pytest.raises(RaylabError, match=r"amd\.pth: cannot be read as a checkpoint of tensors"):
        load_network(path)


class Malicious:
    """Writes a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
@pytest.mark.parametrize(
    "settings", [lambda code: code, lambda code: Namespace(data_set=code)], ids=["plain", "nested"]
)
def test_reading_runs_no_code(
    save: Callable[[object, Path], object], settings: Callable[[Malicious], object], tmp_path: Path
) -> None:
    save({"model": {}, "args": settings(Malicious(tmp_path / "ran"))}, tmp_path / "amd.pth")
    with pytest.raises(RaylabError, match=r"amd\.pth: cannot be read as a checkpoint of tensors"):
        load_network(tmp_path / "amd.pth")
    assert not (tmp_path / "ran").exists()


class Drive(BaseHTTPRequestHandler):
    """A server of one file that can be had in parts, and that sometimes breaks off.

    Attributes:
        content: the file.
        starts: the first byte of each request.
        breaks: for each request to come, after how many bytes the connection is lost.
        together: if set, the first answer waits a moment for a second request.
    """

    content: bytes
    starts: list[int]
    breaks: list[int]
    together: Event | None

    def do_GET(self) -> None:
        part = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start, total = int(part[1]) if part else 0, len(self.content)
        self.starts.append(start)
        if self.together and len(self.starts) == 1:
            self.together.wait(0.3)
        elif self.together:
            self.together.set()
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(total - start))
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        if part:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(self.content[start:][: self.breaks.pop(0) if self.breaks else None])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Drive]]:
    """It serves 3 MB, and is where the published networks are said to lie."""
    content = write({"model": original(width=128, depth=4, patch=8)}, tmp_path).read_bytes()
    handler = type("Handler", (Drive,), {"content": content, "starts": [], "breaks": [], "together": None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    monkeypatch.setattr(Published, "address", f"http://127.0.0.1:{server.server_port}/amd.pth")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)  # gdown waits so long before it tries again
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_assistant_is_downloaded_once(drive: type[Drive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = fetch_assistant("vit_s")
    assert path == tmp_path / "ssv2_models" / "amd_vit_s_ssv2.pth"
    assert path.read_bytes() == drive.content
    assert load_network(path).depth == 4
    assert fetch_assistant("vit_s") == path
    assert drive.starts == [0]
    assert fetch_assistant("vit_b", tmp_path / "elsewhere") == tmp_path / "elsewhere" / "amd_vit_b_ssv2.pth"


def test_two_at_once_download_it_once(drive: type[Drive], tmp_path: Path) -> None:
    drive.together = Event()
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(fetch_assistant, ["vit_s"] * 2, [tmp_path / "models"] * 2))
    assert paths[0].read_bytes() == drive.content
    assert paths[0] == paths[1]
    assert drive.starts == [0]


def check_refused(named: str, folder: Path) -> None:
    """It cannot be had; the message says why, and how to have it all the same."""
    with pytest.raises(RaylabError, match=rf"distill\.assistant = vit_s: (?s:.)*{named}") as error:
        fetch_assistant("vit_s", folder)
    path = folder / "amd_vit_s_ssv2.pth"
    remedies = f"with a browser from {amd.PUBLISHED['vit_s'].address} and save it as {path}"
    for part in (remedies, "distill.assistant_model_path=FILE", "distill.assistant=null"):
        assert part in str(error.value)
    assert not path.exists()


def test_an_interrupted_download_goes_on(drive: type[Drive], tmp_path: Path) -> None:
    drive.breaks += [2_000_000, 600_000, 0]
    check_refused("Download is incomplete", tmp_path / "models")
    begun = drive.starts.copy()
    assert begun[0] == 0 < begun[1] < begun[2]
    path = fetch_assistant("vit_s", tmp_path / "models")
    assert path.read_bytes() == drive.content
    assert drive.starts[-1] >= begun[2]
    assert not list(path.parent.glob("*.part"))


def test_a_page_in_place_of_the_file(drive: type[Drive], tmp_path: Path) -> None:
    whole, drive.content = drive.content, b"<!DOCTYPE html><html>Quota exceeded</html>"
    check_refused("cannot be read as a checkpoint of tensors", tmp_path / "models")
    drive.content = whole
    assert fetch_assistant("vit_s", tmp_path / "models").read_bytes() == whole


def test_a_file_that_is_not_the_published_one(
    drive: type[Drive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(drive.content).hexdigest()
    published = Published(amd.PUBLISHED["vit_s"].name, "", sha256="0" * 64)
    monkeypatch.setitem(amd.PUBLISHED, "vit_s", published)
    check_refused(f"its SHA-256 is {digest}, not {'0' * 64}", tmp_path / "models")
    monkeypatch.setitem(amd.PUBLISHED, "vit_s", Published(published.name, "", digest))
    assert fetch_assistant("vit_s", tmp_path / "models").read_bytes() == drive.content


def test_a_download_that_was_killed_before_it_was_checked(drive: type[Drive], tmp_path: Path) -> None:
    (tmp_path / "amd_vit_s_ssv2.pth.part").write_bytes(drive.content)
    assert fetch_assistant("vit_s", tmp_path).read_bytes() == drive.content


def test_no_server_to_reach(drive: type[Drive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Published, "address", "http://127.0.0.1:1/amd.pth")
    check_refused("cannot be downloaded .*refused", tmp_path / "models")


def test_without_gdown(drive: type[Drive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    check_refused(r"gdown, which downloads it, is not installed: pip install \"raylab\[amd\]\"", tmp_path / "models")
    assert drive.starts == []
    write(small(), tmp_path).rename(tmp_path / "amd_vit_s_ssv2.pth")
    assert fetch_assistant("vit_s", tmp_path) == tmp_path / "amd_vit_s_ssv2.pth"
