"""objects.py and object_server.py: images over HTTP, with a real server, real loader workers and real deaths."""

import gc
import http.client
import http.server
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from feedrate.trainables import object_server
from feedrate.trainables.objects import HttpClient, HttpImages, LocalServer, objects
from feedrate.trainables.workload import WorkloadError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A ready photo set of 12 small images in three classes, so that none is made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "feedrate" / "photos-2000-v1"
    for index in range(12):
        (folder / f"class-{index % 3}").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 255, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"class-{index % 3}" / f"photo {index:02}.jpg")
    return folder


@pytest.fixture
def server(cache):
    local = LocalServer(cache, 0.0)
    yield local
    local.close()


def gone(pid, within_s=5.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(("num_workers", "context"), [(0, None), (2, "fork"), (1, "spawn"), (1, "forkserver")])
def test_batches_come_over_http(cache, num_workers, context):
    """The workload starts its own server; batches are those of `images`, in every kind of worker; none is left."""
    workload = objects(latency_s=0.001, image_size=32, epoch_samples=30)
    loader = workload.make_loader(batch_size=10, num_workers=num_workers, multiprocessing_context=context)
    pid = workload.dataset._server.pid
    for _ in range(2):
        batches = list(loader)
        assert [pixels.shape for pixels, _ in batches] == [(10, 3, 32, 32)] * 3
        assert {int(label) for _, labels in batches for label in labels} == {0, 1, 2}
    assert not gone(pid, 0.1)
    del loader, workload
    gc.collect()
    assert gone(pid)


def test_a_fetch_takes_the_latency(cache):
    """Every answer, on a new and on a used connection."""
    server = LocalServer(cache, 0.05)
    client = HttpClient(server.url)
    for _ in range(3):
        start = time.perf_counter()
        status, content = client.get("class-0/photo 00.jpg")
        assert time.perf_counter() - start >= 0.05
        assert (status, content) == (200, (cache / "class-0" / "photo 00.jpg").read_bytes())
    client.close()
    server.close()


def test_waiting_clients_do_not_wait_for_each_other(cache):
    """64 clients at a latency of 0.2 s are all answered in far less than 64 x 0.2 s."""
    server = LocalServer(cache, 0.2)
    client = HttpClient(server.url)
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(client.get("index.txt")[0])) for _ in range(64)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - start < 3
    assert statuses == [200] * 64
    client.close()
    server.close()


@pytest.mark.parametrize("path", ["/../secret.jpg", "/%2e%2e/secret.jpg", "//etc/passwd", "/link.jpg", "/class-0", "/"])
def test_the_server_serves_nothing_outside_its_root(cache, path):
    """Neither by dots, nor by absolute paths, nor by links; the connection stays usable."""
    (cache.parent / "secret.jpg").write_text("secret")
    (cache / "link.jpg").symlink_to(cache.parent / "secret.jpg")
    server = LocalServer(cache, 0.0)
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


def test_the_server_needs_no_torch(cache):
    """As a module it imports the standard library only; it prints its port and ends when its stdin does."""
    command = [sys.executable, "-X", "importtime", "-m", "feedrate.trainables.object_server", "--root", str(cache)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert 0 < int(process.stdout.readline()) < 65536
        _, imports = process.communicate(timeout=10)
        assert process.returncode == 0
    assert not {"torch", "numpy", "PIL"} & {line.split("|")[-1].strip() for line in imports.splitlines()}


OWNER = """
import os, sys, time
from pathlib import Path
from feedrate.trainables.objects import LocalServer
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
def test_the_server_ends_with_its_owner(cache, end):
    """Also when the owner is SIGKILLed while a forked worker lives on; and a forked child's exit does not end it."""
    command = [sys.executable, "-W", "ignore", "-c", OWNER, str(cache), end]
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


def test_a_dropped_connection_is_retried_once(cache):
    """Servers close idle connections; a server that is gone ends the trial with one sentence."""
    requests = []

    class Dropping(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            requests.append(self.path)
            self.send_response_only(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")
            self.close_connection = True  # without saying so

    dropping = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dropping)
    thread = threading.Thread(target=dropping.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    client = HttpClient(f"http://127.0.0.1:{dropping.server_address[1]}/some/prefix/")
    for _ in range(3):
        assert client.get("a b.jpg") == (200, b"ok")
        time.sleep(0.05)
    assert requests == ["/some/prefix/a%20b.jpg"] * 3
    dropping.shutdown()
    dropping.server_close()
    thread.join()
    with pytest.raises(WorkloadError, match=r"does not answer.*start the server.*--data"):
        client.get("a.jpg")
    client.close()


def test_connections_are_not_shared_across_a_fork_or_pickled(server):
    """A copy and a forked child open their own."""
    client = HttpClient(server.url)
    client.get("index.txt")
    copy = pickle.loads(pickle.dumps(client))
    assert copy.get("index.txt")[0] == 200
    mine = client._connection().sock.getsockname()
    pid = os.fork()
    if pid == 0:
        try:
            status = client.get("index.txt")[0]
            os._exit(0 if status == 200 and client._connection().sock.getsockname() != mine else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.get("index.txt")[0] == 200
    assert client._connection().sock.getsockname() == mine
    client.close()
    copy.close()


def test_bad_objects_are_replaced_and_named(cache, server, caplog):
    """Not an image, or gone: the search goes on; the check counts and names them."""
    (cache / "class-0" / "photo 00.jpg").write_bytes(b"not a JPEG")
    (cache / "class-1" / "photo 01.jpg").unlink()
    samples = HttpImages(server.url, 32, 24)
    with caplog.at_level(logging.WARNING):
        assert len(list(samples)) == 24
    assert len(caplog.messages) == 2
    assert any("HTTP status 404" in message for message in caplog.messages)
    assert samples.check() == [
        "2 of 12 files are not images and are skipped: class-0/photo 00.jpg, class-1/photo 01.jpg"
    ]
    samples._client.close()


def test_a_server_that_dies_ends_the_trial(server):
    """In a worker too: one clear sentence, no hang."""
    workload = objects(data=server.url, image_size=32)
    batches = iter(workload.make_loader(batch_size=4, num_workers=1))
    next(batches)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(WorkloadError, match="does not answer"):
        list(batches)


def test_an_unreachable_url_is_refused():
    """A closed port, a name that does not exist, no index, an index without images."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(WorkloadError, match=r"127.0.0.1:\d+ does not answer \(Connection refused\)"):
            objects(data=f"http://127.0.0.1:{unused.getsockname()[1]}").check()


@pytest.mark.parametrize(("folder", "wanted"), [("class-0/", "HTTP status 404"), ("", "lists no images")])
def test_a_bad_index_is_refused(cache, folder, wanted):
    """The message says what to put there."""
    for path in cache.glob("*/*"):
        path.rename(path.with_suffix(".txt"))
    server = LocalServer(cache, 0.0)
    with pytest.raises(WorkloadError, match=f"index.txt.*{wanted}"):
        objects(data=f"{server.url}/{folder}").check()
    server.close()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"latency_s": -1}, "latency_s must be 0 or more"),
        ({"latency_s": float("nan")}, "latency_s must be 0 or more"),
        ({"data": "/data/images"}, "not an http:// or https:// URL"),
        ({"data": "ftp://host/x"}, "not an http:// or https:// URL"),
        ({"data": "http://host:port/x"}, "not an http:// or https:// URL"),
        ({"data": "https://me:secret@host/x"}, "not supported"),
        ({"model": "vgg"}, "use one of"),
    ],
)
def test_impossible_options_are_refused_at_once(options, wanted):
    """Without a connection or a server."""
    with pytest.raises(WorkloadError, match=wanted):
        objects(**options)


def test_a_server_that_cannot_start_is_explained(cache, monkeypatch, capfd):
    """Instead of waiting for a port that never comes."""
    monkeypatch.setattr(object_server, "__file__", str(cache / "missing.py"))
    with pytest.raises(WorkloadError, match="server ended at once with exit code 2"):
        LocalServer(cache, 0.0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_many_workers_win(cache):
    """Even on two cores, eight workers load more than twice as fast as two: they wait, they do not compute."""

    def seconds(num_workers):
        workload = objects(latency_s=0.02, image_size=32, epoch_samples=320)
        batches = iter(workload.make_loader(batch_size=8, num_workers=num_workers))
        next(batches)
        start = time.perf_counter()
        for _ in range(20):
            next(batches)
        return time.perf_counter() - start

    assert seconds(2) > 2 * seconds(8)
