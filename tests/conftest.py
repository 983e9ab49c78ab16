"""Fixtures that all tests share; above all `Command`, a feedrate command whose descendants can all be found and killed."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest
import shards

MARK = "FEEDRATE_TEST_RUN"
FEEDRATE = [sys.executable, "-c", "import sys; from feedrate.search.cli.main import main; sys.exit(main())"]

TOY = '''
import time
import torch
from torch.utils.data import Dataset
from feedrate.trainables import Workload

class Slow(Dataset):
    """Every sample is waited for, so that workers matter."""
    def __init__(self, sleep_s):
        self.sleep_s = sleep_s
    def __len__(self):
        return 4000
    def __getitem__(self, index):
        time.sleep(self.sleep_s)
        return torch.full((8,), float(index)), index % 2

def workload(**changed):
    return Workload(**{
        "name": "toy",
        "dataset": lambda: Slow(0.002),
        "model": lambda: torch.nn.Linear(8, 2),
        "loss": torch.nn.CrossEntropyLoss(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    } | changed)
'''
CONFIRMED = ["--batch-size", "16", "--num-workers", "0..4", "--max-trial-s", "1", "--keep-going"]
QUICK = [*CONFIRMED, "--no-confirm"]


def pytest_configure(config):
    """Let SIGINT and SIGHUP do what they usually do: a runner in the background ignores them, and every command would inherit that.

    A process of pytest-xdist is also set apart from the others.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if hasattr(config, "workerinput"):  # this is one of several processes (make test JOBS=3)
        shards.set_apart(config.option.basetemp)


@functools.cache
def shares_a_fixture(file):
    """Whether tests of this file share a fixture that is made once for all of them."""
    return 'scope="module"' in file.read_text()


def group_of(item):
    """The name of the group of tests that run in one process, or None."""
    if "finished" in item.fixturenames:
        return "finished"
    return str(item.path) if "tag" in item.fixturenames or shares_a_fixture(item.path) else None


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    """Keep tests that share a fixture of their file, or the finished search, in one process; begin with these, then with the longest others."""
    groups = {item: group_of(item) for item in items}
    items.sort(key=lambda item: (groups[item] is None, "end_to_end" not in item.path.parts))
    for item, group in groups.items():
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


class Command:
    """A feedrate command under way.

    Its descendants carry a mark in their environment, Ray's processes too; it shares neither Ray, home, nor the lock of
    this host with anything else that runs here.
    """

    def __init__(self, *arguments, cwd, home, program=None, **environment):
        self.cwd, self.mark = Path(cwd), uuid.uuid4().hex
        self.began_s = time.monotonic()
        self._stdout, self._stderr = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 - closed by end()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.process = subprocess.Popen(
            [*(program or FEEDRATE), *map(str, arguments)],
            cwd=cwd,
            env=kept | {"HOME": str(home), MARK: self.mark, "FEEDRATE_HOST_ID": self.mark} | environment,
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,
        )

    @staticmethod
    def _text(stream):
        descriptor = stream.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()

    @property
    def stdout(self):
        return self._text(self._stdout)

    @property
    def stderr(self):
        return self._text(self._stderr)

    def wait(self, timeout_s=280):
        """The exit code, once the command has ended; self.wall_s says after how long."""
        code = self.process.wait(timeout_s)
        self.wall_s = time.monotonic() - self.began_s
        return code

    def until(self, condition, within_s=60):
        """Wait until `condition()` is true, as long as the command runs, and return its last value."""
        end = time.monotonic() + within_s
        while not (value := condition()) and time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.1)
        assert value, f"this did not come true within {within_s} s; stderr: {self.stderr}"
        return value

    def interrupt(self):
        """Ctrl-C, as a terminal sends it: to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def alive(self):
        """The processes of this command: {pid: command line}."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    found[process.pid] = " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def trial_processes(self):
        """Those of `alive` that came from a template: template, trainer and loader workers."""
        found = {}
        for pid, command in self.alive().items():
            try:
                if "FEEDRATE_TEMPLATE" in psutil.Process(pid).environ():
                    found[pid] = command
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def template(self):
        """The pid of the template, or None while there is no template: the only process of a trial whose parent is outside of the trial."""
        members = self.trial_processes()
        for pid in members:
            try:
                if psutil.Process(pid).ppid() not in members:
                    return pid
            except psutil.NoSuchProcess:
                continue
        return None

    def end(self):
        """End everything that is left, by pid."""
        for _ in range(3):
            for pid in self.alive():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.process.wait(30)
        self._stdout.close()
        self._stderr.close()


def records(run):
    """The lines of trials.jsonl, each of which must be whole."""
    path = Path(run) / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A home folder that Ray and the workloads' cache may write to."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def tag(tmp_path_factory):
    """Marks what the tests of a file start; at their end nothing of it is left, in /dev/shm and /tmp neither."""
    from census import leaves_nothing

    with leaves_nothing(tmp_path_factory) as name:
        yield name


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes workloads to mine.py in a folder that becomes the current one; no other trial on this machine is waited for."""

    def write(text):
        (tmp_path / "mine.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("FEEDRATE_HOST_ID", str(tmp_path))

    return write


@pytest.fixture
def start(tmp_path, home):
    """Starts a feedrate command in tmp_path, beside toy.py; whatever is left of it is ended after the test."""
    (tmp_path / "toy.py").write_text(TOY)
    commands = []

    def start_command(*arguments, cwd=tmp_path, **environment):
        commands.append(Command(*arguments, cwd=cwd, home=home, **environment))
        return commands[-1]

    yield start_command
    for command in commands:
        command.end()


@pytest.fixture
def feedrate(start):
    """Runs a feedrate command to its end; it has .code, .stdout, .stderr and .wall_s."""

    def run(*arguments, timeout_s=280, **more):
        command = start(*arguments, **more)
        command.code = command.wait(timeout_s)
        return command

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, home):
    """One finished search of four settings and its rounds; read it, do not change it. It has .run, .code, .stdout, .stderr, .left."""
    cwd = tmp_path_factory.mktemp("finished")
    (cwd / "toy.py").write_text(TOY)
    command = Command("search", "toy.py:workload", *CONFIRMED, "--max-trials", "4", "--seed", "3", cwd=cwd, home=home)
    try:
        command.code = command.wait()
        command.left = command.alive()
        command.run = cwd / "feedrate-runs" / "toy-1"
        yield command
    finally:
        command.end()


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server. Without one, the test is skipped, and in CI it fails."""
    from postgresql_server import Server, programs

    if programs() is None:
        why = "needs PostgreSQL: apt-get install postgresql"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    server = Server()
    yield server
    server.end()


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage_url(request, tmp_path):
    """The address of a new study, on each storage in turn; None is the journal file."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql").database()
    return f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else None


@pytest.fixture
def opened(storage_url, tmp_path):
    """Opens the same study again and again, in each kind of storage."""

    from feedrate.search.space.search_space import SearchSpace
    from feedrate.search.study.brain import Brain

    space = SearchSpace.default(num_cpus=8, has_accelerator=True)
    brains = []

    def open_brain(**options):
        brain = Brain.open(storage_url, tmp_path / "study.journal", **{"study_name": "s", "space": space, "seed": 1} | options)
        brains.append(brain)
        return brain

    yield open_brain
    for brain in brains:
        brain.close()


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished.run, tmp_path / "copied"))
