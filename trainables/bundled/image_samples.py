"""`ImageSamples`: images by number, decoded and augmented as in torchvision's PIL pipeline; bad files are replaced.

The workloads `images` and `objects` differ only in the source of the bytes.
"""

from __future__ import annotations

import abc
import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from feedrate.trainables.workload import WorkloadError

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
_log = logging.getLogger(__name__)


class BadImageError(Exception):
    """One sample cannot be read or decoded; another sample takes its place."""


class ImageSamples(Dataset[tuple[torch.Tensor, int]], abc.ABC):
    """(image, label) pairs: image float32 (3, image_size, image_size), normalised; label 0..num_classes-1.

    Args:
        root: where the samples are, for messages.
        paths: "class/file" or "file", relative to the root; the first folder is the class.
        image_size: width and height in pixels after the crop.
        epoch_samples: length of the dataset. If it exceeds the number of files, they are cycled; if it is smaller, evenly
            spaced files are used.

    Files that are not images are replaced by other files; each process logs a bad file once.
    """

    check_limit = 5000
    """Number of files that `check` examines at most."""

    def __init__(self, root: str, paths: Sequence[str], image_size: int, epoch_samples: int) -> None:
        self.root, self.image_size, self.epoch_samples = root, image_size, epoch_samples
        folders = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
        if any(folders) and not all(folders):  # as in torchvision, files beside the class folders are no samples
            paths, folders = [path for path in paths if "/" in path], [folder for folder in folders if folder]
        classes = {folder: label for label, folder in enumerate(sorted(set(folders)))}
        self.num_files, self.num_classes = len(paths), len(classes)
        # arrays, because reading a list of strings changes reference counts, so that every worker would copy the list's pages
        self._labels = np.array([classes[folder] for folder in folders], np.int32)
        names = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._state = np.zeros(self.num_files, np.uint8)  # per file, in this process: 0 not tried, 1 good, 2 bad
        self._num_tried = self._num_bad = 0

    @abc.abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open one file for reading; raise `BadImageError` if only this file cannot be read."""

    def path(self, file: int) -> str:
        """Return the path of file number `file`, relative to the root."""
        start = self._ends[file - 1] if file else 0
        return os.fsdecode(self._names[start : self._ends[file]].tobytes())

    def __len__(self) -> int:
        return self.epoch_samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < self.epoch_samples:
            raise IndexError(index)
        fewer = self.epoch_samples < self.num_files
        file = index * self.num_files // self.epoch_samples if fewer else index % self.num_files
        step = int(self.num_files * 0.618) | 1  # take replacements from far away, because bad files are often next to each other
        while math.gcd(step, self.num_files) > 1:
            step += 1
        for _ in range(self.num_files):
            if self._state[file] != 2:
                try:
                    with self.open(self.path(file)) as content:
                        image = decode(content)
                except BadImageError as error:
                    self._record(file, error)
                else:
                    self._record(file, None)
                    return augment(image, self.image_size), int(self._labels[file])
            file = (file + step) % self.num_files
        raise WorkloadError(f"none of the {self.num_files} files in {self.root} is an image that Pillow can read")

    def _record(self, file: int, error: BadImageError | None) -> None:
        """Count each file once, log bad files, and raise an error if most files are bad."""
        if self._state[file]:
            return
        self._state[file] = 2 if error else 1
        self._num_tried += 1
        self._num_bad += error is not None
        if error and self._num_bad <= 10:
            more = "; further ones are skipped silently" if self._num_bad == 10 else ""
            _log.warning("skipped %s in %s: %s%s", self.path(file), self.root, error, more)
        # the tried files are a random sample of the folder, so "most are bad" needs a margin of three standard deviations
        margin = 1.5 * math.sqrt(self._num_tried) if self._num_tried < self.num_files else 0.0
        if self._num_tried >= 20 and self._num_bad > self._num_tried / 2 + margin:
            raise WorkloadError(
                f"{self._num_bad} of the first {self._num_tried} files tried in {self.root} are not images: "
                f"pass a folder of images with --data"
            )

    def check(self) -> list[str]:
        """Examine the files before a search; return a sentence that names the files that are not images.

        Raises:
            WorkloadError: more than half of them are not images. Pass another folder.
        """
        num_checked = min(self.num_files, self.check_limit)
        files = [number * self.num_files // num_checked for number in range(num_checked)]
        with ThreadPoolExecutor(16) as pool:  # the threads wait for slow storage and compute little
            good = list(pool.map(self._has_header, files))
        bad = [self.path(file) for file, is_good in zip(files, good, strict=True) if not is_good]
        if not bad:
            return []
        which = f"{len(bad)} of {num_checked} files{' looked at' if num_checked < self.num_files else ''}"
        names = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
        if 2 * len(bad) > num_checked:
            raise WorkloadError(f"{which} in {self.root} are not images ({names}): pass a folder of images with --data")
        return [f"{which} {'is not an image and is' if len(bad) == 1 else 'are not images and are'} skipped: {names}"]

    def _has_header(self, file: int) -> bool:
        try:
            with self.open(self.path(file)) as content, _pillow_errors(), Image.open(content):
                return True
        except BadImageError:
            return False


def decode(file: BinaryIO) -> Image.Image:
    """Decode the whole image and return it in RGB.

    Raises:
        BadImageError: the file is no image, or is damaged.
    """
    with _pillow_errors(), Image.open(file) as image:
        return image.convert("RGB")


@contextmanager
def _pillow_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("not an image that Pillow can read") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files, even struct.error and zlib.error
        raise BadImageError(str(error)) from error


def augment(image: Image.Image, size: int) -> torch.Tensor:
    """Apply a random resized crop, a random flip and normalisation; return (3, size, size). Draws from torch's global generator."""
    image = image.crop(_crop_box(*image.size)).resize((size, size), Image.Resampling.BILINEAR)
    if torch.rand(()) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div_(255).sub_(MEAN).div_(STD)


def _crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a box with 8-100 % of the area and aspect 3/4-4/3, as torchvision's RandomResizedCrop."""
    for _ in range(10):
        area = width * height * float(torch.empty(()).uniform_(0.08, 1.0))
        aspect = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = (int(torch.randint(0, room + 1, ())) for room in (width - crop_width, height - crop_height))
            return left, top, left + crop_width, top + crop_height
    crop_width, crop_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))  # no box fitted: crop the middle
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
