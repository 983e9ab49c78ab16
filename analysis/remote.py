"""Run folders at an address: whatever pyarrow or (where it is installed) fsspec opens, s3://, gs://, http://, memory://."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
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
    filesystem, place = filesystem_of(url)
    with tempfile.TemporaryDirectory(prefix="feedrate-") as folder:
        copy = Path(folder) / name_of(url)
        copy.mkdir()
        for name in FILES:
            try:
                with filesystem.open_input_stream(f"{place.rstrip('/')}/{name}") as stream:
                    (copy / name).write_bytes(stream.read())
            except FileNotFoundError:
                continue
            except (OSError, pyarrow.ArrowException, ImportError, ValueError) as error:
                raise RunError(f"{url}/{name} cannot be read: {_words(error)}") from None
        if not (copy / "search.json").exists():
            raise RunError(f"{url} is not a run folder: it has no search.json. Name a folder that feedrate search wrote")
        yield copy


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
        raise RunError(f"{url} cannot be opened: {_words(error)}") from None
    try:
        import fsspec

        filesystem, place = fsspec.core.url_to_fs(url)
    except ImportError as error:
        missing = error.name or "fsspec"
        raise RunError(f"{scheme}:// needs the Python package {missing}, which is not installed") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{url} cannot be opened: {_words(error)}") from None
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), place


def _words(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
