"""A training whose ranks run on several hosts is measured as one. Two templates stand for two hosts, which share nothing but the store of torch's process group."""

import re
import socket
import textwrap
import threading
from contextlib import closing
from pathlib import Path

import pytest
from census import TAG, eventually, tagged
from test_ranks import HEAD, PLAIN, events, in_own_folder, request

from feedrate.trainables.failure import Failure
from feedrate.trainables.protocol import AccompanyRequest, Failed, Measured, read
from feedrate.trainables.resolve import make_command_ref
from feedrate.trainables.sandbox import hang_detector
from feedrate.trainables.sandbox.template import Template

pytestmark = pytest.mark.usefixtures("tag")


class Stops:
    """What the template of the second host asks: whether to stop."""

    def __init__(self):
        self.is_over, self.failed = False, None

    def begin(self):
        pass

    def failure(self):
        return Failed(failure=Failure(kind="internal", phase="measure", message="it is over")) if self.is_over else None

    def heard(self, failed):
        self.failed = self.failed or failed

    def waited_for(self):
        return None

    def end(self):
        pass


class SecondHost:
    """The second host as the first one sees it: a thread with a template of its own."""

    def __init__(self, make):
        self.make, self.num_begun = make, 0
        self.template = self.thread = self.stops = None

    def begin(self):
        self.num_begun += 1
        self.stops = Stops()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        with closing(self.make(self.stops)) as self.template:
            read(self.template.run(AccompanyRequest()), lambda news: None)

    def failure(self):
        return self.stops.failed

    def heard(self, failed):
        pass

    def waited_for(self):
        return self.template.waited_for()

    def end(self):
        self.stops.is_over = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def hosts(tmp_path, monkeypatch, tag):
    """Writes train.py into a new folder, and returns the first host's template and the second host."""
    in_own_folder(tmp_path, monkeypatch)
    templates = []

    def write(text, num=1, options=()):
        (tmp_path / "train.py").write_text(HEAD + textwrap.dedent(text))
        ref = make_command_ref(("torchrun", *options, "--nproc-per-node", str(num), "train.py"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            common = {TAG: tag, "PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free.getsockname()[1])}
        second = SecondHost(lambda stops: Template(ref, environment=common | {"PET_NODE_RANK": "1"}, num_hosts=2, other_hosts=stops))
        templates.append(Template(ref, environment=common | {"PET_NODE_RANK": "0"}, num_hosts=2, other_hosts=second))
        return templates[-1], second

    yield write
    for template in templates:
        template.close()
    assert eventually(lambda: not tagged(tag)), [(pid, Path(f"/proc/{pid}/cmdline").read_text()) for pid in tagged(tag)]


def failure(template, max_s=60.0, **options):
    _, last = events(template, request(1, **{"max_trial_s": 20.0} | options), max_s)
    assert isinstance(last, Failed)
    return last.failure


def test_one_set_of_processes_on_two_hosts_serves_many_settings(hosts):
    """The items are those of all four ranks, and each rank is recorded. It starts torchrun twice, and measures two settings."""
    template, second = hosts(PLAIN.replace("Rows()", "Rows(4096)"), num=2)  # whole batches for each rank
    for num_workers in (1, 2):
        _, last = events(template, request(num_workers, max_trial_s=4.0, measure_step=num_workers == 1))
        assert isinstance(last, Measured), last.failure.message
        columns = last.columns
        assert [each["rank"] for each in columns["ranks"]] == [0, 1, 2, 3]
        assert columns["window_num_items"] == [64 * num for num in columns["window_num_batches"]]
        assert all(0 <= wait <= took for wait, took in zip(columns["window_wait_s"], columns["window_duration_s"], strict=True))
    assert second.num_begun == 1
    template.close()
    assert not second.thread.is_alive()


KILLED = r"rank 1 (was killed, or ended by itself|was killed by SIGKILL)"
FAILURES = {
    "killed in a step": ("            train(model", "            if late(1): os.kill(os.getpid(), 9)\n", "trainer-killed", KILLED),
    "raises in a step": ("            train(model", "            if late(1): raise ValueError('no more')\n", "user-code", "rank 1: ValueError: no more"),
    "first rank raises in a step": ("            train(model", "            if late(0): raise ValueError('no more')\n", "user-code", "rank 0: ValueError: no more"),
    "raises before it trains": ("    model, optimizer", "    if rank: raise ValueError('no data')\n", "user-code", "rank 1: train.py raised ValueError: no data, before it had trained"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "killed in a step" else pytest.mark.slow) for name in FAILURES])
def test_a_rank_that_fails_on_another_host_is_named(hosts, name):
    place, text, kind, message = FAILURES[name]
    assert PLAIN.count(place) == 1
    template, _ = hosts(PLAIN.replace(place, text + place))
    found = failure(template)
    assert found.kind == kind, found.message
    assert re.match(message, found.message), found.message


@pytest.mark.slow
def test_a_rank_that_hangs_on_another_host_is_named(hosts, monkeypatch):
    """Rank 0 hangs, too, but in a collective. It has to hang for 5 seconds."""
    monkeypatch.setattr(hang_detector, "GRACE_S", 3.0)
    template, _ = hosts(PLAIN.replace("            train(model", "            if late(1): time.sleep(1000)\n            train(model"))
    found = failure(template, max_s=2.0)
    assert found.kind == "hang"
    assert re.match(r"rank 1: the training step hangs in <module> \(train.py:[0-9]+\), and the other ranks wait for it", found.message), found.message


@pytest.mark.slow
def test_a_command_that_starts_its_ranks_on_one_host_is_refused(hosts):
    template, _ = hosts(PLAIN, num=2, options=("--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"))
    found = failure(template)
    assert "2 ranks, 2 of them on this host, but --hosts-per-trial 2 needs a command that starts as many ranks on each of 2 hosts" in found.message
