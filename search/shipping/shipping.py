"""Send the user's folder and feedrate itself to a cluster, by Ray's runtime_env. torch is never sent.

Data are not sent either (folder_contents.py decides which files of the folder are). If a node has the user's folder at the same path
with the same workload file in it (the driver's own node, or a shared file system), trials use it there; on other nodes they use
the copy that was sent.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from feedrate.search.shipping.folder_contents import OWN_IGNORE_FILE, FolderContents, contents
from feedrate.search.shipping.job_environment import packed
from feedrate.trainables.resolve import BUNDLED, WorkloadRef

PACKAGES = ("search", "trainables", "analysis")


@dataclass(frozen=True, slots=True)
class Shipment:
    """What is sent to a cluster, and what is left out."""

    runtime_env: dict[str, Any]
    """`working_dir` and `py_modules` for Ray; the folders that they name exist as long as the context of `shipment`."""
    contents: FolderContents | None
    """The content of the user's folder; None if the folder is not needed."""

    def said(self) -> str | None:
        """Return one sentence about what is left out that the user may miss; None if there is nothing."""
        missed = self.contents.missed() if self.contents is not None else []
        if not missed:
            return None
        more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
        names = ", ".join(f"{entry.path} ({entry.why})" for entry in missed[:5])
        return f"not sent to the cluster: {names}{more}; with {OWN_IGNORE_FILE} you can add to this list or take from it (docs/cluster.md)"


@contextmanager
def shipment(folder: str | os.PathLike[str] | None, env: Mapping[str, str] | None = None) -> Iterator[Shipment]:
    """Prepare what a search sends to a cluster, as temporary folders that exist within the context.

    Args:
        folder: the user's folder, in which the search was started; None sends only feedrate.
        env: variables for the search and its trials on the cluster (job_environment.py).

    Raises:
        UsageError: the folder has more files than a project should have.
    """
    found = contents(folder) if folder is not None else None
    with tempfile.TemporaryDirectory(prefix="feedrate-shipping-") as parent:
        sent: dict[str, Any] = {"py_modules": [*_ourselves(Path(parent)), *packed(env or {}, Path(parent))]}
        if found is not None:
            copy = Path(parent, "folder")
            found.copy(copy)
            sent["working_dir"] = str(copy)
        yield Shipment(sent, found)


def digest_of(ref: WorkloadRef) -> str | None:
    """Return the digest of the file that defines the workload, so that a node can compare its own; None for installed workloads."""
    path = _file_of(ref)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None


def on_this_node(ref: WorkloadRef, root: str | None, digest: str | None) -> WorkloadRef:
    """Return the workload as it is found on this node: at its own path, or in the copy that was sent.

    Args:
        ref: the workload as the driver knows it.
        root: the folder that was sent; None if none was.
        digest: digest of the driver's file (`digest_of`).
    """
    if root is None or ref.folder is None or (os.path.isdir(ref.folder) and digest_of(ref) == digest):
        return ref
    return moved(ref, root, os.getcwd())  # Ray starts its workers in the copy


def moved(ref: WorkloadRef, root: str, here: str) -> WorkloadRef:
    """Return the workload with its paths inside `root` replaced by those inside `here`, another copy of the folder."""

    def there(path: str) -> str:
        return here + path[len(root) :] if path == root or path.startswith(root + os.sep) else path

    place, _, function = ref.target.rpartition(":")
    is_file = ref.command is None and place.endswith(".py")
    return replace(
        ref,
        target=f"{there(place)}:{function}" if is_file else ref.target,
        command=None if ref.command is None else tuple(map(there, ref.command)),
        folder=there(ref.folder) if ref.folder is not None else None,
        cwd=there(ref.cwd) if ref.cwd is not None else None,
    )


def _file_of(ref: WorkloadRef) -> Path | None:
    place = ref.target.rpartition(":")[0]
    if ref.target in BUNDLED or ref.folder is None:
        return None
    if ref.command is not None:  # the first word that is a file of the folder
        files = (Path(ref.folder, word) for word in ref.command)
        return next((path for path in files if path.is_file() and path.is_relative_to(ref.folder)), None)
    if place.endswith(".py"):
        return Path(place) if Path(place).is_file() else None
    module = Path(ref.folder, *place.split("."))
    return next((path for path in (module.with_suffix(".py"), module / "__init__.py") if path.is_file()), None)


def _ourselves(parent: Path) -> list[str]:
    """Return folders that, on the import path of a node, make feedrate importable and its version known."""
    package = parent / "feedrate"
    for name in PACKAGES:
        source = Path(importlib.import_module(f"feedrate.{name}").__path__[0])
        shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    dist = distribution("feedrate")
    info = parent / f"feedrate-{dist.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(dist.read_text("METADATA") or "")
    return [str(package), str(info)]
