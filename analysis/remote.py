"""Run folders at an address that pyarrow, or fsspec if it is installed, can open: s3://, gs://, http://, memory://."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.fs

from feedrate.analysis.run_folder import RunError

FILES = ("search.json", "trials.jsonl", "best.json")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is an address."""
    return "://" in os.fspath(path)


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Provide a temporary folder with the run's files as they are now; it is removed afterwards.

    Raises:
        RunError: the address cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="feedrate-") as folder:
        copy = Path(folder) / name_of(url)
        copy.mkdir()
        for name, data in read_run(url, FILES).items():
            (copy / name).write_bytes(data)
        yield copy


def read_run(url: str, names: Iterable[str]) -> dict[str, bytes]:
    """Return those of the named files that exist at an address, as they are now.

    Raises:
        RunError: the address cannot be opened, or there is no run.
    """
    found = {}
    for name in names:
        try:
            found[name] = read_url(f"{url.rstrip('/')}/{name}")
        except FileNotFoundError:
            continue
    if "search.json" not in found:
        raise RunError(f"{url} is not a run folder: it has no search.json. Name a folder that feedrate search wrote")
    return found


def read_url(url: str) -> bytes:
    """Return the content of the file at an address.

    Raises:
        FileNotFoundError: there is no such file.
        RunError: the address cannot be opened.
    """
    filesystem, place = filesystem_of(url)
    try:
        with filesystem.open_input_stream(place) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise
    except (OSError, pyarrow.ArrowException, ImportError, ValueError) as error:
        raise RunError(f"{url} cannot be read: {words(error)}") from None


def children(url: str) -> list[str]:
    """Return the addresses below an address, sorted.

    Raises:
        RunError: the address cannot be listed.
    """
    filesystem, place = filesystem_of(url)
    try:
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(place))
    except (OSError, pyarrow.ArrowException, NotImplementedError) as error:
        raise RunError(f"{url} cannot be listed: {words(error)}. Name one run") from None
    return sorted(f"{url.rstrip('/')}/{each.base_name}" for each in found)


def name_of(url: str) -> str:
    """Return the last part of an address."""
    return url.split("://", 1)[1].rstrip("/").rsplit("/", 1)[-1].split("?")[0] or "run"


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return a pyarrow file system, and the path of the address in it.

    Raises:
        RunError: no installed package can open such an address.
    """
    scheme = url.split("://", 1)[0]
    try:
        filesystem, place = pyarrow.fs.FileSystem.from_uri(url)
        return filesystem, place
    except pyarrow.ArrowException:  # Arrow does not know the scheme
        pass
    except OSError as error:
        raise RunError(f"{url} cannot be opened: {words(error)}") from None
    try:
        import fsspec

        filesystem, place = fsspec.core.url_to_fs(url)
    except ImportError as error:
        missing = error.name or "fsspec"
        raise RunError(f"{scheme}:// needs the Python package {missing}, which is not installed") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{url} cannot be opened: {words(error)}") from None
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), place


def words(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
