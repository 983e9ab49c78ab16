"""Read the stacks of a trial's processes, even if one is deadlocked or stuck in C code, to find out where a trial hangs.

Every process of a trial calls `install` as it starts, or inherits its effect by fork. `read` then lets each process write
its stack into one file that the supervisor holds open.
"""

from __future__ import annotations

import ast
import contextlib
import faulthandler
import os
import re
import signal
import sysconfig
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "FEEDRATE_STACKS"
"""Environment variable that names the file to write stacks to."""
SIGNAL = signal.SIGRTMAX - 5
"""A real-time signal that neither torch, CUDA, glibc nor Ray uses."""
ANSWER_S = 0.4
STARTING = "a spawned loader worker"
"""Role of a spawned loader worker that still imports modules or unpickles its arguments."""
MAX_FRAMES = 16
MAX_CHARACTERS = 12_000
_HERE = str(Path(__file__).parents[1]) + os.sep
_LIBRARY = (
    sysconfig.get_path("stdlib") + os.sep,
    sysconfig.get_path("platstdlib") + os.sep,
    str(Path(os.path.realpath(os.__file__)).parent) + os.sep,
)
_PACKAGES = (sysconfig.get_path("purelib") + os.sep, sysconfig.get_path("platlib") + os.sep, "site-packages" + os.sep)
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')


@dataclass(frozen=True, slots=True)
class Frame:
    """One function call on a stack."""

    path: str
    line: int
    name: str

    @property
    def is_user(self) -> bool:
        """Whether the call is in the user's code: not in Python's library, an installed package or feedrate."""
        return not self.path.startswith(("<", _HERE, *_LIBRARY, *_PACKAGES[:2])) and _PACKAGES[2] not in self.path

    def __str__(self) -> str:
        return f"{_qualified(self)} ({os.path.basename(self.path)}:{self.line})"


@dataclass(frozen=True, slots=True)
class Stack:
    """The stacks of one process's threads."""

    pid: int
    role: str
    """trainer, loader worker N, or the process's name."""
    threads: tuple[tuple[Frame, ...], ...]
    """The main thread first, and in each thread the innermost call first; empty if the process did not answer."""

    @property
    def main(self) -> tuple[Frame, ...]:
        """The main thread's calls."""
        return self.threads[0] if self.threads else ()

    def goes_through(self, path: str, *names: str) -> bool:
        """Return whether the main thread is in a file whose path ends with `path`, in one of `names` if any are given."""
        return any(each.path.endswith(path) and (not names or each.name in names) for each in self.main)

    def place(self) -> Frame | None:
        """Return the innermost call of the user's code on the main thread."""
        return next((each for each in self.main if each.is_user), None)

    def __str__(self) -> str:
        lines = [f"{self.role} (pid {self.pid}):"]
        if not self.threads:
            lines.append(f"  no stack: {_state(self.pid)}")
        for number, thread in enumerate(self.threads):
            if number and not any(each.is_user for each in thread):
                continue  # helper threads of torch and Python, which sleep
            lines += ["  another thread:"] if number else []
            for frame in reversed(_shown(thread)):
                lines.append(f'  File "{frame.path}", line {frame.line}, in {_qualified(frame)}')
        return "\n".join(lines)


def install() -> None:
    """Let this process and its forked children write their stacks when they receive SIGNAL; do nothing outside a trial."""
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    with contextlib.suppress(OSError):  # the supervisor is gone, and this process will end soon
        faulthandler.register(SIGNAL, file=os.open(path, os.O_WRONLY | os.O_APPEND), all_threads=True, chain=False)


def read(pids: Iterable[int], *, trainer: int | None = None, path: str | None = None) -> list[Stack]:
    """Return the stack of each process: the trainer's first, then those of loader workers in their order.

    This takes about 10 ms per process. If a process does not answer, its stack has no threads.

    Args:
        pids: the processes; those that did not call `install` are not sent the signal.
        trainer: pid of the training process.
        path: the file that they write to; None is the file of this process's own environment.
    """
    path = path or os.environ.get(VARIABLE)
    texts: dict[int, str] = {}
    for pid in sorted(pids):
        with contextlib.suppress(OSError):
            texts[pid] = _ask(pid, path) if path is not None and _answers(pid) else ""
    workers, stacks = 0, []
    for pid, text in texts.items():
        threads = _parse(text)
        role = "trainer"
        if pid != trainer:
            role = _command(pid)
            if threads and any(each.name == "_worker_loop" for each in threads[0]):
                role, workers = f"loader worker {workers}", workers + 1
            elif threads and any(each.path.endswith("multiprocessing/spawn.py") for each in threads[0]):
                role = STARTING
        stacks.append(Stack(pid, role, threads))
    return sorted(stacks, key=lambda stack: (stack.pid != trainer, not stack.role.startswith("loader"), stack.pid))


def text_of(stacks: Sequence[Stack]) -> str | None:
    """Format the stacks for people, in a text of bounded length; loader workers that wait for work are only counted."""
    idle = [stack for stack in stacks if waits_for_work(stack)]
    shown = [str(stack) for stack in stacks if stack not in idle]
    if idle:
        shown.append(f"{len(idle)} loader worker{'s wait' if len(idle) > 1 else ' waits'} for work")
    return "\n".join(shown)[:MAX_CHARACTERS] or None


def waits_for_work(stack: Stack) -> bool:
    """Return whether this is an idle loader worker: in its worker loop, and neither in user code nor fetching a batch."""
    return (
        stack.goes_through("torch/utils/data/_utils/worker.py", "_worker_loop")
        and stack.place() is None
        and not stack.goes_through("torch/utils/data/_utils/fetch.py")
    )


def _ask(pid: int, path: str) -> str:
    """Send the signal to one process and return what it writes. Ask one process at a time, because the answers contain no pid."""
    with open(path, "rb") as file:
        begin = file.seek(0, os.SEEK_END)
        os.kill(pid, SIGNAL)
        until, size = time.monotonic() + ANSWER_S, 0
        while time.monotonic() < until:
            time.sleep(0.01)
            last, size = size, os.fstat(file.fileno()).st_size - begin
            if size and size == last:
                break
        return file.read().decode(errors="replace")


def _answers(pid: int) -> bool:
    """Whether the process handles SIGNAL; if it does not, the signal would end it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (SIGNAL - 1) & 1)
    return False


def _parse(text: str) -> tuple[tuple[Frame, ...], ...]:
    """Parse faulthandler's text, which lists the newest thread first and so the main thread last; return the main thread first."""
    threads: list[list[Frame]] = []
    for line in text.splitlines():
        if match := _FRAME.match(line):
            if threads:
                threads[-1].append(Frame(match[1], int(match[2]) if match[2].isdigit() else 0, match[3]))
        elif line.endswith("(most recent call first):"):
            threads.append([])
    return tuple(tuple(thread) for thread in reversed(threads) if thread)


def _shown(thread: Sequence[Frame]) -> list[Frame]:
    """Select the calls to show: the two innermost, which tell what the thread waits for, and those in the user's code."""
    users = [number for number, frame in enumerate(thread) if frame.is_user]
    if not users:
        return list(thread[:6])
    shown = [frame for number, frame in enumerate(thread[: users[-1] + 1]) if number < 2 or frame.is_user]
    return shown[:MAX_FRAMES]


def _qualified(frame: Frame) -> str:
    """Return the function's name with its class, which faulthandler omits, if the source file shows it."""
    best: tuple[int, str] | None = None
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        for node in ast.walk(ast.parse(Path(frame.path).read_bytes())):
            if isinstance(node, ast.ClassDef) and node.lineno <= frame.line <= (node.end_lineno or 0):
                methods = {each.name for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))}
                if frame.name in methods and (best is None or node.lineno > best[0]):
                    best = node.lineno, f"{node.name}.{frame.name}"
    return best[1] if best else frame.name


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return os.path.basename(words[0]) or "process"
    return "process"


def _state(pid: int) -> str:
    """Say why a process may not have answered."""
    with contextlib.suppress(OSError):
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if letter == "D":
            return "it waits inside the kernel, for example for a disk or a network share that does not answer"
        if letter in "Tt":
            return "it is stopped"
        return "it did not answer, or it is not a Python process of the trial"
    return "it has ended"
