"""The photo-like JPEG files that the image workloads load if no data is given. They are made once, in the user's cache folder.

A set is built in a `.part` folder next to its final place and renamed when complete, under a file lock. A crash at any
moment leaves at most the `.part` folder, which the next run replaces.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

NUM_CLASSES = 10
QUALITY = 90
WIDTH_PX = (400, 641)
TEXTURE_PX = 1024

Floats = npt.NDArray[np.float32]


def photo_folder(num_images: int = 2000) -> Path:
    """Return the folder of the photo set, with one sub-folder per class; make it on first use, with progress on stderr.

    Raises:
        WorkloadError: the cache folder cannot be written. Set XDG_CACHE_HOME, or pass your own images with --data.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feedrate"
    folder = cache / f"photos-{num_images}-v1"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():  # another process may have made it while this one waited
                _make(folder, num_images)
    except OSError as error:
        # imported here because it imports torch, which making the set does not need
        from feedrate.trainables.workload import WorkloadError

        raise WorkloadError(
            f"the photo set cannot be written to {cache} ({error.strerror or error}): set XDG_CACHE_HOME to a folder "
            f"with {num_images * 120 // 1000 + 10} MB free, or pass your own images with --data DIR"
        ) from error
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is making {path.with_suffix('')}: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path, num_images: int) -> None:
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    for label in range(min(NUM_CLASSES, num_images)):
        (part / f"class-{label}").mkdir(parents=True)
    textures = [_texture(seed) for seed in range(4)]

    def save(index: int) -> None:
        label = index % NUM_CLASSES
        photo(index, label, textures).save(part / f"class-{label}" / f"{index:06}.jpg", quality=QUALITY)

    # threads are enough: numpy and the JPEG encoder release the GIL for nearly all of the work
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for _ in _progress(pool.map(save, range(num_images)), num_images, f"making {num_images} photos in {folder}"):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    part.rename(folder)


def _progress(steps: Iterator[None], total: int, title: str) -> Iterator[None]:
    """Yield from `steps` while showing progress: a bar on a terminal, otherwise one line per quarter."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(steps, title, total, console=console, transient=True)
        return
    for done, step in enumerate(steps, 1):
        if done * 4 // total > (done - 1) * 4 // total:
            print(f"{title}: {100 * done // total} %", file=sys.stderr, flush=True)
        yield step


def _texture(seed: int) -> Floats:
    """Return noise on all scales, as in nature (amplitude falls with frequency): (TEXTURE_PX, TEXTURE_PX), mean 0, std 1."""
    rng = np.random.default_rng([1, seed])
    frequency = np.hypot(np.fft.fftfreq(TEXTURE_PX)[:, None], np.fft.rfftfreq(TEXTURE_PX)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((TEXTURE_PX, TEXTURE_PX))) / frequency**1.2)
    return np.asarray(noise / noise.std(), np.float32)


def photo(index: int, label: int, textures: list[Floats]) -> Image.Image:
    """Draw photo number `index`: a background in the label's hue, shapes, and texture on all scales over everything."""
    rng = np.random.default_rng([2, index])
    width = int(rng.integers(*WIDTH_PX))
    height = int(width * rng.choice([0.75, 0.67, 1.0, 1.33], p=[0.6, 0.2, 0.1, 0.1]))

    def patch(step: int = 1) -> Floats:
        rows, columns = -(-height // step), -(-width // step)
        top, left = rng.integers(0, TEXTURE_PX - rows + 1), rng.integers(0, TEXTURE_PX - columns + 1)
        return textures[rng.integers(len(textures))][top : top + rows, left : left + columns]

    hue = 360 * label // NUM_CLASSES
    scene = Image.new("RGB", (width, height), f"hsl({hue}, {rng.integers(25, 60)}%, {rng.integers(35, 65)}%)")
    draw = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(8, 30))):
        x, y, size = (int(rng.integers(low, high)) for low, high in ((0, width), (0, height), (10, width // 3)))
        colour = f"hsl({(hue + rng.integers(-40, 200)) % 360}, {rng.integers(10, 80)}%, {rng.integers(10, 90)}%)"
        if rng.random() < 0.5:
            draw.ellipse((x, y, x + size, y + size * 0.7), fill=colour)
        else:
            corners = rng.integers(-size, size, (4, 2)).tolist()
            draw.polygon([(x + right, y + down) for right, down in corners], fill=colour)

    slope_x, slope_y = rng.normal(0, 30, 2).astype(np.float32)
    light = np.linspace(-slope_y, slope_y, height, dtype=np.float32)[:, None] + patch() * np.float32(24)
    light += np.linspace(-slope_x, slope_x, width, dtype=np.float32)
    light += rng.standard_normal((height, width), np.float32) * np.float32(rng.uniform(5, 13))  # foliage, sensor noise
    pixels = np.asarray(scene, np.float32) + light[..., None]
    for channel in (0, 2):  # in photos, colour varies slowly
        pixels[..., channel] += np.kron(patch(4), np.ones((4, 4), np.float32))[:height, :width] * np.float32(10)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
