"""What a search of a training command survives: Ctrl-C, SIGTERM, and SIGKILL of each of its processes, in the middle of a trial."""

import json
import os
import signal
import sys

import psutil
import pytest
from census import eventually
from conftest import records
from test_kills import GONE_WITHIN_S, check_records, told
from toy_training import TRAIN

SEARCH = ["--num-workers", "1..8", "--max-trial-s", "1", "--no-confirm", "--keep-going", "--time-budget", "280s", "--out", "run"]

PATH = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
"""The command's `python` is the interpreter that has feedrate."""


@pytest.fixture
def search(start, tmp_path):
    """Starts a search of `bash train.sh`, which starts the training."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "train.sh").write_text("python train.py\necho after >> after.txt\n")
    return lambda *more: start("search", *SEARCH, *more, "--", "bash", "train.sh", PATH=PATH)


def processes(command):
    """The processes of a trial that trains with loader workers, by role; None if there is none now."""
    template = command.template()
    try:
        found = {"template": template, "supervisor": psutil.Process(template).ppid()}
        (found["shell"],) = (each.pid for each in psutil.Process(template).children() if each.name() == "bash")
        (found["script"],) = (each.pid for each in psutil.Process(found["shell"]).children())
        found["worker"] = next(each.pid for each in psutil.Process(found["script"]).children() if "resource_tracker" not in " ".join(each.cmdline()))
    except (psutil.NoSuchProcess, StopIteration, ValueError, TypeError):
        return None
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "SIGKILL"])
def test_an_ended_search_leaves_nothing_running_and_can_be_resumed(search, feedrate, tmp_path, how):
    """The shell script does not go on with its next command. Resuming starts Ray once more, so only the search that could not end in order is resumed."""
    command, run = search("--max-trials", "30"), tmp_path / "run"
    command.until(lambda: len(records(run)) >= 2 and processes(command), 120)
    if how == "Ctrl-C":
        command.interrupt()
    else:
        os.kill(command.process.pid, getattr(signal, how))
    code = command.wait()
    assert code == {"Ctrl-C": 130, "SIGTERM": 143, "SIGKILL": -9}[how]
    assert eventually(lambda: not command.alive(), GONE_WITHIN_S), command.alive()
    assert not (tmp_path / "after.txt").exists()
    before = check_records(run)
    assert json.loads((run / "search.json").read_text())["finished"] is False
    if how != "SIGKILL":  # resuming what ended in order: tests/search/test_run.py, test_cli_scripts.py
        assert "feedrate resume run" in command.stderr
        assert "RUNNING" not in told(run).values()
        return
    resumed = feedrate("resume", "run", "--max-trials", len(before) + 1, PATH=PATH)
    assert resumed.code == 0, resumed.stderr
    after = check_records(run)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1
    assert "RUNNING" not in told(run).values()
    assert not resumed.alive()


@pytest.mark.slow
def test_a_search_goes_on_when_one_of_its_processes_is_killed(search, tmp_path):
    """Supervisor, template, script, loader worker and shell in turn: each costs one trial at most, and what came of the victim ends. It waits for five trials.

    The script outlives its shell and serves further trials, so the shell is the last victim.
    """
    command, run = search("--max-trials", "90"), tmp_path / "run"
    for who in ("supervisor", "template", "script", "worker", "shell"):
        command.until(lambda: len(records(run)) >= 2 and processes(command), 120)
        num, found = len(records(run)), processes(command)
        if found is None:  # that trial has just ended
            found = command.until(lambda: processes(command), 60)
        os.kill(found[who], signal.SIGKILL)
        below = {"supervisor": ("template", "shell", "script", "worker"), "template": ("shell", "script", "worker")}.get(who, ())
        assert eventually(lambda: not any(psutil.pid_exists(found[each]) for each in below), GONE_WITHIN_S), who  # noqa: B023
        command.until(lambda: len(records(run)) > num + 1, 120)  # noqa: B023
    command.interrupt()  # the search has enough settings left to outlast the five victims
    assert command.wait() == 130, command.stderr
    check_records(run)
    assert command.alive() == {}
