"""The bundled workload `images`: JPEG files in a folder, decoded and augmented as torchvision's PIL pipeline does it.

The bottleneck is the CPU time of decoding. `ImageSamples` is shared with the workload `objects`, which differs only
in where the bytes come from.
"""

from __future__ import annotations

import abc
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn
from torch.utils.data import Dataset

from feedrate.trainables.models import check_model, make_model
from feedrate.trainables.photos import photo_folder
from feedrate.trainables.workload import Workload, WorkloadError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
_log = logging.getLogger(__name__)


class BadImageError(Exception):
    """One sample cannot be read or decoded; another takes its place."""


class ImageSamples(Dataset[tuple[torch.Tensor, int]], abc.ABC):
    """(image, label) pairs: image float32 (3, image_size, image_size), normalised; label 0..num_classes-1.

    Args:
        root: where the samples are, for messages.
        paths: "class/file" or "file", relative to the root; the first folder is the class.
        image_size: pixels of a side after the crop.
        epoch_samples: length of the dataset. More than there are files: they are cycled. Fewer: evenly spaced ones.

    Files that are no images are replaced by other ones, and each process names them once.
    """

    check_limit = 5000
    """At most this many files are looked at by `check`."""

    def __init__(self, root: str, paths: Sequence[str], image_size: int, epoch_samples: int) -> None:
        self.root, self.image_size, self.epoch_samples = root, image_size, epoch_samples
        folders = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
        if any(folders) and not all(folders):  # as torchvision: what lies beside the class folders is no sample
            paths, folders = [path for path in paths if "/" in path], [folder for folder in folders if folder]
        classes = {folder: label for label, folder in enumerate(sorted(set(folders)))}
        self.num_files, self.num_classes = len(paths), len(classes)
        # arrays, because reading a list of strings writes reference counts, which copies its pages in every worker
        self._labels = np.array([classes[folder] for folder in folders], np.int32)
        names = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._state = np.zeros(self.num_files, np.uint8)  # of this process: 0 not tried, 1 good, 2 bad
        self._num_tried = self._num_bad = 0

    @abc.abstractmethod
    def open(self, path: str) -> BinaryIO:
        """One file, to read from; `BadImageError` when just this one cannot be had."""

    def path(self, file: int) -> str:
        """Path of file number `file`, relative to the root."""
        start = self._ends[file - 1] if file else 0
        return os.fsdecode(self._names[start : self._ends[file]].tobytes())

    def __len__(self) -> int:
        return self.epoch_samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if not 0 <= index < self.epoch_samples:
            raise IndexError(index)
        fewer = self.epoch_samples < self.num_files
        file = index * self.num_files // self.epoch_samples if fewer else index % self.num_files
        step = int(self.num_files * 0.618) | 1  # replacements come from far away: bad files often lie together
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
        """Counts each file once, names the bad ones, and ends it all when most are bad."""
        if self._state[file]:
            return
        self._state[file] = 2 if error else 1
        self._num_tried += 1
        self._num_bad += error is not None
        if error and self._num_bad <= 10:
            more = "; further ones are skipped silently" if self._num_bad == 10 else ""
            _log.warning("skipped %s in %s: %s%s", self.path(file), self.root, error, more)
        # a few files are a random sample of the folder, so "most are bad" needs a margin of three standard deviations
        margin = 1.5 * math.sqrt(self._num_tried) if self._num_tried < self.num_files else 0.0
        if self._num_tried >= 20 and self._num_bad > self._num_tried / 2 + margin:
            raise WorkloadError(
                f"{self._num_bad} of the first {self._num_tried} files tried in {self.root} are not images: "
                f"pass a folder of images with --data"
            )

    def check(self) -> list[str]:
        """Looks at the files before a search and tells which ones are no images.

        Raises:
            WorkloadError: more than half of them are not. Pass another folder.
        """
        num_checked = min(self.num_files, self.check_limit)
        files = [number * self.num_files // num_checked for number in range(num_checked)]
        with ThreadPoolExecutor(16) as pool:  # waiting on slow storage, not computing
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


class ImageFolder(ImageSamples):
    """The images in a folder; its sub-folders are the classes, and without sub-folders there is one class."""

    def __init__(self, folder: Path, image_size: int, epoch_samples: int) -> None:
        if not folder.is_dir():
            raise WorkloadError(f"there is no folder {folder}: pass a folder of images with --data DIR")
        paths, num_others = [], 0
        for parent, _, files in os.walk(folder, followlinks=True):
            images = [name for name in files if name.lower().endswith(EXTENSIONS)]
            num_others += len(files) - len(images)
            paths += [os.path.relpath(os.path.join(parent, name), folder) for name in images]
        if not paths:
            others = f"only {num_others} other files" if num_others else "it holds no files"
            kinds = ", ".join(EXTENSIONS)
            raise WorkloadError(f"no images ({kinds}) in {folder}, {others}: pass a folder of images with --data DIR")
        super().__init__(str(folder), sorted(paths), image_size, epoch_samples)

    def open(self, path: str) -> BinaryIO:
        try:
            return open(os.path.join(self.root, path), "rb")
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise BadImageError(error.strerror) from error


def decode(file: BinaryIO) -> Image.Image:
    """The whole image in RGB.

    Raises:
        BadImageError: the file is no image, or a damaged one.
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
    except Exception as error:  # its decoders raise many types on damaged files, struct.error and zlib.error too
        raise BadImageError(str(error)) from error


def augment(image: Image.Image, size: int) -> torch.Tensor:
    """Random resized crop, flip, to tensor, normalise: (3, size, size). Draws from torch's global generator."""
    image = image.crop(_crop_box(*image.size)).resize((size, size), Image.Resampling.BILINEAR)
    if torch.rand(()) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div_(255).sub_(MEAN).div_(STD)


def _crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a box of 8-100 % of the area, aspect 3/4-4/3; as torchvision's RandomResizedCrop."""
    for _ in range(10):
        area = width * height * float(torch.empty(()).uniform_(0.08, 1.0))
        aspect = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = (int(torch.randint(0, room + 1, ())) for room in (width - crop_width, height - crop_height))
            return left, top, left + crop_width, top + crop_height
    crop_width, crop_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))  # the middle
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def image_workload(
    name: str, make: Callable[[int], ImageSamples], image_size: int | None, model: str | None, epoch_samples: int
) -> Workload:
    """A workload that classifies images; `make` gets the image size.

    Defaults follow the device: asked for in the trial, because asking initialises CUDA, which forking does not survive.
    """
    if model is not None:
        check_model(model)
    if image_size is not None and image_size < 32:
        raise WorkloadError(f"image_size must be 32 pixels or more, not {image_size}")
    if epoch_samples < 1:
        raise WorkloadError(f"epoch_samples must be 1 or more, not {epoch_samples}")
    samples = cache(lambda: make(image_size or (224 if torch.cuda.is_available() else 160)))
    default = cache(lambda: "resnet18" if torch.cuda.is_available() else "small")
    return Workload(
        name=name,
        dataset=samples,
        model=lambda: make_model(model or default(), samples().num_classes),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        check=lambda: samples().check(),
    )


def images(
    *, data: str | None = None, image_size: int | None = None, model: str | None = None, epoch_samples: int = 50_000
) -> Workload:
    """The bundled workload `images`.

    Args:
        data: folder of images, a sub-folder per class; None makes a photo-like set once in the cache folder.
        image_size: pixels of a side; None is 224 with a GPU, 160 without.
        model: resnet18, resnet50 or small; None is resnet18 with a GPU, small without.
        epoch_samples: samples in an epoch; the files are cycled.

    Raises:
        WorkloadError: an option is impossible; or, when the dataset is made, there are no images.
    """

    def make(size: int) -> ImageSamples:
        return ImageFolder(photo_folder() if data is None else Path(data).expanduser(), size, epoch_samples)

    return image_workload("images", make, image_size, model, epoch_samples)
