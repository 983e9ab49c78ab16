"""`Failure`: why a trial of a setting gave no rate: a kind, a phase, a message and the chain of causes."""

from __future__ import annotations

import errno
import multiprocessing.process
import os
import re
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from feedrate.trainables.doubt import Doubt

_OURS = str(Path(__file__).parent) + os.sep
_WRAPPERS = re.compile(rf'  File "{re.escape(_OURS)}(?:loader/(?:epochs|load_probe|loader_watch|process_settings|cold_cache)|script/measure_hooks)\.py", line .*\n(?:    .*\n)*')
"""Traceback frames of the wrappers that feedrate puts around the user's functions."""
_SIGNALS = {signal.strsignal(number): number.name for number in signal.Signals}

WITHOUT_WORKERS_TOO = "with 0 workers too"
"""Part of the message of a failure in a worker that also happens without workers, so that the setting is not at fault."""
_CUDA_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

KINDS = {
    "user-code": "an exception in the workload's own code",
    "worker-killed": "a loader worker ended without an exception",
    "trainer-killed": "the training process ended without an exception",
    "script-ended": "the training script ended in the middle of the measurement",
    "hang": "nothing happened until the trial's time was over",
    "shm-full": "/dev/shm is too small for the batches in flight",
    "too-many-files": "the limit of open files is too low",
    "unpicklable": "something that has to go from one process to another cannot be pickled",
    "out-of-memory": "the machine's memory was exhausted",
    "cuda-out-of-memory": "the accelerator's memory was exhausted",
    "too-few-cpus": "the setting leaves its workers no CPU",
    "override-ignored": "make_loader did not apply a setting",
    "supervisor-died": "the process that supervises the trial ended (killed, or its node was lost)",
    "internal": "a defect of feedrate",
}
INFEASIBLE = ("shm-full", "too-many-files", "too-few-cpus", "out-of-memory", "cuda-out-of-memory")
"""Kinds of failure that mean "this setting does not fit on this machine": the search avoids similar settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a trial ended without a rate."""

    kind: str
    """A key of `KINDS`."""
    phase: str
    """What the trial was doing: setup, warm, loader, measure or teardown."""
    message: str
    """One sentence for the user, with a way out if there is one."""
    cause: tuple[str, ...] = ()
    """The chain of causes, outermost first."""
    traceback: str | None = None
    """The user's traceback, if there is one."""
    stacks: str | None = None
    """What each process was executing, if the trial hung."""

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Failure:
        """Return the failure in a trial record or in a child's event; ignore other columns."""
        named = {each.name: columns[f"failure_{each.name}"] for each in fields(cls)}
        return cls(**{**named, "cause": tuple(named["cause"])})

    def columns(self) -> dict[str, Any]:
        """Return the failure as columns of a trial record."""
        return {
            "failure_kind": self.kind,
            "failure_phase": self.phase,
            "failure_message": self.message,
            "failure_cause": list(self.cause),
            "failure_traceback": self.traceback,
            "failure_stacks": self.stacks,
        }


class TrialFailed(Exception):
    """Raised inside a trial to end it with a `Failure` that is already known.

    Args:
        failure: its message is complete even without the doubt.
        doubt: what a fresh process can find out to make the message more precise; None if there is nothing to find out.
    """

    def __init__(self, failure: Failure, doubt: Doubt | None = None) -> None:
        super().__init__(failure.message)
        self.failure, self.doubt = failure, doubt


class Refused(ValueError):
    """The user's code returned something that feedrate cannot use. The message says what, and the way out; no traceback is needed."""


def user_traceback(error: BaseException) -> str:
    """Return the traceback without feedrate's own frames, as the user would see it in their own script."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None and _is_ours(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return _WRAPPERS.sub("", "".join(traceback.format_exception(type(error), error, frame)))


def _is_ours(filename: str) -> bool:
    return filename.startswith((_OURS, "<frozen importlib"))


def chain(error: BaseException) -> list[BaseException]:
    """Return the error and the errors that caused it, outermost first."""
    links: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in links:
        links.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return links


def classify(error: BaseException, phase: str, batch_size: int | None = None) -> Failure:
    """Turn an exception that was caught in the training process into a `Failure`.

    The texts that this function looks for are those of torch 2.13. The real cause is often the last exception in the chain.

    Args:
        error: the exception.
        phase: what the trial was doing.
        batch_size: of the setting, if known; the message names it if memory ran out.
    """
    if isinstance(error, TrialFailed):
        return error.failure
    if isinstance(error, Refused):
        return Failure(kind="user-code", phase=phase, message=str(error), cause=(sentence(error),))
    if isinstance(error.__cause__, StopIteration) and "raised StopIteration" in str(error):
        error = error.__cause__  # Python wraps a StopIteration that leaves a generator (ours or the user's) in a RuntimeError
    links = chain(error)
    texts = "\n".join(str(link) for link in links)
    kind, message = kind_of(error, texts)
    lost = isinstance(error, (OSError, EOFError)) and _goes_through(error, "torch/multiprocessing/reductions.py")
    if kind == "user-code" and lost:
        # the batch arrived, but not its tensors: the worker itself hands them over, and it has ended
        kind, message = "worker-killed", _how_workers_ended()
    if kind == "worker-killed" and (code := re.search(r"exited unexpectedly with exit code (\d+)", texts)):
        message = message.replace("without an exception", f"without an exception (exit status {code[1]})")
    if batch_size is not None and kind in ("cuda-out-of-memory", "out-of-memory"):
        message = f"{message} (batch_size was {batch_size})"
    return Failure(
        kind=kind,
        phase=phase,
        message=message or sentence(error),
        cause=tuple(sentence(link) for link in links),
        # the death of a worker interrupts the training process at any line, and only the loader sees a timeout: no traceback helps
        traceback=None if kind in ("worker-killed", "hang") else user_traceback(error),
    )


def kind_of(error: BaseException, text: str) -> tuple[str, str]:
    """Return the kind and message of an error, given the texts of its whole chain; `user-code` and "" if none of them is known."""
    if type(error).__name__ == "OutOfMemoryError" or any(words in text for words in _CUDA_MEMORY):
        return "cuda-out-of-memory", "the accelerator's memory is too small for this batch size: use a smaller one"
    if ("No space left on device" in text and "shm" in text) or "Bus error" in text:
        return (
            "shm-full",
            "/dev/shm is too small for the batches in flight: raise it (docker: --shm-size), or use fewer workers or a smaller prefetch_factor",
        )
    # if a process has no free file descriptor, it receives its workers' messages without the descriptors in them (see torch's note)
    if "Too many open files" in text or "items of ancdata" in text or getattr(error, "errno", None) == errno.EMFILE:
        return (
            "too-many-files",
            "the limit of open files is too low for the batches in flight: raise `ulimit -n`, or use the file_system sharing strategy",
        )
    if (
        isinstance(error, MemoryError)
        or "DefaultCPUAllocator: can't allocate memory" in text
        or "DefaultCPUAllocator: not enough memory" in text
    ):
        return "out-of-memory", "the machine's memory was exhausted: use fewer workers or a smaller batch"
    if match := re.search(r"killed by signal: (.+?)\.(?:\s|$)", text):
        name = _SIGNALS.get(match[1], match[1])
        hint = ": the kernel does so when memory runs out" if name == "SIGKILL" else ""
        return "worker-killed", f"a loader worker was killed by {name}{hint}"
    if "exited unexpectedly" in text:
        return (
            "worker-killed",
            "a loader worker ended by itself, without an exception: look for os._exit or a crash in a library",
        )
    if _was_pickling(error):
        return (
            "unpicklable",
            f"an object that loader workers need cannot be pickled: {sentence(error)}; use multiprocessing_context fork, or define the function or class at the top level of a module",
        )
    if isinstance(error, StopIteration):
        return "user-code", "StopIteration: your code called next() on an iterator that has no more items; start it again, or make it endless"
    if "DataLoader timed out" in text:
        return "hang", "no loader worker delivered a batch before the loader's timeout"
    return "user-code", ""


def ended_workers() -> list[tuple[int, int]]:
    """Return pid and exit code (negative: the signal) of each loader worker of this process that ended with an error."""
    children = list(multiprocessing.process._children)  # type: ignore[attr-defined]
    return [(child.pid, child.exitcode) for child in children if child.exitcode]


def _how_workers_ended() -> str:
    until = time.monotonic() + 1  # a worker's sockets close shortly before it has ended
    while not (ended := ended_workers()) and time.monotonic() < until:
        time.sleep(0.01)
    for _, code in ended:
        if code < 0:
            return f"a loader worker was killed by {signal.Signals(-code).name}"
    return kind_of(RuntimeError(), "exited unexpectedly")[1]


def _was_pickling(error: BaseException) -> bool:
    """Whether iter(loader) raised while starting a worker: for spawn and forkserver it pickles everything that the worker needs."""
    started = _goes_through(error, "multiprocessing/popen_spawn_posix.py", "multiprocessing/popen_forkserver.py")
    return started and not isinstance(error, (OSError, EOFError))


def _goes_through(error: BaseException, *paths: str) -> bool:
    """Whether the exception passed through a file whose path ends with one of `paths`."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.endswith(paths):
            return True
        frame = frame.tb_next
    return False


def sentence(error: BaseException) -> str:
    """Return type and first line of an exception; if torch re-raised a loader worker's exception, those of the original one.

    torch puts the worker's whole traceback into the message; the first line that is not indented is the original exception.
    """
    text = str(error).strip()
    _, original, trace = text.rpartition("Traceback (most recent call last):\n")
    if original:
        return next((line for line in trace.splitlines() if line[:1].strip()), type(error).__name__)
    lines = text.splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
