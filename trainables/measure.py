"""Measures one setting: a generator that yields growing measurements of real training until it is closed or sure.

Order: the step is warmed on a cached batch before the loader starts, start-up is timed apart, what is not steady is
discarded, then windows of `m * num_workers` batches follow one another without a gap (MEASURING.md 2.1-2.3).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.counting import CountingCollate, count_batches
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.loading import build_loader, cached_batch, no_batch, seed_everything
from feedrate.trainables.measurement import Measurement
from feedrate.trainables.process import CpuClock, shm_used_bytes, tree_memory
from feedrate.trainables.step import Step, StepContext, count_items, count_samples, to_device
from feedrate.trainables.workload import Workload

CYCLES_PER_WINDOW = 4
"""Production is periodic in num_workers batches. Windows are whole periods: 4 of them, fewer (with a spread that is up to
a fifth too wide, MEASURING.md 2.3) where they take long."""
MIN_WINDOW_S = 0.35
LONG_WINDOW_S = 1.0
STEP_BLOCKS = 9
MIN_WINDOWS = 5
MAX_WINDOWS = 13
ENOUGH_S = 6.0
"""Wall time of windows after which MIN_WINDOWS of them are enough, sure or not."""
ENOUGH_FRACTION = 0.015
"""A half-width of the windows' interval below this ends a measurement: the run-to-run spread is larger."""
_END = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureOptions:
    """How one setting is measured."""

    max_trial_s: float = 20.0
    """Wall time for loading and training, from iter(loader) on; set-up is apart."""
    seed: int = 0
    measure_step: bool = True
    """Also time the step alone: the ceiling at this batch size."""
    loader_only: bool = False
    """Load and copy to the device, train nothing: the loader's own ceiling."""
    epoch_samples: int | None = None
    """Items of the user's real epoch; None asks the dataset."""
    device: str | None = None
    """torch device; None takes the accelerator when there is one."""


def pick_device(name: str | None = None) -> torch.device:
    """The device to train on: as named, else the first visible CUDA device, else the CPU."""
    return torch.device(name or ("cuda:0" if torch.cuda.is_available() else "cpu"))


def measure(
    workload: Workload,
    config: LoaderConfig,
    options: MeasureOptions | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Iterator[Measurement]:
    """Train with one setting and yield the growing measurement after every window from the fifth on.

    The object yielded is the same one each time. Closing the generator stops the measurement early; the loader's
    workers end with it.

    Args:
        workload: what to train.
        config: the setting.
        options: how long and how to measure.
        on_phase: told setup, warm, loader, measure, teardown as they begin.

    Raises:
        TrialFailed: the setting cannot be measured as asked.
        Exception: whatever the workload's own code raises.
    """
    options = options or MeasureOptions()
    started = time.perf_counter()
    on_phase("setup")
    seed_everything(options.seed)
    device = pick_device(options.device)
    step = workload.make_step(StepContext(device=device, batch_size=config.batch_size))
    result = Measurement(unit=workload.unit)
    if options.loader_only:
        step = _loading_step(workload, config, step, device)
    else:
        batch = to_device(cached_batch(workload, config), device)
        on_phase("warm")
        _warm(step, batch, device)
        if options.measure_step:
            _time_step(result, step, batch, device, options.max_trial_s / 5)
        del batch
    on_phase("loader")
    loader = build_loader(workload, config, seed=options.seed)
    result.epoch_samples = options.epoch_samples
    if result.epoch_samples is None and workload.unit == "samples":  # a dataset's length counts samples, not tokens
        result.epoch_samples = _num_samples(loader)
    shm_before = shm_used_bytes()
    counter = count_batches(loader)
    result.setup_s = time.perf_counter() - started
    run = _Run(loader, counter, step, device, result, options.max_trial_s)
    run.start()
    result.start_method = _start_method(loader)
    on_phase("measure")
    run.settle()
    clock = CpuClock.read()
    while not run.finished():
        run.window()
        now = CpuClock.read()
        result.foreign_cpu_fraction = now.foreign_fraction_since(clock)
        result.own_cpu_fraction = now.own_fraction_since(clock, sum(result.windows.window_duration_s))
        if len(result.windows) >= MIN_WINDOWS and run.has_rate():
            result.settled = run.steady()
            yield result
    if not run.has_rate():
        message = (
            f"the loader finished no batch in {options.max_trial_s:g} s after those of its start: raise --max-trial-s"
        )
        raise TrialFailed(Failure(kind="hang", phase="measure", message=message))
    memory = tree_memory()
    if memory is not None:
        result.tree_pss_bytes, result.tree_uss_bytes = memory.pss_bytes, memory.uss_bytes
    shm_after = shm_used_bytes()
    if shm_before is not None and shm_after is not None:
        result.shm_bytes = max(shm_after - shm_before, 0)
    if device.type == "cuda":
        result.gpu_peak_bytes = torch.cuda.max_memory_allocated(device)
    result.settled = run.steady()
    yield result
    on_phase("teardown")


class _Run:
    """The training loop between two batches: where the clock, the counter and the windows are kept in step."""

    def __init__(
        self,
        loader: DataLoader[Any],
        counter: CountingCollate | None,
        step: Step,
        device: torch.device,
        result: Measurement,
        max_s: float,
    ) -> None:
        self.loader, self.counter, self.step, self.device, self.result = loader, counter, step, device, result
        self.max_s = max_s
        self.consumed = self.items = 0
        self.wait_s = 0.0
        self.boundaries_s: list[float] = []
        self.deadline = 0.0

    def start(self) -> None:
        """iter(loader) and the first batch."""
        begin = time.perf_counter()
        self.deadline = begin + self.max_s
        self.iterator = iter(self.loader)
        self.result.iter_s = time.perf_counter() - begin
        begin = time.perf_counter()
        batch = self._next()
        self.result.first_batch_s = time.perf_counter() - begin
        self._train(batch)

    def settle(self) -> None:
        """Discard two production cycles and a little time: workers that started together must drift apart first."""
        begin = time.perf_counter()
        cycles = 2 * max(self.loader.num_workers, 1)
        until = min(begin + self.max_s / 4, self.deadline)
        discarded = 0
        while time.perf_counter() < until and (discarded < cycles or time.perf_counter() - begin < MIN_WINDOW_S):
            self._train(self._next())
            discarded += 1
        self._synchronize()
        self.result.settle_s = time.perf_counter() - begin
        self._set_boundary()

    def window(self) -> None:
        """One window: whole production cycles of LONG_WINDOW_S, or enough of them; cut where time runs out."""
        cycle = max(self.loader.num_workers, 1)
        begin, wait, items, consumed = time.perf_counter(), self.wait_s, self.items, self.consumed
        ready = self._ready()
        until = begin + self.max_s / (MIN_WINDOWS + 1)
        while True:
            self._train(self._next())
            now = time.perf_counter()
            elapsed, num = now - begin, self.consumed - consumed
            enough = elapsed >= MIN_WINDOW_S and (num >= CYCLES_PER_WINDOW * cycle or elapsed >= LONG_WINDOW_S)
            if (enough and num % cycle == 0) or now >= until:
                break
        self._synchronize()
        self.result.windows.add(
            duration_s=time.perf_counter() - begin,
            num_batches=num,
            num_items=self.items - items,
            produced_batches=max(num + self._ready() - ready, 0),
            wait_s=self.wait_s - wait,
        )
        self._set_boundary()

    def finished(self) -> bool:
        """Enough windows, sure enough, or out of time."""
        count = len(self.result.windows)
        if count and time.perf_counter() + self.result.windows.window_duration_s[-1] / 2 > self.deadline:
            return True
        if count < MIN_WINDOWS:
            return False
        if count >= MAX_WINDOWS or sum(self.result.windows.window_duration_s) >= ENOUGH_S:
            return True
        return self.has_rate() and self.result.windows.rate().half_width_fraction < ENOUGH_FRACTION

    def has_rate(self) -> bool:
        """Something was produced inside the windows; a few slow batches can all have been ready before."""
        return sum(self.result.windows.window_produced_batches) > 0

    def steady(self) -> bool:
        """Enough whole windows, and the two halves of them agree within 5 %."""
        windows = self.result.windows
        whole = max(self.loader.num_workers, 1)
        half = len(windows) // 2
        if len(windows) < MIN_WINDOWS or min(windows.window_num_batches) < whole:
            return False
        rates = [
            sum(windows.window_num_items[part]) / sum(windows.window_duration_s[part])
            for part in (slice(0, half), slice(half, None))
        ]
        return abs(rates[0] / rates[1] - 1) < 0.05

    def _next(self) -> Any:
        begin = time.perf_counter()
        batch = next(self.iterator, _END)
        if batch is _END:
            self.iterator = iter(self.loader)
            batch = next(self.iterator, _END)
            self.boundaries_s.append(time.perf_counter() - begin)
            if batch is _END:
                raise no_batch(self.consumed)
        self.wait_s += time.perf_counter() - begin
        return batch

    def _train(self, batch: Any) -> None:
        self.items += count_items(batch, self.step(batch))
        self.consumed += 1

    def _ready(self) -> int:
        """Batches finished but not consumed; 0 where the loader started its workers before it could be counted."""
        return max(self.counter.produced() - self.consumed, 0) if self.counter else 0

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _set_boundary(self) -> None:
        """What one epoch boundary costs: seen where the loader's epochs ended inside this trial, else estimated.

        Windows that contain boundaries have paid for them, so they cost nothing more. An estimate is start-up again
        (iter + first batch), or with persistent workers one production cycle.
        """
        result, workers = self.result, self.loader.num_workers
        if self.boundaries_s or workers == 0:
            result.boundary_s = 0.0
            return
        result.boundary_s = result.iter_s + result.first_batch_s
        if self.loader.persistent_workers and result.windows:
            batches_per_s = sum(result.windows.window_num_batches) / sum(result.windows.window_duration_s)
            result.boundary_s = min(result.first_batch_s, workers / batches_per_s)


def _loading_step(workload: Workload, config: LoaderConfig, step: Step, device: torch.device) -> Step:
    """A step that only copies to the device, and counts items in the unit in which the real step does."""
    per_sample: float | None = None
    if not workload.is_short:
        batch = cached_batch(workload, config)
        items = step(batch)
        per_sample = None if items is None else items / count_samples(batch)

    def load(batch: Any) -> int | None:
        to_device(batch, device)
        return None if per_sample is None else round(per_sample * count_samples(batch))

    return load


def _warm(step: Step, batch: Any, device: torch.device) -> None:
    """Three steps, fewer where they are slow: allocator, autotuning and threads are ready before anything is timed."""
    begin = time.perf_counter()
    for _ in range(3):
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if time.perf_counter() - begin > 3:
            break


def _time_step(result: Measurement, step: Step, batch: Any, device: torch.device, max_s: float) -> None:
    """The step alone, in blocks of 0.1 s or one step: STEP_BLOCKS of them, fewer where steps take long."""
    result.step_only_num_items, result.step_only_duration_s = [], []
    until = time.perf_counter() + max_s
    while len(result.step_only_duration_s) < STEP_BLOCKS and (time.perf_counter() < until or not result.step_only_duration_s):
        begin = time.perf_counter()
        items = 0
        while items == 0 or time.perf_counter() - begin < 0.1:
            items += count_items(batch, step(batch))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        result.step_only_num_items.append(items)
        result.step_only_duration_s.append(time.perf_counter() - begin)


def _num_samples(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:
        return None


def _start_method(loader: DataLoader[Any]) -> str | None:
    if loader.num_workers == 0:
        return None
    context = loader.multiprocessing_context or torch.multiprocessing
    return str(context.get_start_method())
