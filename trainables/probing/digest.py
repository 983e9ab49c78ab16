"""Hash a sample of any type: equal hashes mean that a training step would see the same."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from typing import Any

import numpy as np
import torch


def digest(sample: Any) -> str:
    """Return a hash of everything in a sample that a training step could see."""
    hashing = hashlib.blake2b(digest_size=16)
    _feed(hashing, sample)
    return hashing.hexdigest()


def _feed(hashing: Any, item: Any) -> None:
    hashing.update(type(item).__name__.encode())
    if isinstance(item, torch.Tensor):
        dense = item.detach().to_dense() if item.layout != torch.strided else item.detach()
        hashing.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
        hashing.update(
            dense.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    elif isinstance(item, np.ndarray) and item.dtype != object:
        hashing.update(f"{item.dtype}{item.shape}".encode())
        hashing.update(item.tobytes())
    elif isinstance(item, (list, tuple, np.ndarray)):
        hashing.update(str(len(item)).encode())
        for part in item:
            _feed(hashing, part)
    elif isinstance(item, dict):
        for name, part in item.items():
            _feed(hashing, name)
            _feed(hashing, part)
    elif item is None or isinstance(item, (str, int, float, complex, bytes, bool, np.generic)):
        hashing.update(repr(item).encode())
    elif callable(getattr(item, "tobytes", None)):  # a Pillow image
        hashing.update(repr(getattr(item, "size", "")).encode() + item.tobytes())
    elif isinstance(getattr(item, "__dict__", None), dict) and not callable(item):
        _feed(hashing, vars(item))
    else:
        with contextlib.suppress(Exception):
            hashing.update(pickle.dumps(item))
