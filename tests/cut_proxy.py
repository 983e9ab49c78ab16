"""A TCP proxy on loopback that can be cut, as a network can."""

import contextlib
import socket
import threading


class Proxy:
    """Forwards to `port` from `self.port`, until it is cut; listens again after `mend`."""

    def __init__(self, port):
        self._target, self._pairs, self._lock = port, [], threading.Lock()
        self.port = 0
        self.mend()

    def mend(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self):
        """Every connection is lost, and new ones are refused."""
        self._close(self._listener)
        with self._lock:
            for each in self._pairs:
                self._close(each)
            self._pairs.clear()

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                self._pairs += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        self._close(source)
        self._close(sink)

    @staticmethod
    def _close(each):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
