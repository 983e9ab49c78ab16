"""A real `ray start --head` on loopback, with a token, a dashboard for the Jobs API, and Ray's folders of its own."""

import os
import shutil
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from conftest import Command

TOKEN = "c0ffee" * 8


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Head:
    """Started when made, ended with everything that it started by `end`."""

    def __init__(self, folder, *, num_cpus=2, port=None, dashboard=None, home=None, token=True):
        self.folder = Path(tempfile.mkdtemp(prefix="feedrate-head-", dir="/tmp"))  # a socket's path is short
        self.home = home or folder / "head-home"
        self.home.mkdir(exist_ok=True)
        self.runs = self.home / "feedrate-runs"
        self.port, dashboard = port or free_port(), dashboard or free_port()
        self.token = token
        self.url = f"http://127.0.0.1:{dashboard}"
        python = Path(sys.executable)
        arguments = ["--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", f"--port={self.port}"]
        arguments += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"]
        arguments += [f"--num-cpus={num_cpus}", "--object-store-memory=80000000", f"--temp-dir={self.folder}"]
        self.command = Command(
            "start",
            *arguments,
            cwd=folder,
            home=self.home,
            program=[python.with_name("ray")],
            PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
            **({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN} if token else {"RAY_AUTH_MODE": "disabled"}),
        )
        self.command.until(self._answers, within_s=120)

    def _answers(self):
        try:
            urllib.request.urlopen(f"{self.url}/api/jobs/", timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 401 and self.token
        except OSError:
            return False
        return True

    def kill(self):
        """Kill all its processes at once, as a crash of the machine does."""
        for pid in self.command.alive():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def end(self):
        self.command.process.terminate()
        self.command.wait()
        self.command.end()
        shutil.rmtree(self.folder, ignore_errors=True)
