"""What a trial's child process does: it receives a request, sends events, then ends or receives another request.

Requests and events are those of protocol.py, as lines on a socket. All this runs on the main thread of a process that was forked
from the clean template, so that torch can name the signals that kill loader workers.
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
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch

from feedrate.trainables.checking.check import check
from feedrate.trainables.checking.describe import describe
from feedrate.trainables.checking.script_facts import ScriptFacts
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.doubt import Doubt
from feedrate.trainables.failure import Failure, TrialFailed, classify, ended_workers, user_traceback
from feedrate.trainables.isolation.leaving import ignore_ended_workers, leave
from feedrate.trainables.isolation.sweeping import remove_batches
from feedrate.trainables.loader.build_loader import build_loader
from feedrate.trainables.machine import host
from feedrate.trainables.machine.accelerator import device_name, num_accelerators, pick_device
from feedrate.trainables.machine.conditions import wait_until_quiet
from feedrate.trainables.machine.gpu_load import gpu_busy_fraction
from feedrate.trainables.machine.host_facts import HostFacts
from feedrate.trainables.machine.host_lock import HostLock
from feedrate.trainables.machine.process import tree_pids
from feedrate.trainables.measurement import Measurement
from feedrate.trainables.measuring.cached_batch import CachedBatch, read_apart
from feedrate.trainables.measuring.measure import measure
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.measuring.rerun import rerun
from feedrate.trainables.protocol import (
    Checked,
    Checking,
    CheckRequest,
    ChildTask,
    DescribeRequest,
    Event,
    Failed,
    LoadedAgain,
    LoadingAgain,
    Measured,
    MeasureRequest,
    Phase,
    Progress,
    RerunRequest,
    Stopped,
    Waiting,
    write_event,
)
from feedrate.trainables.ranks.lead import BLAME_S, Lead
from feedrate.trainables.resolve import UnknownWorkload, WorkloadRef, load, preload
from feedrate.trainables.step import Step
from feedrate.trainables.workload import Workload, WorkloadError, WorkloadRaised

Send = Callable[[Event], None]

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
    cached_batch_size: int | None = None
    steps: dict[int | None, Step] = field(default_factory=dict)
    setup_s: float = 0.0
    script: ScriptFacts | None = None
    """Of a training script, whose loop in this process is the step of `workload`; None in any other child."""
    is_spent: bool = False
    """Whether the script no longer stands in its training loop, so that it cannot serve another request."""
    lead: Lead | None = None
    """The other ranks of a training with several, of which this process is rank 0."""
    pids: frozenset[int] = field(default_factory=lambda: frozenset([os.getpid()]))
    """This process, and those that the script itself has started: a kept child has no other process left."""

    def make(self, ref: WorkloadRef) -> Callable[[], Workload]:
        """Return a function that makes the workload, or returns the one that exists."""
        existing = self.workload
        return (lambda: _load(ref)) if existing is None else lambda: existing


def run_request(line: bytes, descriptor: int, kept: Kept | None = None) -> None:
    """Serve a request, and further requests while the child is kept. Write events to `descriptor`, read requests from it. Never raises.

    Args:
        line: a `ChildTask`.
        descriptor: of the socket.
        kept: what there is before the first request; None if nothing is.
    """
    kept = kept or Kept()
    while line and _serve(ChildTask.from_line(line), descriptor, kept):
        line = _read_line(descriptor)


def _serve(task: ChildTask, descriptor: int, kept: Kept) -> bool:
    """Serve one request; return whether this child may serve another one."""
    phase = "setup"

    def send(event: Event) -> None:
        nonlocal phase
        phase = event.name if isinstance(event, Phase) else phase
        write_event(event, descriptor)

    warnings.filterwarnings("ignore", message="This DataLoader will create")  # feedrate tries more workers than cores on purpose
    try:
        match task.request:
            case MeasureRequest():
                return _measure(task, task.request, send, kept, lambda: _told_to_stop(descriptor))
            case DescribeRequest():
                return _describe(task, send, kept)
            case CheckRequest():
                _check(task.workload, task.request, send, kept)
            case RerunRequest():
                _rerun(task, task.request, send, kept)
    except (UnknownWorkload, WorkloadError) as error:
        failure = Failure(kind="user-code", phase=phase, message=str(error))
        send(Failed(failure=failure, usage=True, raised=isinstance(error, WorkloadRaised)))
    except BaseException as error:  # user code may raise anything, even SystemExit
        if kept.lead is not None:
            time.sleep(BLAME_S)
        _report(error, phase, task, send if kept.lead is None else lambda event: send(_of_rank_0(event)))
    return False


def _of_rank_0(event: Event) -> Event:
    """Return a failure with the rank in its message."""
    if not isinstance(event, Failed):
        return event
    return replace(event, failure=replace(event.failure, message=f"rank 0: {event.failure.message}"))


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


def _report(error: BaseException, phase: str, task: ChildTask, send: Send) -> None:
    """Send the failure, and remove what dead loader workers left in /dev/shm: the supervisor does not know these workers."""
    ignore_ended_workers()
    failure = classify(error, phase, None if task.config is None else task.config.batch_size)
    remove_batches(pid for pid, _ in ended_workers())
    doubt = getattr(error, "doubt", None)
    send(Failed(failure=failure, doubt=doubt if isinstance(doubt, Doubt) else None))


def _measure(task: ChildTask, request: MeasureRequest, send: Send, kept: Kept, told_to_stop: Callable[[], bool]) -> bool:
    """Measure one setting; return whether the child is kept. The host lock is held until this trial's last process has ended."""
    lock = _host_lock(task, request, send)
    looked_at = os.sched_getaffinity(0) if request.gpus else None
    wait_until_quiet(request.wait_s, lambda why: send(Waiting(why=why)), looked_at)
    began_unix_s = time.time()
    send(Phase(name="setup"))
    config, options, ref = request.config, request.options, task.workload
    if kept.script is not None:
        options = replace(options, device=options.device or kept.script.device)
    foreign_gpu = gpu_busy_fraction() if kept.workload is None else None  # a kept child used the GPU itself a moment ago
    if kept.cached is None or kept.cached_batch_size != config.batch_size:
        make = (lambda: load(ref)) if kept.workload is None else kept.make(ref)
        kept.cached = read_apart(make, config, seed=options.seed, path=_batch_path(ref, config))
        kept.workload, kept.cached_batch_size = make(), config.batch_size
    assert kept.workload is not None  # made together with the cached batch
    facts = host_facts(request.allocated_cpus).columns() | {"host_began_unix_s": began_unix_s, "foreign_gpu_fraction": foreign_gpu}
    phase, measurement, may_be_kept = "setup", None, task.keep

    def on_phase(name: str) -> None:
        nonlocal phase
        phase = name
        send(Phase(name=name))
        if name == "teardown" and measurement is not None and is_not_waited_for(measurement):
            end_at_once(Measured(columns=measurement.columns() | facts))

    def is_not_waited_for(measurement: Measurement) -> bool:
        is_kept = may_be_kept and _is_worth_keeping(kept, measurement.setup_s)
        return not is_kept and _ends_slowly(config, measurement)

    def end_at_once(event: Event) -> None:
        """Send the final event, then end this process and its workers. The last of them to end releases the host's lock."""
        send(event)
        leave()

    _tell_ranks(kept, config, options, _batch_path(ref, config))
    measurements, is_stopped = measure(kept.workload, config, options, on_phase, kept.steps, kept.cached, kept.lead), False
    try:
        for measurement in measurements:
            facts |= {"torch_num_threads": torch.get_num_threads(), "host_ended_unix_s": time.time()}  # a setting may restrict the trainer
            send(Progress(columns=measurement.columns() | facts))
            if told_to_stop():
                is_stopped = True
                if is_not_waited_for(measurement):
                    end_at_once(Stopped(kept=False))
                break
        measurements.close()  # type: ignore[attr-defined]
    except Exception:
        if phase != "teardown":  # a worker that crashes while it is being stopped does not change the measurement
            raise
        may_be_kept = False
    assert measurement is not None  # measure() yields at least once or raises
    kept.setup_s = max(kept.setup_s, measurement.setup_s)
    keep = may_be_kept and _can_be_kept(config, kept) and (kept.lead is None or kept.lead.end())
    lock.release()
    send(Stopped(kept=keep) if is_stopped else Measured(columns=measurement.columns() | facts, kept=keep))
    return keep


def _tell_ranks(kept: Kept, config: LoaderConfig, options: MeasureOptions, batch_path: Path) -> None:
    """Tell the other ranks of a training what will be measured.

    Raises:
        TrialFailed: what was asked for is possible in a training with one process only.
    """
    if kept.lead is None:
        return
    what = "trainer_cpus" if config.trainer_cpus is not None else "a cold page cache" if options.cold else None
    if what is not None:
        message = f"{what} is not supported for a training with {kept.lead.world_size} ranks: leave it out, or start the training with one process"
        raise TrialFailed(Failure(kind="user-code", phase="setup", message=message))
    assert kept.cached is not None
    kept.lead.set_up(config.to_dict(), options.to_json(), str(batch_path), has_batch=kept.cached.failure is None)


def _batch_path(ref: WorkloadRef, config: LoaderConfig) -> Path:
    """Return the file in which the cached batch is kept for later trials of this workload and batch size, while the template lives."""
    key = json.dumps([ref.to_json(), config.batch_size], sort_keys=True, default=str)
    return Path(multiprocessing.util.get_temp_dir()) / f"batch-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _host_lock(task: ChildTask, trial: MeasureRequest, send: Send) -> HostLock:
    """Take the host's lock. If another user holds it for too long, go on without it and report that (`without_lock`)."""
    command = trial.command or f"a trial of {task.workload.target}"
    lock = HostLock(trial.gpus, command=command, others_wait_s=task.lock_wait_s)
    if why := lock.acquire(lambda text: send(Waiting(why=text))):
        send(Waiting(why=f"no longer, because {why}; measuring without this host's lock", without_lock=True))
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
    if kept.is_spent or not _is_worth_keeping(kept) or config.num_workers == 0 or config.to_process():
        return False
    gc.collect()  # a persistent loader's workers end with the last reference
    return kept.pids.issuperset(tree_pids())


def _is_worth_keeping(kept: Kept, setup_s: float = 0.0) -> bool:
    return kept.script is not None or max(kept.setup_s, setup_s) >= _keep_setup_s()


def _describe(task: ChildTask, send: Send, kept: Kept) -> bool:
    """Report the workload without training it: its baseline, its size, the findings of its data check; return whether the child is kept."""
    send(Phase(name="setup"))
    described = describe(kept.make(task.workload), lambda: (host_facts(), num_accelerators()))
    keep = task.keep and kept.script is not None  # separate processes have done everything
    described = replace(described, script=kept.script, kept=keep)
    if described.epoch_samples is not None:
        described = replace(described, epoch_samples=described.epoch_samples * described.num_ranks)
    send(described)
    return keep


def _rerun(task: ChildTask, request: RerunRequest, send: Send, kept: Kept) -> None:
    """Load failed batches again, without workers, as the first thing that this fresh process does."""
    _host_lock(task, request.failed, send)  # released when this process ends
    send(Phase(name="setup"))
    workload, doubt = kept.workload or load(task.workload), request.doubt
    loader = build_loader(workload, LoaderConfig(num_workers=0, batch_size=doubt.batch_size), seed=0)
    send(Phase(name="rerun"))
    send(LoadedAgain(again=rerun(loader, doubt, lambda doing: send(LoadingAgain(doing=doing)))))


def _check(ref: WorkloadRef, request: CheckRequest, send: Send, kept: Kept) -> None:
    """Report whether changing the loader changes the data."""
    send(Phase(name="setup"))
    report = check(
        kept.make(ref),
        num_workers=request.num_workers,
        budget_s=request.budget_s,
        on_step=lambda name: send(Checking(name=name)),
    )
    send(Checked(report=report.to_json()))


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


def host_facts(allocated: int | None = None) -> HostFacts:
    """Return where a trial runs; `allocated` is the number of CPUs that Ray reserved for it."""
    device = pick_device()
    num_cpus, source = host.cpu_budget(allocated)
    return HostFacts(
        device=str(device),
        device_name=device_name(device),
        host_id=host.host_id(),
        hostname=socket.gethostname(),
        num_cpus=num_cpus,
        num_cpus_source=source,
        torch_num_threads=torch.get_num_threads(),
        nice=os.nice(0),
        versions={"python": platform.python_version(), "torch": torch.__version__, "feedrate": version("feedrate")},
    )
