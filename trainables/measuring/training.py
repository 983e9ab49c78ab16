"""`Training`: the loop between two batches, where the clock, the counter and the windows are kept in step."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from torch.utils.data import DataLoader

from feedrate.analysis.trend import in_first_epoch
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.loader.build_loader import no_batch
from feedrate.trainables.loader.epoch_size import EpochSize
from feedrate.trainables.loader.loader_watch import LoaderWatch
from feedrate.trainables.machine.accelerator import StepTimer, synchronize
from feedrate.trainables.machine.process import shm_used_bytes
from feedrate.trainables.measurement import Measurement
from feedrate.trainables.measuring.kept_batches import KeptBatches
from feedrate.trainables.measuring.rerun import explain
from feedrate.trainables.step import Step, count_items, is_count

CYCLES_PER_WINDOW = 4
"""Production is periodic in num_workers batches. Windows are whole periods: 4 of them, fewer (with a spread that is up to
a fifth too wide, MEASURING.md 2.3) where they take long."""
MIN_WINDOW_S = 0.35
LONG_WINDOW_S = 1.0
MIN_WINDOWS = 5
MAX_WINDOWS = 13
ENOUGH_S = 6.0
"""Wall time of windows after which MIN_WINDOWS of them are enough, sure or not."""
ENOUGH_FRACTION = 0.015
"""A half-width of the windows' interval below this ends a measurement: the run-to-run spread is larger."""
MAX_EPOCHS = 40
_END = object()


class Training:
    """One setting's training under way.

    Args:
        loader: not iterated yet.
        watch: of this loader.
        step: one training step.
        device: where the step runs.
        result: filled as things are observed.
        max_s: wall time for everything from iter(loader) on.
        epoch: how much an epoch is, from which `result.epoch_samples` follows with the first window; None leaves it as it is.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        watch: LoaderWatch,
        step: Step,
        device: torch.device,
        result: Measurement,
        max_s: float,
        epoch: EpochSize | None = None,
    ) -> None:
        self.loader, self.watch, self.step = loader, watch, step
        self.device, self.result, self.max_s, self.epoch = device, result, max_s, epoch
        self.cycle = max(loader.num_workers, 1)
        self.consumed = self.items = 0
        self.wait_s = 0.0
        self.num_boundaries = 0
        self.deadline = 0.0
        self.reserved_s = 0.0
        """Time before the deadline that windows leave for epoch boundaries."""
        self.phase = "loader"
        self._discarded = 0
        """Batches that were ready when their iterator ended before its time, and were never trained."""
        self._empty_at = 0
        """What had been consumed when the queue of ready batches was last seen empty."""
        self._latest: deque[tuple[float, int, float]] = deque(maxlen=self.cycle + 1)
        """When the latest batches had been trained, with items and waiting until then."""
        self._shm_before = shm_used_bytes()
        self._kept: KeptBatches | None = None
        self._timer = StepTimer(device)

    def start(self) -> None:
        """iter(loader) and the first batch."""
        begin = time.perf_counter()
        self.deadline = begin + self.max_s
        try:
            self.iterator = self._iterate()
            self.result.iter_s = time.perf_counter() - begin
            begin = time.perf_counter()
            batch = self._next()
        finally:
            self.phase = "measure"
        self.result.first_batch_s = time.perf_counter() - begin
        # start-up again; without workers the first batch is loading, not starting
        self.result.boundary_s = self.result.iter_s + (self.result.first_batch_s if self.loader.num_workers else 0.0)
        self.result.boundary_from = "estimated"
        if self.loader.num_workers:
            self._kept = KeptBatches(self.loader, batch)
        self._check_who_loads()
        self._train(batch)

    def settle(self) -> None:
        """Discard two production cycles (one where it takes long) and a little time, and go on while the queue still fills.

        Workers that started together must drift apart first; and workers that fill the queue of ready batches take CPU time
        that they leave to the training step once it is full. A loader with an `__iter__` of its own may hold batches ready where
        nobody sees them, and those that its workers made before the clock started: as many as can be in flight are trained first.
        """
        begin = time.perf_counter()
        until = min(begin + self.max_s / 4, self.deadline)
        is_slow = self.result.first_batch_s >= LONG_WINDOW_S
        if self.loader.num_workers:
            in_flight = self.loader.num_workers * (self.loader.prefetch_factor or 2)
            hidden = 0 if self.watch.ends_when_told else round(in_flight * self._per_loaded())
            self._train_until(until, hidden + (1 if is_slow else 2) * self.cycle, MIN_WINDOW_S)
        elif not is_slow:  # no queue, nobody to drift apart: only what a first batch costs
            self._train_until(until, 1, MIN_WINDOW_S)
        while not self._is_waiting() and time.perf_counter() < until:
            ready = self._ready()
            self._train_until(until, self.cycle, MIN_WINDOW_S / 2)
            if self._ready() - ready <= max(1, self.cycle // 4):
                break
        synchronize(self.device)
        self._timer.take_s()
        self.result.settle_s = time.perf_counter() - begin

    def window(self) -> None:
        """One window: whole production cycles of LONG_WINDOW_S, or enough of them; cut where time runs out.

        While the step waits for batches, what it consumed in whole cycles is what was produced. The count of finished batches says
        the same on average, but jumps by rounds of the workers: of two windows alike it makes rates that differ by a cycle's batches.
        """
        begin, wait, items, consumed = time.perf_counter(), self.wait_s, self.items, self.consumed
        made, is_waiting = self._ready() + self._discarded, self._is_waiting()
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
        more = self._ready() + self._discarded - made
        if is_waiting and self._is_waiting() and (num % self.cycle == 0 or len(self._latest) > self.cycle):
            more = 0
            if num % self.cycle:  # a part of a cycle says nothing: the last whole one does, where there is no other window
                if len(self.result.windows):
                    return
                (begin, items, wait), num, step_s = self._latest[0], self.cycle, None
        self.result.windows.add(
            duration_s=end - begin,
            num_batches=num,
            num_items=self.items - items,
            produced_batches=max(num + more, 0),
            wait_s=self.wait_s - wait,
            step_s=step_s,
        )
        self._look_at_shm()
        if self.epoch is not None:
            items_per_loaded = self.items_per_batch() * self._per_loaded()
            self.result.epoch_samples = self.epoch.num_items(items_per_loaded, self.watch.samples_per_batch())
        if self.num_boundaries:
            self.result.boundary_s, self.result.boundary_from = 0.0, "inside"  # paid for in the windows

    def finished(self) -> bool:
        """Enough windows, sure enough, or out of time."""
        windows = self.result.windows
        until = self.deadline - self.reserved_s
        if len(windows) and time.perf_counter() + windows.window_duration_s[-1] / 2 > until:
            return True
        if len(windows) < MIN_WINDOWS or self._is_changing():
            return False
        counted_s = windows.window_duration_s[windows.lasting().first :]
        if len(counted_s) >= MAX_WINDOWS or sum(counted_s) >= ENOUGH_S:
            return True
        return self.has_rate() and windows.rate().half_width_fraction < ENOUGH_FRACTION

    def _is_changing(self) -> bool:
        """Whether the rate still changes, or may soon because samples come for the second time: then only time ends the windows."""
        windows = self.result.windows
        is_first = in_first_epoch(windows.window_duration_s, windows.window_num_items, self.result.epoch_samples)
        return is_first or bool(windows.lasting().change_fraction)

    def has_rate(self) -> bool:
        """Something was produced inside the windows, as a few slow batches can all have been ready before, and trained."""
        windows = self.result.windows
        return sum(windows.window_produced_batches) > 0 and sum(windows.window_num_items) > 0

    def no_rate(self) -> TrialFailed:
        """The failure of a trial that is over and has no rate."""
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
        """Mean over the windows."""
        windows = self.result.windows
        return sum(windows.window_num_items) / sum(windows.window_num_batches)

    def batch_s(self) -> float:
        """Seconds a batch takes at the rate of the windows."""
        return self.items_per_batch() / self.result.windows.rate().sps

    def steady(self) -> bool:
        """Enough whole windows that count, and the two halves of them agree within 5 %."""
        windows, found = self.result.windows, self.result.windows.lasting()
        half = (found.first + len(windows)) // 2
        counted = windows.window_num_batches[found.first :]
        if len(counted) < MIN_WINDOWS or min(counted) < self.cycle or found.change_fraction:
            return False
        rates = [
            sum(windows.window_num_items[part]) / sum(windows.window_duration_s[part])
            for part in (slice(found.first, half), slice(half, None))
        ]
        return rates[1] > 0 and abs(rates[0] / rates[1] - 1) < 0.05

    def measure_epochs(self, num_batches: int, budget_s: float, most_s: float) -> None:
        """Let epochs of `num_batches` end and begin, and time each from its first batch to the next one's.

        The loader must end its epochs when told. Stops after MAX_EPOCHS of them, or when five of them agree; after the budget
        where there are five, and after `most_s` in any case.
        """
        enough = time.perf_counter() + budget_s
        until = min(time.perf_counter() + most_s, self.deadline)
        durations_s: list[float] = []
        num_items: list[int] = []
        self.watch.set_epoch_batches(num_batches)
        if not self._train_to_boundary(until):
            return
        while len(durations_s) < MAX_EPOCHS:
            begin, items = time.perf_counter(), self.items
            if not self._train_to_boundary(until):
                break
            durations_s.append(time.perf_counter() - begin)
            num_items.append(self.items - items)
            spread = max(durations_s) - min(durations_s)
            agree = spread < 0.03 * durations_s[-1]
            if len(durations_s) >= MIN_WINDOWS and (agree or time.perf_counter() > enough):
                break
        if durations_s:
            rate = self.result.windows.rate().sps
            self.result.epoch_duration_s, self.result.epoch_num_items = durations_s, num_items
            self.result.boundary_s = max(sum(durations_s) - sum(num_items) / rate, 0.0) / len(durations_s)
            self.result.boundary_from = "measured"

    def _train_to_boundary(self, until: float) -> bool:
        """Train to the first batch of the next epoch, that one too; False when time runs out before."""
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
        return batch

    def _train(self, batch: Any) -> None:
        begun = self._timer.begin()
        returned = self.step(batch)
        self._timer.end(begun)
        self.items += count_items(batch, returned)
        if returned is not None and not is_count(returned):
            self.result.step_returned = type(returned).__name__
        self.consumed += 1
        self._latest.append((time.perf_counter(), self.items, self.wait_s))

    def _ready(self) -> int:
        """Batches finished but not consumed; 0 where that cannot be seen."""
        return round(self.watch.ready() * self._per_loaded()) if self.loader.num_workers else 0

    def _per_loaded(self) -> float:
        """Batches that the step gets of each one that is loaded: a loader's own `__iter__` may repeat or divide them."""
        taken = None if self.watch.ends_when_told else self.watch.num_taken()
        return max(self.consumed / taken, 1.0) if taken else 1.0

    def _check_who_loads(self) -> None:
        """Refuse a loader that reads another one with other settings: what was asked for is not what is measured.

        Raises:
            TrialFailed: kind override-ignored.
        """
        asked, read = self.loader.num_workers, self.watch.reads_num_workers
        if read and asked not in read:
            message = (
                f"make_loader did not apply num_workers={asked}: the loader it returned reports that value, but takes its batches from "
                f"another DataLoader, which has num_workers={min(read)}. Pass num_workers to that one"
            )
            raise TrialFailed(Failure(kind="override-ignored", phase="loader", message=message))

    def _is_waiting(self) -> bool:
        """Whether the queue was empty within the last production cycle: what is ready now is of this round of the workers."""
        return self.consumed - self._empty_at <= self.cycle

    def _look_at_shm(self) -> None:
        now = shm_used_bytes()
        if now is not None and self._shm_before is not None:
            self.result.shm_bytes = max(self.result.shm_bytes or 0, now - self._shm_before)
