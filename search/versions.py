"""The versions of Python and packages, for `feedrate version`, for the record of a run, and to compare the nodes of a cluster.

Versions are read from the metadata of installed packages; no package is imported.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

TESTED = {"torch": ("2.6", "2.13"), "ray": ("2.54", "2.60")}
"""Package -> the oldest and the newest release that feedrate was tested with (docs/versions.md)."""
LOADING = ("torchvision", "torchaudio", "torchcodec", "opencv-python-headless", "opencv-python", "datasets", "webdataset", "lightning", "transformers", "accelerate")
"""Packages that training scripts load data with, and whose versions change rates."""
RATES = ("python", "torch", "numpy", "pillow", *LOADING)
"""Names whose version changes the rate of a setting."""


def installed(name: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def packages() -> dict[str, str | None]:
    """Return the versions of feedrate's dependencies (None for a missing optional one) and of the installed packages of LOADING."""
    needed = [requirement for requirement in requires("feedrate") or [] if 'extra == "dev"' not in requirement]
    names = dict.fromkeys(re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in needed)
    found = {name: installed(name) for name in names}
    return found | {name: number for name in LOADING if (number := installed(name)) is not None}


def recorded() -> dict[str, str]:
    """Return name -> version for the record of a run; missing packages are left out."""
    return {
        "feedrate": version("feedrate"),
        "python": platform.python_version(),
        **{name: number for name, number in packages().items() if number is not None},
        "platform": platform.platform(),
        "executable": Path(sys.executable).name,
    }


def changed(before: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each version that changes rates and differs from the one recorded in `before`."""
    now = recorded()
    pairs = [(name, before[name], now[name]) for name in RATES if before.get(name) and name in now]
    return [
        f"{name} was {old} when the search began, but is {new} now: this may change rates"
        for name, old, new in pairs
        if old != new
    ]


def untested() -> list[str]:
    """Return a sentence for each package of TESTED whose release feedrate was not tested with."""
    found = []
    for name, (oldest, newest) in TESTED.items():
        number = installed(name)
        if number is None or _release(oldest) <= _release(number) <= _release(newest):
            continue
        found.append(f"{name} {number} has not been tested with this feedrate, only {oldest} to {newest}")
    return found


def everything() -> dict[str, Any]:
    """Return the fields of the object that `feedrate version --json` prints (docs/json.md)."""
    libc = " ".join(filter(None, platform.libc_ver()))
    return {
        "feedrate": version("feedrate"),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "os": {
            "system": platform.system(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "libc": libc or None,
            "distribution": _distribution(),
        },
        "packages": packages(),
        "tested": {name: {"oldest": oldest, "newest": newest} for name, (oldest, newest) in TESTED.items()},
        "notes": untested(),
    }


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _release(number: str) -> tuple[int, ...]:
    """Return major and minor version as numbers: (2, 13) for 2.13.0+cu130."""
    return tuple(int(part) for part in re.findall(r"\d+", number)[:2])
