"""Every term of distillation on cases that can be computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from raylab.models.distillation import structure
from raylab.models.taps import Taps
from raylab.models.videomae import VideoMAE, network
from raylab.tasks.distances import (
    asymmetric_distance,
    attention_distance,
    feature_distance,
    logit_distance,
    similarity,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(width: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(noise(width, width, seed=seed))[0]


# Hidden states.


def test_feature_distance_is_the_mean_square_over_the_layers_of_the_source() -> None:
    source = {-1: torch.zeros(1, 1, 2), 3: torch.zeros(1, 1, 2)}
    student = {-1: torch.tensor([[[1.0, 2.0]]]), 3: torch.tensor([[[1.0, 0.0]]]), 1: torch.tensor([[[9.0, 9.0]]])}
    assert feature_distance(student, source).item() == (5 / 2 + 1 / 2) / 2
    assert feature_distance(source, source) == 0


def test_feature_distance_is_that_of_float32_whatever_is_given() -> None:
    student, source = noise(2, 8, 16, seed=1) * 300, noise(2, 8, 16) * 300  # squares beyond float16
    halves = feature_distance({-1: student.half()}, {-1: source.half()})
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, feature_distance({-1: student}, {-1: source}), rtol=1e-3, atol=0)


# Attention.


def test_attention_distance_is_2_for_other_tokens_and_0_for_the_same_map() -> None:
    eye = torch.eye(6)[None]
    assert attention_distance({-1: eye}, {-1: eye.roll(1, 2)}).item() == 2
    assert attention_distance({-1: eye}, {-1: eye}).item() == 0
    even = torch.full((1, 6, 6), 1 / 6)
    assert attention_distance({-1: eye}, {-1: even}).item() == pytest.approx(1 - 1 / 6)
    assert attention_distance({-1: eye, -2: eye}, {-1: even, -2: eye}).item() == pytest.approx((1 - 1 / 6) / 2)


def of_two_heads(seed: int) -> VideoMAE:
    torch.manual_seed(seed)
    model = network(structure("base", "tiny"), 3).eval()
    for layer in model.videomae.encoder.layer:
        for part in (layer.attention.attention.query, layer.attention.attention.key):
            nn.init.normal_(part.weight, std=0.2)  # at the usual 0.02 all tokens are attended to alike
    return model


def maps(model: VideoMAE, video: Tensor) -> dict[int, Tensor]:
    taps = Taps(model, (-1, 2), attention=True)
    with torch.no_grad():
        model(video)
    return taps.take()[1]


def test_the_order_of_heads_means_nothing() -> None:
    video = noise(2, 4, 3, 32, 32)
    plain, other = maps(of_two_heads(0), video), maps(of_two_heads(1), video)
    model = of_two_heads(0)
    width = model.config.hidden_size
    order = torch.arange(width).roll(width // 2)  # the second head first
    for layer in model.videomae.encoder.layer:
        inner = layer.attention.attention
        for tensor in (*inner.parameters(),):
            tensor.data = tensor.data[order]
        layer.attention.output.dense.weight.data = layer.attention.output.dense.weight.data[:, order]
    swapped = maps(model, video)
    assert attention_distance(swapped, plain).item() < 1e-10
    assert attention_distance(other, plain).item() > 1e-3
    for layer in (-1, 2):
        assert plain[layer].shape == (2, 2 * 16, 2 * 16)  # tokens of 2 frames × 8 × 8 pixels
        torch.testing.assert_close(plain[layer].sum(2), torch.ones(2, 32))


# Logits.


def test_logit_distance_is_the_divergence_of_softened_logits() -> None:
    student, source, temperature = torch.tensor([[0.0, 0.0]]), torch.tensor([[4 * math.log(3), 0.0]]), 4.0
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # softened: (3/4, 1/4) and (1/2, 1/2)
    assert logit_distance(student, source, temperature).item() == pytest.approx(16 * divergence, rel=1e-5)
    twice = logit_distance(student.expand(2, -1), torch.cat([source, student]), temperature)
    assert twice.item() == pytest.approx(16 * divergence / 2, rel=1e-5)
    assert logit_distance(source, source + 3, temperature).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0])
def test_the_gradient_of_softened_logits_keeps_its_scale(temperature: float) -> None:
    student, source = noise(3, 5, seed=1).requires_grad_(), noise(3, 5)
    logit_distance(student, source, temperature).backward()
    softened = [(logits.detach() / temperature).softmax(1) for logits in (student, source)]
    torch.testing.assert_close(student.grad, temperature * (softened[0] - softened[1]) / 3, rtol=1e-4, atol=1e-5)
    if temperature == 100:  # the limit of Hinton et al.: the difference of centred logits, over the classes
        centred = [logits.detach() - logits.detach().mean(1, keepdim=True) for logits in (student, source)]
        torch.testing.assert_close(student.grad, (centred[0] - centred[1]) / 5 / 3, rtol=0.1, atol=2e-3)


# Similarity.


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_similarity_does_not_see_rotation_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    x = noise(2, 32, 8, seed=seed)
    assert similarity(x, scale * x @ rotation(8, seed) + shift).item() == pytest.approx(1, abs=1e-4)
    y = noise(2, 32, 6, seed=seed + 1)
    turned = similarity(x @ rotation(8, seed), scale * y)
    torch.testing.assert_close(turned, similarity(x, y), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(similarity(y, x), similarity(x, y))


def test_similarity_by_hand() -> None:
    one, other = torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, 1, -1, -1])
    x, y = (column.view(2, 2, 1) for column in (one, other))
    assert similarity(x, y).item() == 0
    assert similarity(x, torch.cat([x, y], 2)).item() == pytest.approx(1 / math.sqrt(2))
    assert similarity(noise(2, 4000, 8), noise(2, 4000, 5, seed=1)).item() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_similarity_of_halves_under_autocast_is_that_of_doubles(dtype: torch.dtype) -> None:
    x = (100 * noise(4, 392, 16)).to(dtype)
    y = (x @ noise(16, 24, seed=1).to(dtype) + 200 * noise(4, 392, 24, seed=2).to(dtype)).clamp(-60000, 60000)
    with torch.autocast("cpu", dtype):
        found = similarity(x, y)
    a, b = (value.double().flatten(0, 1) for value in (x, y))
    a, b = a - a.mean(0), b - b.mean(0)
    expected = (a.mT @ b).norm() ** 2 / ((a.mT @ a).norm() * (b.mT @ b).norm())
    assert 0.1 < expected < 0.9
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_similarity_of_the_largest_halves_of_a_wide_network_is_finite() -> None:
    largest = torch.finfo(torch.float16).max
    x = torch.where(noise(8, 1568, 768) > 0, largest, -largest).half()
    assert similarity(x, x).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("clips", [2, 9, 18, 36])
def test_of_many_tokens_those_compared_are_from_all_over_the_picture(clips: int) -> None:
    x = noise(clips, 8, 14, 14, 4)
    for axis in (2, 3):
        y = x.clone()
        y.transpose(0, axis)[0] = noise(*y.transpose(0, axis)[0].shape, seed=1)  # another first row, or column
        found = similarity(x.flatten(1, 3), y.flatten(1, 3)).item()
        assert found == pytest.approx((13 / 14) ** 2, abs=0.05)


def test_similarity_with_what_does_not_vary_is_0_and_has_a_gradient() -> None:
    constant = torch.ones(1, 8, 4, requires_grad=True)
    found = similarity(constant, noise(1, 8, 4))
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert constant.grad.isfinite().all()


# The asymmetric term.


@pytest.fixture
def sources() -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """A teacher and an assistant of another width that are partly alike, in two layers."""
    teacher = {layer: noise(2, 64, 12, seed=layer % 10) for layer in (-1, -2)}
    assistant = {layer: value[..., :6] + noise(2, 64, 6, seed=3) for layer, value in teacher.items()}
    return teacher, assistant


def test_a_student_that_reads_both_sources_as_they_are_pays_nothing(sources) -> None:
    teacher, assistant = sources
    assert asymmetric_distance(teacher, assistant, teacher, assistant) == 0


def test_readings_that_are_alike_pay_what_the_sources_differ(sources) -> None:
    teacher, assistant = sources
    expected = sum(1 - similarity(teacher[layer], assistant[layer]) for layer in teacher) / 2
    assert 0.2 < expected < 0.9
    for alike in (teacher, {layer: 3 * value @ rotation(12) for layer, value in teacher.items()}):
        found = asymmetric_distance(teacher, alike, teacher, assistant)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_more_diversity_than_that_of_the_sources_is_not_rewarded(sources) -> None:
    teacher, assistant = sources
    far = {layer: noise(2, 64, 6, seed=9).requires_grad_() for layer in teacher}
    found = asymmetric_distance(teacher, far, teacher, assistant)
    found.backward()
    assert found == 0
    assert all(not value.grad.any() for value in far.values())


def test_one_layer_of_too_little_diversity_is_not_made_good_by_another(sources) -> None:
    teacher, assistant = sources
    mixed = {-1: teacher[-1], -2: noise(2, 64, 6, seed=9)}
    alone = asymmetric_distance({-1: teacher[-1]}, {-1: teacher[-1]}, {-1: teacher[-1]}, {-1: assistant[-1]})
    torch.testing.assert_close(asymmetric_distance(teacher, mixed, teacher, assistant), alone / 2)


def test_steps_on_the_term_alone_make_the_readings_as_different_as_the_sources(sources) -> None:
    teacher, assistant = sources
    torch.manual_seed(0)
    hidden = noise(2, 64, 16, seed=5)
    to_teacher, to_assistant = nn.Linear(16, 12), nn.Linear(16, 6)
    with torch.no_grad():  # nearly the same directions of `hidden`
        to_assistant.weight.copy_(to_teacher.weight[:6] + 0.05 * torch.randn(6, 16))
        to_teacher.weight[6:] = 0
    optimizer = torch.optim.SGD([*to_teacher.parameters(), *to_assistant.parameters()], lr=0.5)
    before = {layer: (teacher[layer].clone(), assistant[layer].clone()) for layer in teacher}
    course = []
    for _ in range(200):
        readings = {layer: to_teacher(hidden) for layer in teacher}, {layer: to_assistant(hidden) for layer in teacher}
        loss = asymmetric_distance(*readings, teacher, assistant)
        course.append((loss.item(), similarity(readings[0][-1], readings[1][-1]).item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (first, alike), (last, less_alike) = course[0], course[-1]
    assert first > 0.3
    assert last < first / 10
    assert less_alike < alike - 0.3
    for layer, (one, other) in before.items():
        assert torch.equal(teacher[layer], one)
        assert torch.equal(assistant[layer], other)
