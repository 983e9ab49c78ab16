"""Machines that share no file system: Linux namespaces on this one, joined by a bridge that leads nowhere else.

Each machine has processes, a network address, a host name, /tmp, /dev/shm and a home folder of its own. The rest of the
file system, Python and feedrate among it, is this machine's, as one image gives it to every node. Everything ends with the
machine's first process, which ends when this process closes its standard input or dies; nothing is left on this machine.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import Command

HOME = "/tmp/home"
PROJECT = f"{HOME}/project"
NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
START_S = 30
FIRST_PROCESS = r"""
import os, signal, socket, subprocess, sys

name, hosts, shm_mib, *kept = sys.argv[1:]


def call(*words):
    subprocess.run(words, check=True)


call("mount", "--make-rprivate", "/")
call("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/mnt")
for path in kept:  # what Python needs and what lies in /tmp
    os.makedirs(f"/mnt/{path}")
    call("mount", "--bind", f"/tmp/{path}", f"/mnt/{path}")
call("mount", "--move", "/mnt", "/tmp")
call("mount", "-t", "tmpfs", "-o", f"mode=1777,size={shm_mib}m", "tmpfs", "/dev/shm")
os.makedirs("/tmp/home/project")
with open("/tmp/home/hosts", "w") as stream:
    stream.write(hosts)
call("mount", "--bind", "/tmp/home/hosts", "/etc/hosts")
call("mount", "--bind", "/dev/null", "/etc/resolv.conf")  # no name server can be reached
socket.sethostname(name)
os.chdir("/")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody else waits for processes whose parent has ended
print("ready", flush=True)
while os.read(0, 1):
    pass
"""


def why_not():
    """Why there can be no such machines here; None where there can."""
    if os.geteuid() != 0:
        return "needs root, to make namespaces"
    for program in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    link = "ip link add probe type bridge && ip link add probe0 type veth peer name probe1 && mount -t tmpfs tmpfs /mnt"
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "--mount-proc", "sh", "-c", link], check=False, capture_output=True, text=True)
    return f"the kernel refuses namespaces: {tried.stderr.strip()}" if tried.returncode else None


class Lan:
    """A bridge in a network namespace of its own, and the machines on it; use it as a context.

    Args:
        names: of the machines, which reach each other by them.
        shm_mib: size of each machine's /dev/shm.
    """

    def __init__(self, *names, shm_mib=256):
        self._first_processes = []
        self._switch = self._first_process(["unshare", "--net", "--kill-child", "--fork", "cat"])
        self._in_switch("ip link add lan type bridge && ip link set lan up")
        addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, start=1)}
        hosts = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
        try:
            self.machines = {name: self._machine(name, address, hosts, shm_mib) for name, address in addresses.items()}
        except BaseException:
            self.end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.end()

    def __getitem__(self, name):
        return self.machines[name]

    def end(self):
        """End every machine with all its processes; its namespaces, mounts and links end with them."""
        for process in reversed(self._first_processes):
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()  # unshare, whose child is killed with it
                process.wait(10)
            if process.stdout is not None:
                process.stdout.close()

    def _machine(self, name, address, hosts, shm_mib):
        prefixes = {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, Path(__file__).parent.parent)}
        inside = {path for path in prefixes if path.is_relative_to("/tmp")}
        kept = [str(path.relative_to("/tmp")) for path in inside if not inside & set(path.parents)]  # .venv comes with its clone
        command = [sys.executable, "-c", FIRST_PROCESS, name, hosts, str(shm_mib), *kept]
        process = self._first_process(["unshare", *NAMESPACES, "--kill-child", "--fork", "--mount-proc", *command], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n", f"machine {name} did not start"
        pid = _child(process)
        number = len(self._first_processes)
        self._in_switch(f"ip link add port{number} type veth peer name eth0 netns {pid} && ip link set port{number} master lan up")
        network = f"ip link set lo up && ip address add {address}/24 dev eth0 && ip link set eth0 up && ip route add default dev eth0"
        subprocess.run(["nsenter", "--target", str(pid), "--net", "sh", "-c", network], check=True)
        return Machine(name, address, pid)

    def _first_process(self, command, **more):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **more)
        self._first_processes.append(process)
        return process

    def _in_switch(self, script):
        subprocess.run(["nsenter", "--target", str(_child(self._switch)), "--net", "sh", "-c", script], check=True)


class Machine:
    """One machine of a `Lan`.

    Args:
        name: its host name.
        address: in the network of the bridge.
        pid: of its first process, as this machine counts.
    """

    def __init__(self, name, address, pid):
        self.name, self.address, self.pid = name, address, pid
        self.home = self.path(HOME)
        self.project = self.path(PROJECT)

    def path(self, inside):
        """A path of the machine, as this machine reaches it."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def start(self, *arguments, program=None, cwd=PROJECT, **environment):
        """Start a command there, feedrate unless `program` is given; gives a `Command`, whose `end` is the caller's to call."""
        python = Path(sys.executable)
        words = program or [python.with_name("feedrate")]
        enter = ["nsenter", "--target", self.pid, *NAMESPACES, "sh", "-c", 'cd "$0" && exec "$@"', cwd]
        return Command(
            *arguments,
            cwd="/",
            home=HOME,
            program=[str(word) for word in (*enter, *words)],
            **{"FEEDRATE_HOST_ID": "", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"} | environment,
        )

    def run(self, *arguments, timeout_s=120, **more):
        """Run a command there to its end; it has .code, .stdout, .stderr."""
        command = self.start(*arguments, **more)
        try:
            return Done(command.wait(timeout_s), command.stdout, command.stderr)
        except subprocess.TimeoutExpired:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.wait(30)
            raise AssertionError(f"no end within {timeout_s} s: {command.stdout}{command.stderr}") from None
        finally:
            command._stdout.close()
            command._stderr.close()

    def shell(self, script, **more):
        """Run a script there, which must succeed; gives what it printed."""
        done = self.run(script, program=["bash", "-c"], **more)
        assert done.code == 0, done.stderr + done.stdout
        return done.stdout

    def kill(self, *names):
        """Kill the machine's processes whose command line holds one of these words, as a crash does."""
        for entry in self.path("/proc").iterdir():
            if not entry.name.isdigit() or entry.name == "1":
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if any(name in command for name in names):
                subprocess.run(["nsenter", "--target", str(self.pid), "--pid", "kill", "-9", entry.name], check=False, stderr=subprocess.DEVNULL)


class Done:
    """What became of a command."""

    def __init__(self, code, stdout, stderr):
        self.code, self.stdout, self.stderr = code, stdout, stderr


def _child(process):
    """The pid of the process that unshare has forked."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise TimeoutError(f"unshare forked nothing within {START_S} s")
