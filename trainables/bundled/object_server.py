"""The local HTTP server of the workload `objects`: answers after a fixed latency, as object storage does.

    python -m feedrate.trainables.bundled.object_server --root DIR --latency-s 0.04

prints its port as one line, then serves `/index.txt` (the paths, one a line) and the files under DIR. It ends when its
standard input ends or its parent process changes, so that it never outlives its owner, whatever that dies of.
Imports the standard library only: it starts in the time of one Python start.
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
    """One thread a connection, so that waiting clients do not wait for each other."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(self, root: str, latency_s: float) -> None:
        self.root, self.latency_s = root, latency_s
        self.paths = frozenset(list_files(root))
        super().__init__(("127.0.0.1", 0), ObjectHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no errors here."""
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
    """Relative paths of the regular files under `root`; links and names that do not fit on a line are left out."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            full = os.path.join(folder, name)
            path = os.path.relpath(full, root)
            if path.isprintable() and not os.path.islink(full):
                found.append(path)
    return found


def main(argv: list[str] | None = None) -> int:
    """Serves until the owner is gone."""
    parser = argparse.ArgumentParser(prog="object_server", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", required=True, help="folder whose files are served")
    parser.add_argument("--latency-s", type=float, default=0.04, help="seconds to wait before each answer")
    args = parser.parse_args(argv)
    owner = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the owner too, and the owner decides
    server = ObjectServer(os.path.abspath(args.root), args.latency_s)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    # a forked loader worker may hold the other end of stdin open for longer than the owner lives: both are watched
    while os.getppid() == owner:
        readable, _, _ = select.select([sys.stdin], [], [], OWNER_CHECK_S)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
