"""`Training`: the training loop, which keeps the clock, the count of items and the windows consistent between batches."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from feedrate.analysis.estimate import within_fraction
from feedrate.analysis.trend import CHANGE_FRACTION, in_first_epoch
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.loader.build_loader import no_batch
from feedrate.trainables.loader.delivering_workers import num_shards
from feedrate.trainables.loader.epoch_size import EpochSize
from feedrate.trainables.loader.load_probe import LoadSums
from feedrate.trainables.loader.loader_watch import LoaderWatch
from feedrate.trainables.machine.accelerator import StepTimer, synchronize
from feedrate.trainables.machine.process import shm_used_bytes
from feedrate.trainables.measurement import Measurement, Windows
from feedrate.trainables.measuring.kept_batches import KeptBatches
from feedrate.trainables.measuring.rerun import explain
from feedrate.trainables.ranks.lead import Lead
from feedrate.trainables.ranks.mark import Mark
from feedrate.trainables.step import Step, count_items, is_count, num_bytes

CYCLES_PER_WINDOW = 4
"""The rate of loading varies periodically, with a period of num_workers batches. So a window is whole periods: 4 of them, or
fewer if they take long (then the measured spread is up to a fifth too wide)."""
MIN_WINDOW_S = 0.35
LONG_WINDOW_S = 1.0
MIN_WINDOWS = 5
MIN_LONG_WINDOWS = 3
"""This many windows are enough if each takes LONG_WINDOW_S or more, so that it is a mean over many samples, and half the width of their
interval is below enough_fraction / LONG_AGREE."""
LONG_AGREE = 2.0
"""So few windows can agree by chance: if their spread is 8 %, three of them pass the limit of 2.5 % (enough_fraction is 5 %) in 2 % of trials."""
FEW_STEADY_FRACTION = 0.025
"""A rate from so few windows counts as steady if half the width of their interval is below this fraction of it."""
SAMPLED_WINDOW_S = 3.0
SAMPLES_ENOUGH = 100
MOSTLY_FRACTION = 0.8
"""Without workers, one or two windows are enough if each takes SAMPLED_WINDOW_S or more, SAMPLES_ENOUGH of their samples or more were timed, loading
takes MOSTLY_FRACTION of the time or more, and the spread of the samples says that the rate is known: a batch of 128 samples of 40 ms takes 5 s, and
shows by itself how much samples differ."""
MAX_WINDOWS = 13
ENOUGH_S = 6.0
"""Total duration of windows after which MIN_WINDOWS windows are enough, even if the interval is still wide."""
MAX_EPOCHS = 40
MAX_DISCARDED = 3
"""How many windows in a row are discarded because a training script did something else than training."""
_END = object()


class Training:
    """The training of one setting.

    Args:
        loader: not iterated yet.
        watch: watches this loader.
        step: one training step.
        device: where the step runs.
        result: filled in during the training.
        max_s: wall time for everything from iter(loader) on.
        enough_fraction: the measurement ends when half the width of the interval of its windows is below this fraction of the rate.
        counts_epoch: compute `result.epoch_samples` from the loader's lengths in each window; otherwise leave it as it is.
        lead: the other ranks of a training with several, of which this is rank 0. Windows, epochs and items are those of all ranks.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        watch: LoaderWatch,
        step: Step,
        device: torch.device,
        result: Measurement,
        max_s: float,
        enough_fraction: float,
        counts_epoch: bool = False,
        lead: Lead | None = None,
    ) -> None:
        self.loader, self.watch, self.step = loader, watch, step
        self.device, self.result, self.max_s, self.counts_epoch = device, result, max_s, counts_epoch
        self.enough_fraction = enough_fraction
        self.epoch = EpochSize()
        self.cycle = max(loader.num_workers, 1)
        self.consumed = self.items = 0
        self.wait_s = 0.0
        self.num_boundaries = 0
        self.deadline = 0.0
        self.reserved_s = 0.0
        """Time before the deadline that the windows leave for epoch boundaries."""
        self.phase = "loader"
        self._discarded = 0
        """Number of batches that were ready but never trained, because their iterator ended early."""
        self._settles_until = 0.0
        self._empty_at = 0
        """Number of batches that had been consumed when the queue of ready batches was last seen empty."""
        self._latest: deque[tuple[float, int, float]] = deque(maxlen=self.cycle + 1)
        """For each of the latest batches since the last pause: when it had been trained, and the items and the waiting time until then."""
        self._loaded: LoadSums | None = None
        """What loading had cost before the windows; None before they begin."""
        self._shm_before = shm_used_bytes()
        self._kept: KeptBatches | None = None
        self._timer = StepTimer(device)
        self.lead = lead
        self._is_catching_up = False

    def start(self) -> None:
        """Call iter(loader) and train the first batch."""
        if self.lead is not None:
            self.lead.start()
        begin = time.perf_counter()
        self.deadline = self._settles_until = begin + self.max_s
        try:
            self.iterator = self._iterate()
            self.result.iter_s = time.perf_counter() - begin
            begin = time.perf_counter()
            batch = self._next()
        finally:
            self.phase = "measure"
        self.result.first_batch_s = time.perf_counter() - begin
        # a boundary costs a start-up; without workers, waiting for the first batch is loading, not starting
        self.result.boundary_s = self.result.iter_s + (self.result.first_batch_s if self.loader.num_workers else 0.0)
        self.result.boundary_from = "estimated"
        self.result.batch_bytes = num_bytes(batch)
        if self.loader.num_workers:
            self._kept = KeptBatches(self.loader, batch)
        self._check_who_loads()
        self.result.num_shards = num_shards(self.loader.dataset)
        if self.counts_epoch:  # not before the workers were forked: the dataset's __len__ may open what they must not share
            self.epoch = EpochSize.of_loader(self.loader)
        self._train(batch)

    def drift(self) -> None:
        """Train without timing until each worker has delivered a batch, and workers that started together may have drifted apart.

        A loader with an `__iter__` of its own may hold ready batches that feedrate cannot see, made before the clock started. So first
        as many batches are trained as can be in flight.
        """
        begin = time.perf_counter()
        self._settles_until = min(begin + self.max_s / 4, self.deadline)
        if self.loader.num_workers:
            in_flight = self.loader.num_workers * (self.loader.prefetch_factor or 2)
            hidden = 0 if self.watch.ends_when_told else round(in_flight * self._per_loaded())
            self._train_until(self._settles_until, hidden + self.cycle - 1, 0.0)  # `start` has trained one
        self.result.settle_s = time.perf_counter() - begin

    def settle(self) -> None:
        """Train without timing until the rate is steady: for a short time and a production cycle, unless the first batch took long, and then until the queue of ready batches grows no further.

        While workers fill the queue of ready batches, they use CPU time that the training step gets once the queue is full. What workers
        finish in a pause between `drift` and `settle` is trained here, too.
        """
        begin, consumed, until = time.perf_counter(), self.consumed, self._settles_until
        self._latest.clear()
        is_slow = self.result.first_batch_s >= LONG_WINDOW_S
        if not is_slow:  # without workers there is no queue and no drift; only discard what is slow about a first batch
            self._train_until(until, self.cycle, MIN_WINDOW_S)
        while not self._is_waiting() and time.perf_counter() < until:
            ready = self._ready()
            self._train_until(until, self.cycle, MIN_WINDOW_S / 2)
            if self._ready() - ready <= max(1, self.cycle // 4):
                break
        if self.consumed == consumed:
            self.after_pause()
        synchronize(self.device)
        self._timer.take_s()
        self.result.settle_s += time.perf_counter() - begin
        self._loaded = self.watch.probe.sums()

    def after_pause(self) -> None:
        """Train without timing until a batch has just been waited for, so that the next window does not begin amid the work of the workers, which went on in the pause.

        If the step did not wait for batches before the pause, it is the limit, and a window may begin at any moment. With several ranks, it is not known
        which rank's loader is the limit, so a production cycle is trained.
        """
        until, most = self.deadline - self.reserved_s, self.consumed + self._ready() + self.cycle
        self._latest.clear()
        if self.loader.num_workers and self.lead is not None:
            self._train_until(until, self.cycle, MIN_WINDOW_S)
        elif self.loader.num_workers and self._is_waiting():
            has_waited = False
            while not has_waited and self.consumed < most and time.perf_counter() < until:
                has_waited = not self._ready()
                self._train(self._next())
        synchronize(self.device)
        self._timer.take_s()

    def window(self) -> None:
        """Time one window without anything but training in it.

        A training script may validate or save a checkpoint between two batches. A window with that in it is discarded, together
        with the batches that became ready meanwhile; if three in a row are, the script does so all the time, and it counts.
        """
        for _ in range(MAX_DISCARDED if hasattr(self.step, "num_asides") else 0):
            before = self._num_asides()
            windows = copy.deepcopy(self.result.windows)
            self._window()
            is_last = time.perf_counter() >= self.deadline - self.reserved_s
            if self._num_asides() == before or (is_last and not len(windows)):
                return
            self.result.windows = windows
            if is_last:
                return
            self._train_until(self.deadline, round(self._ready()) + self.cycle, 0.0)
            synchronize(self.device)
            self._timer.take_s()
        self._window()

    def late_window(self) -> None:
        """Time one window after the time is over: a loader whose start took all of it has only begun to deliver."""
        self.result.windows = Windows()
        self.deadline, self.reserved_s = time.perf_counter() + LONG_WINDOW_S, 0.0
        self._window()

    def _num_asides(self) -> int:
        others = 0 if self.lead is None else self.lead.num_asides()
        return int(getattr(self.step, "num_asides", 0)) + others  # only a training script's step has it (script/script_step.py)

    def mark(self) -> Mark:
        """Return this rank's clock and counters."""
        return Mark(
            number=self.consumed,
            time_s=time.perf_counter(),
            items=self.items,
            wait_s=self.wait_s,
            made=self._ready() + self._discarded,
            made_ahead=self._ready_ahead(),
            is_waiting=self._is_waiting(),
            num_asides=int(getattr(self.step, "num_asides", 0)),
        )

    def train_next(self) -> None:
        """Train the next batch: what a rank other than rank 0 does whenever rank 0 allows it."""
        self._train(self._next())

    def catch_up(self) -> None:
        """Train the batches that rank 0 has already allowed the other ranks to train."""
        self._is_catching_up = True
        while self.lead is not None and self.lead.is_ahead():
            self._train(self._next())
        self._is_catching_up = False

    def _window(self) -> None:
        """Time one window: whole production cycles of at least LONG_WINDOW_S, or CYCLES_PER_WINDOW of them; less if time runs out.

        While the step waits for batches, the number of batches consumed in whole cycles equals the number produced. The count of
        finished batches is the same on average, but jumps when the workers finish together; so for two equal windows it would
        give rates that differ by one cycle's batches. Of the finished batches, only those beyond one cycle count then: while one worker is held
        up, the others finish some, and when it delivers at last, all of them can be consumed at once.
        """
        first = self.mark()
        begin, wait, items, consumed = first.time_s, first.wait_s, first.items, first.number
        until = self.deadline - self.reserved_s
        while True:
            self._train(self._next())
            now = time.perf_counter()
            elapsed, num = now - begin, self.consumed - consumed
            enough = elapsed >= MIN_WINDOW_S and (num >= CYCLES_PER_WINDOW * self.cycle or elapsed >= LONG_WINDOW_S)
            if (enough and num % self.cycle == 0) or now >= until:
                break
        synchronize(self.device)
        end, step_s = time.perf_counter(), self._timer.take_s()
        more = self._ready() + self._discarded - first.made
        if first.is_waiting and self._is_waiting() and (num % self.cycle == 0 or len(self._latest) > self.cycle):
            more = self._ready_ahead() - first.made_ahead
            if num % self.cycle:  # a part of a cycle gives no rate; if there is no other window, use the last whole cycle
                if len(self.result.windows):
                    return
                (begin, items, wait), num, more, step_s = self._latest[0], self.cycle, 0, None
                first = replace(first, number=self.consumed - num, time_s=begin, items=items, wait_s=wait, made_ahead=0)
        if self.lead is None:
            self.result.windows.add(
                duration_s=end - begin,
                num_batches=num,
                num_items=self.items - items,
                produced_batches=max(num + more, 0),
                wait_s=self.wait_s - wait,
                step_s=step_s,
            )
        else:
            self.result.windows.add_world(self.lead.window(first, self.mark(), self.cycle), step_s=step_s)
        self._after_window()

    def _after_window(self) -> None:
        """Update what is known from the windows so far."""
        self._look_at_shm()
        self.result.windows.expected_sd_fraction = self._expected_sd_fraction()
        if self.counts_epoch:
            items_per_loaded = self.items_per_batch() * self._per_loaded()
            self.result.epoch_samples = self.epoch.num_items(items_per_loaded, self.watch.samples_per_batch())
        self.result.effective_num_workers = self._num_effective()
        if self.num_boundaries:
            self.result.boundary_s, self.result.boundary_from = 0.0, "inside"  # the windows include the boundaries

    def finished(self) -> bool:
        """Return whether there are enough windows for a precise rate, or the time is over."""
        windows = self.result.windows
        until = self.deadline - self.reserved_s
        if len(windows) and time.perf_counter() + windows.window_duration_s[-1] / 2 > until:
            return True
        if self._few_agree(self.enough_fraction / LONG_AGREE) or self._samples_agree():
            return not self._is_changing()
        if len(windows) < MIN_WINDOWS or self._is_changing():
            return False
        counted_s = windows.window_duration_s[windows.lasting().first :]
        if len(counted_s) >= MAX_WINDOWS or sum(counted_s) >= ENOUGH_S:
            return True
        return self.has_rate() and windows.rate().half_width_fraction < self.enough_fraction

    def _few_agree(self, half_width_fraction: float) -> bool:
        """Whether there are fewer than MIN_WINDOWS windows, long ones, and half the width of their interval is below this fraction of the rate."""
        windows = self.result.windows
        if not MIN_LONG_WINDOWS <= len(windows) < MIN_WINDOWS or min(windows.window_duration_s) < LONG_WINDOW_S:
            return False
        return self.has_rate() and windows.rate().half_width_fraction < half_width_fraction

    def _samples_agree(self) -> bool:
        """Whether one or two windows are enough because of their samples. Two windows that agree are not, because they may agree by chance."""
        windows = self.result.windows
        if windows.expected_sd_fraction is None:
            return False
        of_samples = within_fraction(0.0, 1, windows.expected_sd_fraction) / math.sqrt(len(windows))
        return max(of_samples, windows.rate().half_width_fraction) < self.enough_fraction

    def _samples_since(self) -> LoadSums:
        """Return what loading has cost in the windows."""
        sums = self.watch.probe.sums()
        return sums if self._loaded is None else sums.minus(self._loaded)

    def _is_changing(self) -> bool:
        """Whether the rate still changes, or may soon (samples come for the second time), so that only the deadline ends the windows."""
        windows = self.result.windows
        is_first = in_first_epoch(windows.window_duration_s, windows.window_num_items, self.result.epoch_samples)
        return is_first or bool(windows.lasting().change_fraction)

    def has_rate(self) -> bool:
        """Return whether batches were produced inside the windows: a few slow batches may all have been ready before the windows began."""
        windows = self.result.windows
        return sum(windows.window_produced_batches) > 0 and sum(windows.window_num_items) > 0

    def no_rate(self) -> TrialFailed:
        """Return the failure of a trial that is over and has no rate."""
        num_batches = sum(self.result.windows.window_num_batches)
        if sum(self.result.windows.window_num_items) or not num_batches:
            message = f"after its start-up batches, the loader delivered no further batch within {self.max_s:g} s: raise --max-trial-s"
            return TrialFailed(Failure(kind="hang", phase="measure", message=message))
        when = "in any of" if not self.items else "in the last"
        message = (
            f"the step trained no items {when} {num_batches if self.items else self.consumed:,} batches: step(batch) returned 0, or the "
            "batches were None or empty. Check whether the dataset or collate_fn drops samples. step(batch) must return the number of "
            "items that it trained, or None; feedrate then counts samples (the first dimension of the first tensor in the batch)"
        )
        return TrialFailed(Failure(kind="user-code", phase="measure", message=message))

    def items_per_batch(self) -> float:
        """Return the mean number of items per batch in the windows."""
        windows = self.result.windows
        return sum(windows.window_num_items) / sum(windows.window_num_batches)

    def fill_loading(self) -> None:
        """Write the columns for what loading has cost in the windows; from the start if no batch was timed in them."""
        sums, inside = self.watch.probe.sums(), self._samples_since()
        num_ranks = 1 if self.lead is None else self.lead.world_size  # the items are those of all ranks, and the probe is in this one
        columns = (inside if inside.num_batches else sums).columns(self.items_per_batch() * self._per_loaded() / num_ranks)
        for name, value in columns.items():
            setattr(self.result, name, value)

    def batch_s(self) -> float:
        """Return the seconds per batch at the rate of the windows."""
        return self.items_per_batch() / self.result.windows.rate().sps

    def steady(self) -> bool:
        """Return whether enough whole windows count, and the rates of their two halves agree within 5 %."""
        windows, found = self.result.windows, self.result.windows.lasting()
        half = (found.first + len(windows)) // 2
        counted = windows.window_num_batches[found.first :]
        if min(counted, default=0) < self.cycle or found.change_fraction:
            return False
        if len(counted) < MIN_WINDOWS:
            return self._few_agree(FEW_STEADY_FRACTION) or self._samples_agree()
        rates = [
            sum(windows.window_num_items[part]) / sum(windows.window_duration_s[part])
            for part in (slice(found.first, half), slice(half, None))
        ]
        return rates[1] > 0 and abs(rates[0] / rates[1] - 1) < 0.05

    def measure_epochs(self, num_batches: int, budget_s: float, most_s: float) -> None:
        """Let epochs of `num_batches` end and begin, and time each from its first batch to the first batch of the next.

        The watch must be able to end the loader's epochs (`ends_when_told`). Measuring stops after MAX_EPOCHS epochs, when
        five or more agree, when `budget_s` is over and there are five, and after `most_s` in any case.
        """
        enough = time.perf_counter() + budget_s
        until = min(time.perf_counter() + most_s, self.deadline)
        durations_s: list[float] = []
        num_items: list[int] = []
        self.set_epoch_batches(num_batches)
        if not self._train_to_boundary(until):
            return
        while len(durations_s) < MAX_EPOCHS:
            begin, items = time.perf_counter(), self._all_items()
            if not self._train_to_boundary(until):
                break
            durations_s.append(time.perf_counter() - begin)
            num_items.append(self._all_items() - items)
            spread = max(durations_s) - min(durations_s)
            agree = spread < 0.03 * durations_s[-1]
            if len(durations_s) >= MIN_WINDOWS and (agree or time.perf_counter() > enough):
                break
        if durations_s:
            rate = self.result.windows.rate().sps
            self.result.epoch_duration_s, self.result.epoch_num_items = durations_s, num_items
            self.result.boundary_s = max(sum(durations_s) - sum(num_items) / rate, 0.0) / len(durations_s)
            self.result.boundary_from = "measured"

    def set_epoch_batches(self, num_batches: int) -> None:
        """Let later epochs have this many batches, on every rank, and end the current one with the batches in flight."""
        if self.lead is not None:
            self.catch_up()
            self.lead.set_epoch_batches(num_batches)
        self.watch.set_epoch_batches(num_batches)

    def _all_items(self) -> int:
        """Return how many items were trained by now, summed over all ranks."""
        return self.items + (0 if self.lead is None else self.lead.items(self.consumed))

    def _train_to_boundary(self, until: float) -> bool:
        """Train up to and including the first batch of the next epoch; return False if time runs out before."""
        boundaries = self.num_boundaries
        while self.num_boundaries == boundaries:
            if time.perf_counter() > until:
                return False
            self._train(self._next())
        synchronize(self.device)
        return True

    def _train_until(self, until: float, num_batches: int, least_s: float) -> None:
        begin, consumed = time.perf_counter(), self.consumed
        while time.perf_counter() < until and (
            self.consumed - consumed < num_batches or time.perf_counter() - begin < least_s
        ):
            self._train(self._next())

    def _iterate(self) -> Any:
        try:
            return iter(self.loader)
        except Exception as error:
            raise explain(error, self.loader, [], self.phase) from error

    def _next(self) -> Any:
        if self.lead is not None:
            self.lead.next()
        begin, ready = time.perf_counter(), self._ready()
        if not ready:
            self._empty_at = self.consumed
        try:
            batch = next(self.iterator, _END)
            if batch is _END:
                self.num_boundaries += 1
                num_iterators = self.watch.num_iterators
                self.iterator = self._iterate()
                if self.watch.num_iterators > num_iterators and not self.watch.ends_when_told:
                    self._discarded += ready
                batch = next(self.iterator, _END)
        except TrialFailed:
            raise
        except Exception as error:
            waited_for = self.watch.waited_for(getattr(self.loader, "in_order", True))
            failed = explain(error, self.loader, waited_for, self.phase)
            if self._kept is not None:
                failed = TrialFailed(self._kept.explain(failed.failure, self.consumed), failed.doubt)
            raise failed from error
        if batch is _END:
            raise no_batch(self.consumed)
        self.wait_s += time.perf_counter() - begin
        self.watch.took()
        return batch

    def _train(self, batch: Any) -> None:
        if self.lead is not None and not self._is_catching_up:
            self.lead.ahead()
        begun = self._timer.begin()
        returned = self.step(batch)
        self._timer.end(begun)
        self.items += count_items(batch, returned)
        if returned is not None and not is_count(returned):
            self.result.step_returned = type(returned).__name__
        self.consumed += 1
        self._latest.append((time.perf_counter(), self.items, self.wait_s))

    def _ready(self) -> int:
        """Return the number of batches that are finished but not consumed; 0 if that cannot be seen."""
        return round(self.watch.ready() * self._per_loaded()) if self.loader.num_workers else 0

    def _per_loaded(self) -> float:
        """Return how many batches the step gets per loaded batch: a loader's own `__iter__` may repeat or split batches."""
        taken = None if self.watch.ends_when_told else self.watch.num_taken()
        return max(self.consumed / taken, 1.0) if taken else 1.0

    def _check_who_loads(self) -> None:
        """Refuse a loader that takes its batches from another DataLoader with a different number of workers.

        Raises:
            TrialFailed: kind override-ignored, because the requested setting would not be measured.
        """
        asked, read = self.loader.num_workers, self.watch.reads_num_workers
        if read and asked not in read:
            message = (
                f"make_loader did not apply num_workers={asked}: the loader it returned reports that value, but takes its batches from "
                f"another DataLoader, which has num_workers={min(read)}. Pass num_workers to that one"
            )
            raise TrialFailed(Failure(kind="override-ignored", phase="loader", message=message))

    def _expected_sd_fraction(self) -> float | None:
        """Return how much the rates of one or two windows are expected to differ because samples take different times; None if that is not known.

        It is known without workers, if nearly all of the time goes into loading, items are samples, and the first batch took as long as the others.
        """
        windows = self.result.windows
        if self.loader.num_workers or self.lead is not None or self.result.unit != "samples" or not self.has_rate():
            return None
        per_batch = self.watch.samples_per_batch()
        if not per_batch or len(windows) >= MIN_LONG_WINDOWS or min(windows.window_duration_s) < SAMPLED_WINDOW_S:
            return None
        loaded, num_batches = self._samples_since(), sum(windows.window_num_batches)
        batch_s = sum(windows.window_duration_s) / num_batches
        is_even = abs(self.result.first_batch_s / batch_s - 1) < CHANGE_FRACTION
        is_loading = loaded.num_batches > 0 and loaded.wall_s / loaded.num_batches > MOSTLY_FRACTION * batch_s
        is_sample = abs(self.items_per_batch() / per_batch - 1) < CHANGE_FRACTION
        spread = loaded.sample_sd_fraction()
        if spread is None or loaded.num_samples < SAMPLES_ENOUGH or not (is_even and is_loading and is_sample):
            return None
        return spread / math.sqrt(num_batches / len(windows) * per_batch)

    def _num_effective(self) -> int | None:
        """Return how many workers deliver something in one of the user's epochs: no more than the epoch has batches."""
        num, epoch_samples = self.watch.delivering.num, self.result.epoch_samples
        if num is None or not epoch_samples or not self.items_per_batch():
            return num
        return min(num, math.ceil(epoch_samples / (self.items_per_batch() * self._per_loaded()) - 1e-9))

    def _is_waiting(self) -> bool:
        """Whether the queue was empty within the last production cycle: the step waits for batches."""
        return self.consumed - self._empty_at <= self.cycle

    def _ready_ahead(self) -> int:
        """Return how many of the ready batches belong to later production cycles; meaningful only if `_is_waiting`."""
        return max(self._ready() - round(self.cycle * self._per_loaded()), 0)

    def _look_at_shm(self) -> None:
        now = shm_used_bytes()
        if now is not None and self._shm_before is not None:
            self.result.shm_bytes = max(self.result.shm_bytes or 0, now - self._shm_before)
