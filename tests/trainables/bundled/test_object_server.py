"""object_server.py: the local server of `objects`: latency, fences, and that it never outlives its owner."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from feedrate.trainables.bundled import object_server
from feedrate.trainables.bundled.objects import HttpClient, LocalServer
from feedrate.trainables.workload import WorkloadError


@pytest.fixture
def root(tmp_path):
    """A folder with one object in it."""
    path = tmp_path / "objects" / "class-0" / "photo 00.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(os.urandom(100_000))
    return tmp_path / "objects"


def gone(pid, within_s=5.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_fetch_takes_the_latency(root):
    """Every answer, on a new and on a used connection."""
    server = LocalServer(root, 0.05)
    client = HttpClient(server.url)
    for _ in range(3):
        start = time.perf_counter()
        status, content = client.get("class-0/photo 00.jpg")
        assert time.perf_counter() - start >= 0.05
        assert (status, content) == (200, (root / "class-0" / "photo 00.jpg").read_bytes())
    client.close()
    server.close()


def test_waiting_clients_do_not_wait_for_each_other(root):
    """64 clients at a latency of 0.2 s are all answered in less than the 64 x 0.2 s that they would take one after the other."""
    server = LocalServer(root, 0.2)
    client = HttpClient(server.url)
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(client.get("index.txt")[0])) for _ in range(64)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - start < 64 * 0.2
    assert statuses == [200] * 64
    client.close()
    server.close()


@pytest.mark.parametrize("path", ["/../secret.jpg", "/%2e%2e/secret.jpg", "//etc/passwd", "/link.jpg", "/class-0", "/"])
def test_the_server_serves_nothing_outside_its_root(root, path):
    """Neither by dots, nor by absolute paths, nor by links; the connection stays usable."""
    (root.parent / "secret.jpg").write_text("secret")
    (root / "link.jpg").symlink_to(root.parent / "secret.jpg")
    server = LocalServer(root, 0.0)
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    for wanted, asked in ((404, path), (200, "/index.txt")):
        connection.putrequest("GET", asked, skip_host=True)
        connection.putheader("Host", "x")
        connection.endheaders()
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == wanted
        assert b"secret" not in content
        assert b"link" not in content
    connection.close()
    server.close()


def test_the_server_needs_no_torch(root):
    """As a module it imports the standard library only; it prints its port and ends when its stdin does."""
    command = [sys.executable, "-X", "importtime", "-m", "feedrate.trainables.bundled.object_server", "--root", str(root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert 0 < int(process.stdout.readline()) < 65536
        _, imports = process.communicate(timeout=10)
        assert process.returncode == 0
    assert not {"torch", "numpy", "PIL"} & {line.split("|")[-1].strip() for line in imports.splitlines()}


OWNER = """
import os, sys, time
from pathlib import Path
from feedrate.trainables.bundled.objects import LocalServer
server = LocalServer(Path(sys.argv[1]), 0.0)
worker = os.fork()
if worker == 0:
    if sys.argv[2] == "killed":
        time.sleep(20)  # holds the other end of the server's stdin for longer than the owner lives
        os._exit(0)
    sys.exit()  # runs the exit handlers of the owner's copy
if sys.argv[2] == "exits":
    os.waitpid(worker, 0)
    os.kill(server.pid, 0)  # still there: the child's exit did not end it
    time.sleep(0.3)
    import urllib.request
    urllib.request.urlopen(server.url + "/index.txt").read()
print(server.pid, worker, flush=True)
if sys.argv[2] == "killed":
    time.sleep(20)
"""


@pytest.mark.parametrize("end", ["killed", "exits"])
def test_the_server_ends_with_its_owner(root, end):
    """Also when the owner is SIGKILLed while a forked worker lives on; and a forked child's exit does not end it."""
    command = [sys.executable, "-W", "ignore", "-c", OWNER, str(root), end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
        line = owner.stdout.readline()
        if not line:
            pytest.fail(owner.stderr.read())
        server_pid, worker_pid = map(int, line.split())
        if end == "killed":
            owner.kill()
            assert gone(server_pid)
            os.kill(worker_pid, signal.SIGKILL)
        assert owner.wait(timeout=10) == (-signal.SIGKILL if end == "killed" else 0)
    assert gone(server_pid)


def test_a_server_that_cannot_start_is_explained(root, monkeypatch, capfd):
    """Instead of waiting for a port that never comes."""
    monkeypatch.setattr(object_server, "__file__", str(root / "missing.py"))
    with pytest.raises(WorkloadError, match="server ended at once with exit code 2"):
        LocalServer(root, 0.0)
