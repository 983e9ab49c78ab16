"""What a trial's child process does: it receives a request, sends events, then ends or receives another request.

Events are JSON lines on a socket: {"event": "phase" | "waiting" | "progress" | "doing" | "result" | "failure" | "described" | "rerun",
...}; the supervisor adds "silent" if a child sends nothing for a long time. The last event is result, failure, described or
rerun, or stopped if the supervisor asked the child to stop. All this runs on the main thread of a process that was forked from
the clean template, so that torch can name the signals that kill loader workers.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing.util
import os
import platform
import select
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from feedrate.trainables.checking.check import check
from feedrate.trainables.checking.describe import describe
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.doubt import Doubt
from feedrate.trainables.failure import Failure, classify, ended_workers, user_traceback
from feedrate.trainables.isolation.leaving import ignore_ended_workers, leave
from feedrate.trainables.isolation.sweeping import remove_batches
from feedrate.trainables.loader.build_loader import build_loader
from feedrate.trainables.machine import host
from feedrate.trainables.machine.accelerator import device_name, num_accelerators, pick_device
from feedrate.trainables.machine.conditions import wait_until_quiet
from feedrate.trainables.machine.gpu_load import gpu_busy_fraction
from feedrate.trainables.machine.host_lock import OTHERS_WAIT_S, HostLock
from feedrate.trainables.machine.process import tree_pids
from feedrate.trainables.measurement import Measurement
from feedrate.trainables.measuring.cached_batch import CachedBatch, read_apart
from feedrate.trainables.measuring.measure import MeasureOptions, measure
from feedrate.trainables.measuring.rerun import rerun
from feedrate.trainables.resolve import UnknownWorkload, WorkloadRef, load, preload
from feedrate.trainables.step import Step
from feedrate.trainables.workload import Workload, WorkloadError, WorkloadRaised

Send = Callable[[dict[str, Any]], None]
T = TypeVar("T")


KEEP_SETUP_S = 5.0
"""Seconds of set-up from which a child is kept for further requests with the same training step."""
KEEP_VARIABLE = "FEEDRATE_KEEP_SETUP_S"
"""Environment variable that sets another number of seconds."""
SLOW_BATCH_S = 0.5
"""Seconds per batch from which a worker is killed when its trial ends. Waiting for it would take up to 5 s, and is of no use."""


@dataclass
class Kept:
    """What a child keeps from one request to the next."""

    workload: Workload | None = None
    cached: CachedBatch | None = None
    """Its batch size is that of the steps: a kept child measures only one batch size."""
    steps: dict[int | None, Step] = field(default_factory=dict)
    setup_s: float = 0.0


def run_request(request: dict[str, Any], descriptor: int) -> None:
    """Serve a request, and further requests while the child is kept. Write events to `descriptor`, read requests from it. Never raises."""
    kept = Kept()
    while _serve(request, descriptor, kept):
        line = _read_line(descriptor)
        if not line:
            return
        request = json.loads(line)


def _serve(request: dict[str, Any], descriptor: int, kept: Kept) -> bool:
    """Serve one request; return whether this child may serve another one."""

    def send(event: dict[str, Any]) -> None:
        data = json.dumps(event).encode() + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]

    phase = "setup"

    def on_event(event: dict[str, Any]) -> None:
        nonlocal phase
        phase = event.get("phase", phase) if event["event"] == "phase" else phase
        send(event)

    warnings.filterwarnings("ignore", message="This DataLoader will create")  # feedrate tries more workers than cores on purpose
    try:
        if request["op"] == "measure":
            return _measure(request, on_event, kept, lambda: _told_to_stop(descriptor))
        {"describe": _describe, "check": _check, "rerun": _rerun}[request["op"]](request, on_event)
    except (UnknownWorkload, WorkloadError) as error:
        send({"event": "failure", "usage": True, "raised": isinstance(error, WorkloadRaised), **_usage(str(error), phase)})
    except BaseException as error:  # user code may raise anything, even SystemExit
        _report(error, phase, request, send)
    return False


def _read_line(descriptor: int) -> bytes:
    """Return the next line that is not a "stop" for a measurement that has already ended; empty at the end of input."""
    line = b""
    while not line.endswith(b"\n") or line == b"stop\n":
        line = b"" if line == b"stop\n" else line
        try:
            byte = os.read(descriptor, 1)
        except ConnectionResetError:  # the supervisor closed it without reading everything that we sent
            byte = b""
        if not byte:
            return b""
        line += byte
    return line


def _told_to_stop(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def _report(error: BaseException, phase: str, request: dict[str, Any], send: Send) -> None:
    """Send the failure, and remove what dead loader workers left in /dev/shm: the supervisor does not know these workers."""
    ignore_ended_workers()
    failure = classify(error, phase, request.get("config", {}).get("batch_size"))
    remove_batches(pid for pid, _ in ended_workers())
    doubt = getattr(error, "doubt", None)
    more = {"doubt": doubt.to_json()} if isinstance(doubt, Doubt) else {}
    send({"event": "failure", "usage": False, **failure.columns(), **more})


def _usage(message: str, phase: str) -> dict[str, Any]:
    return Failure(kind="user-code", phase=phase, message=message).columns()


def _measure(request: dict[str, Any], send: Send, kept: Kept, told_to_stop: Callable[[], bool]) -> bool:
    """Measure one setting; return whether the child is kept. The host lock is held until this trial's last process has ended."""
    lock = _host_lock(request, send)
    looked_at = os.sched_getaffinity(0) if request.get("gpus") else None
    wait_until_quiet(request.get("wait_s", 0.0), lambda why: send({"event": "waiting", "why": why}), looked_at)
    began_unix_s = time.time()
    send({"event": "phase", "phase": "setup"})
    config, options = LoaderConfig.from_dict(request["config"]), MeasureOptions(**request["options"])
    foreign_gpu = None
    if kept.workload is None:  # a kept child used the GPU itself a moment ago
        foreign_gpu = gpu_busy_fraction()
        ref = WorkloadRef(**request["workload"])
        kept.cached = read_apart(lambda: load(ref), config, seed=options.seed, path=_batch_path(ref, config))
        kept.workload = load(ref)
    facts = host_facts(request.get("allocated_cpus")) | {"host_began_unix_s": began_unix_s, "foreign_gpu_fraction": foreign_gpu}
    phase, measurement = "setup", None

    def on_phase(name: str) -> None:
        nonlocal phase
        phase = name
        send({"event": "phase", "phase": name})
        if name == "teardown" and measurement is not None and is_not_waited_for(measurement):
            end_at_once({"event": "result", "columns": measurement.columns() | facts})

    def is_not_waited_for(measurement: Measurement) -> bool:
        may_be_kept = bool(request.get("keep")) and max(kept.setup_s, measurement.setup_s) >= _keep_setup_s()
        return not may_be_kept and _ends_slowly(config, measurement)

    def end_at_once(event: dict[str, Any]) -> None:
        """Send the final event, then end this process and its workers. The last of them to end releases the host's lock."""
        send(event | {"kept": False})
        leave()

    measurements, end = measure(kept.workload, config, options, on_phase, kept.steps, kept.cached), None
    try:
        for measurement in measurements:
            facts |= {"torch_num_threads": torch.get_num_threads(), "host_ended_unix_s": time.time()}  # a setting may restrict the trainer
            send({"event": "progress", "columns": measurement.columns() | facts})
            if told_to_stop():
                end = {"event": "stopped"}
                if is_not_waited_for(measurement):
                    end_at_once(end)
                break
        measurements.close()  # type: ignore[attr-defined]
    except Exception:
        if phase != "teardown":  # a worker that crashes while it is being stopped does not change the measurement
            raise
        request["keep"] = False
    assert measurement is not None  # measure() yields at least once or raises
    kept.setup_s = max(kept.setup_s, measurement.setup_s)
    keep = bool(request.get("keep")) and _can_be_kept(config, kept)
    lock.release()
    told: dict[str, Any] = end or {"event": "result", "columns": measurement.columns() | facts}
    send(told | {"kept": keep})
    return keep


def _batch_path(ref: WorkloadRef, config: LoaderConfig) -> Path:
    """Return the file in which the cached batch is kept for later trials of this workload and batch size, while the template lives."""
    key = json.dumps([ref.to_json(), config.batch_size], sort_keys=True, default=str)
    return Path(multiprocessing.util.get_temp_dir()) / f"batch-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _host_lock(request: dict[str, Any], send: Send) -> HostLock:
    """Take the host's lock. If another user holds it for too long, go on without it and report that (`without_lock`)."""
    command = request.get("command") or f"a trial of {request['workload']['target']}"
    lock = HostLock(request.get("gpus", ()), command=command, others_wait_s=request.get("lock_wait_s", OTHERS_WAIT_S))
    if why := lock.acquire(lambda text: send({"event": "waiting", "why": text})):
        send({"event": "waiting", "why": f"no longer, because {why}; measuring without this host's lock", "without_lock": True})
    return lock


def _ends_slowly(config: LoaderConfig, measurement: Measurement) -> bool:
    """Whether the trial's workers are in the middle of batches that take SLOW_BATCH_S or longer."""
    windows = measurement.windows
    if not len(windows):  # there was no measurement, because nothing was read that could be cold
        return False
    return config.num_workers * sum(windows.window_duration_s) / sum(windows.window_num_batches) >= SLOW_BATCH_S


def _keep_setup_s() -> float:
    return float(os.environ.get(KEEP_VARIABLE) or KEEP_SETUP_S)


def _can_be_kept(config: LoaderConfig, kept: Kept) -> bool:
    """Whether making the step again would take long, and nothing of the measured setting is left in this process.

    With 0 workers, this process used the dataset itself and may have changed it; later workers would inherit the changes by fork.
    """
    if kept.setup_s < _keep_setup_s() or config.num_workers == 0 or config.to_process():
        return False
    gc.collect()  # a persistent loader's workers end with the last reference
    return tree_pids() == [os.getpid()]


def _describe(request: dict[str, Any], send: Send) -> None:
    """Report the workload without training it: its baseline, its size, the findings of its data check."""
    send({"event": "phase", "phase": "setup"})
    described = describe(lambda: _load(WorkloadRef(**request["workload"])))
    send({"event": "described", **described, "facts": host_facts() | {"num_gpus": num_accelerators()}})


def _rerun(request: dict[str, Any], send: Send) -> None:
    """Load failed batches again, without workers, as the first thing that this fresh process does."""
    _host_lock(request, send)  # released when this process ends
    send({"event": "phase", "phase": "setup"})
    doubt = Doubt(**request["doubt"])
    workload = load(WorkloadRef(**request["workload"]))
    loader = build_loader(workload, LoaderConfig(num_workers=0, batch_size=doubt.batch_size), seed=0)
    send({"event": "phase", "phase": "rerun"})
    again = rerun(loader, doubt, lambda doing: send({"event": "doing", "doing": doing}))
    send({"event": "rerun", **asdict(again)})


def _check(request: dict[str, Any], send: Send) -> None:
    """Report whether changing the loader changes the data."""
    send({"event": "phase", "phase": "setup"})
    make = lambda: _load(WorkloadRef(**request["workload"]))  # noqa: E731
    report = check(make, **request["options"], on_step=lambda name: send({"event": "step", "name": name}))
    send({"event": "result", "report": report.to_json()})


def _load(ref: WorkloadRef) -> Workload:
    """Make the workload.

    Raises:
        UnknownWorkload, WorkloadError: it cannot be made; the message contains the user's traceback.
    """
    place, _, name = ref.target.rpartition(":")
    doing = f"{place or name} cannot be imported"
    try:
        preload(ref)
        doing = f"the workload's function {name!r} raised"
        workload: Workload = load(ref)
    except (UnknownWorkload, WorkloadError):
        raise
    except Exception as error:
        raise WorkloadRaised(f"{doing}:\n{user_traceback(error)}".rstrip()) from None
    return workload


def host_facts(allocated: int | None = None) -> dict[str, Any]:
    """Return the columns that describe where a trial ran; `allocated` is the number of CPUs that Ray reserved for it."""
    device = pick_device()
    num_cpus, source = host.cpu_budget(allocated)
    return {
        "device": str(device),
        "device_name": device_name(device),
        "host_id": host.host_id(),
        "hostname": socket.gethostname(),
        "num_cpus": num_cpus,
        "num_cpus_source": source,
        "torch_num_threads": torch.get_num_threads(),
        "nice": os.nice(0),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "feedrate": version("feedrate")},
    }
