import pytest
import torch

from raylab.training.tree import load_tree, save_tree


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_state_comes_back_equal_in_every_bit(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([parameter], lr=1 / 3)
    parameter.sum().backward()
    optimizer.step()
    tree = {
        "optimizer": optimizer.state_dict(),
        "odd floats": [0.1 + 0.2, 1e-310, float("inf")],
        "tuple": (1, (2.0, None), "x"),
        "dtypes": [torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.int64, torch.bool, torch.float64)],
        "scalar": torch.tensor(3.5),
        "not contiguous": torch.randn(4, 5).t(),
        "keys": {0: "a", (1, 2): "b", "$tensor": "c", None: 1.5},
        "empty": {},
    }
    save_tree(tree, tmp_path / "state")
    assert same(load_tree(tmp_path / "state"), tree)


def test_what_would_need_code_to_load_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Generator"):
        save_tree({"rng": torch.Generator()}, tmp_path / "state")
