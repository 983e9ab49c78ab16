"""The bundled workload `images`: JPEG files in a folder. The bottleneck is the CPU time for decoding them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from feedrate.trainables.bundled.image_samples import BadImageError, ImageSamples
from feedrate.trainables.bundled.models import check_model, make_model
from feedrate.trainables.bundled.photos import photo_folder
from feedrate.trainables.workload import Workload, WorkloadError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


class ImageFolder(ImageSamples):
    """The images in a folder. Its sub-folders are the classes; without sub-folders there is one class."""

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


def image_workload(
    name: str, make: Callable[[int], ImageSamples], image_size: int | None, model: str | None, epoch_samples: int
) -> Workload:
    """Return a workload that classifies images; `make` gets the image size.

    Defaults depend on the device, which the trial queries: a query initialises CUDA, and CUDA does not survive a fork.
    """
    if model is not None:
        check_model(model)
    if image_size is not None and image_size < 32:
        raise WorkloadError(f"image_size must be 32 pixels or more, not {image_size}")
    if epoch_samples < 1:
        raise WorkloadError(f"epoch_samples must be 1 or more, not {epoch_samples}")
    samples = cache(lambda: make(image_size or (224 if torch.cuda.is_available() else 160)))
    return Workload(
        name=name,
        dataset=samples,
        model=lambda: make_model(
            model or ("resnet18" if torch.cuda.is_available() else "small"), samples().num_classes
        ),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        check=lambda: samples().check(),
    )


def images(
    *, data: str | None = None, image_size: int | None = None, model: str | None = None, epoch_samples: int = 50_000
) -> Workload:
    """Return the bundled workload `images`.

    Args:
        data: folder of images, with a sub-folder per class; None makes a photo-like set once, in the cache folder.
        image_size: width and height in pixels; None is 224 with a GPU, 160 without.
        model: resnet18, resnet50 or small; None is resnet18 with a GPU, small without.
        epoch_samples: number of samples per epoch; the files are cycled.

    Raises:
        WorkloadError: an option is impossible; or, when the dataset is made, there are no images.
    """

    def make(size: int) -> ImageSamples:
        return ImageFolder(photo_folder() if data is None else Path(data).expanduser(), size, epoch_samples)

    return image_workload("images", make, image_size, model, epoch_samples)
