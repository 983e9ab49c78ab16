"""objects.py: images over HTTP, with a real server and real loader workers."""

import gc
import http.server
import logging
import os
import pickle
import signal
import socket
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from feedrate.trainables.bundled.objects import HttpClient, HttpImages, LocalServer, objects
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


@pytest.mark.parametrize(("num_workers", "context"), [(0, None), (2, "fork"), (1, "spawn")])
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
    """One clear sentence, no hang."""
    workload = objects(data=server.url, image_size=32)
    batches = iter(workload.make_loader(batch_size=4))
    next(batches)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(WorkloadError, match="does not answer"):
        list(batches)


def test_an_unreachable_url_is_refused():
    """By the check before a search: nothing listens there."""
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
