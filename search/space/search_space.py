"""`SearchSpace`: the DataLoader settings that a search may try, each canonical setting exactly once.

Dimensions that need workers do not exist at 0 workers, and pin_memory is always False without an accelerator, so
no setting can be written in two ways. Imports neither Ray nor Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from feedrate.search.space.dimension import LEAST, WORDS, Choice, Dimension, Range, parse_dimension, problem
from feedrate.search.space.idle_workers import IdleWorkers
from feedrate.trainables.config import LoaderConfig

__all__ = ["Choice", "Dimension", "Range", "SearchSpace", "applicable", "parse_dimension"]

ALWAYS = ("num_workers", "batch_size", "pin_memory")
"""Dimensions that every setting has."""
OPT_IN = ("multiprocessing_context", "in_order", "sharing_strategy", "trainer_cpus")
"""Dimensions that are searched only on request."""
WITH_WORKERS = ("prefetch_factor", "persistent_workers", *OPT_IN)
"""Dimensions that exist only with one or more workers."""
NAMES = ALWAYS + WITH_WORKERS
MAX_SIZE = 1_000_000
MOST_WORKERS = 256
"""Largest number of workers to which a default range is extended."""
_DEFAULT = Choice((None,))
_SAMPLER_ORDER = Choice((True,))


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The settings that one search may try. `SearchSpace.default` fills in the dimensions that were not requested.

    Raises:
        ValueError: a dimension contains a value that cannot work, or there are more than a million settings.
    """

    num_workers: Dimension
    batch_size: Dimension
    """`Choice((None,))` if the workload's own batch sampler makes the batches."""
    pin_memory: Dimension
    prefetch_factor: Dimension
    persistent_workers: Dimension
    multiprocessing_context: Dimension = _DEFAULT
    in_order: Dimension = _SAMPLER_ORDER
    sharing_strategy: Dimension = _DEFAULT
    trainer_cpus: Dimension = _DEFAULT
    has_accelerator: bool
    """Whether trials have an accelerator. Without one pin_memory is always False, because torch ignores it."""
    defaulted: frozenset[str] = frozenset()
    """Dimensions that were not requested. A default range may be extended if a setting on its edge is the best."""
    epoch_samples: int | None = None
    """Items in the user's epoch; None if it is not known. More workers than the epoch has batches would be idle, and batches beyond
    its end cannot be prefetched, so such settings are not in the space."""
    idle: tuple[IdleWorkers, ...] = ()
    """Numbers of workers of which some deliver nothing, as trials have shown. They are not in the space either, except the smallest number."""

    def __post_init__(self) -> None:
        if isinstance(self.sharing_strategy, Choice):  # Linux's default may be written as None or by its name
            names, strategies = WORDS["sharing_strategy"], self.sharing_strategy.values
            object.__setattr__(self, "sharing_strategy", Choice(tuple(names.get(each, each) for each in strategies)))
        for name in NAMES:
            if said := problem(name, getattr(self, name)):
                raise ValueError(f"{name}: {said}")
        if not self.has_accelerator:
            object.__setattr__(self, "pin_memory", Choice((False,)))
        if self._grid_size() > MAX_SIZE:
            way_out = "list a few choices instead of a range, such as 32,64,128"
            raise ValueError(f"the search space has {self._grid_size():,} settings, more than {MAX_SIZE:,}: {way_out}")

    @classmethod
    def default(
        cls,
        *,
        num_cpus: int,
        has_accelerator: bool,
        given: Mapping[str, Dimension] | None = None,
        epoch_samples: int | None = None,
        num_ranks: int = 1,
        num_hosts: int = 1,
    ) -> SearchSpace:
        """Return the space of a search that requests only the dimensions in `given`.

        If workers wait for samples, more workers than cores are faster, so the range of num_workers goes up to at least 32, or to the
        number of batches in an epoch if that is smaller. Each rank of a training with several has its own workers, and all of them share
        the host's CPUs, so the range of one rank ends at an equal share.

        Args:
            num_cpus: CPUs of a trial.
            has_accelerator: whether pinning memory makes a difference.
            given: the dimensions that the user gave.
            epoch_samples: items in an epoch of all ranks; None if unknown.
            num_ranks: processes that train together on a host.
            num_hosts: hosts on which as many train together.

        Raises:
            ValueError: `given` has an unknown name, or the space is too large.
        """
        given = dict(given or {})
        if unknown := sorted(set(given) - set(NAMES)):
            raise ValueError(f"no dimension of a search: {', '.join(unknown)}; these are: {', '.join(NAMES)}")
        defaults: dict[str, Dimension] = {
            "batch_size": Choice((32, 64, 128)),
            "pin_memory": Choice((True, False)),
            "prefetch_factor": Choice((1, 2, 4, 8)),
            "persistent_workers": Choice((True, False)),
        }
        smallest = (given.get("batch_size") or defaults["batch_size"]).values[0]
        if epoch_samples is not None:
            epoch_samples = -(-epoch_samples // (num_ranks * num_hosts))
        most = max(max(32, min(2 * num_cpus, 128)) // num_ranks, 1)
        most = min(most, num_batches(epoch_samples, smallest) or MOST_WORKERS)
        defaults["num_workers"] = Range(0, most)
        defaulted = frozenset(defaults) - set(given)
        return cls(has_accelerator=has_accelerator, defaulted=defaulted, epoch_samples=epoch_samples, idle=(), **(defaults | given))

    def extended(self, config: LoaderConfig) -> SearchSpace | None:
        """Return a wider space if the best setting, `config`, is on the edge of a default range; None if it is not, or nothing is wider.

        Only num_workers is extended. Batch sizes are not, because a larger one is nearly always faster and changes training;
        prefetch_factor is not, because it is a list of choices.
        """
        workers = self.num_workers
        if "num_workers" not in self.defaulted or not isinstance(workers, Range) or config.num_workers < workers.high:
            return None
        most = min(num_batches(self.epoch_samples, self.values("batch_size")[0]) or MOST_WORKERS, MOST_WORKERS)
        if workers.high >= most:
            return None
        return replace(self, num_workers=Range(workers.low, min(2 * workers.high, most)))

    def without(self, idle: IdleWorkers) -> SearchSpace | None:
        """Return the space without the settings of which some workers deliver nothing; None if that is known already."""
        if any(known.implies(idle) for known in self.idle):
            return None
        return replace(self, idle=(*(known for known in self.idle if not idle.implies(known)), idle))

    def has_idle(self, num_workers: int) -> bool:
        """Return whether some of so many workers would deliver nothing, and fewer may be tried."""
        return num_workers > min(self.values("num_workers")) and any(each.has_idle(num_workers) for each in self.idle)

    def values(self, name: str) -> tuple[Any, ...]:
        """Return every value of one dimension."""
        dimension: Dimension = getattr(self, name)
        return dimension.values

    def size(self) -> int:
        """Return the number of different settings."""
        return self._grid_size() if self.epoch_samples is None and not self.idle else len(self._table)

    def most_workers(self, batch_size: int | None) -> int:
        """Return the largest number of workers that each have a batch of the epoch to load; the smallest of the space if none fits."""
        most = num_batches(self.epoch_samples, batch_size)
        values: tuple[int, ...] = self.values("num_workers")
        fitting = (value for value in values if (most is None or value <= most) and not self.has_idle(value))
        return max(fitting, default=min(values))

    def fold(self, config: LoaderConfig) -> LoaderConfig:
        """Return the equivalent setting of the space: no worker can prefetch more than the epoch, so prefetch_factor may be smaller."""
        most = num_batches(self.epoch_samples, config.batch_size)
        if most is None or config.prefetch_factor is None:
            return config
        enough = [value for value in self.values("prefetch_factor") if value * config.num_workers >= most]
        return replace(config, prefetch_factor=min([config.prefetch_factor, *enough]))

    def _grid_size(self) -> int:
        """Return the number of settings, including those for which an epoch is too short."""
        rest = math.prod(len(self.values(name)) for name in WITH_WORKERS)
        with_workers = sum(rest if count else 1 for count in self.values("num_workers"))
        return with_workers * len(self.values("batch_size")) * len(self.values("pin_memory"))

    def configs(self) -> Iterator[LoaderConfig]:
        """Yield every setting once, those with the fewest workers first."""
        return (self.config_at(row) for row in range(len(self._table)))

    def contains(self, config: LoaderConfig) -> bool:
        """Return whether the search may try this setting."""
        is_listed = all(getattr(config, name) in self.values(name) for name in applicable(config))
        return is_listed and not self.has_idle(config.num_workers) and config.num_workers <= self.most_workers(config.batch_size) and self.fold(config) == config

    def nearest_untried(self, config: LoaderConfig, tried: AbstractSet[LoaderConfig]) -> LoaderConfig | None:
        """Return the setting nearest to `config` that is not in `tried`; None if every setting was tried.

        The distance is the sum over dimensions of the difference in position, where each dimension has the length 1. Between a
        setting with workers and one without, the dimensions that need workers count as 1 together. Among equally near settings, the
        one with fewer workers is taken, then the one with earlier values.
        """
        difference = np.abs(self._scaled - self._position(config))
        difference[self._is_single | (config.num_workers == 0), len(ALWAYS) :] = 0.0
        difference[self._is_single != (config.num_workers == 0), len(ALWAYS)] = 1.0
        distance = difference.sum(axis=1).round(9)  # rounded, so that equal sums of steps compare as equal
        for row in np.argsort(distance, kind="stable"):  # a stable sort keeps ties in table order, fewest workers first
            candidate = self.config_at(int(row))
            if candidate not in tried:
                return candidate
        return None

    def numbers(self, rows: Sequence[int] | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return settings as numbers, in the order of configs(), shape (settings, len(NAMES)).

        A dimension in LEAST gives its value (0 for None), any other one the position of the choice.

        Args:
            rows: positions in configs(); None is all of them.
        """
        table = self._table if rows is None else self._table[np.asarray(rows)]
        columns = [self._codes(name)[table[:, index]] for index, name in enumerate(NAMES)]
        return np.stack(columns, axis=1)

    def numbers_of(self, configs: Sequence[LoaderConfig]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the same as `numbers` for settings that need not be in the space; an unknown choice comes after the known ones."""
        made = np.zeros((len(configs), len(NAMES)))
        for row, config in enumerate(configs):
            for index, name in enumerate(NAMES):
                value, values = getattr(config, name), self.values(name)
                if name in LEAST:
                    made[row, index] = 0.0 if value is None else float(value)
                else:
                    made[row, index] = float(values.index(value) if value in values else len(values))
        return made

    def rows_near(self, config: LoaderConfig) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Return the positions in configs() of the settings that differ from `config` in at most one dimension."""
        indices = []
        for name in NAMES:
            value, values = getattr(config, name), self.values(name)
            indices.append(values.index(value) if value in values else 0 if not config.num_workers else -1)
        return np.flatnonzero((self._table != indices).sum(axis=1) <= 1)

    def _codes(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        values = self.values(name)
        return np.array([0.0 if value is None else float(value) for value in values] if name in LEAST else range(len(values)), dtype=float)

    def to_json(self) -> dict[str, Any]:
        """Return the space as a JSON object for `search.json`."""
        saved: dict[str, Any] = {
            "has_accelerator": self.has_accelerator,
            "defaulted": sorted(self.defaulted),
            "epoch_samples": self.epoch_samples,
            "idle": [asdict(each) for each in self.idle],
        }
        for name in NAMES:
            match getattr(self, name):
                case Range(low, high):
                    saved[name] = {"range": [low, high]}
                case Choice(values):
                    saved[name] = {"choice": list(values)}
        return saved

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> SearchSpace:
        """Return the space in an object that `to_json` made; keys of later versions are ignored."""
        dimensions: dict[str, Dimension] = {
            name: Range(*entry["range"]) if "range" in entry else Choice(tuple(entry["choice"]))
            for name, entry in saved.items()
            if name in NAMES
        }
        return cls(
            has_accelerator=saved["has_accelerator"],
            defaulted=frozenset(saved["defaulted"]),
            epoch_samples=saved.get("epoch_samples"),
            idle=tuple(IdleWorkers(**each) for each in saved.get("idle", ())),
            **dimensions,
        )

    # in the tables below, rows are settings in the order of configs(), and columns are dimensions in the order of NAMES

    @cached_property
    def _table(self) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Table of the index of each dimension's value; 0 if the dimension does not exist."""
        lengths = [len(self.values(name)) for name in NAMES]
        grid = np.indices(lengths, dtype=np.int32).reshape(len(NAMES), -1).T
        is_single = np.asarray(self.values("num_workers"))[grid[:, 0]] == 0
        is_spelled_twice = is_single & grid[:, len(ALWAYS) :].any(axis=1)
        return np.ascontiguousarray(grid[~(is_spelled_twice | self._is_beyond_epoch(grid))])

    def _is_beyond_epoch(self, grid: np.ndarray[Any, np.dtype[np.int32]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which rows of a table have idle workers, or prefetch more than the epoch although a smaller value does too."""
        place = grid[:, NAMES.index("num_workers")]
        beyond = np.array([self.has_idle(count) for count in self.values("num_workers")])[place]
        workers = np.asarray(self.values("num_workers"))[place]
        prefetch = np.asarray(self.values("prefetch_factor"))
        place = grid[:, NAMES.index("prefetch_factor")]
        for index, size in enumerate(self.values("batch_size")):
            most = num_batches(self.epoch_samples, size)
            if most is None:
                continue
            less = np.where(place > 0, prefetch[place - 1], 0)  # choices ascend, so this is the next smaller one
            has_size = grid[:, NAMES.index("batch_size")] == index
            beyond |= has_size & ((workers > self.most_workers(size)) | (less * workers >= most))
        return beyond

    @cached_property
    def _is_single(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Mask of the rows with 0 workers."""
        return np.asarray(np.asarray(self.values("num_workers"))[self._table[:, 0]] == 0)

    @cached_property
    def _scaled(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Table of the position in each dimension, from 0 to 1."""
        return np.asarray(self._table / [max(len(self.values(name)) - 1, 1) for name in NAMES])

    @cached_property
    def _made(self) -> dict[int, LoaderConfig]:
        return {}

    def config_at(self, row: int) -> LoaderConfig:
        """Return the setting at a position in configs()."""
        if row not in self._made:
            indices = self._table[row].tolist()
            chosen = {name: self.values(name)[index] for name, index in zip(NAMES, indices, strict=True)}
            self._made[row] = LoaderConfig(**chosen)
        return self._made[row]

    def _position(self, config: LoaderConfig) -> list[float]:
        """Return a setting's position in each dimension, from 0 to 1; a number that is not listed lies between its listed neighbours."""
        position = []
        for name in NAMES:
            values, value = self.values(name), getattr(config, name)
            if value in values:
                index = float(values.index(value))
            elif name in LEAST and None not in (value, values[0]):
                index = float(np.interp(value, values, range(len(values))))
            else:
                index = 0.0
            position.append(index / max(len(values) - 1, 1))
        return position


def num_batches(epoch_samples: int | None, batch_size: int | None) -> int | None:
    """Return the number of batches in an epoch; None if it is not known, for example if the workload's own batch sampler decides."""
    if not epoch_samples or batch_size is None:
        return None
    return math.ceil(epoch_samples / batch_size)


def applicable(config: LoaderConfig) -> tuple[str, ...]:
    """Return the names of the dimensions that this setting has."""
    return NAMES if config.num_workers else ALWAYS
