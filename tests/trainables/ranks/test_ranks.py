"""A training in several ranks is measured as one: the same steps on every rank, the items of all, and a failure that names its rank."""

import os
import re
import shutil
import sys
import textwrap
import time
from pathlib import Path

import pytest
from census import TAG, eventually, tagged

from feedrate.analysis.ranks import rank_waits
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import DescribeRequest, Failed, Measured, MeasureRequest, Phase, read
from feedrate.trainables.resolve import make_command_ref
from feedrate.trainables.sandbox import hang_detector
from feedrate.trainables.sandbox.template import Template

pytestmark = pytest.mark.usefixtures("tag")

HEAD = """
import os, sys, time
rank = int(os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", -1)))
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

class Rows(Dataset):
    def __init__(self, num=4000, wait_s=0.0):
        self.num, self.wait_s = num, wait_s
    def __len__(self):
        return self.num
    def __getitem__(self, index):
        time.sleep(self.wait_s)
        return torch.full((8,), float(index)), index % 2

def begin():
    dist.init_process_group("gloo")
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)

def note():
    with open(f"steps-{rank}.txt", "a") as file:
        print(os.getpid(), file=file)

def late(number, since=[]):
    # whether this is that rank, and it has trained for a while
    since.append(time.monotonic())
    return rank == number and len(since) > 20

def train(model, optimizer, batch):
    x, y = batch
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
"""

PLAIN = """
if __name__ == "__main__":
    model, optimizer = begin()
    data = Rows()
    loader = DataLoader(data, batch_size=16, sampler=DistributedSampler(data), num_workers=1)
    while True:
        for batch in loader:
            train(model, optimizer, batch)
"""

SPAWNED = """
def main(number, rendezvous):
    global rank
    rank = number
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=number, world_size=2)
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = Rows()
    loader = DataLoader(data, batch_size=16, sampler=DistributedSampler(data), num_workers=1, multiprocessing_context='fork')
    while True:
        for batch in loader:
            note()
            train(model, optimizer, batch)

if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (os.path.abspath(f"rendezvous-{os.getpid()}"),), nprocs=2)
"""
"""A script that starts its ranks itself. No variable says which of them a process is: only torch's process group knows."""


def in_own_folder(tmp_path, monkeypatch):
    """Let commands run in a new folder, with this environment's programs, as if on a host of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDRATE_HOST_ID", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def ranks(tmp_path, monkeypatch, tag):
    """Writes train.py into a new folder and returns a template that starts it in several ranks; after the test, nothing of it runs."""
    in_own_folder(tmp_path, monkeypatch)
    templates = []

    def write(text, num=2, command=None):
        (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(text))
        templates.append(Template(make_command_ref(command or ("torchrun", "--standalone", "--nproc-per-node", str(num), "train.py")), environment={TAG: tag}))
        return templates[-1]

    yield write
    for template in templates:
        template.close()
    assert eventually(lambda: not tagged(tag)), [(pid, Path(f"/proc/{pid}/status").read_text(), Path(f"/proc/{pid}/cmdline").read_text()) for pid in tagged(tag)]


def request(num_workers, batch_size=16, method=None, **options):
    return MeasureRequest(
        config=LoaderConfig(num_workers=num_workers, batch_size=batch_size, multiprocessing_context=method),
        options=MeasureOptions(**{"max_trial_s": 1.0, "measure_step": False} | options),
    )


def events(template, asked, max_s=60.0):
    """The names of the phases, and the last event."""
    phases = []
    last = read(template.run(asked, max_s=max_s), lambda news: phases.append(news.name) if isinstance(news, Phase) else None)
    return phases, last


def described(template):
    return events(template, DescribeRequest())[1]


def measured(template, num_workers, **options):
    _, last = events(template, request(num_workers, **{"max_trial_s": 2.0} | options))  # on a busy host, six processes may need one second to load anything
    assert isinstance(last, Measured), last.failure.message
    return last.columns


def failure(template, num_workers=1, max_s=60.0, **options):
    _, last = events(template, request(num_workers, **options), max_s)
    assert isinstance(last, Failed)
    return last.failure


def test_one_set_of_processes_serves_many_settings(ranks):
    """The items are those of both ranks, each rank is recorded, and all take equally many steps, also with epochs in between.

    It starts torchrun, and measures three settings.
    """
    template = ranks(PLAIN.replace("            train(model", "            note()\n            train(model"))
    found = described(template)
    assert found.num_ranks == 2
    assert found.baseline == LoaderConfig(num_workers=1, batch_size=16)
    assert found.epoch_samples == 4000
    for num_workers, more in ((2, {}), (1, {"measure_step": True}), (3, {"objective": "epoch", "epoch_samples": 320, "max_trial_s": 3.0})):
        columns = measured(template, num_workers, **more)
        assert [each["rank"] for each in columns["ranks"]] == [0, 1]
        for each in columns["ranks"]:
            assert len(each["window_wait_s"]) == len(each["window_step_s"]) == len(columns["window_duration_s"])
            assert each["window_num_items"] == [16 * num for num in columns["window_num_batches"]]
        assert columns["window_num_items"] == [32 * num for num in columns["window_num_batches"]]
    template.close()
    steps = [Path(f"steps-{number}.txt").read_text().splitlines() for number in (0, 1)]
    assert len(set(steps[0])) == len(set(steps[1])) == 1, "one process of each rank serves all requests"
    assert abs(len(steps[0]) - len(steps[1])) <= 1


def test_a_rank_whose_loader_is_slow_is_recorded_as_the_slow_one(ranks):
    columns = measured(ranks(PLAIN.replace("Rows()", "Rows(wait_s=0.002 + 0.003 * rank)")), 1)
    assert columns["load_item_s"] >= 0.002  # of an item of rank 0, which its own worker loads
    waits = rank_waits(columns)
    assert waits.slowest == 1
    assert waits.is_persistent
    assert columns["window_wait_s"] == [max(each) for each in zip(*(rank["window_wait_s"] for rank in columns["ranks"]), strict=True)]


@pytest.mark.slow
def test_four_ranks_that_do_not_wait_for_each_other_stay_together(ranks):
    """Without collectives the steps alone would let a fast rank run away."""
    text = """
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in DataLoader(Rows(100_000, wait_s=0.001 * (rank == 3)), batch_size=16, num_workers=1):
        train(model, optimizer, batch)
    """
    columns = measured(ranks(text, 4), 1)
    assert columns["window_num_items"] == [64 * num for num in columns["window_num_batches"]]
    assert rank_waits(columns).slowest == 3


@pytest.mark.slow
def test_a_loader_alone_reads_on_every_rank(ranks):
    columns = measured(ranks(PLAIN), 2, loader_only=True)
    assert columns["window_num_items"] == [32 * num for num in columns["window_num_batches"]]


@pytest.mark.slow
def test_settings_without_workers_end_the_processes(ranks):
    template = ranks(PLAIN.replace("            train(model", "            note()\n            train(model"))
    measured(template, 0)
    measured(template, 1)
    assert len(set(Path("steps-1.txt").read_text().splitlines())) == 2


@pytest.mark.slow
def test_what_only_one_process_can_do_is_refused(ranks):
    found = failure(ranks(PLAIN), 1, cold=True, loader_only=True)
    assert "a cold page cache is not supported for a training with 2 ranks" in found.message


def fast_and_slow(names, fast):
    """The names, of which only one is not marked as slow: each starts torchrun, which takes seconds."""
    return [pytest.param(name, marks=() if name == fast else pytest.mark.slow) for name in names]


UNKNOWN = "was killed, or ended by itself"
"""On a busy machine torchrun may have waited for the process before the launcher has read its status."""
KILLED, EXITED = rf"({UNKNOWN}|was killed by SIGKILL)", rf"({UNKNOWN}|ended by itself \(exit status 3\))"
SET_UP = {
    "killed": ("os.kill(os.getpid(), 9)", "trainer-killed", f"rank 1 {KILLED}, before it had trained"),
    "exits": ("os._exit(3)", "trainer-killed", f"rank 1 {EXITED}, before it had trained"),
    "raises": ("raise ValueError('no data')", "user-code", "rank 1: train.py raised ValueError: no data, before it had trained"),
}


@pytest.mark.parametrize("name", fast_and_slow(SET_UP, "raises"))
def test_a_rank_that_fails_before_it_trains(ranks, name):
    """The other rank waits for it in a collective."""
    text, kind, message = SET_UP[name]
    found = failure(ranks(f"import torch.utils.data\ndist.init_process_group('gloo')\nif rank == 1:\n    {text}\ndist.barrier()\n" + PLAIN))
    assert found.kind == kind
    assert re.match(message, found.message), found.message
    assert found.phase == "setup"


IN_WINDOWS = {
    "killed": ("os.kill(os.getpid(), 9)", "trainer-killed", f"rank 1 {KILLED}"),
    "raises": ("raise ValueError('no more')", "user-code", "rank 1: ValueError: no more"),
    "ends": ("sys.exit()", "script-ended", "rank 1: train.py ended after [0-9]+ batches, in the middle of the measurement"),
    "first rank raises": ("raise ValueError('no more')", "user-code", "rank 0: ValueError: no more"),
    "first rank is killed": ("os.kill(os.getpid(), 9)", "trainer-killed", f"rank 0 {KILLED}"),
}


@pytest.mark.parametrize("name", fast_and_slow(IN_WINDOWS, "killed"))
def test_a_rank_that_fails_in_the_measurement(ranks, name):
    text, kind, message = IN_WINDOWS[name]
    who = 0 if "first" in name else 1
    found = failure(ranks(PLAIN.replace("            train(model", f"            if late({who}): {text}\n            train(model")), max_trial_s=20.0)
    assert found.kind == kind
    assert re.match(message, found.message), found.message
    assert found.phase in ("loader", "measure")


@pytest.mark.slow
def test_a_worker_of_one_rank_that_is_killed_is_named_with_its_rank(ranks):
    class_ = """
    class Dies(Rows):
        num_read = 0
        def __getitem__(self, index):
            self.num_read += 1
            if rank == 1 and self.num_read > 500:
                os.kill(os.getpid(), 9)
            return super().__getitem__(index)
    """
    found = failure(ranks(textwrap.dedent(class_) + PLAIN.replace("Rows()", "Dies()")), 2, max_trial_s=20.0)
    assert found.kind == "worker-killed"
    assert found.message.startswith("rank 1: a loader worker was killed by SIGKILL")


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_hangs_in_a_step_is_named(ranks, monkeypatch, who):
    """The other rank hangs, too, but in a collective. It has to hang for 5 seconds."""
    monkeypatch.setattr(hang_detector, "GRACE_S", 3.0)
    found = failure(ranks(PLAIN.replace("            train(model", f"            if late({who}): time.sleep(1000)\n            train(model")), max_s=2.0, max_trial_s=20.0)
    assert found.kind == "hang"
    assert re.match(f"rank {who}: the training step hangs in <module> \\(train.py:[0-9]+\\), and the other ranks wait for it", found.message), found.message
    assert "time.sleep" in Path("train.py").read_text().splitlines()[int(re.search("py:([0-9]+)", found.message)[1]) - 1]


@pytest.mark.slow
def test_a_rank_that_hangs_before_it_trains_is_named(ranks, monkeypatch):
    text = "import torch.utils.data\ndist.init_process_group('gloo')\nif rank == 1:\n    open('hangs', 'w')\n    time.sleep(1000)\ndist.barrier()\n"
    own = hang_detector.HangDetector.silent

    def silent(self):
        if Path("hangs").exists():  # a fixed time would be over before torch is imported, if the host is busy
            self.deadline_s = min(self.deadline_s, time.monotonic() + 2.0)
        return own(self)

    monkeypatch.setattr(hang_detector.HangDetector, "silent", silent)
    found = failure(ranks(text + PLAIN))
    assert found.kind == "hang"
    assert found.message.startswith("rank 1: set-up hangs in <module> (train.py:"), found.message


def test_ranks_that_the_script_spawns_are_measured(ranks):
    """It spawns two processes, which measure two settings."""
    template = ranks(SPAWNED, command=("python", "train.py"))
    found = described(template)
    assert found.num_ranks == 2
    assert found.baseline.multiprocessing_context == "fork"
    for num_workers in (1, 2):
        columns = measured(template, num_workers, method="fork")  # in these processes the default is spawn, and such workers import torch for seconds
        assert columns["window_num_items"] == [32 * num for num in columns["window_num_batches"]]
    template.close()
    steps = [Path(f"steps-{number}.txt").read_text().splitlines() for number in (0, 1)]
    assert len(set(steps[0])) == len(set(steps[1])) == 1
    assert set(steps[0]) != set(steps[1])


STEP = "            train(model"
SPAWNED_FAILURES = {
    "raises in a step": (STEP, "            if late(1): raise ValueError('no more')", "user-code", "rank 1: ValueError: no more"),
    "first rank is killed in a step": (STEP, "            if late(0): os.kill(os.getpid(), 9)", "trainer-killed", f"rank 0 {KILLED}"),
    "raises before it trains": ("    data = Rows()", "    if rank: raise ValueError('no data')", "user-code", "rank 1: train.py raised ValueError: no data, before"),
    "raises before it is a rank": (
        "    dist.init",
        "    if rank: raise ValueError('no port')",
        "user-code",
        "train.py raised ProcessRaisedException: ValueError: no port, before",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPAWNED_FAILURES)
def test_a_spawned_rank_that_fails_is_named(ranks, name):
    """Before a process is a rank, only the script knows which one has failed."""
    place, text, kind, message = SPAWNED_FAILURES[name]
    assert SPAWNED.count(place) == 1
    found = failure(ranks(SPAWNED.replace(place, f"{text}\n{place}"), command=("python", "train.py")), method="fork", max_trial_s=20.0)
    assert found.kind == kind
    assert re.match(message, found.message), found.message
    if found.kind == "user-code":
        assert "measure_hooks" not in found.traceback
        assert "ValueError" in found.traceback


@pytest.mark.slow
def test_a_spawned_rank_that_hangs_in_a_step_is_named(ranks, monkeypatch):
    """It has to hang for 5 seconds."""
    monkeypatch.setattr(hang_detector, "GRACE_S", 3.0)
    text = SPAWNED.replace(STEP, f"            if late(1): time.sleep(1000)\n{STEP}")
    found = failure(ranks(text, command=("python", "train.py")), max_s=2.0, method="fork", max_trial_s=20.0)
    assert found.kind == "hang"
    assert re.match(r"rank 1: the training step hangs in main \(train.py:[0-9]+\), and the other ranks wait for it", found.message), found.message


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI: apt-get install openmpi-bin")
def test_ranks_that_mpirun_starts_are_measured(ranks):
    """With the real one. Its variables say how many of the ranks run on this host."""
    text = PLAIN.replace(
        "model, optimizer = begin()",
        """dist.init_process_group("gloo", init_method=f"file://{os.path.abspath('rendezvous')}-{os.getppid()}", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)""",
    )
    template = ranks(text, command=("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", "python", "train.py"))
    assert described(template).num_ranks == 2
    columns = measured(template, 2)
    assert columns["window_num_items"] == [32 * num for num in columns["window_num_batches"]]


def test_ranks_of_several_hosts_are_refused(ranks):
    text = """
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in DataLoader(Rows(), batch_size=16, num_workers=1):
        train(model, optimizer, batch)
    """
    found = failure(ranks(text, command=("bash", "-c", "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 python train.py")))
    assert "trains with 2 ranks, 1 of them on this host" in found.message
