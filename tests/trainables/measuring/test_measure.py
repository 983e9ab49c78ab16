"""measure.py: real training with real loader workers; rates are compared with sleeps, with a wide margin."""

import dataclasses
import itertools
import subprocess
import sys
import time

import psutil
import pytest
import torch
from census import OURS, eventually
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from workloads import LenOpens, Reusing, Rows, Stream, general, mine, short

from feedrate import trainables
from feedrate.analysis.estimate import record_rate, step_only_sps
from feedrate.analysis.schema import COLUMNS
from feedrate.search.space.idle_workers import IdleWorkers
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import TrialFailed, classify
from feedrate.trainables.loader.delivering_workers import DeliveringWorkers
from feedrate.trainables.loader.load_probe import LoadProbe
from feedrate.trainables.machine.process import tree_memory
from feedrate.trainables.measurement import Measurement, Windows
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.measuring.training import MIN_WINDOWS, Training

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*use of fork:DeprecationWarning")
WINDOW_LISTS = [each.name for each in dataclasses.fields(Windows) if each.name.startswith("window_") and each.name != "window_step_s"]
GPU = {"gpu_peak_bytes", "gpu_free_bytes", "window_step_s", "copy_only_num_items", "copy_only_duration_s"}
NOT_HERE = GPU | {"ranks", "expected_sd_fraction", "cold_refused", "cached_batch_failure", "step_returned", "num_shards", "between_epochs_s", "between_epochs_parts_s", "between_epochs_failure"}
KERNEL = {"throttled_fraction", "psi_cpu_fraction", "psi_io_fraction", "psi_memory_fraction"}
"""What some kernels and containers do not tell."""


def run(workload, setting, phases=None, **options):
    """The last measurement."""
    options = MeasureOptions(**{"max_trial_s": 2.0, "measure_step": False} | options)
    *_, last = measure(workload, setting, options, (phases if phases is not None else []).append)
    return last


def children():
    return set(psutil.Process().children())


class OneShard(torch.utils.data.IterableDataset):
    """Only the first worker has data, as in a stream with one shard."""

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        while info is None or info.id == 0:
            time.sleep(0.001)
            yield torch.zeros(4), 0


def test_workers_without_data_are_counted():
    result = run(short(OneShard()), LoaderConfig(batch_size=4, num_workers=3))
    assert result.effective_num_workers == 1
    assert IdleWorkers.of(result.columns() | {"num_workers": 3}).remark().startswith("3 workers were asked for, 1 worked (the others got no data)")


def test_workers_beyond_the_batches_of_an_epoch_are_not_counted():
    """The measurement goes on beyond the end of an epoch, and keeps them busy; in the user's epochs they would be idle."""
    batches = [[0, 1], [2, 3]]
    workload = general(lambda **overrides: DataLoader(Rows(4), batch_sampler=batches, **overrides), lambda batch: None)
    result = run(workload, LoaderConfig(batch_size=None, num_workers=3))
    assert result.effective_num_workers == 2
    assert "(an epoch has 2 batches)" in IdleWorkers.of(result.columns() | {"num_workers": 3}).remark()


@pytest.mark.parametrize("order", [{}, {"sampler": list(range(64))}], ids=["torch's sequential order", "a list of indices"])
def test_the_length_is_not_asked_for_before_workers_are_forked(order):
    """They would share the file that `__len__` opens; torch asks for it later, or never."""
    loader = lambda **overrides: DataLoader(LenOpens(), **order, **overrides)  # noqa: E731
    result = run(general(loader, lambda batch: None), LoaderConfig(batch_size=4, num_workers=2, persistent_workers=True))
    assert result.epoch_samples == 64
    assert sum(result.windows.window_num_items) > 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_measurement_is_complete(num_workers):
    """Every observation of a trial on this machine is there, and they fit together."""
    phases = []
    setting = LoaderConfig(batch_size=4, num_workers=num_workers)
    begin = time.perf_counter()
    result = run(short(Rows(50, 0.001)), setting, phases, max_trial_s=6, measure_step=True)
    wall_s = time.perf_counter() - begin
    assert phases == ["setup", "warm", "loader", "measure", "teardown"]
    columns = result.columns()
    assert columns.keys() <= {column.name for column in COLUMNS}
    expected = NOT_HERE | (set() if num_workers else {"start_method", "effective_num_workers", "handover_cpu_item_s"})
    if result.boundary_from == "estimated":  # it costs next to nothing without workers, or there was no time for it
        expected |= {"epoch_duration_s", "epoch_num_items"}
    assert {name for name, value in columns.items() if value is None} - KERNEL == expected
    assert len({len(columns[name]) for name in WINDOW_LISTS}) == 1
    count = len(result.windows)
    assert count >= 1
    assert columns["window_num_items"] == [4 * batches for batches in columns["window_num_batches"]]
    if num_workers:
        in_flight = num_workers * setting.prefetch_factor + 1
        assert 0 < sum(columns["window_produced_batches"]) <= sum(columns["window_num_batches"]) + in_flight
    else:
        assert columns["window_produced_batches"] == columns["window_num_batches"]
    for wait_s, duration_s in zip(columns["window_wait_s"], columns["window_duration_s"], strict=True):
        assert 0 <= wait_s <= duration_s
    timed = result.iter_s + result.first_batch_s + result.settle_s + sum(columns["window_duration_s"])
    assert result.setup_s + timed < wall_s
    assert result.epoch_samples == 50
    assert result.tree_pss_bytes >= result.tree_uss_bytes > 10e6
    assert 0 <= result.foreign_cpu_fraction <= 1
    assert 0 <= result.own_cpu_fraction <= 1
    assert result.boundary_s >= 0
    assert result.loss_is_finite is True
    assert 0 < result.first_step_s < result.setup_s
    assert step_only_sps(columns) > 0
    assert result.load_item_s >= max(0.001, result.load_cpu_item_s, result.collate_item_s)  # each sample sleeps for 1 ms
    assert 0.001 * 0.9 <= result.sample_p50_s <= result.sample_max_s
    rate = result.throughput()
    assert 0 <= rate.low_sps <= rate.sps <= rate.high_sps
    assert rate.sps == pytest.approx(record_rate(columns).sps)


def test_a_measurement_grows():
    """One and the same measurement is yielded from the fifth window on, longer each time, until it is sure."""
    sizes, same = [], set()
    for measurement in measure(
        short(Rows(sleep_s=0.001)), LoaderConfig(batch_size=4, num_workers=2), MeasureOptions(max_trial_s=8)
    ):
        sizes.append(len(measurement.windows))
        same.add(id(measurement))
    assert len(same) == 1
    assert sizes[:-1] == list(range(MIN_WINDOWS, sizes[-1] + 1))
    assert sizes[-1] == sizes[-2]  # the last one adds what is known at the end: memory
    assert measurement.tree_pss_bytes is not None


@pytest.mark.parametrize("persistent", [False, True])
def test_closing_early_ends_the_workers(persistent):
    """Whoever has seen enough closes the generator, and no loader worker is left."""
    setting = LoaderConfig(batch_size=4, num_workers=2, persistent_workers=persistent)
    before = children()
    measurements = measure(short(Rows(sleep_s=0.001)), setting, MeasureOptions(measure_step=False))
    next(measurements)
    assert len(children() - before) == 2
    measurements.close()
    assert eventually(lambda: not children() - before)


SAMPLED, BATCHED = {"sampler": [1, 2, 3, 4, 5]}, {"batch_sampler": [[0, 1, 2], [3], [4, 5]]}


@pytest.mark.parametrize(
    ("dataset", "setting", "fixed", "epoch", "boundary_from"),
    [
        (Rows(3), LoaderConfig(batch_size=4, num_workers=2), {}, 3, "measured"),
        pytest.param(Rows(3), LoaderConfig(batch_size=4, num_workers=1), {"drop_last": True}, 3, "measured", marks=pytest.mark.slow),
        (Rows(64), LoaderConfig(batch_size=2, num_workers=2), SAMPLED, 5, "measured"),
        (Rows(64), LoaderConfig(batch_size=2, num_workers=2, persistent_workers=True), SAMPLED, 5, "measured"),
        pytest.param(Rows(64), LoaderConfig(batch_size=None, num_workers=1), BATCHED, 6, "measured", marks=pytest.mark.slow),
        (Stream(7), LoaderConfig(batch_size=4, num_workers=2), {}, None, "inside"),
        (Stream(200), LoaderConfig(batch_size=4, num_workers=0), {}, None, "inside"),
    ],
    ids=["few-rows", "fewer-than-a-batch", "sampler", "persistent", "batch_sampler", "stream", "stream-0"],
)
def test_short_epochs_are_measured(dataset, setting, fixed, epoch, boundary_from):
    """Epochs of a few batches follow one another; boundaries that the windows contain are not paid for twice."""
    # time for epochs on a busy machine too; it is not used up on a quiet one
    result = run(short(dataset, loader_kwargs=fixed), setting, max_trial_s=10)
    assert sum(result.windows.window_num_batches) > 3
    assert (result.epoch_samples, result.boundary_from) == (epoch, boundary_from)
    if boundary_from == "inside":
        assert result.boundary_s == 0
    else:
        assert result.epoch_duration_s
    assert result.throughput().sps > 0


@pytest.mark.slow
def test_short_epochs_are_timed_whole():
    """Of epochs that are over in no time, what counts is seen: whole epochs, whose workers start again and again.

    It takes up to 20 s: two trials, each with time for five starts of its workers on a busy machine too.
    """
    setting = LoaderConfig(batch_size=4, num_workers=2)
    kept = dataclasses.replace(setting, persistent_workers=True)
    workload = short(Rows(24, 0.001))
    for result in (run(workload, each, max_trial_s=12) for each in (setting, kept)):
        assert result.epoch_duration_s
        assert result.epoch_num_items == [24] * len(result.epoch_duration_s)
        assert record_rate(result.columns()).sps == pytest.approx(result.throughput("epoch").sps)


@pytest.mark.slow
def test_long_epochs_are_cut_short():
    """Of an epoch that takes longer than a trial only the boundary is measured, between two short ones.

    It takes up to 16 s: two trials, with time for the ends of epochs on a busy machine too.
    """
    workload = short(Rows(4000, 0.001))
    setting = LoaderConfig(batch_size=4, num_workers=2, multiprocessing_context="fork")
    result = run(workload, setting, max_trial_s=10)
    assert result.boundary_from == "measured"
    assert all(items < 100 for items in result.epoch_num_items)
    steady = result.throughput("steady").sps
    assert result.throughput().sps == pytest.approx(4000 / (4000 / steady + result.boundary_s))
    assert run(workload, setting, max_trial_s=6, objective="steady").boundary_from == "estimated"


def test_batches_of_different_sizes_are_counted_item_by_item():
    """Items are what was in the batches, not batch_size times their number."""
    workload = short(Rows(), loader_kwargs={"batch_sampler": [[0], [1, 2, 3]]})
    result = run(workload, LoaderConfig(batch_size=None), max_trial_s=2)
    items, batches = sum(result.windows.window_num_items), sum(result.windows.window_num_batches)
    assert abs(items - 2 * batches) <= len(result.windows)


def test_tokens_are_what_the_step_returns():
    """In the general form the unit is the step's own, trained or only loaded."""

    def step(batch):
        return 100 * len(batch[0])

    workload = general(lambda **overrides: DataLoader(Rows(), **overrides), step, unit="tokens")
    for loader_only in (False, True):
        result = run(workload, LoaderConfig(batch_size=4), max_trial_s=0.6, loader_only=loader_only)
        assert result.unit == "tokens"
        assert sum(result.windows.window_num_items) == 400 * sum(result.windows.window_num_batches)


def test_nothing_is_trained_when_only_the_loader_is_measured():
    """`loader_only` loads and copies: the step does not run, and has no rate."""
    trained = []
    workload = general(lambda **overrides: DataLoader(Rows(), **overrides), trained.append)
    result = run(workload, LoaderConfig(batch_size=4), max_trial_s=0.6, loader_only=True, measure_step=True)
    assert len(trained) == 1  # asks the step once how it counts
    assert result.step_only_duration_s is None
    assert sum(result.windows.window_num_batches) > 0


def test_the_general_form_is_measured_with_and_without_workers():
    """A loader with defaults of its own is measured in every setting."""
    for setting in (LoaderConfig(batch_size=4), LoaderConfig(batch_size=8, num_workers=2, persistent_workers=True)):
        assert run(mine(persistent=True), setting, max_trial_s=0.8).epoch_samples == 64


class Ready(DataLoader):
    """Starts its workers in its constructor and keeps them, as loaders in well-known projects do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.kept = super().__iter__()

    def __iter__(self):
        for _ in range(len(self)):
            try:
                yield next(self.kept)
            except StopIteration:
                self.kept = super().__iter__()
                yield next(self.kept)


def test_a_loader_that_starts_its_workers_itself_is_measured():
    """What its workers made before the clock started, as many batches as can be in flight, is trained before the windows."""
    trained = []
    workload = general(lambda **overrides: Ready(Rows(4000), **overrides), lambda batch: trained.append(time.sleep(0.03)))
    setting = LoaderConfig(batch_size=4, num_workers=2, prefetch_factor=8)
    result = run(workload, setting, max_trial_s=8)
    warming = 3
    assert len(trained) - warming - sum(result.windows.window_num_batches) >= 2 * 8
    assert result.epoch_samples == 4000


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_that_counts_its_own_epochs_is_measured(num_workers):
    """An endless batch sampler of its own, and an iterator for ever: its boundaries are inside the windows."""
    workload = general(lambda **overrides: Reusing(Rows(8), **overrides), lambda batch: None)
    result = run(workload, LoaderConfig(batch_size=2, num_workers=num_workers), max_trial_s=1.2)
    assert (result.boundary_from, result.epoch_samples) == ("inside", 8)
    assert sum(result.windows.window_num_batches) > 8


def test_a_loader_whose_start_takes_all_of_the_time_is_still_measured(monkeypatch):
    """On a machine that is busy. Its first batches are ready when the time is over, and say nothing of how fast it delivers."""
    monkeypatch.setattr(Training, "drift", lambda self: time.sleep(self.deadline - time.perf_counter()))
    result = run(general(lambda **overrides: DataLoader(Rows(4000, 0.005), **overrides), lambda batch: None), LoaderConfig(batch_size=4, num_workers=2), max_trial_s=0.6)
    assert sum(result.windows.window_produced_batches) > 10
    assert 100 < record_rate(result.columns()).sps < 500  # two workers load an item in 5 ms each


class Around(DataLoader):
    """Reads a loader that it holds, each batch four times."""

    def __init__(self, inner, **overrides):
        self.inner = inner
        super().__init__(inner.dataset, **overrides)

    def __iter__(self):
        for batch in self.inner:
            for _ in range(4):
                yield batch


def test_a_loader_that_repeats_its_batches_is_measured():
    """Items are what the step trains, of an epoch too; what is ready counts as often as it will be trained."""

    def make_loader(**overrides):
        return Around(DataLoader(Rows(40), **overrides), **overrides)

    result = run(general(make_loader, lambda batch: None), LoaderConfig(batch_size=2, num_workers=2), max_trial_s=1.2)
    assert result.epoch_samples == pytest.approx(160, rel=0.1)
    assert sum(result.windows.window_num_items) == 2 * sum(result.windows.window_num_batches)


def test_a_loader_that_reads_another_one_as_it_was_is_refused():
    """What was asked for shows on the outer loader alone."""

    def make_loader(**overrides):
        return Around(DataLoader(Rows(40), batch_size=2), **overrides)

    with pytest.raises(TrialFailed, match=r"did not apply num_workers=2: the loader it returned reports that value, .* another .* num_workers=0"):
        run(general(make_loader, lambda batch: None), LoaderConfig(batch_size=2, num_workers=2))


def test_an_iterator_that_ends_in_the_step_is_told_so():
    """Not that some generator raised StopIteration."""
    other = iter(range(5))
    workload = general(lambda **overrides: DataLoader(Rows(), **overrides), lambda batch: next(other) * 0 + 4)
    with pytest.raises(RuntimeError) as raised:
        run(workload, LoaderConfig(batch_size=2))
    failure = classify(raised.value, "measure")
    assert failure.kind == "user-code"
    assert failure.message.startswith("StopIteration: your code called next() on an iterator that has no more items")
    assert OURS not in failure.traceback


class Itself(DataLoader):
    """Is its own iterator, and never begins again."""

    def __iter__(self):
        self.kept = getattr(self, "kept", None) or super().__iter__()
        return self

    def __next__(self):
        return next(self.kept)


def test_a_loader_that_does_not_begin_again_is_told_so():
    """Rates where its one epoch lasts; else one sentence."""
    workload = general(lambda **overrides: Itself(Rows(8), **overrides), lambda batch: None)
    with pytest.raises(TrialFailed, match="delivered 4 batches and then empty epochs: every iter") as raised:
        run(workload, LoaderConfig(batch_size=2))
    assert raised.value.failure.kind == "user-code"


def test_a_loader_that_never_ends_is_measured():
    """Nobody knows its epoch."""

    class Endless(DataLoader):
        def __iter__(self):
            while True:
                yield from super().__iter__()

        def __len__(self):
            raise TypeError("endless")

    workload = general(lambda **overrides: Endless(Rows(8), **overrides), lambda batch: None)
    result = run(workload, LoaderConfig(batch_size=2, num_workers=1), max_trial_s=1.2)
    assert result.throughput("steady").sps > 0


def test_what_cannot_be_asked_of_workers_that_run_is_refused():
    """CPUs of its own for the trainer, where the workers are started by make_loader: one sentence, no silent neglect."""
    workload = general(lambda **overrides: Ready(Rows(), **overrides), lambda batch: None)
    with pytest.raises(TrialFailed, match=r"make_loader of 'mine' starts the loader's workers itself.*leave out --trainer-cpus"):
        run(workload, LoaderConfig(batch_size=4, num_workers=1, sharing_strategy="file_system"))


def drop_some(samples):
    kept = [sample for sample in samples if int(sample[0][0]) % 3 == 0 and int(sample[0][0]) >= 8]
    return torch.utils.data.default_collate(kept) if kept else None


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_left_out_is_not_trained(num_workers, counts):
    """Of batches that lost samples, or all of them, what is left counts; an epoch has that many items."""

    def step(batch):
        return None if batch is not None or not counts else 0

    workload = general(lambda **overrides: DataLoader(Rows(96), collate_fn=drop_some, **overrides), step)
    result = run(workload, LoaderConfig(batch_size=8, num_workers=num_workers), max_trial_s=3, measure_step=True)
    assert sum(result.windows.window_num_items) < 4 * sum(result.windows.window_num_batches)
    assert 25 <= result.epoch_samples <= 35
    assert result.throughput().sps > 0


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_step_that_trains_nothing_is_told_so(num_workers):
    """Not an endless loop, not a division by zero: one sentence with the number of batches, within the trial's time."""
    workload = general(lambda **overrides: DataLoader(Rows(), **overrides), lambda batch: 0)
    setting = LoaderConfig(batch_size=4, num_workers=num_workers)
    with pytest.raises(TrialFailed, match=r"the step trained no items in any of [\d,]+ batches: step\(batch\) returned 0") as raised:
        run(workload, setting, max_trial_s=1.0, measure_step=True)
    assert (raised.value.failure.kind, raised.value.failure.phase) == ("user-code", "measure")


def test_a_step_that_counts_every_other_batch_has_a_rate():
    """Gradients accumulated over batches: items count where the step says so, in the step alone too."""
    calls = itertools.count()
    workload = general(lambda **overrides: DataLoader(Rows(), **overrides), lambda batch: 16 * (next(calls) % 4 == 3))
    result = run(workload, LoaderConfig(batch_size=4), max_trial_s=1.0, measure_step=True)
    assert result.throughput("steady").sps > 0
    assert step_only_sps(result.columns()) > 0


@pytest.mark.parametrize("loader_only", [False, True])
def test_a_loss_is_no_number_of_items(loader_only):
    """Samples count, and the measurement says what was returned."""
    workload = general(lambda **overrides: DataLoader(Rows(), **overrides), lambda batch: torch.tensor(0.7))
    result = run(workload, LoaderConfig(batch_size=4), max_trial_s=0.6, loader_only=loader_only)
    assert sum(result.windows.window_num_items) == 4 * sum(result.windows.window_num_batches)
    assert result.step_returned == (None if loader_only else "Tensor")


class Table(Rows):
    """Rows that are read many at a time."""

    def __getitem__(self, indices):
        return torch.as_tensor(indices).float()[:, None].expand(-1, 4), torch.zeros(len(indices), dtype=torch.long)


class Chunks(Rows):
    """An index is a chunk of 10 rows."""

    def __getitem__(self, index):
        return torch.full((10, 4), float(index)), torch.zeros(10, dtype=torch.long)


class Buckets:
    """Hands out lists of different lengths, and knows how many."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([[0, 1, 2], [3], [4, 5, 6], [7]])


@pytest.mark.parametrize(
    ("dataset", "fixed", "per_batch", "epoch"),
    [
        (Table(100), {"sampler": BatchSampler(RandomSampler(range(100)), 20, drop_last=False)}, 20, 100),
        (Table(8), {"sampler": Buckets()}, 2, 8),
        (Rows(64), {"batch_sampler": Buckets()}, 2, 8),
        (Chunks(6), {}, 10, 60),
    ],
    ids=["batch-sampler", "lists", "batch_sampler", "chunks"],
)
def test_items_come_from_batches(dataset, fixed, per_batch, epoch):
    """Without a batch size the length of a sampler is a number of batches, and the batches say what is in them."""
    workload = general(lambda **overrides: DataLoader(dataset, **({"batch_size": None} if "batch_sampler" not in fixed else {}) | fixed | overrides), lambda batch: None)
    result = run(workload, LoaderConfig(batch_size=None), max_trial_s=2)
    items, batches = sum(result.windows.window_num_items), sum(result.windows.window_num_batches)
    assert items / batches == pytest.approx(per_batch, rel=0.05)
    assert result.epoch_samples == pytest.approx(epoch, rel=0.05)


def test_a_slow_step_is_the_rate():
    """Where the step is slower than the loader the queue is full, and the rate is the step's: 4 items in 20 ms at most."""
    workload = general(lambda **overrides: DataLoader(Rows(4000), **overrides), lambda batch: time.sleep(0.02))
    result = run(workload, LoaderConfig(batch_size=4, num_workers=2), max_trial_s=3, measure_step=True)
    assert 0 < result.throughput("steady").sps <= 200
    assert 0 < step_only_sps(result.columns()) <= 200


class Rounds:
    """A loader whose four workers finish their batches at about the same time: the count of finished ones jumps as it is read."""

    num_workers, prefetch_factor, in_flight = 4, 2, itertools.cycle([0, 3, 1, 2, 0, 1, 3])
    ends_when_told, num_iterators, reads_num_workers, delivering, dataset = True, 0, (), DeliveringWorkers(), ()
    probe = LoadProbe()

    def __iter__(self):
        while True:
            time.sleep(0.001)
            yield torch.zeros(4, 2)

    def ready(self):
        return next(self.in_flight) if self.training.consumed % 4 else 0

    def took(self):
        pass


def test_a_step_that_waits_consumes_what_is_produced():
    """The queue is empty once in every round of the workers: what is consumed in whole rounds is the rate, whatever the count says."""
    loader, result = Rounds(), Measurement()
    training = loader.training = Training(loader, loader, lambda batch: None, torch.device("cpu"), result, 5.0, 0.015)
    training.start()
    training.settle()
    for _ in range(3):
        training.window()
    assert result.windows.window_produced_batches == result.windows.window_num_batches
    assert all(num % 4 == 0 for num in result.windows.window_num_batches)


class HeldUp(Rounds):
    """One worker delivers its batch late, and meanwhile the others have finished seven more."""

    late_at = None

    def ready(self):
        if self.late_at is None:
            return super().ready()
        return max(8 - (self.training.consumed - self.late_at), 0) if self.training.consumed > self.late_at else 0


def test_batches_that_were_ready_behind_a_late_one_are_not_produced_in_the_window():
    """In a window of one round and more they would double the rate: a trial of 0.7 thousand samples per second once had 1.2 thousand."""
    loader, result = HeldUp(), Measurement()
    training = loader.training = Training(loader, loader, lambda batch: None, torch.device("cpu"), result, 5.0, 0.015)
    training.start()
    training.settle()
    loader.late_at = training.consumed
    training.train_next()
    training.window()
    assert result.windows.window_produced_batches == [result.windows.window_num_batches[0] - 3]  # four of the seven belong to the next round of all workers


@pytest.mark.parametrize("num_ready", [0, 7])
def test_a_window_after_a_pause_begins_as_a_batch_is_delivered(num_ready):
    """Even if workers have filled the queue in the pause."""
    loader, result = HeldUp(), Measurement()
    training = loader.training = Training(loader, loader, lambda batch: None, torch.device("cpu"), result, 5.0, 0.015)
    training.start()
    training.train_next()
    assert training.consumed == 2
    loader.late_at = training.consumed + num_ready - 8
    training.after_pause()
    assert training.consumed == 2 + num_ready + 1


def test_a_step_that_is_the_limit_goes_on_at_once_after_a_pause():
    loader, result = Rounds(), Measurement()
    training = loader.training = Training(loader, loader, lambda batch: None, torch.device("cpu"), result, 5.0, 0.015)
    training.start()
    loader.ready = lambda: 8
    for _ in range(5):
        training.train_next()
    before = training.consumed
    training.after_pause()
    assert training.consumed == before


def test_reading_the_memory_of_many_workers_makes_no_window_shorter(monkeypatch):
    """Workers that started together deliver together, here every 0.6 s, and go on while it is read: the first window used to be 14 % too fast."""
    monkeypatch.setattr("feedrate.trainables.measuring.measure.tree_memory", lambda roots: time.sleep(0.55) or tree_memory(roots))
    result = run(short(Rows(4000, 0.15)), LoaderConfig(batch_size=4, num_workers=3), max_trial_s=7.0, objective="steady")
    first_sps = result.windows.window_num_items[0] / result.windows.window_duration_s[0]
    assert 0 < first_sps <= 1.4 * 3 / 0.15  # three rounds; without the time of the reading it would be 1.44 times as fast


def test_a_trial_that_ends_amid_a_round_of_its_workers_has_their_rate():
    """Rounds of 3 batches take 0.6 s, the trial ends in the third one: no part of a round is taken for a rate, nor for a hang."""
    result = run(short(Rows(4000, 0.15)), LoaderConfig(batch_size=4, num_workers=3), max_trial_s=1.7, objective="steady")
    assert result.windows.window_num_batches == [3] * len(result.windows)
    assert 0 < result.throughput("steady").sps <= 2 * 3 / 0.15  # a part of a round would give any multiple; on a busy host a round may follow a late one
    assert not result.settled


def test_a_burst_of_prefetched_batches_is_not_the_rate():
    """After a pause the ready batches drain at the step's speed; the estimate stays at what the workers' sleep allows."""
    steps = itertools.count()

    def step(batch):
        time.sleep(1.9 if next(steps) == 3 else 0.01)  # three steps warm it; then the queue of 80 batches fills

    workload = general(lambda **overrides: DataLoader(Rows(4000, 0.01), **overrides), step)
    setting = LoaderConfig(batch_size=4, num_workers=2, prefetch_factor=40)
    result = run(workload, setting, max_trial_s=3.8)
    loader_sps = 2 / 0.010  # two workers, one item at a time
    assert 0 < result.throughput("steady").sps <= 1.25 * loader_sps


def test_a_trial_ends_near_its_time():
    """Batches that take most of a trial's time end it with what there is, and it says that it did not settle."""
    workload = short(Rows(sleep_s=0.2))
    result = run(workload, LoaderConfig(batch_size=4), max_trial_s=2)
    assert not result.settled
    assert 1 <= len(result.windows) < MIN_WINDOWS
    assert 0 < result.throughput("steady").sps <= 5


def test_a_slow_loader_without_workers_is_known_from_its_samples():
    """A batch of 110 samples takes 3.3 s: one of them, beside the first, says how much samples differ, and so how well it knows the rate."""
    result = run(short(Rows(20_000, 0.03)), LoaderConfig(batch_size=110), max_trial_s=12, objective="steady", enough_fraction=0.05)
    assert (len(result.windows), result.settled) == (1, True)
    assert 0 < result.windows.expected_sd_fraction < 0.02
    assert record_rate(result.columns(), "steady").half_width_fraction < 0.06


def test_a_loader_without_batches_is_a_clear_failure():
    """A loader that delivers no batch at all, or none from the second epoch on, is a failure that says so; nothing loops for ever."""
    once = iter(range(8))
    loaders = {
        "no batch at all": lambda **overrides: DataLoader(Rows(3), drop_last=True, **overrides),
        "delivered .* batches and then empty epochs": lambda **overrides: DataLoader(Rows(), sampler=once, **overrides),
    }
    for said, make_loader in loaders.items():
        with pytest.raises(TrialFailed, match=said) as raised:
            run(general(make_loader, lambda batch: None), LoaderConfig(batch_size=4))
        assert raised.value.failure.kind == "user-code"
    with pytest.raises(TrialFailed, match="no batch at all"):
        run(short(Rows(0)), LoaderConfig(batch_size=4))


def test_what_user_code_raises_comes_through_in_its_phase():
    """An exception of the step or the dataset ends the generator as it is, and the last phase is where it happened."""
    phases, seen = [], itertools.count()

    def step(batch):
        if next(seen) == 20:
            raise KeyError("label")

    workload = general(lambda **overrides: DataLoader(Rows(), **overrides), step)
    with pytest.raises(KeyError, match="label") as raised:
        run(workload, LoaderConfig(batch_size=4), phases)
    assert phases == ["setup", "warm", "loader", "measure"]
    assert raised.value.__context__ is None


def test_epoch_samples_can_be_told():
    """The user's real epoch counts, where it is not the dataset's length."""
    assert run(short(Rows(64)), LoaderConfig(batch_size=4), max_trial_s=0.5, epoch_samples=10**6).epoch_samples == 10**6


def test_the_context_of_a_step_is_the_setting():
    """make_step gets the device and the batch size."""
    contexts = []
    workload = general(lambda **overrides: DataLoader(Rows(), **overrides), None)
    workload.make_step = lambda context: contexts.append(context) or (lambda batch: None)
    run(workload, LoaderConfig(batch_size=8), max_trial_s=0.5)
    assert (contexts[0].batch_size, contexts[0].device, contexts[0].world_size) == (8, torch.device("cpu"), 1)


def test_the_public_names_are_what_they_say():
    """`from feedrate.trainables import ...` gives functions and classes, whatever was imported before; no module hides one."""
    code = "import feedrate.trainables.sandbox.child_main, feedrate.trainables as t; assert all(callable(getattr(t, name)) for name in t.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert trainables.measure is measure
