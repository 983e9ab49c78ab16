"""stacks.py and hang_message.py: find where real processes hang, and put it into a sentence."""

import os
import signal
import subprocess
import sys
import time

import pytest
from census import eventually

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.diagnose.hang_message import LOST, dropped, no_batch_because, what_hangs, workers_hang
from feedrate.trainables.diagnose.stacks import Frame, Stack

DATALOADER, WORKER, FETCH = (
    f"/x/site-packages/torch/utils/data/{name}.py" for name in ("dataloader", "_utils/worker", "_utils/fetch")
)
CHILD = """
import os, sys, threading, time
from feedrate.trainables.diagnose import stacks

class Reader:
    def read_block(self):
        {act}

stacks.install()
print("ready", flush=True)
Reader().read_block()
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Starts a process that hangs in Reader.read_block, in a file of the user's."""
    (tmp_path / "stacks").touch()
    monkeypatch.setenv(stacks.VARIABLE, str(tmp_path / "stacks"))
    processes = []

    def start(act="time.sleep(1000)"):
        (tmp_path / "own.py").write_text(CHILD.format(act=act))
        process = subprocess.Popen([sys.executable, str(tmp_path / "own.py")], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        return process.pid

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "act",
    [
        "time.sleep(1000)",
        "lock = threading.Lock(); lock.acquire(); lock.acquire()",
        "__import__('re').match('(a+)+b', 'a' * 60)",
        "os.read(os.pipe()[0], 1)",
    ],
    ids=["asleep", "deadlock", "in C, with the GIL", "in the kernel"],
)
def test_a_process_that_stands_still_says_where(started, act):
    """Whatever it waits for, its stack names the user's method with its class, and it lives on."""
    pid = started(act)
    for _ in range(2):
        (stack,) = stacks.read([pid], trainer=pid)
        assert (stack.pid, stack.role) == (pid, "trainer")
        assert str(stack.place()) == "Reader.read_block (own.py:7)"
    assert f"trainer (pid {pid}):\n" in stacks.text_of([stack])
    assert "in Reader.read_block" in stacks.text_of([stack])


def test_who_does_not_answer_is_left_alone(started):
    """A process that did not install the handler, one that is stopped and one that ended have no stack, and no harm is done."""
    plain = subprocess.Popen(["sleep", "1000"])
    stopped = started()
    os.kill(stopped, signal.SIGSTOP)
    gone = subprocess.Popen(["true"])
    gone.wait()
    found = stacks.read([plain.pid, stopped, gone.pid])
    text = stacks.text_of(found)
    assert plain.poll() is None
    plain.kill()
    plain.wait()
    assert {stack.pid for stack in found} == {plain.pid, stopped}
    assert "no stack: it is stopped" in text
    assert f"sleep (pid {plain.pid}):" in text
    os.kill(stopped, signal.SIGCONT)
    assert eventually(lambda: stacks._state(stopped) != "it is stopped")


def test_outside_a_trial_nothing_is_installed(monkeypatch):
    """Without the variable, the signal keeps its default; with a file that is gone, too."""
    monkeypatch.delenv(stacks.VARIABLE, raising=False)
    stacks.install()
    monkeypatch.setenv(stacks.VARIABLE, "/proc/1/fd/nothing")
    stacks.install()
    assert not stacks._answers(os.getpid())


def test_a_spawned_worker_can_be_asked_before_it_does_anything(tmp_path, monkeypatch):
    """It imports the template's module again, as its own main one: that installs the handler."""
    (tmp_path / "stacks").touch()
    monkeypatch.setenv(stacks.VARIABLE, str(tmp_path / "stacks"))
    code = (
        "import runpy, time; runpy.run_module('feedrate.trainables.sandbox.template_main', run_name='__mp_main__'); time.sleep(1000)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code])
    assert eventually(lambda: stacks._answers(worker.pid))
    worker.kill()
    worker.wait()


def stack(role, *calls):
    """A made-up stack: calls as (path, name), the innermost first."""
    return Stack(1, role, (tuple(Frame(path, 7, name) for path, name in calls),))


def waiting(*names):
    return [(DATALOADER, name) for name in names]


IDLE = stack("loader worker 0", ("/usr/lib/x/site-packages/q.py", "get"), (WORKER, "_worker_loop"))
BUSY = stack("loader worker 1", ("/home/me/train.py", "load"), (FETCH, "fetch"), (WORKER, "_worker_loop"))
INIT = stack("loader worker 1", ("/home/me/train.py", "init"), (WORKER, "_worker_loop"))
NEXT = stack("trainer", *waiting("_try_get_data", "_get_data", "_next_data", "__next__"))


@pytest.mark.parametrize(
    ("found", "phase", "said"),
    [
        ([NEXT, IDLE, BUSY], "measure", "loader worker 1 hangs in load (train.py:7)"),
        ([NEXT, IDLE, INIT], "loader", "loader worker 1 hangs as it starts, in worker_init_fn in init (train.py:7)"),
        ([NEXT, BUSY, BUSY], "measure", "2 loader workers hang, one of them in load (train.py:7)"),
        ([NEXT, IDLE], "measure", LOST),
        (
            [stack("trainer", ("/home/me/train.py", "__iter__"), *waiting("__init__", "_get_iterator", "__iter__"))],
            "loader",
            "iter(loader) hangs in __iter__ (train.py:7)",
        ),
        (
            [stack("trainer", ("/home/me/train.py", "load"), (FETCH, "fetch"), *waiting("_next_data", "__next__"))],
            "measure",
            "loading a batch in the training process hangs in load (train.py:7)",
        ),
        (
            [stack("trainer", ("/home/me/train.py", "draw"), *waiting("_next_index", "_next_data", "__next__"))],
            "measure",
            "next(loader) hangs in the training process in draw (train.py:7)",
        ),
        (
            [
                stack("trainer", ("/usr/lib/x/site-packages/q.py", "join"), *waiting("_shutdown_workers", "__del__")),
                BUSY,
            ],
            "measure",
            "stopping the loader's workers hangs in join (q.py:7)",
        ),
        (
            [stack("trainer", ("/home/me/train.py", "step")), IDLE],
            "warm",
            "the training step hangs in step (train.py:7)",
        ),
        ([stack("trainer", ("/home/me/train.py", "make"))], "setup", "set-up hangs in make (train.py:7)"),
        ([Stack(1, "trainer", ())], "measure", "the training process does not answer in phase measure"),
        ([], "loader", "the training process does not answer in phase loader"),
    ],
)
def test_what_hangs_is_told_from_the_stacks(found, phase, said):
    """The sentence names who waits for whom."""
    assert what_hangs(found, phase) == said


def test_idle_workers_are_only_counted():
    """Those that wait for work are not listed; none of them hangs."""
    assert stacks.text_of([NEXT, IDLE, IDLE]).endswith("\n2 loader workers wait for work")
    assert workers_hang([IDLE]) is None
    assert stacks.text_of([]) is None


FEEDER = """epoch 3
Traceback (most recent call last):
  File "/usr/lib/python3.11/multiprocessing/queues.py", line 244, in _feed
    obj = _ForkingPickler.dumps(obj)
  File "/usr/lib/python3.11/multiprocessing/reduction.py", line 51, in dumps
    cls(buf, protocol).dump(obj)
{}
more of the user's output
"""


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("TypeError: cannot pickle '_thread.lock' object", "unpicklable"),
        ("RuntimeError: Cowardly refusing to serialize non-leaf tensor", "unpicklable"),
        ("OSError: [Errno 24] Too many open files", "too-many-files"),
    ],
)
def test_a_dropped_batch_is_found_in_the_output(line, kind):
    """The queue's feeder thread prints why it could not send a batch."""
    assert dropped(FEEDER.format(line)) == line
    assert no_batch_because(line)[0] == kind
    assert dropped("epoch 3\nTypeError: cannot pickle '_thread.lock' object\n") is None
