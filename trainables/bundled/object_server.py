"""The local HTTP server of the workload `objects`: answers after a fixed latency, as object storage does.

    python -m feedrate.trainables.bundled.object_server --root DIR --latency-s 0.04

prints its port as one line, then serves `/index.txt` (one path per line) and the files under DIR. It ends when its
standard input closes or its parent process changes, so that it never outlives its owner, however the owner dies.
It imports only the standard library, so that it starts as fast as Python itself.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER_CHECK_S = 0.25


class ObjectServer(ThreadingHTTPServer):
    """An HTTP server with one thread per connection, so that clients do not wait for each other's latency."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(self, root: str, latency_s: float) -> None:
        self.root, self.latency_s = root, latency_s
        self.paths = frozenset(list_files(root))
        super().__init__(("127.0.0.1", 0), ObjectHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection; report any other error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ObjectHandler(BaseHTTPRequestHandler):
    """Answers GET after the latency. Only listed paths are served, so no path can lead out of the root."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ObjectServer

    def do_GET(self) -> None:
        time.sleep(self.server.latency_s)
        path = unquote(urlsplit(self.path).path, errors="surrogateescape").removeprefix("/")
        if path == "index.txt":
            self._head(200, len(index := "".join(f"{name}\n" for name in sorted(self.server.paths)).encode()))
            self.wfile.write(index)
            return
        try:
            if path not in self.server.paths:
                raise FileNotFoundError(path)
            file = open(os.path.join(self.server.root, path), "rb")  # noqa: SIM115, closed below
        except OSError:
            self._head(404, 0)
            return
        with file:
            self._head(200, os.fstat(file.fileno()).st_size)
            self.connection.sendfile(file)

    def _head(self, status: int, num_bytes: int) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(num_bytes))
        self.end_headers()


def list_files(root: str) -> list[str]:
    """Return the relative paths of the regular files under `root`, without links and names that do not fit on a line."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            full = os.path.join(folder, name)
            path = os.path.relpath(full, root)
            if path.isprintable() and not os.path.islink(full):
                found.append(path)
    return found


def main(argv: list[str] | None = None) -> int:
    """Serve until the owner is gone."""
    parser = argparse.ArgumentParser(prog="object_server", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", required=True, help="folder whose files are served")
    parser.add_argument("--latency-s", type=float, default=0.04, help="seconds to wait before each answer")
    args = parser.parse_args(argv)
    owner = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the owner too, which decides when the server ends
    server = ObjectServer(os.path.abspath(args.root), args.latency_s)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    # a forked loader worker may keep the other end of stdin open after the owner has died, so watch the parent process too
    while os.getppid() == owner:
        readable, _, _ = select.select([sys.stdin], [], [], OWNER_CHECK_S)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
