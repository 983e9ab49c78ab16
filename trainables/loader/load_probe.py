"""`LoadProbe`: what loading costs in each process that loads: time, CPU time, time without a CPU, and how much samples differ.

The functions that fetch batches are timed where they run, in the training process without workers and in each forked worker, and write sums
into memory that these processes share. So many batches are passed over that timing costs less than COST_FRACTION of loading.
Workers of other start methods are not seen.
"""

from __future__ import annotations

import math
import mmap
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch.utils.data import _DatasetKind, get_worker_info

from feedrate.analysis.schema import LOAD_COSTS, SAMPLE_QUANTILES, SAMPLE_TIMES

COST_FRACTION = 0.003
"""Largest share of loading that timing may take, for batches and again for samples."""
BATCH_COST_S = 1e-5
"""What timing a batch costs, generously."""
SAMPLE_COST_S = 2e-6
"""What timing a sample costs."""
SAMPLES_COST_S = 1.5e-4
"""What timing the samples of a batch costs beside that: the time without a CPU is read from /proc."""
MOST_WORKERS = 256
"""Workers with a higher number are not timed."""
LEAST_S = 1e-7
"""The first bin of the histogram of samples has those that take less."""
BINS_PER_OCTAVE = 4
NUM_BINS = 30 * BINS_PER_OCTAVE
"""The last bin has samples of over 100 s."""
_NUM_BATCHES, _WALL_S, _CPU_S, _TIMED_WALL_S, _DELAY_S, _COLLATE_S, _OTHERS_CPU_S, _NUM_FETCHED, _MAX_S, _PAIRS = range(10)
"""Where a process's sums are in its part of the memory; the histogram comes last."""
NUM_PAIR_SUMS = 6
_BINS = _PAIRS + NUM_PAIR_SUMS
_LENGTH = _BINS + NUM_BINS
MOST_CORRELATION = 0.9
LEAST_SAMPLES = 30
"""The spread of fewer samples says nothing."""
LEAST_PAIRS = 30
"""A correlation of fewer pairs of samples says nothing."""
LEAST_SPREAD = 1e-12
"""Product of the variances of both samples of the pairs; below it their times are equal but for rounding."""
_torchs_create = _DatasetKind.create_fetcher
_current: LoadProbe | None = None
"""The probe of the iterator that is being created; forked workers inherit it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadSums:
    """What loading cost between two moments, over all processes that load.

    Attributes:
        num_batches: batches that were timed.
        wall_s, cpu_s: seconds, and CPU seconds of the thread, of fetching and collating them.
        detailed_s: of wall_s, that of the batches whose samples were timed too.
        delay_s: seconds of detailed_s in which the thread was ready and had no CPU.
        collate_s: seconds of detailed_s in collate_fn.
        others_cpu_s: CPU seconds of the workers' other threads, while num_fetched batches were fetched. In one of them torch hands batches over.
        num_fetched: the number of these batches, timed or not; 0 without workers.
        counts: number of timed samples in each bin, shape (NUM_BINS,).
        pairs: sums over two samples x and y that a process loads one after the other, of 1, x, y, x * x, y * y and x * y, where x and y are the
            logarithms of their times; shape (NUM_PAIR_SUMS,).
        max_s: longest time of a sample since the probe was made.
    """

    num_batches: float
    wall_s: float
    cpu_s: float
    detailed_s: float
    delay_s: float
    collate_s: float
    others_cpu_s: float
    num_fetched: float
    counts: Any
    pairs: Any
    max_s: float

    def minus(self, earlier: LoadSums) -> LoadSums:
        """Return what loading cost since an earlier moment."""
        sums = (each.name for each in fields(self) if each.name != "max_s")
        return LoadSums(**{name: getattr(self, name) - getattr(earlier, name) for name in sums}, max_s=self.max_s)

    def columns(self, items_per_batch: float) -> dict[str, Any]:
        """Return the columns of a measurement; those that are not known are None.

        Args:
            items_per_batch: items that were trained for each batch that was loaded.
        """
        found: dict[str, Any] = dict.fromkeys((*LOAD_COSTS, *SAMPLE_TIMES))
        if not self.num_batches or not items_per_batch:
            return found
        item_s = self.wall_s / self.num_batches / items_per_batch
        found |= {"load_item_s": item_s, "load_cpu_item_s": self.cpu_s / self.num_batches / items_per_batch}
        if self.num_fetched:
            found["handover_cpu_item_s"] = max(self.others_cpu_s, 0.0) / self.num_fetched / items_per_batch
        if self.detailed_s > 0:  # shares of the batches whose samples were timed, applied to all timed batches
            found["load_delay_item_s"] = item_s * min(self.delay_s / self.detailed_s, 1.0)
            found["collate_item_s"] = item_s * self.collate_s / self.detailed_s
            quantiles = (*(self._quantile(share) for share in (0.5, 0.9, 0.99)), self.max_s)
            found |= dict(zip(SAMPLE_QUANTILES, quantiles, strict=True))
            found["sample_correlation"] = self._correlation()
        return found

    @property
    def num_samples(self) -> int:
        """The number of timed samples."""
        return int(self.counts.sum())

    def sample_sd_fraction(self) -> float | None:
        """Return the standard deviation of a sample's time as a fraction of the mean; None if fewer than LEAST_SAMPLES were timed.

        Divided by the square root of a number of samples, it is the standard error of their mean. It is larger where slow samples come in clusters, as if
        a sample were related only to the one before it (Bayley and Hammersley, J. R. Stat. Soc. Suppl. 8, 1946, for a first-order process).
        """
        if self.num_samples < LEAST_SAMPLES:
            return None
        times_s = LEAST_S * 2 ** ((np.arange(NUM_BINS) - 0.5) / BINS_PER_OCTAVE)
        mean_s = float((self.counts * times_s).sum() / self.num_samples)
        variance = float((self.counts * (times_s - mean_s) ** 2).sum() / (self.num_samples - 1))
        variance += (mean_s * math.log(2) / BINS_PER_OCTAVE) ** 2 / 12  # samples differ inside a bin, too
        related = min(max(self._correlation() or 0.0, 0.0), MOST_CORRELATION)
        return math.sqrt(variance * (1 + related) / (1 - related)) / mean_s

    def _correlation(self) -> float | None:
        """Return Pearson's correlation of two samples one after the other; None if there are fewer than LEAST_PAIRS, or their times are equal."""
        num, x, y, xx, yy, xy = (float(each) for each in self.pairs)
        if num < LEAST_PAIRS:
            return None
        spread = (xx / num - (x / num) ** 2) * (yy / num - (y / num) ** 2)
        return (xy / num - x * y / num**2) / math.sqrt(spread) if spread > LEAST_SPREAD else None

    def _quantile(self, share: float) -> float:
        """Return the time within which this share of the samples was loaded: the middle of a bin of the histogram, which is off by 9 % at most."""
        sums = np.cumsum(self.counts)
        number = int(np.searchsorted(sums, share * sums[-1]))
        return float(min(LEAST_S * 2 ** ((number - 0.5) / BINS_PER_OCTAVE), self.max_s))


class LoadProbe:
    """Times loading for the iterators that are created right after `probe_next(probe)`."""

    def __init__(self) -> None:
        # an anonymous mapping has no name that could be left behind, and forked processes share it
        self._memory = mmap.mmap(-1, 8 * _LENGTH * (MOST_WORKERS + 1))

    def sums(self) -> LoadSums:
        """Return what loading has cost so far."""
        table = np.frombuffer(self._memory, dtype=np.float64).reshape(MOST_WORKERS + 1, _LENGTH)
        total = table.sum(axis=0)
        return LoadSums(
            num_batches=float(total[_NUM_BATCHES]),
            wall_s=float(total[_WALL_S]),
            cpu_s=float(total[_CPU_S]),
            detailed_s=float(total[_TIMED_WALL_S]),
            delay_s=float(total[_DELAY_S]),
            collate_s=float(total[_COLLATE_S]),
            others_cpu_s=float(total[_OTHERS_CPU_S]),
            num_fetched=float(total[_NUM_FETCHED]),
            counts=total[_BINS:],
            pairs=total[_PAIRS:_BINS],
            max_s=float(table[:, _MAX_S].max()),
        )

    def attach(self, fetcher: Any, *, is_map: bool) -> None:
        """Time the batches that a fetcher of torch fetches in this process from now on."""
        global _current
        worker = get_worker_info()
        if worker is not None:
            _current = None  # loaders that the dataset itself reads in this worker are part of its samples
        number = 0 if worker is None else worker.id + 1
        if number <= MOST_WORKERS:
            place = memoryview(self._memory)[8 * _LENGTH * number : 8 * _LENGTH * (number + 1)].cast("d")
            fetcher.fetch = _TimedFetch(fetcher, place, has_samples=is_map and _has_samples(fetcher), is_worker=worker is not None)


def probe_next(probe: LoadProbe | None) -> None:
    """Let `probe` time the loading of the iterator that this process creates next; None times nothing.

    Torch calls the constructor of its base class first, from where this is called, and then makes the fetcher, or starts the workers.
    """
    global _current
    _DatasetKind.create_fetcher = staticmethod(_create)  # type: ignore[method-assign]
    _current = probe


def _create(kind: int, dataset: Any, *others: Any) -> Any:
    fetcher = _torchs_create(kind, dataset, *others)  # type: ignore[no-untyped-call]
    if _current is not None:
        _current.attach(fetcher, is_map=kind == _DatasetKind.Map)
    return fetcher


def _has_samples(fetcher: Any) -> bool:
    """Whether torch takes the samples of a batch from the dataset one by one."""
    return bool(fetcher.auto_collation) and not getattr(fetcher.dataset, "__getitems__", None)


def bin_of(duration_s: float) -> int:
    """Return the number of the bin that counts samples of this duration."""
    return min(int(BINS_PER_OCTAVE * math.log2(duration_s / LEAST_S)) + 1, NUM_BINS - 1) if duration_s > LEAST_S else 0


class _TimedFetch:
    """Stands for the method `fetch` of a fetcher, and times some of its calls."""

    __slots__ = ("_fetch", "_fetcher", "_has_samples", "_is_first", "_is_worker", "_num_since", "_others_cpu_s", "_passed_over", "_place", "_since_samples_s")

    def __init__(self, fetcher: Any, place: Any, *, has_samples: bool, is_worker: bool) -> None:
        self._fetcher, self._fetch, self._place, self._has_samples = fetcher, fetcher.fetch, place, has_samples
        self._is_worker, self._others_cpu_s = is_worker, 0.0
        self._is_first = True  # it opens files and fills caches, so it only says how long batches take
        self._passed_over, self._num_since = 0, 1
        self._since_samples_s = 0.0

    def __call__(self, index: Any) -> Any:
        if self._is_first:
            self._is_first = False
            begin_s = time.perf_counter()
            batch = self._fetch(index)
            self._since_samples_s = time.perf_counter() - begin_s
            return batch
        if self._passed_over > 0:
            self._passed_over -= 1
            return self._fetch(index)
        if self._is_worker:
            self._count_others(time.process_time() - time.thread_time())
        begin_s, begin_cpu_s = time.perf_counter(), time.thread_time()
        cost_s = SAMPLES_COST_S + SAMPLE_COST_S * len(index) if self._has_samples else math.inf
        is_detailed = self._since_samples_s * COST_FRACTION >= cost_s
        batch = self._detailed(index) if is_detailed else self._fetch(index)
        cpu_s, wall_s = time.thread_time() - begin_cpu_s, time.perf_counter() - begin_s
        place = self._place
        place[_NUM_BATCHES] += 1
        place[_WALL_S] += wall_s
        place[_CPU_S] += cpu_s
        if is_detailed:
            place[_TIMED_WALL_S] += wall_s
        self._passed_over = int(BATCH_COST_S / COST_FRACTION / max(wall_s, 1e-9))
        self._num_since = 1 + self._passed_over
        self._since_samples_s = wall_s * self._num_since + (0.0 if is_detailed else self._since_samples_s)
        return batch

    def _count_others(self, others_cpu_s: float) -> None:
        """Add the CPU time of this worker's other threads since the last timed batch began, and the number of batches since then."""
        place = self._place
        place[_OTHERS_CPU_S] += others_cpu_s - self._others_cpu_s
        place[_NUM_FETCHED] += self._num_since
        self._others_cpu_s = others_cpu_s

    def _detailed(self, index: Any) -> Any:
        """Fetch a batch, and time its samples and its collation."""
        fetcher, place = self._fetcher, self._place
        dataset, collate = fetcher.dataset, fetcher.collate_fn
        samples = _TimedSamples(dataset)
        begin_delay_s = _delay_s()

        def timed_collate(data: Any) -> Any:
            begin_s = time.perf_counter()
            batch = collate(data)
            place[_COLLATE_S] += time.perf_counter() - begin_s
            return batch

        fetcher.dataset, fetcher.collate_fn = samples, timed_collate
        try:
            return self._fetch(index)
        finally:
            fetcher.dataset, fetcher.collate_fn = dataset, collate
            place[_DELAY_S] += _delay_s() - begin_delay_s
            for each in samples.durations_s:
                place[_BINS + bin_of(each)] += 1
            place[_MAX_S] = max(place[_MAX_S], *samples.durations_s, 0.0)
            for number, product in enumerate(_pair_sums(samples.durations_s), _PAIRS):
                place[number] += product


def _pair_sums(durations_s: Sequence[float]) -> tuple[float, ...]:
    """Return the sums of `LoadSums.pairs` over the samples of a batch."""
    logs = [math.log(max(each, LEAST_S)) for each in durations_s]
    first, second = logs[:-1], logs[1:]
    return (
        float(len(first)),
        sum(first),
        sum(second),
        sum(map(operator.mul, first, first)),
        sum(map(operator.mul, second, second)),
        sum(map(operator.mul, first, second)),
    )


class _TimedSamples:
    """A dataset that times its samples; torch's fetcher asks it for nothing else."""

    __slots__ = ("_dataset", "durations_s")

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.durations_s: list[float] = []

    def __getitem__(self, index: Any) -> Any:
        begin_s = time.perf_counter()
        sample = self._dataset[index]
        self.durations_s.append(time.perf_counter() - begin_s)
        return sample


def _delay_s() -> float:
    """Return the seconds in which this thread was ready to run and had no CPU (the kernel's Documentation/scheduler/sched-stats.rst); 0 if unknown."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0

