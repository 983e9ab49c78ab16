"""SIGTERM and SIGHUP: a command ends within a bounded time, prints how to go on, and leaves no process."""

import os
import pty
import signal
import sys
import time

import pytest
from census import eventually
from conftest import QUICK, TOY, records

SOON_S = 15.0


@pytest.fixture
def temporary(tmp_path):
    """A temporary folder of the command's own: what is left in it afterwards was left by the command."""
    folder = tmp_path / "t"
    folder.mkdir()
    return folder


def left(folder):
    """What feedrate and Ray left in a temporary folder; torch leaves an empty folder of its own."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_")]


def check_ended(command, code, temporary):
    """In time, with this exit code, without a traceback, a process or a file."""
    asked_s = time.monotonic() - command.began_s
    assert command.wait(60) == code, command.stderr
    assert command.wall_s - asked_s < SOON_S
    assert "Traceback" not in command.stderr
    assert eventually(lambda: not command.alive()), command.alive()
    assert eventually(lambda: not left(temporary)), left(temporary)


def signal_to_group(command, number):
    """The command gets the signal twice, as `timeout` sends it."""
    os.kill(command.process.pid, number)
    os.killpg(command.process.pid, number)


def signal_to_group_twice(command, number):
    """The second one late."""
    signal_to_group(command, number)
    command.until(lambda: "interrupted" in command.stderr)
    os.killpg(command.process.pid, number)


def signal_to_all(command, number):
    """As systemd and Slurm do: Ray's processes too, whatever session they are in."""
    for pid in command.alive():
        os.kill(pid, number)


@pytest.mark.slow
@pytest.mark.parametrize("send", [signal_to_group, signal_to_all])
def test_a_search_ends_on_sigterm_and_is_carried_on(start, feedrate, tmp_path, temporary, send):
    """Takes 15 to 25 s, because a search has to be under way, and because 10 s are waited for a Ray that is gone.

    Where the end was not in order, nothing told the study: there the search is resumed.
    """
    run = tmp_path / "feedrate-runs" / "toy-1"
    command = start("search", "toy.py:workload", *QUICK, "--max-trials", "6", TMPDIR=str(temporary))
    command.until(lambda: len(records(run)) == 1 and command.trial_processes())
    send(command, signal.SIGTERM)
    check_ended(command, 143, temporary)
    last = command.stderr.splitlines()[-1]
    assert last == "interrupted; what was measured is kept. Carry on with: feedrate resume feedrate-runs/toy-1"
    if send is signal_to_group:
        return
    kept = records(run)
    resumed = feedrate(*last.split("with: feedrate ")[1].split(), "--max-trials", len(kept) + 1)
    assert resumed.code == 0, resumed.stderr
    assert records(run)[: len(kept)] == kept


def test_a_search_ends_while_ray_starts(start, tmp_path, temporary):
    """Ray's own handlers of SIGTERM, which say nothing and leave the folder, are not in the way."""
    command = start("search", "toy.py:workload", *QUICK, TMPDIR=str(temporary))
    command.until(lambda: any("gcs_server" in name for name in command.alive().values()))
    signal_to_group(command, signal.SIGTERM)
    check_ended(command, 143, temporary)
    assert command.stderr.splitlines()[-1] == "interrupted"
    assert not (tmp_path / "feedrate-runs").exists()


@pytest.mark.parametrize("arguments", [("measure",), ("ceilings",), ("check", "--time-budget", "60s")])
def test_the_commands_without_ray_end_on_sigterm(start, temporary, arguments):
    """With the trial's processes."""
    name, *more = arguments
    command = start(name, "toy.py:workload", *more, TMPDIR=str(temporary))
    command.until(lambda: len(command.trial_processes()) >= 2)
    signal_to_group_twice(command, signal.SIGTERM)
    check_ended(command, 143, temporary)


def test_a_terminal_that_is_closed_ends_the_command_in_order(tmp_path, home, temporary):
    """SIGHUP, and nothing can be printed any more."""
    (tmp_path / "toy.py").write_text(TOY)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ |= {"HOME": str(home), "TMPDIR": str(temporary), "FEEDRATE_HOST_ID": str(tmp_path)}
        os.execv(sys.executable, [sys.executable, "-m", "feedrate.search.cli.main", "measure", "toy.py:workload"])
    assert eventually(lambda: any(temporary.glob("feedrate-*")), 60)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert eventually(lambda: not left(temporary)), left(temporary)


STUCK = """
import json, sys, time
from feedrate.search.terminal import ending
ending.GRACE_S = 0.5
ending.end_on_signals()
with ending.at_the_latest(lambda: print("first", flush=True)), ending.at_the_latest(lambda: print("second", flush=True)):
    with ending.at_the_latest(lambda: print("closed already", flush=True)):
        pass
    print("ready", flush=True)
    while True:
        try:
            time.sleep(100)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_process_that_cannot_end_in_order_ends_at_the_latest(start, number, code):
    """What has to be done then is done, the last thing first; the main thread is interrupted once."""
    command = start("-c", STUCK, program=[sys.executable])
    command.until(lambda: command.stdout == "ready\n")
    for _ in range(3):
        os.kill(command.process.pid, number)
        time.sleep(0.05)
    assert command.wait() == code
    assert command.stdout == "ready\ninterrupted\nsecond\nfirst\n"


IGNORES = """
import signal, subprocess, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
code = "import signal; from feedrate.search.terminal.ending import end_on_signals; end_on_signals(); print(signal.getsignal(signal.SIGHUP).name)"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout, end="")
"""


def test_nohup_is_respected(start):
    """A signal that the command was started to ignore stays ignored."""
    command = start("-c", IGNORES, program=[sys.executable])
    assert command.wait() == 0, command.stderr
    assert command.stdout == "SIG_IGN\n"
