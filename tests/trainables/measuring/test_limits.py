"""limits.py: a setting that cannot fit is refused before its loader starts, with the limit to raise and by how much."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from workloads import rows

from feedrate.trainables.beside_loader import BesideLoader
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import INFEASIBLE, TrialFailed
from feedrate.trainables.measuring import limits
from feedrate.trainables.measuring.limits import amount, check_limits, storage_bytes
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions

PLENTY = {"free_shm_bytes": 10**13, "max_open_files": 10**9, "available_bytes": 10**13}


def batch_of(num_bytes, num_tensors=1):
    """A batch that claims this size; its pages are never touched."""
    return {str(index): torch.empty(num_bytes // num_tensors, dtype=torch.uint8) for index in range(num_tensors)}


def refused(config, batch, beside=(), **limit):
    with pytest.raises(TrialFailed) as failed:
        check_limits(config, storage_bytes(batch), beside=beside, **(PLENTY | limit))
    failure = failed.value.failure
    assert failure.kind in INFEASIBLE
    assert failure.phase == "loader"
    assert str(failed.value) == failure.message
    return failure


@pytest.fixture
def strategy():
    """Sets torch's sharing strategy for one test."""
    before = torch.multiprocessing.get_sharing_strategy()
    yield torch.multiprocessing.set_sharing_strategy
    torch.multiprocessing.set_sharing_strategy(before)


def test_batches_in_flight_must_fit_dev_shm():
    """prefetch_factor * num_workers + 1 batches and a margin; one byte less is refused with both sizes and the remedy."""
    config, batch = LoaderConfig(num_workers=16, prefetch_factor=8), batch_of(71_000_000, 2)
    need = round(1.3 * 129 * 71_000_000)
    check_limits(config, storage_bytes(batch), **(PLENTY | {"free_shm_bytes": need}))
    failure = refused(config, batch, free_shm_bytes=need - 1, used_shm_bytes=10**9)
    assert failure.kind == "shm-full"
    assert failure.message == (
        "/dev/shm is too small: 129 batches of 71 MB and a margin of 30% need 11.9 GB, but only 11.9 GB are free. "
        "Use docker run --shm-size=13g, fewer workers or a smaller prefetch_factor"
    )


VALID = BesideLoader(where="train.py:47", num_workers=4, prefetch_factor=None, batch_size=64, persistent_workers=True)


def test_the_workers_of_a_validation_loader_need_room_too():
    """Twice as many samples in a batch, 2 batches for each of its 4 workers and one in the step: as much as 18 batches of the measured loader."""
    config, batch = LoaderConfig(num_workers=16, batch_size=32, prefetch_factor=8), batch_of(71_000_000, 2)
    need = round(1.3 * (129 + 18) * 71_000_000)
    check_limits(config, storage_bytes(batch), beside=[VALID], **(PLENTY | {"free_shm_bytes": need}))
    message = refused(config, batch, beside=[VALID], free_shm_bytes=need - 1).message
    assert "129 batches of 71 MB and a margin of 30% together with 4 workers of the loader at train.py:47 need 13.6 GB" in message
    assert "138 batches of 2 tensors together with 4 workers of" in refused(config, batch, beside=[VALID], max_open_files=2 * 138 + 63).message
    check_limits(config, storage_bytes(batch), beside=[VALID], **(PLENTY | {"max_open_files": 2 * 138 + 64}))
    alone_bytes = int(16 * (25e6 + 71e6) + 129 * 71e6)
    check_limits(config, storage_bytes(batch), **(PLENTY | {"available_bytes": alone_bytes}))
    assert "together with 4 workers of" in refused(config, batch, beside=[VALID], available_bytes=alone_bytes).message


def test_workers_that_never_live_at_the_same_time_need_no_room_together():
    """The validation loader's workers end with it, and those of the measured loader end with the epoch, unless one of both keeps them."""
    ends = replace(VALID, persistent_workers=False)
    limit = {"free_shm_bytes": round(1.3 * 5 * 1000)}
    check_limits(LoaderConfig(num_workers=2, batch_size=32), [1000], beside=[ends], **(PLENTY | limit))
    with pytest.raises(TrialFailed, match="together with 4 workers"):
        check_limits(LoaderConfig(num_workers=2, batch_size=32, persistent_workers=True), [1000], beside=[ends], **(PLENTY | limit))


def test_the_batches_of_all_ranks_must_fit_dev_shm():
    """Each rank of a host has a loader of its own; what fits one of them need not fit four."""
    config, batch = LoaderConfig(num_workers=2, prefetch_factor=2), batch_of(1_000_000)
    need = round(1.3 * 4 * 5 * 1_000_000)
    check_limits(config, storage_bytes(batch), num_ranks=4, **(PLENTY | {"free_shm_bytes": need}))
    failure = refused(config, batch, num_ranks=4, free_shm_bytes=need - 1)
    assert failure.message.startswith("/dev/shm is too small: 20 batches of 1 MB")


def test_without_workers_nothing_is_shared():
    """A batch larger than every limit is fine where the trainer loads it itself."""
    check_limits(LoaderConfig(num_workers=0), storage_bytes(batch_of(10**9)), free_shm_bytes=0, max_open_files=1, available_bytes=0)


def test_open_files_are_counted_for_each_storage(strategy):
    """With file descriptors every storage in flight is one; with file names none."""
    config, batch = LoaderConfig(num_workers=8, prefetch_factor=4), batch_of(3200, 32)
    strategy("file_descriptor")
    check_limits(config, storage_bytes(batch), **(PLENTY | {"max_open_files": 33 * 32 + 64}))
    failure = refused(config, batch, max_open_files=33 * 32 + 63)
    assert failure.kind == "too-many-files"
    assert "33 batches of 32 tensors need up to 1,120, but the limit is 1,119. Use ulimit -n 2048" in failure.message
    check_limits(config, storage_bytes(batch), **(PLENTY | {"max_open_files": -1}))  # unlimited
    strategy("file_system")
    check_limits(config, storage_bytes(batch), **(PLENTY | {"max_open_files": 100}))


@pytest.mark.parametrize(
    ("config", "need"),
    [
        (LoaderConfig(num_workers=4, prefetch_factor=2, multiprocessing_context="fork"), 4 * (25e6 + 3e6) + 9 * 3e6),
        (LoaderConfig(num_workers=4, prefetch_factor=2, multiprocessing_context="spawn"), 4 * (160e6 + 3e6) + 9 * 3e6),
        (
            LoaderConfig(num_workers=1, prefetch_factor=1, multiprocessing_context="fork", pin_memory=True),
            25e6 + 3e6 + 2 * 3e6 + 3 * 2**22,
        ),
    ],
    ids=["fork", "spawn", "pinned"],
)
def test_workers_and_batches_must_fit_memory(config, need):
    """What workers need by themselves, the batches in flight, and pinned copies rounded up to powers of two."""
    check_limits(config, storage_bytes(batch_of(3_000_000)), **(PLENTY | {"available_bytes": int(need)}))
    failure = refused(config, batch_of(3_000_000), available_bytes=int(need) - 1)
    assert failure.kind == "out-of-memory"
    assert f"batches of 3 MB need at least {amount(need)}" in failure.message


def test_a_storage_counts_once_and_only_tensors_count():
    """Views share their storage, arrays and numbers travel through a pipe, empty tensors need nothing."""
    whole = torch.zeros(1000, dtype=torch.uint8)
    batch = [whole[:10], (whole[10:20], whole), {"x": torch.zeros(0)}, bytearray(10**6), "text", 7]
    assert storage_bytes(batch) == [1000]
    assert sorted(storage_bytes((whole, torch.zeros(5)))) == [20, 1000]


def test_a_batch_without_tensors_fits():
    """Nothing of it goes through shared memory."""
    check_limits(LoaderConfig(num_workers=2), storage_bytes(["text"]), free_shm_bytes=0, max_open_files=64, available_bytes=10**12)


def test_this_machine_is_asked():
    """A small batch fits here; more batches in flight than /dev/shm holds are refused without anything passed in."""
    config = LoaderConfig(num_workers=2, prefetch_factor=4)
    check_limits(config, storage_bytes(batch_of(1000)))
    free, used = limits._shm_bytes()
    if free is None:
        pytest.skip("no /dev/shm here")
    assert used >= 0
    many = LoaderConfig(num_workers=2, prefetch_factor=free // 10**6)
    assert refused(many, batch_of(10**6), free_shm_bytes=None, max_open_files=10**12).kind == "shm-full"


def test_a_trial_is_refused_before_its_loader_starts():
    """A real measurement of a setting that cannot fit ends in phase loader, as infeasible, without having begun."""
    phases = []
    config = LoaderConfig(num_workers=1, batch_size=8, prefetch_factor=10**9)
    with pytest.raises(TrialFailed) as failed:
        next(measure(rows(), config, MeasureOptions(measure_step=False), phases.append))
    assert failed.value.failure.kind in ("shm-full", "too-many-files")
    assert phases[-1] == "loader"


def test_the_process_own_limit_of_open_files_is_read():
    """A low `ulimit -n` refuses a setting that the machine itself would allow."""
    code = """if True:
        import resource, torch
        from feedrate.trainables.config import LoaderConfig
        from feedrate.trainables.failure import TrialFailed
        from feedrate.trainables.measuring.limits import check_limits, storage_bytes
        torch.multiprocessing.set_sharing_strategy("file_descriptor")
        batch, config = [torch.zeros(1) for _ in range(10)], LoaderConfig(num_workers=2, prefetch_factor=8)
        resource.setrlimit(resource.RLIMIT_NOFILE, (234, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        check_limits(config, storage_bytes(batch))
        resource.setrlimit(resource.RLIMIT_NOFILE, (233, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        try:
            check_limits(config, storage_bytes(batch))
        except TrialFailed as error:
            print(error.failure.kind)
    """
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("too-many-files\n", 0), done.stderr


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (71e6, "71 MB"), (9.16e9, "9.2 GB"), (250e9, "250 GB"), (999.7e6, "1 GB"), (3e12, "3 TB")],
)  # fmt: skip
def test_sizes_for_people(num_bytes, text):
    """Two or three digits and a unit."""
    assert amount(num_bytes) == text
