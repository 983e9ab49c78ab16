"""Three workloads whose limit is another part of the machine, and a fourth that moves a quarter of the bytes.

    resnet50   JPEG files decoded and augmented by workers, ResNet-50; measured with --amp bf16: the GPU, given enough CPUs
    decoding   the same files, a model of four convolutions: decoding
    float32    batches of float32 images that lie ready in shared memory, a linear layer: copying
    uint8      the same images as bytes, divided on the GPU: copying a quarter

With FEEDRATE_GPU_REHEARSAL set (run.sh --cpu) models, images and batches are small.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from feedrate.trainables import Workload
from feedrate.trainables.bundled.images import images

REHEARSAL = bool(os.environ.get("FEEDRATE_GPU_REHEARSAL"))
PIXELS = 32 if REHEARSAL else 224
BATCH_SIZES = {"resnet50": 8, "decoding": 8, "float32": 32, "uint8": 32} if REHEARSAL else {"resnet50": 256, "decoding": 256, "float32": 256, "uint8": 256}
AMP: dict[str, str] = {} if REHEARSAL else {"resnet50": "bf16"}
NUM_BATCHES = 4
"""Ready ones, which the dataset hands out in turn."""


class Ready(Dataset[Any]):
    """(images, labels) batches in shared memory: no worker reads, decodes or copies anything.

    Images (size, 3, PIXELS, PIXELS) of float32 in 0..1 or of uint8; labels int64 (size,).
    """

    def __init__(self, dtype: torch.dtype, most: int) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (most, 3, PIXELS, PIXELS)
        self.batches = [torch.randint(256, shape, generator=generator, dtype=torch.uint8) for _ in range(NUM_BATCHES)]
        if dtype == torch.float32:
            self.batches = [batch.float() / 255 for batch in self.batches]
        for batch in self.batches:
            batch.share_memory_()
        self.labels = torch.zeros(most, dtype=torch.int64)

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> Any:
        return self.batches[index % NUM_BATCHES][0], self.labels[0]

    def __getitems__(self, indices: list[int]) -> Any:
        number = len(indices)
        return self.batches[indices[0] % NUM_BATCHES][:number], self.labels[:number]


class Small(nn.Module):
    """One linear layer over images averaged to 7 x 7; bytes become numbers of 0..1 here, on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.linear = nn.AdaptiveAvgPool2d(7), nn.Linear(3 * 49, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        rows = pictures if pictures.is_floating_point() else pictures.float() / 255
        return self.linear(self.pool(rows).flatten(1))  # type: ignore[no-any-return]


def keep_batch(samples: Any) -> Any:
    """Collates nothing that is a batch already."""
    return torch.utils.data.default_collate(samples) if isinstance(samples, list) else samples


def _ready(name: str, dtype: torch.dtype) -> Workload:
    return Workload(
        name=name,
        dataset=functools.cache(lambda: Ready(dtype, BATCH_SIZES[name])),
        model=Small,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        collate_fn=keep_batch,
    )


def resnet50() -> Workload:
    """ResNet-50 on JPEG files; a rehearsal trains a small model."""
    return images(model="small" if REHEARSAL else "resnet50", image_size=max(PIXELS, 32))


def decoding() -> Workload:
    """A model that costs next to nothing, on the same files."""
    return images(model="small", image_size=max(PIXELS, 32))


def float32() -> Workload:
    """Large batches of float32."""
    return _ready("float32", torch.float32)


def uint8() -> Workload:
    """The same as bytes."""
    return _ready("uint8", torch.uint8)
