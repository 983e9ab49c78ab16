"""worker_hooks.py: what a worker does that would train while it imports the script."""

import socket
import subprocess
import sys

import pytest

from feedrate.trainables.sandbox.launcher_protocol import IsImported, said_in

IMPORTED = """
import multiprocessing, sys
multiprocessing.current_process()._inheriting = True  # as in a spawned worker while it imports the script
from feedrate.trainables.script import worker_hooks
worker_hooks.install(sys.argv[1])
from torch.utils.data import DataLoader
iter(DataLoader([1, 2]))
"""


def test_a_worker_that_is_to_train_ends_when_the_launcher_knows_why(tmp_path):
    """If it ended before that, the training process could be the first to report, and all it knows is that a worker died."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "launcher"))
    listener.listen()
    worker = subprocess.Popen([sys.executable, "-c", IMPORTED, str(tmp_path / "launcher")])
    connection, _ = listener.accept()
    with listener, connection:
        assert said_in(connection.recv(1 << 16)) == IsImported()
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(0.2)
        connection.sendall(b"\n")
        assert worker.wait(30) == 1
