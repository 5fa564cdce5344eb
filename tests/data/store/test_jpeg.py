import numpy as np
import pytest
import torch
from scenes import picture
from torch import Tensor

from raylab.data.footage import fit
from raylab.data.store.jpeg import decode_squares, decode_whole, encode, shrink

SIZES = [(64, 96), (80, 48), (64, 64), (48, 96), (55, 97), (97, 56), (33, 32), (32, 33), (16, 200), (1, 1)]


def frames_of(height: int, width: int, count: int = 3) -> Tensor:
    pictures = np.stack([picture(12 * number, width, height) for number in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def difference(one: Tensor, other: Tensor) -> float:
    """Largest mean difference of a frame, of 255."""
    assert one.shape == other.shape
    return (one.float() - other.float()).abs().mean((1, 2, 3)).max().item()


def squares(images: list[tuple[bytes, bytes | None]], side: int) -> Tensor:
    place = torch.empty(len(images), side, side, 3, dtype=torch.uint8)
    decode_squares([square for square, _ in images], place)
    return place.permute(0, 3, 1, 2)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_square_and_sides_are_the_frame_again(height: int, width: int) -> None:
    frames = frames_of(height, width)
    images = encode(frames, quality=95, sides=True)
    whole = decode_whole(*zip(*images, strict=True), wide=width > height)
    assert difference(whole, frames) < 1.5
    assert all((beside is None) == (height == width) for _, beside in images)


def test_sides_may_be_left_out() -> None:
    kept, left_out = (encode(frames_of(64, 96), 90, sides) for sides in (True, False))
    assert [square for square, _ in kept] == [square for square, _ in left_out]
    assert {beside for _, beside in left_out} == {None}


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("side", [16, 32, 48])
def test_a_decoded_square_is_the_centre_of_the_frame(height: int, width: int, side: int) -> None:
    frames = frames_of(height, width)
    assert difference(squares(encode(frames, 95, sides=True), side), fit(frames, side)) < 2


@pytest.mark.parametrize("factor", [1, 1.5, 2, 2.1, 4, 7, 8, 11])
def test_large_images_are_decoded_at_a_part_of_their_size(factor: float) -> None:
    side = round(32 * factor)
    frames = frames_of(side, side)
    assert difference(squares(encode(frames, 95, sides=False), 32), fit(frames, 32)) < 1.5


def test_a_square_of_the_size_asked_for_is_decoded_in_its_place() -> None:
    frames = frames_of(32, 32)
    image = encode(frames, 90, sides=False)
    assert torch.equal(squares(image, 32), decode_whole([s for s, _ in image], [None] * 3, wide=False))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("short_side", [16, 64])
def test_shrink_brings_the_short_side_down_and_never_up(height: int, width: int, short_side: int) -> None:
    frames = frames_of(height, width)
    small = shrink(frames, short_side)
    assert min(small.shape[-2:]) == min(height, width, short_side)
    if min(height, width) <= short_side:
        assert small is frames
    else:
        assert small.shape[-2] / small.shape[-1] == pytest.approx(height / width, rel=0.05)
        assert torch.equal(fit(frames, short_side), fit(small, short_side)), "training sees the same pixels"


def test_quality_costs_bytes_and_saves_loss() -> None:
    noise = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = {}
    for quality in (30, 60, 90):
        ((image, _),) = encode(noise, quality, sides=True)
        found[len(image)] = difference(squares([(image, None)], 64), noise)
    assert list(found) == sorted(found)
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize("spoil", [lambda i: i[:200], lambda i: b"", lambda i: b"\0" * 99, lambda i: i[:60] + i[90:]])
def test_a_damaged_image_is_an_error(spoil) -> None:
    ((image, _),) = encode(frames_of(64, 64, 1), 90, sides=True)
    with pytest.raises(ValueError):
        decode_squares([spoil(image)], torch.empty(1, 64, 64, 3, dtype=torch.uint8))


def test_an_image_larger_than_the_first_does_not_overflow_its_place() -> None:
    (small, _), (large, _) = (encode(frames_of(side, side, 1), 90, sides=True)[0] for side in (32, 48))
    with pytest.raises(ValueError, match="too small"):
        decode_squares([small, large], torch.empty(2, 32, 32, 3, dtype=torch.uint8))
