"""The differences between the supported versions of torch that a template process meets, in one place.

Each entry names the version at which it can be removed: when pyproject.toml allows no older one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator
from importlib import metadata

LAST_WITH_FOLDER = (2, 6)
"""Last release of torch that makes a temporary folder when it is imported (torch/distributed/nn/jit/instantiator.py)."""


@contextlib.contextmanager
def torch_folder_in(path: str) -> Generator[None]:
    """Let torch, if it is imported here, make its temporary folder inside `path`, which somebody removes.

    torch removes that folder when its process exits, but not if the process is killed, as a template may be. Newer releases make
    none, so for them nothing happens. Remove the function when the oldest supported torch is newer than LAST_WITH_FOLDER.
    """
    if _release(metadata.version("torch")) > LAST_WITH_FOLDER:
        yield
        return
    os.makedirs(path, mode=0o700, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, path
    try:
        yield
    finally:
        tempfile.tempdir = before


def _release(version: str) -> tuple[int, int]:
    """Return major and minor of a version such as 2.6.0+cu124."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)
