"""How fast handcrafted features are: raylab's one pass against scipy, scikit-image and OpenCV.

Each computes every measure of a frame, from the same float32 luma, in two processes of one thread, as two CPUs of a
cluster would. Frames a second are of the CPU time of both. What decoding costs beside it is in the last lines.
"""

from __future__ import annotations

import argparse
import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before numpy is imported

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product as product_of
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from videos import KINDS, default_video, encode

from raylab.data.container import frames_shown, open_video
from raylab.data.sampling import segment_fractions
from raylab.handcrafted.container import Packets
from raylab.handcrafted.extract import HandcraftedSettings, extract
from raylab.handcrafted.luma import luma
from raylab.handcrafted.measures import OF_FRAMES
from raylab.handcrafted.moments import Moments

SIZES = {"256p": (456, 256), "720p": (1280, 720), "1080p": (1920, 1080)}
CORES = 2

Picture = NDArray[np.float32]
SECOND = np.array([1, -2, 1], np.float32)
RESIDUAL = np.outer(SECOND, SECOND) / 6
INNER = np.s_[1:-1, 1:-1]


def by_raylab(x: Picture) -> Moments:
    return Moments.of(x)


def by_scipy(x: Picture) -> Moments:
    from scipy import fft, ndimage

    dx, dy = ndimage.correlate1d(x, [-1, 0, 1], 1), ndimage.correlate1d(x, [-1, 0, 1], 0)
    return _gather(
        ndimage.correlate1d(ndimage.correlate1d(x, SECOND / 6, 0), SECOND, 1),
        ndimage.laplace(x),
        (dx, dy),
        (ndimage.sobel(x, 1), ndimage.sobel(x, 0)),
        (np.abs(np.diff(x)).mean(0), np.abs(np.diff(x, axis=0)).mean(1)),
        fft.dctn(_blocks(x), axes=(1, 2), norm="ortho"),
    )


def by_skimage(x: Picture) -> Moments:
    from scipy import fft, ndimage
    from skimage import filters, util

    blocks = util.view_as_blocks(x[: len(x) // 8 * 8, : x.shape[1] // 8 * 8], (8, 8)).reshape(-1, 8, 8)
    dy, dx = np.gradient(x)
    return _gather(
        ndimage.convolve(x, RESIDUAL.astype(np.float32)),  # scikit-image takes filters of one's own from scipy
        filters.laplace(x),
        (2 * dx, 2 * dy),
        (4 * filters.sobel_v(x), 4 * filters.sobel_h(x)),
        (np.abs(np.diff(x)).mean(0), np.abs(np.diff(x, axis=0)).mean(1)),
        fft.dctn(blocks, axes=(1, 2), norm="ortho"),
    )


def by_opencv(x: Picture, product: bool = False) -> Moments:
    import cv2

    cv2.setNumThreads(1)
    step = np.array([[-1, 0, 1]], np.float32)
    if product:
        basis = cv2.dct(np.eye(8, dtype=np.float32), flags=cv2.DCT_ROWS).T
        coefficients = (_blocks(x).reshape(-1, 64) @ np.kron(basis, basis).T).reshape(-1, 8, 8)
    else:
        height, width = len(x) // 8 * 8, x.shape[1] // 8 * 8
        corners = product_of(range(0, height, 8), range(0, width, 8))
        coefficients = np.array([cv2.dct(x[i : i + 8, j : j + 8]) for i, j in corners])
    return _gather(
        cv2.sepFilter2D(x, cv2.CV_32F, SECOND, SECOND / 6),
        cv2.Laplacian(x, cv2.CV_32F),
        (cv2.filter2D(x, cv2.CV_32F, step), cv2.filter2D(x, cv2.CV_32F, step.T)),
        (cv2.Sobel(x, cv2.CV_32F, 1, 0), cv2.Sobel(x, cv2.CV_32F, 0, 1)),
        (
            cv2.reduce(cv2.absdiff(x[:, 1:], x[:, :-1]), 0, cv2.REDUCE_AVG).ravel(),
            cv2.reduce(cv2.absdiff(x[1:], x[:-1]), 1, cv2.REDUCE_AVG).ravel(),
        ),
        coefficients,
    )


def _blocks(x: Picture) -> Picture:
    down, across = len(x) // 8, x.shape[1] // 8
    return x[: down * 8, : across * 8].reshape(down, 8, across, 8).swapaxes(1, 2).reshape(-1, 8, 8)


def _gather(
    residual: Picture,
    laplacian: Picture,
    slopes: tuple[Picture, Picture],
    sobel: tuple[Picture, Picture],
    profiles: tuple[Picture, Picture],
    coefficients: Picture,
) -> Moments:
    """The averages of whole arrays of the picture's size."""
    residual, laplacian = residual[INNER], laplacian[INNER]
    slope = slopes[0][INNER] ** 2 + slopes[1][INNER] ** 2
    energy = residual * residual
    return Moments(
        residual=np.array([np.abs(residual).mean(), energy.mean(), (energy * energy).mean()], np.float64),
        laplacian=np.array([laplacian.mean(), (laplacian * laplacian).mean()], np.float64),
        slope=np.array([np.sqrt(slope).mean(), slope.mean()], np.float64),
        sobel=float((sobel[0][INNER] ** 2 + sobel[1][INNER] ** 2).mean()),
        columns=profiles[0],
        rows=profiles[1],
        dct=np.einsum("nij,nij->ij", coefficients, coefficients) / (64 * len(coefficients)),
    )


WAYS: dict[str, tuple[Callable[[Picture], Moments], str]] = {
    "raylab": (by_raylab, "numpy"),
    "OpenCV": (by_opencv, "cv2"),
    "OpenCV, DCT as one matrix product": (partial(by_opencv, product=True), "cv2"),
    "scipy": (by_scipy, "scipy"),
    "scikit-image": (by_skimage, "skimage"),
}


def work(way: str, picture: Picture, frames: int) -> tuple[float, list[float]]:
    """CPU seconds of so many frames, and the measures."""
    compute = WAYS[way][0]
    moments = compute(picture)
    started = time.process_time()
    for _ in range(frames):
        moments = compute(picture)
        values = [measure.of(moments) for measure in OF_FRAMES]
    return time.process_time() - started, values


def measure(pool: ProcessPoolExecutor, picture: Picture, frames: int, repeats: int) -> Table:
    shown = Table(
        "way", "ms a frame", f"frames/s, {CORES} cores", "raylab's ratio", "values differ by", box=box.MARKDOWN
    )
    seconds: dict[str, list[float]] = {}
    values: dict[str, NDArray[np.float64]] = {}
    ways = [way for way, (_, package) in WAYS.items() if find_spec(package)]
    for _ in range(repeats):
        for way in ways:
            done = [pool.submit(work, way, picture, frames) for _ in range(CORES)]
            results: list[tuple[float, Any]] = [future.result() for future in done]
            seconds.setdefault(way, []).append(sum(cpu for cpu, _ in results) / (CORES * frames))
            values[way] = np.array(results[0][1])
    for way in ways:
        ratio = median(a / b for a, b in zip(seconds[way], seconds["raylab"], strict=True))
        differ = np.abs(values[way] / values["raylab"] - 1).max()
        ms = median(seconds[way])
        shown.add_row(way, f"{1000 * ms:.2f}", f"{CORES / ms:.1f}", f"{ratio:.2f}", f"{differ:.0e}")
    return shown


def shares(path: Path, repeats: int) -> str:
    """Where the CPU time of `extract` goes."""
    frames = HandcraftedSettings().frames
    seconds: dict[str, list[float]] = {"all": [], "frames": []}
    for _ in range(repeats):
        started = time.process_time()
        extract(path)
        between = time.process_time()
        with open_video(path) as (container, stream):
            count = Packets.read(path, container, stream).times
        with open_video(path) as (container, stream):
            chosen = count[[int(fraction * len(count)) for fraction in segment_fractions(frames)]]
            for frame, _ in frames_shown(path, container, stream, chosen.tolist()):
                luma(frame)
        seconds["all"].append(between - started)
        seconds["frames"].append(time.process_time() - between)
    whole, reading = median(seconds["all"]), median(seconds["frames"])
    return f"{path.stem}: {frames} frames of a file: {1000 * whole:.0f} ms, {reading / whole:.0%} of it to read them"


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast handcrafted features are computed.")
    parser.add_argument("--frames", type=int, default=10, help="of each turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    options = parser.parse_args()
    console, video = Console(width=120), default_video()
    with av.open(str(video)) as container:
        frame = next(container.decode(video=0))
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        for name, (width, height) in SIZES.items():
            picture = luma(frame.reformat(width, height))
            console.print(f"{name}, {width} × {height}", highlight=False)
            console.print(measure(pool, picture, options.frames, options.repeats))
    with TemporaryDirectory() as folder:
        for name in ("256p", "1080p"):
            path = Path(folder, f"{name}.mp4")
            encode(KINDS[name], video, path)
            console.print(shares(path, options.repeats), highlight=False)
    packages = {"numpy": "numpy", "scipy": "scipy", "scikit-image": "skimage", "opencv-python-headless": "cv2"}
    console.print(", ".join(f"{name} {version(name)}" for name, module in packages.items() if find_spec(module)))


if __name__ == "__main__":
    main()
