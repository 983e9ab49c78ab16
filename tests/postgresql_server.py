"""A real PostgreSQL server with a password on a loopback port, run as an unprivileged user where tests run as root."""

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg

PASSWORD = "not-a-secret"


def programs():
    """The folder of PostgreSQL's programs; None where it is not installed."""
    found = shutil.which("initdb") or max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
    return Path(found).parent if found else None


class Server:
    """Started when made; `stop` takes it away until `start`, `end` leaves nothing."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="feedrate-postgresql-"))  # not in pytest's, which only its user may enter
        self.as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        if self.as_user:
            shutil.chown(self.folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password = self.folder / "password"
        password.write_text(PASSWORD)
        self._run("initdb", "-U", "ann", "-A", "scram-sha-256", "--pwfile", password, "--no-sync", "-D", self.folder / "data")
        self.start()

    def _run(self, name, *arguments):
        command = [str(programs() / name), *map(str, arguments)]
        with (self.folder / "output").open("a+") as output:  # a server that is started keeps it open
            done = subprocess.run(command, cwd=self.folder, stdout=output, stderr=output, check=False, timeout=60, **self.as_user)
            output.seek(0)
            assert done.returncode == 0, output.read()

    def start(self):
        """Until it answers."""
        settings = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", self.folder / "data", "-o", settings, "-w", "start")

    def stop(self):
        """As a machine that goes down: connections are cut."""
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")

    def database(self):
        """The address of a new, empty database."""
        name = f"db_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(host="127.0.0.1", port=self.port, user="ann", password=PASSWORD, dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://ann:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def end(self):
        """Stop it and remove its files."""
        self.stop()
        shutil.rmtree(self.folder)
