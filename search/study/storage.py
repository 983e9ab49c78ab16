"""Open a study where it is kept: in a journal file in the run folder, or in a database (`--storage URL`).

A crash leaves whole journal entries and at most one incomplete last line. That line is cut off at the next start, because Optuna would
append to it and could never read the file again. The journal is locked with flock, which the kernel releases when the process ends;
Optuna's own lock files outlive a killed process by 30 s, or for ever if the path is relative.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, check_distribution_compatibility
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import ArgumentError, OperationalError, PendingRollbackError, SQLAlchemyError

DATABASES = ("sqlite", "postgresql")
GIVE_UP_S = 90.0
LONGEST_PAUSE_S = 5.0

T = TypeVar("T")


class BrainError(Exception):
    """An error for a study that cannot be used; the message says why and what to do instead, without the address's password."""


class _FileLock(JournalFileOpenLock):
    """A lock for Optuna's journal that locks an open file; Optuna's own lock is the existence of a file, which a crash leaves behind."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path + ".lock"
        self._descriptor = -1

    def acquire(self) -> bool:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()


class _Database(RDBStorage):
    """Optuna's database storage, which closes its connections if it cannot be opened."""

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        try:
            super().__init__(url, engine_kwargs=engine_kwargs)
        except BaseException:
            if (engine := getattr(self, "engine", None)) is not None:
                engine.dispose()
            raise


def open_storage(storage_url: str | None, journal_path: str | os.PathLike[str]) -> BaseStorage:
    """Open the storage at a database address, or the journal file if there is no address; make it if it does not exist.

    Raises:
        BrainError: the storage cannot be opened. Correct the address or the path.
    """
    return _open_journal(Path(journal_path)) if storage_url is None else _open_database(storage_url)


def close_storage(storage: BaseStorage) -> None:
    """Close the connections to a database; a journal has none."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def open_study(
    storage: BaseStorage,
    name: str,
    sampler: BaseSampler,
    pruner: BasePruner,
    distributions: Mapping[str, BaseDistribution],
) -> optuna.Study:
    """Open the study with this name, or make it; it maximises.

    Raises:
        BrainError: the study searched other choices, which Optuna would refuse only in the middle of a search.
    """
    way_out = "ask for the same values, or start a new search"
    if optuna.logging.get_verbosity() == optuna.logging.INFO:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line per trial would break the live display
    study = with_retry(
        lambda: optuna.create_study(
            storage=storage, study_name=name, direction="maximize", sampler=sampler, pruner=pruner, load_if_exists=True
        )
    )
    for trial in study.get_trials(deepcopy=False):
        for dimension, known in trial.distributions.items():
            try:
                check_distribution_compatibility(known, distributions[dimension])
            except (KeyError, ValueError):
                flag = f"--{dimension.replace('_', '-')}"
                raise BrainError(f"this study searched other values of {flag}: {_values(known)}; {way_out}") from None
    return study


def with_retry(call: Callable[[], T]) -> T:
    """Make a storage call, and repeat it while the database is busy, restarting or away, so that this does not end a search.

    A repeated call starts from its beginning, so it must be one that may happen twice. A long wait is reported on stderr.

    Raises:
        BrainError: the database did not answer for GIVE_UP_S seconds. Resume the search when it is back.
    """
    begun, pause_s, told = time.monotonic(), 0.1, False
    while True:
        try:
            return call()
        except (OperationalError, StorageInternalError) as error:
            if (reason := _away(error)) is None:
                raise
            if time.monotonic() - begun + pause_s > GIVE_UP_S:
                way_out = "resume the search when it is back"
                raise BrainError(f"the study's database stopped answering ({reason}): {way_out}") from None
            if pause_s == LONGEST_PAUSE_S and not told:
                told = True
                print(f"waiting: the study's database does not answer ({reason})", file=sys.stderr, flush=True)
            time.sleep(pause_s)
            pause_s = min(4 * pause_s, LONGEST_PAUSE_S)


def _away(error: BaseException | None) -> str | None:
    """Return in one line why the database did not answer; None if the error has another cause.

    A connection that is lost between two statements of one call shows as PendingRollbackError; only the error before it contains
    the reason. Optuna has rolled back by then, so the call can be repeated.
    """
    while error is not None:
        if isinstance(error, OperationalError):
            return str(error.orig).strip().splitlines()[0]
        if not isinstance(error, StorageInternalError | PendingRollbackError):
            return None
        error = error.__cause__ or error.__context__
    return None


def _values(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(str(choice).lower() for choice in distribution.choices)
    return f"{getattr(distribution, 'low', '')}..{getattr(distribution, 'high', '')}"


def _open_journal(path: Path) -> BaseStorage:
    path = path.absolute()
    try:
        path.touch()
        lock = _FileLock(str(path))
        with lock, path.open("rb+") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise BrainError(f"the study cannot be stored in {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        way_out = "move it away; resume then rebuilds the study from trials.jsonl"
        raise BrainError(f"{path} is damaged, or not the journal of an Optuna study: {way_out}") from None


def check_address(url: str) -> sqlalchemy.URL:
    """Parse a database address without opening the database.

    Raises:
        BrainError: the text is no database address, or the database is not supported.
    """
    way_out = "write sqlite:///FILE or postgresql://USER@HOST/DATABASE, or leave it out for a journal file"
    try:
        address = sqlalchemy.make_url(url)
    except (ValueError, ArgumentError):  # the text of these errors would show the password
        raise BrainError(f"--storage is not a database address; {way_out}") from None
    backend = address.get_backend_name()
    if backend not in DATABASES:
        raise BrainError(f"--storage cannot use {backend}; {way_out}")
    return address


def _open_database(url: str) -> BaseStorage:
    address = check_address(url)
    backend = address.get_backend_name()
    place = f"{backend} database {address.database or ''!r}" + (f" on {address.host}" if address.host else "")
    # make SQLite wait for another writer instead of failing, and test a pooled connection to a server before use
    options: dict[str, Any] = {"connect_args": {"timeout": 30}} if backend == "sqlite" else {"pool_pre_ping": True}
    try:
        return _Database(url, options)
    except ImportError as error:
        driver = getattr(error.__cause__, "name", None) or "its driver"
        raise BrainError(f"the {place} needs the Python package {driver}, which is not installed") from None
    except (SQLAlchemyError, OptunaError, RuntimeError, AssertionError) as error:
        cause = getattr(error, "orig", None) or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise BrainError(f"the {place} cannot be opened: {_without_secrets(reason, address)}") from None


def _without_secrets(text: str, address: sqlalchemy.URL) -> str:
    query = [str(value) for key, value in address.query.items() if "pass" in key.lower()]
    for secret in filter(None, [str(address.password or ""), *query]):
        for spelling in (secret, quote(secret), quote_plus(secret)):
            text = text.replace(spelling, "***")
    return text
