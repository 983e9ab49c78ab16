"""What travels to a cluster with a search: the user's folder and feedrate itself, by Ray's runtime_env. torch never does.

Data do not travel either: files above MAX_FILE_BYTES are left out, and whatever looks like a secret. On a node where
the user's folder lies at the same place with the same workload in it (the driver's own, or a shared file system), it
is used as it is there; elsewhere the copy that was sent is.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from feedrate.search.options import UsageError
from feedrate.trainables.resolve import BUNDLED, WorkloadRef

MAX_FILE_BYTES = 10 * 2**20
MAX_FILES = 20_000
SECRETS = (
    ".env", ".env.*", "*.env", ".netrc", ".pypirc", ".npmrc", ".pgpass", ".aws", ".azure", ".gcloud", ".gnupg", ".kube",
    ".ssh", "*.pem", "*.key", "*.p12", "*.pfx", "*.keystore", "id_rsa*", "id_ed25519*", "id_ecdsa*", "auth_token",
    *(f"*{word}*.{end}" for word in ("credential", "secret") for end in ("json", "yaml", "yml", "toml", "ini", "txt", "cfg")),
    "credentials", "secrets",
)  # fmt: skip
"""Names of files and folders that are never sent, whatever is in them."""
CLUTTER = (
    ".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".ipynb_checkpoints", "feedrate-runs",
)  # fmt: skip
PACKAGES = ("search", "trainables", "analysis")


@dataclass(frozen=True, slots=True)
class Shipment:
    """What is sent, and what is not."""

    runtime_env: dict[str, Any]
    """`working_dir`, `py_modules` and `excludes` for Ray; the folders exist as long as the context of `shipment`."""
    left_out: tuple[str, ...]
    """Large files, links to folders and secrets, relative to the folder; what .gitignore leaves out is not among them."""

    def said(self) -> str | None:
        """One sentence about what is left out; None where that is nothing."""
        if not self.left_out:
            return None
        more = f" and {len(self.left_out) - 5} more" if len(self.left_out) > 5 else ""
        names = ", ".join(self.left_out[:5])
        limit = f"files over {MAX_FILE_BYTES // 2**20} MiB, links to folders, and what may hold a secret"
        return f"not sent to the cluster: {names}{more} ({limit})"


@contextmanager
def shipment(folder: str | os.PathLike[str] | None) -> Iterator[Shipment]:
    """What a search that was started in this folder sends to a cluster; feedrate alone for None.

    Raises:
        UsageError: the folder holds more files than a project does.
    """
    left_out = list(_left_out(Path(folder))) if folder is not None else []
    excludes = [*SECRETS, *CLUTTER, *(_exactly(path) for path in left_out)]
    sent = {"working_dir": str(folder), "excludes": excludes} if folder is not None else {}
    with tempfile.TemporaryDirectory(prefix="feedrate-shipping-") as parent:
        modules = _ourselves(Path(parent))
        yield Shipment({"py_modules": modules, **sent}, tuple(left_out))


def digest_of(ref: WorkloadRef) -> str | None:
    """Of the file that defines the workload, by which a node sees whether it has the same; None for installed ones."""
    path = _file_of(ref)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None


def on_this_node(ref: WorkloadRef, root: str | None, digest: str | None) -> WorkloadRef:
    """The workload where it lies on this node: at its own place, or in the copy that was sent.

    Args:
        ref: as the driver has it.
        root: the folder that was sent; None where none was.
        digest: of the driver's file (`digest_of`).
    """
    if root is None or ref.folder is None or (os.path.isdir(ref.folder) and digest_of(ref) == digest):
        return ref
    return moved(ref, root, os.getcwd())  # Ray starts its workers in the copy


def moved(ref: WorkloadRef, root: str, here: str) -> WorkloadRef:
    """The workload in another copy of the folder that it is in."""

    def there(path: str) -> str:
        return here + path[len(root) :] if path == root or path.startswith(root + os.sep) else path

    place, _, function = ref.target.rpartition(":")
    return replace(
        ref,
        target=f"{there(place)}:{function}" if place.endswith(".py") else ref.target,
        folder=there(ref.folder) if ref.folder is not None else None,
        cwd=there(ref.cwd) if ref.cwd is not None else None,
    )


def _file_of(ref: WorkloadRef) -> Path | None:
    place = ref.target.rpartition(":")[0]
    if ref.target in BUNDLED or ref.folder is None:
        return None
    if place.endswith(".py"):
        return Path(place) if Path(place).is_file() else None
    module = Path(ref.folder, *place.split("."))
    return next((path for path in (module.with_suffix(".py"), module / "__init__.py") if path.is_file()), None)


def _left_out(folder: Path) -> Iterator[str]:
    """Relative paths of what is not sent and may be missed."""
    num_files = 0
    for parent, folders, names in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        for name in list(folders):
            if _matches(name, CLUTTER):
                folders.remove(name)
            elif _matches(name, SECRETS) or Path(parent, name).is_symlink():  # Ray would follow it, to the data perhaps
                folders.remove(name)
                yield str(relative / name)
        num_files += len(names)
        if num_files > MAX_FILES:
            raise UsageError(
                f"{folder} would be sent to the cluster, and holds more than {MAX_FILES:,} files: start feedrate in your project's folder"
            )
        for name in names:
            path = Path(parent, name)
            if _matches(name, SECRETS) or (path.is_file() and path.stat().st_size > MAX_FILE_BYTES):
                yield str(relative / name)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _exactly(path: str) -> str:
    """A pattern of .gitignore's that matches this path alone."""
    return "/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", path)


def _ourselves(parent: Path) -> list[str]:
    """Folders that make feedrate importable, with its version, wherever they are on the path."""
    package = parent / "feedrate"
    for name in PACKAGES:
        source = Path(importlib.import_module(f"feedrate.{name}").__path__[0])
        shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    dist = distribution("feedrate")
    info = parent / f"feedrate-{dist.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(dist.read_text("METADATA") or "")
    return [str(package), str(info)]
