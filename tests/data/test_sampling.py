from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylab.data.sampling import frame_numbers, frame_times

counts = st.integers(1, 64)
rates = st.sampled_from([29.97002997002997, 47.952047952047955, 50.0, 59.9400599400599, 90.0])


@given(start=st.integers(1, 300_000), length=st.integers(1, 10_000), n=counts)
def test_frame_numbers_fill_the_segment_evenly(start: int, length: int, n: int) -> None:
    numbers = frame_numbers(start, start + length, n)

    assert len(numbers) == n
    assert all(type(number) is int for number in numbers)
    assert numbers == sorted(numbers)
    assert numbers[0] == start
    assert n == 1 or numbers[-1] == start + length - 1
    for i, number in enumerate(numbers):
        exact = start + Fraction(i * (length - 1), max(n - 1, 1))
        assert abs(float(number - exact)) <= 0.5 + 1e-6


@given(start=st.floats(0, 5_000), length=st.floats(0.001, 200), fps=rates, n=counts)
def test_frame_times_fill_the_segment_evenly(start: float, length: float, fps: float, n: int) -> None:
    stop = start + length
    times = frame_times(start, stop, fps, n)
    last = max(start, stop - 1 / fps)

    assert len(times) == n
    assert all(type(time) is float for time in times)
    assert times == sorted(times)
    assert times[0] == start
    assert n == 1 or times[-1] == last
    assert all(start <= time < stop for time in times)
    for i, time in enumerate(times[1:], 1):
        assert time == pytest.approx(start + (last - start) * i / (n - 1), abs=1e-9)


def test_known_segment() -> None:
    assert frame_numbers(8, 202, 8) == [8, 36, 63, 91, 118, 146, 173, 201]
    assert frame_times(1.0, 3.0, 2.0, 4) == [1.0, 1.5, 2.0, 2.5]


def test_short_segments_repeat_frames() -> None:
    assert frame_numbers(7, 8, 4) == [7, 7, 7, 7]
    assert frame_numbers(1, 3, 4) == [1, 1, 2, 2]
    assert frame_times(2.0, 2.01, 50.0, 3) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("start", "stop", "n"), [(5, 5, 4), (5, 4, 4), (5, 9, 0)])
def test_segments_without_frames_are_refused(start: int, stop: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"empty segment|at least 1"):
        frame_numbers(start, stop, n)
    with pytest.raises(ValueError, match=r"empty segment|at least 1"):
        frame_times(start, stop, 50.0, n)


@pytest.mark.parametrize("fps", [0.0, -25.0, float("nan")])
def test_frame_rate_must_be_positive(fps: float) -> None:
    with pytest.raises(ValueError, match="fps must be positive"):
        frame_times(0.0, 1.0, fps, 4)
