"""Run folders at an address: whatever pyarrow or (where it is installed) fsspec opens, s3://, gs://, http://, memory://."""

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
    """Whether a path is an address."""
    return "://" in os.fspath(path)


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A temporary folder with the run's files as they are now; removed afterwards.

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
    """Those of a run's files that are at an address, as they are now.

    Raises:
        RunError: the address cannot be opened, or holds no run.
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
    """The file at an address.

    Raises:
        FileNotFoundError: there is none.
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
    """The addresses below an address, in order; none where it cannot be listed."""
    filesystem, place = filesystem_of(url)
    try:
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(place))
    except (OSError, pyarrow.ArrowException, NotImplementedError) as error:
        raise RunError(f"{url} cannot be listed: {words(error)}. Name one run") from None
    return sorted(f"{url.rstrip('/')}/{each.base_name}" for each in found)


def name_of(url: str) -> str:
    """The last part of an address."""
    return url.split("://", 1)[1].rstrip("/").rsplit("/", 1)[-1].split("?")[0] or "run"


def filesystem_of(url: str) -> tuple[Any, str]:
    """A pyarrow file system and the place in it.

    Raises:
        RunError: nothing that is installed opens such an address.
    """
    scheme = url.split("://", 1)[0]
    try:
        filesystem, place = pyarrow.fs.FileSystem.from_uri(url)
        return filesystem, place
    except pyarrow.ArrowException:  # a scheme that Arrow does not know
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
    """An error's first line, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
