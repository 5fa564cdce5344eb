import colorsys
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional

from raylab.config import DataConfig
from raylab.data.augment import IMAGENET_MEAN, IMAGENET_STD, RECIPES, ClipTransform, Recipe

SIZE, SIDE, FRAMES = 28, 32, 3
NAMES = sorted(RECIPES)
RANDOM = ["aggressive", "mild"]


def transform(augment: str = "aggressive", train: bool = True, seed: int = 0, hflip: float = 0.5) -> ClipTransform:
    return ClipTransform(DataConfig(size=SIZE, augment=augment, hflip=hflip), train, seed)


def noise(clips: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (clips, FRAMES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def pixels(normalised: Tensor) -> Tensor:
    """Undo the normalisation: float, 0–255."""
    std, mean = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_STD, IMAGENET_MEAN))
    return (normalised * std + mean) * 255


def ids(n: int) -> list[str]:
    return [f"P01_{i}" for i in range(n)]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("augment", NAMES)
def test_uint8_becomes_normalised_float(augment: str, train: bool) -> None:
    video = noise(4)
    before = video.clone()
    out = transform(augment, train)(video, ids(4), epoch=0)
    assert out.shape == (4, FRAMES, 3, SIZE, SIZE)
    assert out.dtype == torch.float32
    assert pixels(out).min() > -0.01
    assert pixels(out).max() < 255.01
    assert torch.equal(video, before)


@pytest.mark.parametrize(("augment", "train"), [("aggressive", False), ("mild", False), ("none", True)])
def test_evaluation_is_centre_crop_and_normalisation(augment: str, train: bool) -> None:
    video = noise(2)
    margin = (SIDE - SIZE) // 2
    crop = video[..., margin:-margin, margin:-margin].double().numpy() / 255
    expected = (crop - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(IMAGENET_STD, (3, 1, 1))
    np.testing.assert_allclose(transform(augment, train)(video, ids(2), epoch=3), expected, atol=1e-5)


def test_the_models_own_mean_and_std_are_used() -> None:
    config = DataConfig(size=SIZE, augment="none")
    out = ClipTransform(config, train=False, seed=0, mean=(0.5,) * 3, std=(0.25,) * 3)(noise(1), ["a"], epoch=0)
    assert -2.0 <= out.min() < -1.9
    assert 1.9 < out.max() <= 2.0


@pytest.mark.parametrize("augment", RANDOM)
def test_frames_of_a_clip_share_their_parameters(augment: str) -> None:
    still = noise(16)[:, :1].expand(-1, FRAMES, -1, -1, -1)
    out = transform(augment)(still, ids(16), epoch=1)
    for frame in range(1, FRAMES):
        assert torch.equal(out[:, frame], out[:, 0])


@settings(max_examples=25, deadline=None)
@given(
    augment=st.sampled_from(RANDOM),
    order=st.permutations(range(6)),
    keep=st.integers(1, 6),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    global_seed=st.integers(0, 100),
)
def test_the_draw_depends_on_seed_epoch_and_id_alone(
    augment: str, order: list[int], keep: int, seed: int, epoch: int, global_seed: int
) -> None:
    video, names = noise(6), ids(6)
    whole = transform(augment, seed=seed)(video, names, epoch)
    torch.manual_seed(global_seed)
    chosen = order[:keep]
    part = transform(augment, seed=seed)(video[chosen], [names[i] for i in chosen], epoch)
    assert torch.equal(part, whole[chosen])


@pytest.mark.parametrize("augment", RANDOM)
def test_seeds_epochs_and_ids_draw_differently(augment: str) -> None:
    video = noise(1).expand(8, -1, -1, -1, -1)
    base = transform(augment)(video, ids(8), epoch=0)
    others = {
        "epoch": transform(augment)(video, ids(8), epoch=1),
        "seed": transform(augment, seed=1)(video, ids(8), epoch=0),
        "id": base.roll(1, 0),
    }
    for changed, other in others.items():
        assert (base - other).flatten(1).abs().amax(1).gt(0).all(), changed


@pytest.mark.parametrize("augment", NAMES)
def test_a_signature_tells_whether_a_clip_is_transformed_alike(augment: str) -> None:
    video = noise(1)
    cases = [
        (transform(augment, train, seed, hflip), id, epoch)
        for train in (True, False)
        for seed in (0, 1)
        for hflip in (0.0, 1.0)
        for id in ids(2)
        for epoch in (0, 1)
    ]
    config = DataConfig(size=SIZE, augment=augment, hflip=0.0)
    cases.append((ClipTransform(config, False, 0, mean=(0.5,) * 3), "P01_0", 0))
    cases.append((ClipTransform(config, False, 0, std=(0.5,) * 3), "P01_0", 0))
    cases.append((ClipTransform(config.model_copy(update={"size": SIZE - 2}), False, 0), "P01_0", 0))
    signed = [(made.signature(id, epoch), made(video, [id], epoch)) for made, id, epoch in cases]
    for signature, out in signed:
        for other_signature, other in signed:
            assert (signature == other_signature) == (out.shape == other.shape and torch.equal(out, other))


@pytest.mark.parametrize("augment", NAMES)
def test_the_global_generator_is_left_alone(augment: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    transform(augment)(noise(2), ids(2), epoch=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="shorter"):
        transform()(noise(2), ["only one"], epoch=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_hflip_1_mirrors_and_0_does_not() -> None:
    video, names = noise(8), ids(8)
    mirrored, of_mirrored, straight = (
        transform(hflip=hflip)(clips, names, epoch=0) for hflip, clips in ((1, video), (0, video.flip(-1)), (0, video))
    )
    torch.testing.assert_close(mirrored, of_mirrored, rtol=0, atol=1e-3)
    assert (mirrored - straight).abs().mean() > 0.1


def colours(out: Tensor) -> Tensor:
    """Per clip: the largest difference between channels at any pixel, 0–255."""
    rgb = pixels(out)
    return (rgb.amax(2) - rgb.amin(2)).flatten(1).amax(1)


def mirrored(out: Tensor) -> Tensor:
    """Per clip: is the bright half now on the right?"""
    rgb = pixels(out).mean((1, 2, 3))
    return rgb[:, -4:].mean(1) > rgb[:, :4].mean(1)


def erased(out: Tensor) -> Tensor:
    """Per clip: does the mean colour fill any row or column of 3 pixels, which noise never does?"""
    blank = torch.tensor([round(255 * channel) for channel in IMAGENET_MEAN]).view(3, 1, 1)
    hits = (pixels(out) - blank).abs().amax(2).lt(0.5)[:, 0]
    centre = hits[:, 7:-7, 7:-7]  # away from the corners that rotation empties
    return (centre.unfold(1, 3, 1).all(-1).flatten(1).any(1)) | (centre.unfold(2, 3, 1).all(-1).flatten(1).any(1))


@pytest.mark.parametrize(
    ("augment", "seen", "low", "high"),
    [
        ("aggressive", lambda out: colours(out) < 1.5, 0.06, 0.14),
        ("aggressive", mirrored, 0.42, 0.58),
        ("mild", mirrored, 0.42, 0.58),
        ("aggressive", erased, 0.08, 0.18),  # 0.15, less the few that lie outside the centre
        ("mild", erased, 0.03, 0.12),
    ],
    ids=["grayscale", "flip", "flip-mild", "erasing", "erasing-mild"],
)
def test_frequencies(augment: str, seen: Callable[[Tensor], Tensor], low: float, high: float) -> None:
    clips = 600
    video = noise(1)[:, :1]
    video[..., SIDE // 2 :] //= 4  # dark right half
    out = transform(augment)(video.expand(clips, -1, -1, -1, -1), ids(clips), epoch=0)
    assert low < seen(out).float().mean() < high


def bright(out: Tensor) -> Tensor:
    """First frame of every clip, (B, H, W): brighter than halfway between its darkest and brightest pixel?"""
    grey = pixels(out)[:, 0].mean(1)
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    return grey > (low + high) / 2


def test_aggressive_rotates_up_to_15_degrees_either_way() -> None:
    bars = torch.zeros(300, 1, 3, 64, 64, dtype=torch.uint8)
    bars[..., 30:34] = 255
    out = bright(ClipTransform(DataConfig(size=56), train=True, seed=0)(bars, ids(300), epoch=0)).float()
    x = torch.arange(56.0)
    top, bottom = ((out[:, y] * x).sum(-1) / out[:, y].sum(-1) for y in (14, 42))
    angles = torch.rad2deg(torch.atan((bottom - top) / (42 - 14)))
    low, high = angles.nanquantile(torch.tensor([0.1, 0.9]))  # of a uniform ±15: ∓12; leaves out erased bars
    assert -14 < low < -10
    assert 10 < high < 14


def test_mild_keeps_85_to_100_percent_of_the_area() -> None:
    squares = torch.zeros(300, 1, 3, 64, 64, dtype=torch.uint8)
    squares[..., 16:48, 16:48] = 255
    config = DataConfig(size=56, augment="mild")
    out = bright(ClipTransform(config, train=True, seed=0)(squares, ids(300), epoch=0))
    kept = 0.25 / out.float().mean((1, 2))
    low, high = kept.quantile(torch.tensor([0.1, 0.9]))  # leaves out erased squares
    assert 0.83 < low < 0.9
    assert 0.95 < high < 1.02


def only(**recipe: float) -> ClipTransform:
    """Nothing but what is named, and what always happens."""
    one = transform(hflip=0)
    one.recipe = Recipe(**recipe)
    return one


def smooth(clips: int) -> Tensor:
    """Large blots of colour that no jitter drives to black or white; every frame has the same mean."""
    generator = torch.Generator().manual_seed(0)
    blots = torch.rand(clips, 3, 4, 4, generator=generator) * 80 + 60
    frames = functional.resize(blots, [SIDE, SIDE], antialias=True).to(torch.uint8)
    return frames[:, None].expand(-1, FRAMES, -1, -1, -1)


def test_rotation_is_that_of_torchvision() -> None:
    rotating, video = only(rotation=15), smooth(8)
    mean = 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    out = pixels(rotating(video, ids(8), epoch=0))
    for clip, rotated, id in zip(video, out, ids(8), strict=True):
        warp = rotating.draw(rotating.recipe, id, 0, SIDE).warp
        angle = math.degrees(math.atan2(warp[1, 0], warp[0, 0]))
        # Around the mean, since torchvision blends the edge with a given fill twice.
        turned = functional.rotate(clip - mean, angle, functional.InterpolationMode.BILINEAR) + mean
        torch.testing.assert_close(rotated, functional.center_crop(turned, [SIZE, SIZE]), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("jitter", "of_torchvision", "factor"),
    [
        ("brightness", functional.adjust_brightness, lambda own: own[0, 0]),
        ("contrast", functional.adjust_contrast, lambda own: own[0, 0]),
        ("saturation", functional.adjust_saturation, lambda own: (own.trace() - 1) / 2),
    ],
)
def test_jitter_is_that_of_torchvision(
    jitter: str, of_torchvision: Callable[[Tensor, float], Tensor], factor: Callable[[np.ndarray], float]
) -> None:
    jittering, video = only(**{jitter: 0.4}), smooth(64)
    crops = functional.center_crop(video, [SIZE, SIZE])
    factors = [factor(jittering.draw(jittering.recipe, id, 0, SIDE).colour[:, :3]) for id in ids(64)]
    assert -0.4 <= min(factors) - 1 < -0.35
    assert 0.35 < max(factors) - 1 <= 0.4
    out = pixels(jittering(video, ids(64), epoch=0))
    expected = torch.stack([of_torchvision(c / 255, f) for c, f in zip(crops, factors, strict=True)])
    torch.testing.assert_close(out, expected * 255, rtol=0, atol=0.1)


def test_hue_turns_by_up_to_36_degrees_either_way() -> None:
    turning, turned = only(hue=0.1), []
    for id in ids(200):
        own, of_mean = np.split(turning.draw(turning.recipe, id, 0, SIDE).colour, 2, axis=1)
        before, after = np.array([0.6, 0.5, 0.4]), own @ [0.6, 0.5, 0.4]
        assert own @ [1, 1, 1] == pytest.approx([1, 1, 1])
        assert not of_mean.any()
        turned.append((colorsys.rgb_to_hsv(*after)[0] - colorsys.rgb_to_hsv(*before)[0] + 0.5) % 1 - 0.5)
    # A circle's degrees and those of the HSV hexagon differ by 1.1 at most.
    assert -0.105 < min(turned) < -0.09
    assert 0.09 < max(turned) < 0.105


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augment", NAMES)
def test_a_gpu_draws_what_the_cpu_draws(augment: str) -> None:
    video = noise(8)
    state = torch.cuda.get_rng_state()
    on_gpu = transform(augment)(video.cuda(), ids(8), epoch=0)
    assert on_gpu.is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), state)
    on_cpu = transform(augment)(video, ids(8), epoch=0)
    assert (pixels(on_gpu.cpu()) - pixels(on_cpu)).abs().mean() < 1
