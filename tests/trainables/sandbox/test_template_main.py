"""template_main.py: whatever the user's module does while it is imported, trials run, or fail and give the reason."""

import json
import os
import socket
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from census import TAG, eventually, tagged

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.isolation.sweeping import MARKER, marked, sweep
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import (
    ChildTask,
    Described,
    DescribeRequest,
    Failed,
    Measured,
    MeasureRequest,
    Progress,
)
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox import template as template_module
from feedrate.trainables.sandbox.template import Template

pytestmark = pytest.mark.usefixtures("tag")

MODULE = """
import sys
sys.path.append({tests!r})
import os, subprocess, threading, time
from workloads import *
from workloads import rows as workload
{lines}
"""
REQUEST = MeasureRequest(
    config=LoaderConfig(num_workers=2, batch_size=4),
    options=MeasureOptions(max_trial_s=1.0, measure_step=False),
)


@pytest.fixture
def made(tag, tmp_path):
    """Makes a template for a module with these lines."""
    templates = []

    def make(lines, function="workload"):
        path = tmp_path / "own_train.py"
        path.write_text(MODULE.format(tests=str(Path(__file__).parents[2]), lines=lines))
        templates.append(Template(make_ref(f"{path}:{function}"), environment={TAG: tag}))
        return templates[-1]

    yield make
    for template in templates:
        template.close()
    assert not tagged(tag)


def last(events):
    *_, event = events
    return event


def describe(template):
    return last(template.run(DescribeRequest()))


def facts(template):
    return json.loads(describe(template).notes[0])


def test_a_plain_module_is_imported_once(made, tmp_path):
    """A module without threads is imported in the template, and every trial is forked from it."""
    template = made(f"open({str(tmp_path / 'imports')!r}, 'a').write('x')")
    for _ in range(3):
        assert isinstance(describe(template), Described)
    assert template.clean
    assert (tmp_path / "imports").read_text() == "x"


def test_a_module_that_starts_a_thread_gets_new_interpreters(made, tag):
    """A process with a thread left by the import is not forked: each trial is a new interpreter, in which measuring and failing work as usual."""
    template = made("threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()", "facts")
    found = facts(template)
    assert not template.clean
    assert found["main_thread"] and found["leads_its_group"] and found["sigint_is_default"] and not found["daemon"]
    assert found["num_threads"] == 2  # its own
    assert found["pid"] != template._process.pid
    template.ref = make_ref(template.ref.target.replace(":facts", ":exits"))
    failure = describe(template).failure
    assert "ended by itself (exit status 3) in phase setup" in failure.message
    assert failure.message.endswith("; its last output: about to leave")
    template.ref = make_ref(template.ref.target.replace(":exits", ":workload"))
    events = template.run(replace(REQUEST, options=MeasureOptions(max_trial_s=30.0, measure_step=False)))
    for event in events:
        assert not isinstance(event, Failed), event
        if isinstance(event, Progress):
            break
    assert len(tagged(tag) - template._channel.spare) >= 3
    events.close()
    assert not tagged(tag) - template._channel.spare


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("print('bye', flush=True); os._exit(4)", "ended by itself (exit status 4) while the workload's module was"),
        ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV while the workload's module was imported"),
    ],
)
def test_a_module_that_ends_the_process_is_told(made, lines, said):
    """A module that ends the process while it is imported is a failure of the user's code, reported with its last output."""
    failure = describe(made(lines)).failure
    assert (failure.kind, failure.phase) == ("trainer-killed", "setup")
    assert said in failure.message
    assert ("bye" in failure.message) == ("bye" in lines)


@pytest.mark.slow
def test_an_import_without_end_is_a_hang(made, monkeypatch):
    """An import that takes longer than a set-up may is ended."""
    monkeypatch.setattr(template_module, "SETUP_TIMEOUT_S", 12.0)
    failure = describe(made("print('reading', flush=True); time.sleep(1000)")).failure
    assert (failure.kind, failure.phase) == ("hang", "setup")
    assert "took more than 12 s: it hangs in <module> (own_train.py:" in failure.message
    assert "in <module>" in failure.stacks


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("import own_missing", "ModuleNotFoundError: No module named 'own_missing'"),
        ("raise SystemExit('set DATA first')", "SystemExit: set DATA first"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(made, lines, said):
    """An error of the import ends every request with the user's own traceback, and the template stays."""
    template = made(lines)
    first = describe(template).failure
    process = template._process.pid
    second = last(template.run(REQUEST)).failure
    for failure in (first, second):
        assert said in failure.message
        assert failure.kind == "user-code"
    assert "own_train.py" in first.message + str(first.traceback)
    assert template._process.pid == process


def test_a_helper_of_the_module_lives_as_long_as_the_template(made, tag):
    """A process that the import started serves every trial, and ends with the template."""
    template = made("helper = subprocess.Popen(['sleep', '1000'], start_new_session=True)")
    for _ in range(2):
        end = last(template.run(REQUEST))
        assert isinstance(end, Measured), end
        names = [psutil.Process(pid).name() for pid in tagged(tag)]
        assert names.count("sleep") == 1, names
    template.close()
    assert not tagged(tag)


OWNER = """
import sys
from feedrate.trainables.protocol import DescribeRequest
from feedrate.trainables.resolve import make_ref
from feedrate.trainables.sandbox.template import Template
template = Template(make_ref(sys.argv[1]))
for event in template.run(DescribeRequest()):
    print(type(event).__name__, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "lines", ["", "print('here', file=open('here', 'w')); time.sleep(1000)"], ids=["idle", "import"]
)
def test_a_template_ends_with_its_owner(tag, tmp_path, lines):
    """Between two trials, and in the middle of an import without end, a template whose owner was killed goes too."""
    own = uuid.uuid4().hex
    path = tmp_path / "own_train.py"
    lines += "\nhelper = subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    path.write_text(MODULE.format(tests=str(Path(__file__).parents[2]), lines=lines))
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, f"{path}:workload"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {TAG: own},
    ) as owner:
        if "here" in lines:
            assert eventually((tmp_path / "here").exists, within_s=60)
        else:
            assert "Described\n" in iter(owner.stdout.readline, "")
        owner.kill()
    assert eventually(lambda: not tagged(own)), tagged(own)


def ask(template):
    """Send a request as the supervisor does, and return our end of the socket for its events."""
    ours, theirs = socket.socketpair()
    request = ChildTask(request=DescribeRequest(), workload=template.ref, lock_wait_s=0.0).line()
    with theirs:
        socket.send_fds(template._channel.control, [request], [theirs.fileno()])
    return ours


def test_an_owner_that_dies_right_after_its_request_leaves_nothing(made, tag):
    """The first message to it fails, and that ends everything as well, what the module started too."""
    template = made("subprocess.Popen(['sleep', '1000'])")
    template._start()
    with ask(template):
        template._channel.control.close()
        template._process.wait(30)
    assert eventually(lambda: not tagged(tag)), tagged(tag)


def test_an_owner_that_dies_without_reading_an_answer_leaves_nothing(made, tag):
    """The template then reads an error instead of the end of the socket, and ends everything all the same."""
    template = made("subprocess.Popen(['sleep', '1000'])")
    template._start()
    with ask(template) as ours:
        while ours.recv(4096):
            pass
    control = template._channel.control
    assert eventually(lambda: b"ended" in control.recv(4096, socket.MSG_PEEK))
    control.close()
    assert template._process.wait(30) == 0
    assert eventually(lambda: not tagged(tag)), tagged(tag)
    assert not Path(template._temp).exists()


def test_a_spawned_worker_imports_little():
    """A spawned loader worker imports this module again as its main one: that loads neither torch nor NumPy."""
    code = (
        "import sys, feedrate.trainables.sandbox.template_main; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


def started(marker, code="import time; time.sleep(1000)"):
    """A process with this marker, in a session of its own."""
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, MARKER: marker}, start_new_session=True)


def test_a_sweep_ends_what_carries_the_marker():
    """Every marked process ends wherever it went; spared ones, other trials' and unmarked ones stay."""
    marker = uuid.uuid4().hex
    mine, spared, other, unmarked = started(marker), started(marker), started(f"{marker}x"), started("")
    assert eventually(lambda: marked(marker).keys() == {mine.pid, spared.pid})
    sweep(marker, spare={spared.pid})
    assert mine.wait(timeout=10) == -9
    assert all(process.poll() is None for process in (spared, other, unmarked))
    for process in (spared, other, unmarked):
        process.kill()
        process.wait()


def test_a_sweep_removes_the_batches_of_whom_it_killed():
    """Files that torch made in /dev/shm for a killed process go with it; those of others stay."""
    marker = uuid.uuid4().hex
    process = started(marker)
    assert eventually(lambda: marked(marker))
    own, other = Path(f"/dev/shm/torch_{process.pid}_1_2"), Path(f"/dev/shm/torch_{process.pid}9_1_2")
    own.touch()
    other.touch()
    sweep(marker, spare=set())
    process.wait()
    assert not own.exists()
    assert other.exists()
    other.unlink()


def test_a_helper_may_clean_up_before_it_ends():
    """multiprocessing's resource tracker is given time to end by itself, and is killed after it."""
    marker = uuid.uuid4().hex
    code = "import time; time.sleep({}) # multiprocessing.resource_tracker"
    quick, slow = started(marker, code.format(0.3)), started(marker, code.format(1000))
    assert eventually(lambda: marked(marker) == {quick.pid: True, slow.pid: True})
    sweep(marker, spare=set(), helpers_s=1.5)
    assert quick.wait(timeout=10) == 0
    assert slow.wait(timeout=10) == -9


def test_a_folder_of_our_name_where_the_user_works_is_not_imported(tag, tmp_path, monkeypatch):
    """A clone of feedrate, or anything called so, beside train.py: the installed package is used all the same."""
    for part in ("trainables", "analysis", "search"):
        (tmp_path / "feedrate" / part).mkdir(parents=True)
        (tmp_path / "feedrate" / part / "__init__.py").write_text("raise ImportError('not this one')\n")
    (tmp_path / "train.py").write_text("import sys\nsys.path.insert(0, 'there')\nfrom workloads import rows\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    made = Template(make_ref("train.py:rows"), environment={TAG: tag})
    try:
        assert isinstance(last(made.run(DescribeRequest())), Described)
    finally:
        made.close()
