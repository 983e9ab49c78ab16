"""Measure one setting: a generator that yields a growing measurement of real training until it is closed or precise enough.

A trial warms up the step on a cached batch before the loader starts, and times the start-up separately. It discards what
is not steady yet, then times windows of whole production cycles (`num_workers` batches each), one after the other. At the end it
measures epoch boundaries, if they matter for the user's epoch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.diagnose.hang_message import INTERPRETERS_S
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.loader.build_loader import build_loader, seed_everything, start_method
from feedrate.trainables.loader.cold_cache import ColdCache
from feedrate.trainables.loader.loader_watch import LoaderWatch, collecting
from feedrate.trainables.loader.process_settings import PlacedWorker, placed
from feedrate.trainables.machine.accelerator import pick_device
from feedrate.trainables.machine.conditions import MachineClock
from feedrate.trainables.machine.host import cpu_budget
from feedrate.trainables.machine.process import Memory, growth_bytes_per_batch, tree_memory
from feedrate.trainables.measurement import Measurement
from feedrate.trainables.measuring.cached_batch import CachedBatch, read_apart
from feedrate.trainables.measuring.limits import check_limits
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.measuring.step_and_loader_alone import Blocks, loading_step, time_copy, time_step, warm
from feedrate.trainables.measuring.training import MIN_WINDOWS, Training
from feedrate.trainables.ranks.lead import Lead
from feedrate.trainables.step import Step, StepContext, loss_is_finite, to_device
from feedrate.trainables.workload import Workload

BOUNDARY_MATTERS_FRACTION = 0.002
"""The time that a loader needs between two epochs is measured only if it is estimated to be at least this share of an epoch."""
EPOCHS_FRACTION = 0.25
"""Share of a trial's time that epoch boundaries may take."""


def measure(
    workload: Workload,
    config: LoaderConfig,
    options: MeasureOptions | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
    steps: dict[int | None, Step] | None = None,
    cached: CachedBatch | None = None,
    lead: Lead | None = None,
) -> Iterator[Measurement]:
    """Train with one setting and yield the growing measurement after every window from the fifth on.

    The yielded object is the same each time. Closing the generator stops the measurement early and ends the loader's
    workers.

    Args:
        workload: what to train.
        config: the setting.
        options: how long and how to measure.
        on_phase: called with setup, warm, loader, measure, "between epochs" (only for `between_epochs`) and teardown as each begins.
        steps: training steps by batch size that earlier measurements of this workload made in this process. An existing
            step is used again, a new one is added. None makes a new step.
        cached: the batch on which the step is warmed up and timed alone, read in another process (cached_batch.py). If None,
            a process that is forked now reads it: this process does not touch the dataset before the loader does.
        lead: the other ranks of a training with several, of which this process is rank 0; they have been told the setting.

    Raises:
        TrialFailed: the setting cannot be measured as requested, does not fit on this machine, or its loader failed; the
            failure says why and what to do.
        Exception: whatever the workload's model, loss or step raises.
    """
    options = options or MeasureOptions()
    # read before the setting restricts the training process to some CPUs
    counted = os.sched_getaffinity(0) if options.shares_host else None
    cpus = _Cpus(num=cpu_budget()[0], counted=counted, roots=() if lead is None else tuple(lead.pids))
    with placed(config) as placed_worker:
        yield from _measure(workload, config, options, on_phase, placed_worker, cpus, {} if steps is None else steps, cached, lead)


@dataclass(frozen=True, slots=True)
class _Cpus:
    """The number of CPUs that trainer and workers may use, and the CPUs whose load counts (None: those of the whole machine)."""

    num: int
    counted: set[int] | None
    roots: tuple[int, ...] = ()
    """Processes whose trees belong to the trial, besides this one's: the other ranks."""


def _measure(
    workload: Workload,
    config: LoaderConfig,
    options: MeasureOptions,
    on_phase: Callable[[str], None],
    placed_worker: PlacedWorker | None,
    cpus: _Cpus,
    steps: dict[int | None, Step],
    cached: CachedBatch | None,
    lead: Lead | None,
) -> Iterator[Measurement]:
    started = time.perf_counter()
    on_phase("setup")
    seed_everything(options.seed)
    cached = cached or read_apart(lambda: workload, config, seed=options.seed)  # before CUDA is used, because this forks
    device = pick_device(options.device)
    context = StepContext(device=device, batch_size=config.batch_size, amp=options.amp, compile=options.compile)
    if config.batch_size not in steps:
        steps[config.batch_size] = workload.make_step(context)
    step = steps[config.batch_size]
    result = Measurement(unit=workload.unit)
    on_phase("warm")
    if cached.failure is not None:
        result.cached_batch_failure = cached.failure.message
    if cached.failure is None:
        step = _warm(workload, step, cached.batch, config, options, device, result, lead)
    elif options.loader_only:
        step = loading_step(workload, None, step, device)
    on_phase("loader")
    check_limits(config, cached.storage_sizes, beside=workload.beside, num_ranks=1 if lead is None else lead.num_local)
    del cached
    if lead is not None:
        lead.load()
    watch = watched_loader(workload, config, options.seed)
    loader = watch.loader
    if watch.has_started and (placed_worker is not None or options.cold):
        raise _started_too_early(workload)
    if placed_worker is not None:
        loader.worker_init_fn = placed_worker.wrap(loader.worker_init_fn)
    cold = _cool(loader) if options.cold else None
    training = prepare_training(watch, workload, options, step, device, result, lead)
    result.setup_s = time.perf_counter() - started
    try:
        yield from _train(training, options, on_phase, cpus, cold)
    except GeneratorExit:  # stopped early
        training.catch_up()
        raise
    finally:
        if cold is not None:
            cold.stop()
    training.catch_up()
    on_phase("teardown")


def watched_loader(workload: Workload, config: LoaderConfig, seed: int) -> LoaderWatch:
    """Make a loader with this setting, and return the `LoaderWatch` through which it is read. A loader may start its workers as soon as it is made."""
    with collecting() as begun:
        loader = build_loader(workload, config, seed=seed)
    return LoaderWatch(loader, begun)


def _warm(
    workload: Workload,
    step: Step,
    host_batch: Any,
    config: LoaderConfig,
    options: MeasureOptions,
    device: torch.device,
    result: Measurement,
    lead: Lead | None,
) -> Step:
    """Warm up the step on the cached batch, then time the step alone and the copy alone; return the step of the windows.

    With several ranks, each of them takes the same steps, so that a step alone includes what the ranks exchange.
    """
    led = None if lead is None else lead.led(step)
    on_batch, num_ranks = (step, 1) if lead is None or led is None else (led, lead.world_size)
    if options.loader_only:
        step = loading_step(workload, host_batch, on_batch, device)
    else:
        batch = to_device(host_batch, device)
        result.first_step_s = warm(on_batch, batch, device)
        if options.measure_step:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            blocks = time_step(on_batch, batch, device, options.max_trial_s / 5)
            if num_ranks == 1:
                result.step_only_cpus = (time.process_time() - began_cpu_s) / (time.perf_counter() - began_s)
            result.step_only_num_items, result.step_only_duration_s = _of_all(blocks, num_ranks) or (None, None)
        if device.type != "cpu":
            copies = time_copy(host_batch, device, pinned=config.pin_memory)
            result.copy_only_num_items, result.copy_only_duration_s = _of_all(copies, num_ranks) or (None, None)
    if led is not None:
        led.catch_up()
    return step


def _of_all(blocks: Blocks, num_ranks: int) -> Blocks:
    """Return items and seconds of blocks in which every rank did the same; None for None."""
    if blocks is None:
        return None
    num_items, durations_s = blocks
    return [each * num_ranks for each in num_items], durations_s


def _train(
    training: Training,
    options: MeasureOptions,
    on_phase: Callable[[str], None],
    cpus: _Cpus,
    cold: ColdCache | None,
) -> Iterator[Measurement]:
    result, device = training.result, training.device
    training.start()
    on_phase("measure")
    training.drift()
    # it takes 10 ms for each worker, so not right before a window; before each worker has delivered a batch, it would grow with their start
    memory, consumed = tree_memory(cpus.roots) if training.consumed >= training.cycle else None, training.consumed
    training.settle()
    if cold is not None and cold.stayed_fraction() is None:  # the dataset read nothing from files that could be cold
        result.cold_refused = cold.why_not_cold()
        yield result
        return
    before = _Machine.read(cpus, memory, consumed)
    while not training.finished():
        if cold is not None:
            cold.drop_held()
        if cold is not None or len(result.windows) == MIN_WINDOWS:
            training.after_pause()
            if len(result.windows) and training.finished():
                break
        training.window()
        reserves = _boundary_matters(training, options) and _epochs_s(training, options) < EPOCHS_FRACTION * options.max_trial_s
        training.reserved_s = EPOCHS_FRACTION * options.max_trial_s if reserves else 0.0
        if len(result.windows) >= MIN_WINDOWS and training.has_rate():
            if len(result.windows) == MIN_WINDOWS:  # only once, because it takes a moment; from here on the trial may be stopped
                before.fill(training)
                training.fill_loading()
            result.settled = training.steady()
            yield result
    if not training.has_rate():
        training.late_window()
    if not training.has_rate():
        raise training.no_rate()
    result.cold_refused = cold.why_not_cold() if cold is not None else None
    before.fill(training, dropped=cold is not None and result.cold_refused is None)
    training.fill_loading()
    if device.type == "cuda":
        result.gpu_free_bytes, _ = torch.cuda.mem_get_info(device)
        result.gpu_peak_bytes = torch.cuda.max_memory_allocated(device)
    result.loss_is_finite = None if options.loader_only else loss_is_finite(training.step)
    result.settled = training.steady()
    if _boundary_matters(training, options):
        _measure_epochs(training, options)
    yield result
    # only a training script's step has it; with several ranks, rank 0 alone must not go on to where the ranks wait for each other
    if options.between_epochs and training.lead is None and hasattr(training.step, "time_between_epochs"):
        on_phase("between epochs")
        training.step.time_between_epochs(result)
        yield result


def _cool(loader: DataLoader[Any]) -> ColdCache:
    """Drop from the page cache whatever the loader and its workers read from now on."""
    cold = ColdCache(loader.num_workers, start_method(loader) if loader.num_workers else None)
    cold.install()
    loader.worker_init_fn = cold.wrap(loader.worker_init_fn)
    cold.drop_held()
    return cold


def _started_too_early(workload: Workload) -> TrialFailed:
    message = (
        f"make_loader of {workload.name!r} starts the loader's workers itself, so feedrate cannot change how they run: leave out "
        "--trainer-cpus, --sharing-strategy and a cold page cache, or start the workers in __iter__"
    )
    return TrialFailed(Failure(kind="override-ignored", phase="loader", message=message))


def prepare_training(
    watch: LoaderWatch,
    workload: Workload,
    options: MeasureOptions,
    step: Step,
    device: torch.device,
    result: Measurement,
    lead: Lead | None = None,
) -> Training:
    """Prepare the training without starting it."""
    loader = watch.loader
    if loader.num_workers and not loader.timeout:
        # torch would wait forever for a batch that a worker could not send; new interpreters need extra time to import torch
        starting_s = 0.0 if start_method(loader) == "fork" else INTERPRETERS_S
        loader.timeout = options.max_trial_s + starting_s
        watch.wait_at_most(loader.timeout)
    result.epoch_samples = options.epoch_samples
    is_told = options.epoch_samples is not None or workload.unit != "samples"  # a dataset's length counts samples, not tokens
    result.start_method = start_method(loader) if loader.num_workers else None
    return Training(loader, watch, step, device, result, options.max_trial_s, options.enough_fraction, counts_epoch=not is_told, lead=lead)


def _boundary_matters(training: Training, options: MeasureOptions) -> bool:
    """Whether the epoch rate depends on the cost of an epoch boundary that is only estimated so far."""
    result = training.result
    if options.objective != "epoch" or options.loader_only or not result.epoch_samples or not training.has_rate():
        return False
    if not training.watch.ends_when_told:
        return False
    lost_samples = result.boundary_s * result.windows.rate().sps
    return result.boundary_from == "estimated" and lost_samples >= BOUNDARY_MATTERS_FRACTION * result.epoch_samples


def _num_epoch_batches(training: Training, options: MeasureOptions) -> int:
    """Return how many batches a measured epoch has: as many as the user's if those are few, otherwise just enough to time a boundary."""
    result = training.result
    assert result.epoch_samples is not None
    num_batches = max(math.ceil(result.epoch_samples / training.items_per_batch() - 1e-9), 1)
    if num_batches * training.batch_s() + result.boundary_s > EPOCHS_FRACTION * options.max_trial_s / 3:
        return min(num_batches, max(training.cycle, 4))
    return num_batches


def _epochs_s(training: Training, options: MeasureOptions) -> float:
    """Return the least time in which epoch boundaries can be timed: that of the batches in flight, one epoch, and the boundary at each end."""
    in_flight = training.loader.num_workers * (training.loader.prefetch_factor or 0)
    return (in_flight + _num_epoch_batches(training, options)) * training.batch_s() + 2 * training.result.boundary_s


def _measure_epochs(training: Training, options: MeasureOptions) -> None:
    """Measure epoch boundaries if time allows.

    If the rate rose, and workers lose at the end of an epoch what made it rise, use all the remaining time to get five epochs.
    """
    loader, left_s = training.loader, training.deadline - time.perf_counter()
    loses = training.result.windows.lasting().direction > 0 and loader.num_workers > 0 and not loader.persistent_workers
    budget_s = EPOCHS_FRACTION * options.max_trial_s
    most_s = left_s if loses else budget_s
    if _epochs_s(training, options) < min(most_s, left_s):
        training.measure_epochs(_num_epoch_batches(training, options), budget_s, most_s)


@dataclass(frozen=True, slots=True)
class _Machine:
    """What the machine and the trial's processes had used when the first window began; their memory had been read shortly before."""

    cpus: _Cpus
    began: float
    clock: MachineClock
    memory: Memory | None
    consumed: int
    """Batches trained when the memory was read."""

    @classmethod
    def read(cls, cpus: _Cpus, memory: Memory | None, consumed: int) -> _Machine:
        clock = MachineClock.read(cpus.counted, cpus.roots)
        return cls(cpus=cpus, began=time.perf_counter(), clock=clock, memory=memory, consumed=consumed)

    def fill(self, training: Training, dropped: bool = False) -> None:
        """Write the columns for what was used since then; `dropped`: whether the page cache was kept cold all the time."""
        result = training.result
        wall_s = time.perf_counter() - self.began
        now = MachineClock.read(self.cpus.counted, self.cpus.roots)
        columns = now.columns_since(self.clock, wall_s, dropped=dropped, num_cpus=self.cpus.num)
        for name, value in columns.items():
            setattr(result, name, value)
        memory = tree_memory(self.cpus.roots)
        if memory is not None:
            result.tree_pss_bytes, result.tree_uss_bytes = memory.pss_bytes, memory.uss_bytes
            result.max_open_files = memory.max_open_files
            result.tree_uss_growth_bytes_per_batch = growth_bytes_per_batch(self.memory, memory, training.consumed - self.consumed)
