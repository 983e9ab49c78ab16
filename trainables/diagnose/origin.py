"""`Origin`: who made a DataLoader: a line of the user's code, and the framework between that line and the loader's class."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from feedrate.trainables.diagnose.stacks import Frame

_OURS = str(Path(__file__).parents[1]) + os.sep
_TORCHS = f"{os.sep}torch{os.sep}"
FRAMEWORKS = {
    "accelerate": "accelerate", "lightning": "lightning", "monai": "monai", "pytorch_lightning": "lightning", "timm": "timm",
    "torchdata": "torchdata", "transformers": "transformers", "ultralytics": "ultralytics", "webdataset": "webdataset",
}  # fmt: skip
"""Packages that make loaders for their users, or have a loader class of their own, and the name of each framework."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a loader was made."""

    path: str
    """File in the user's code; if no caller is in the user's code, the innermost file outside of torch."""
    line: int
    function: str
    """Qualified name of the function there; empty at the top level of a file."""
    framework: str | None
    """What made the loader for the user, or whose class it is; None for torch's own, or the user's own subclass."""
    via: tuple[tuple[str, int], ...] = ()
    """Files and lines of the packages between the user's line and the loader's class, the innermost first; empty if the user's
    code itself called the class."""

    @property
    def where(self) -> str:
        """The place as `train.py:41`, relative to the working directory if it is inside."""
        inside = os.path.relpath(self.path)
        return f"{self.path if inside.startswith('..') else inside}:{self.line}"

    @classmethod
    def of_caller(cls, loader_class: type) -> Origin:
        """Return who makes a loader of this class now."""
        frame: FrameType | None = sys._getframe(1)
        framework = FRAMEWORKS.get(loader_class.__module__.partition(".")[0])
        via: list[tuple[str, int]] = []
        while frame is not None:
            path, package = frame.f_code.co_filename, str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if package not in FRAMEWORKS and Frame(path, frame.f_lineno, "").is_user:  # a framework may be installed from a clone
                return cls(path, frame.f_lineno, _function(frame), framework, tuple(via))
            if not path.startswith(_OURS) and _TORCHS not in path:
                framework = FRAMEWORKS.get(package, framework)  # the outermost one is the one that the user calls
                via.append((path, frame.f_lineno))
            frame = frame.f_back
        path, line = via[0] if via else ("?", 0)
        return cls(path, line, "", framework, tuple(via))


def _function(frame: FrameType) -> str:
    name = frame.f_code.co_qualname
    return "" if name.startswith("<") else name.replace("<locals>.", "")
