"""launcher_protocol.py: every message is the same on both ends, and one of another version of feedrate does not disturb a trial."""

import json
import socket
import subprocess
import sys

import pytest
from test_fences import loaded_by

from feedrate.trainables.failure import Failure
from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.sandbox import launcher_protocol
from feedrate.trainables.sandbox.launcher import HOOK
from feedrate.trainables.sandbox.launcher_protocol import (
    EndedIdle,
    Handover,
    ImportsTorch,
    IsImported,
    Leaves,
    Raised,
    RankFailed,
    Trains,
    TrainsInStartedProcess,
    WithoutFeedrate,
    said_in,
    said_line,
)

RANK = Rank(number=1, local_number=1, world_size=2, local_world_size=2)
SAID = [
    ImportsTorch(rank=RANK),
    ImportsTorch(rank=None),
    Trains(rank=RANK),
    Trains(rank=None),
    TrainsInStartedProcess(),
    IsImported(),
    Raised(sentence="train.py raised ValueError", traceback="Traceback ..."),
    EndedIdle(sentence="train.py ended"),
    RankFailed(failure=Failure(kind="hang", phase="measure", message="no batch came", cause=("A", "B"))),
    Leaves(),
    WithoutFeedrate(python="/usr/bin/python3", why="ModuleNotFoundError"),
]


@pytest.mark.parametrize("message", SAID, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message):
    line = said_line(message)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert said_in(line) == message


def test_every_message_is_among_these():
    assert {type(message) for message in SAID} == set(launcher_protocol._SAID.values()) == set(launcher_protocol.Said.__args__)


def test_the_answer_arrives_as_it_was_sent():
    answer = Handover(threads=4, began_unix_s=1.5)
    assert Handover.from_line(answer.line()) == answer


def test_kinds_and_fields_of_another_version_are_passed_over():
    assert said_in(b'{"says": "dreams"}') is None
    assert said_in(json.dumps({"says": "ended", "sentence": "it ended", "python": "/usr/bin/python3"}).encode()) == EndedIdle(sentence="it ended")


def test_the_hook_of_an_interpreter_without_feedrate_sends_a_message(tmp_path):
    """It cannot import the class of its message. With -S, Python does not find the installed packages."""
    with socket.socket(socket.AF_UNIX) as launcher:
        launcher.bind(str(tmp_path / "launcher"))
        launcher.listen()
        environment = {"FEEDRATE_LAUNCHER": str(tmp_path / "launcher")}
        subprocess.run([sys.executable, "-S", HOOK / "sitecustomize.py"], env=environment, check=True, timeout=60)
        connection, _ = launcher.accept()
        with connection:
            line = connection.recv(1 << 16)
    assert said_in(line) == WithoutFeedrate(python=sys.executable, why="ModuleNotFoundError: No module named 'feedrate'")


def test_the_hooks_of_every_interpreter_load_nothing_heavy():
    assert loaded_by("from feedrate.trainables.script import measure_hooks, worker_hooks") == []
