"""The bundled workload `objects`: images fetched one by one over HTTP, so that loading means waiting, not computing.

Many workers are fastest, even on two cores. Without a URL, a local server (object_server.py) answers after a chosen latency.
"""

from __future__ import annotations

import http.client
import io
import math
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from feedrate.trainables.bundled import object_server
from feedrate.trainables.bundled.image_samples import BadImageError, ImageSamples
from feedrate.trainables.bundled.images import EXTENSIONS, image_workload
from feedrate.trainables.bundled.photos import photo_folder
from feedrate.trainables.workload import Workload, WorkloadError

TIMEOUT_S = 30.0


class HttpClient:
    """Fetches files below one URL, with a kept-alive connection per process and thread that is never shared across a fork."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the port is not a number
            valid = False
        if not valid:
            raise WorkloadError(f"{url!r} is not an http:// or https:// URL: pass one with --data, or leave --data out")
        if parts.username or parts.query or parts.fragment:
            raise WorkloadError(f"{url!r}: user names, ?queries and #fragments are not supported: pass a plain URL")
        self.url = url.rstrip("/")
        self._reset()

    def _reset(self) -> None:
        self._connections: dict[tuple[int, int], http.client.HTTPConnection] = {}
        weakref.finalize(self, _close_all, self._connections)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.url = state["url"]
        self._reset()

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and content of one file; try again once if the connection was dropped.

        Raises:
            WorkloadError: the server does not answer.
        """
        target = f"{urlsplit(self.url).path}/{quote(path, errors='surrogateescape')}"
        for last_try in (False, True):
            connection = self._connection()
            try:
                connection.request("GET", target)
                response = connection.getresponse()
                return response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()  # the next request opens it again
                if last_try:
                    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    raise WorkloadError(
                        f"{self.url} does not answer ({why}): start the server, or pass another URL with --data"
                    ) from error
        raise AssertionError("unreachable")

    def _connection(self) -> http.client.HTTPConnection:
        key = os.getpid(), threading.get_ident()
        if key not in self._connections:
            for other in list(self._connections):
                if other[0] != key[0] and (inherited := self._connections.pop(other, None)):
                    inherited.close()  # closes this process's copy of the descriptor; the parent's stays open
            parts = urlsplit(self.url)
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._connections[key] = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        return self._connections[key]

    def close(self) -> None:
        """Close the connections; the next `get` opens one again."""
        _close_all(self._connections)


def _close_all(connections: dict[tuple[int, int], http.client.HTTPConnection]) -> None:
    while connections:
        connections.popitem()[1].close()


class HttpImages(ImageSamples):
    """The images that `URL/index.txt` lists, each fetched when it is read. The first folder of a path is its class."""

    check_limit = 200

    def __init__(self, url: str, image_size: int, epoch_samples: int, server: LocalServer | None = None) -> None:
        self._client, self._server = HttpClient(url), server
        try:
            status, index = self._client.get("index.txt")
        finally:
            self._client.close()  # because workers open their own connections
        if status != 200:
            raise WorkloadError(
                f"{self._client.url}/index.txt answers with HTTP status {status}: put a file there that lists the "
                f"paths of the images relative to the URL, one per line"
            )
        paths = sorted(line for line in index.decode(errors="surrogateescape").splitlines() if line.strip())
        paths = [path for path in paths if path.lower().endswith(EXTENSIONS)]
        if not paths:
            wanted = ", ".join(EXTENSIONS)
            raise WorkloadError(f"{self._client.url}/index.txt lists no images ({wanted}): list them, one path per line")
        super().__init__(self._client.url, paths, image_size, epoch_samples)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_server": None}  # the server belongs to the process that started it

    def open(self, path: str) -> BinaryIO:
        status, content = self._client.get(path)
        if status != 200:
            raise BadImageError(f"HTTP status {status}")
        return io.BytesIO(content)

    def check(self) -> list[str]:
        try:
            return super().check()
        finally:
            self._client.close()


class LocalServer:
    """Runs `object_server` in a process that ends with this object, and at the latest with this process."""

    def __init__(self, root: Path, latency_s: float) -> None:
        # start it by path and with -P: this works wherever this file is, and no file in the current folder can shadow the library
        command = [sys.executable, "-P", object_server.__file__, "--root", str(root), "--latency-s", str(latency_s)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = process.pid
        self.close = weakref.finalize(self, _end, process, os.getpid())
        assert process.stdout is not None
        with process.stdout as answer:
            port = answer.readline().strip()
        if not port:
            raise WorkloadError(f"the local object server ended at once with exit code {process.wait()}: see above")
        self.url = f"http://127.0.0.1:{int(port)}"


def _end(process: subprocess.Popen[bytes], owner_pid: int) -> None:
    if os.getpid() != owner_pid:  # a forked worker drops its copy of this object, but the server belongs to the owner
        return
    process.terminate()
    process.wait()
    if process.stdin:
        process.stdin.close()


def objects(
    *,
    data: str | None = None,
    latency_s: float = 0.04,
    image_size: int | None = None,
    model: str | None = None,
    epoch_samples: int = 50_000,
) -> Workload:
    """Return the bundled workload `objects`.

    Args:
        data: URL below which `index.txt` lists the images; None starts a local server that serves the photo-like set.
        latency_s: seconds that the local server waits before each answer; has no effect on `data`.
        image_size, model, epoch_samples: as for `images`.

    Raises:
        WorkloadError: an option is impossible; or, when the dataset is made, the URL provides no images.
    """
    if not (math.isfinite(latency_s) and latency_s >= 0):
        raise WorkloadError(f"latency_s must be 0 or more seconds, not {latency_s}")
    if data is not None:
        HttpClient(data)  # refuses an invalid URL now, without connecting

    def make(size: int) -> ImageSamples:
        if data is not None:
            return HttpImages(data, size, epoch_samples)
        server = LocalServer(photo_folder(), latency_s)
        return HttpImages(server.url, size, epoch_samples, server)

    return image_workload("objects", make, image_size, model, epoch_samples)
