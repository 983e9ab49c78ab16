"""Settings of the process rather than of the DataLoader: the sharing strategy, and which CPUs trainer and workers use.

On Linux, CPU affinity belongs to a thread, and its children inherit it. So feedrate sets the trainer's affinity on each of the
trainer's threads, and each worker moves to the remaining CPUs before any user code runs in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.multiprocessing

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure, TrialFailed

WorkerInit = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class PlacedWorker:
    """A worker_init_fn that applies the setting in a worker process. Picklable for every start method."""

    cpus: tuple[int, ...] | None
    """CPUs of the workers; None leaves the affinity as it is."""
    sharing_strategy: str | None
    """None leaves the strategy as it is: a forked worker has the trainer's, any other worker torch's default."""
    then: WorkerInit | None = None
    """The loader's own worker_init_fn, called last."""

    def wrap(self, own: WorkerInit | None) -> PlacedWorker:
        """Return a copy that calls the loader's own worker_init_fn afterwards."""
        return replace(self, then=own)

    def __call__(self, worker_id: int) -> None:
        if self.sharing_strategy is not None:
            torch.multiprocessing.set_sharing_strategy(self.sharing_strategy)  # type: ignore[no-untyped-call]
        if self.cpus is not None:
            _run_on(self.cpus)
        if self.then is not None:
            self.then(worker_id)


def set_process(config: LoaderConfig) -> PlacedWorker | None:
    """Apply the setting to this process, and return what its workers have to do. `placed` also undoes it.

    Call it before the training step is made, because a compiled step has its number of threads built in. The trainer gets
    the lowest-numbered CPUs that it may use, and at most as many torch threads as CPUs.

    Returns:
        The object for `loader.worker_init_fn = worker.wrap(loader.worker_init_fn)`; None if workers have nothing to do.

    Raises:
        TrialFailed: no CPU would be left for the workers. Use fewer trainer_cpus.
    """
    cpus = None
    if config.trainer_cpus is not None:
        allowed = sorted(os.sched_getaffinity(0))
        if config.trainer_cpus >= len(allowed):
            message = (
                f"trainer_cpus={config.trainer_cpus} leaves no CPU for the workers: this process may run on only "
                f"{len(allowed)}. Ask for fewer, or leave it out"
            )
            raise TrialFailed(Failure(kind="too-few-cpus", phase="setup", message=message))
        cpus = tuple(allowed[config.trainer_cpus :])
        _run_on(allowed[: config.trainer_cpus])
        torch.set_num_threads(min(torch.get_num_threads(), config.trainer_cpus))
    if config.sharing_strategy is not None:
        torch.multiprocessing.set_sharing_strategy(config.sharing_strategy)  # type: ignore[no-untyped-call]
    return PlacedWorker(cpus, config.sharing_strategy) if config.to_process() else None


@contextlib.contextmanager
def placed(config: LoaderConfig) -> Iterator[PlacedWorker | None]:
    """Apply `set_process`, and restore everything at the end, so that a measurement leaves its caller's process unchanged."""
    strategy = torch.multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]
    cpus, num_threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        yield set_process(config)
    finally:
        if config.sharing_strategy is not None:
            torch.multiprocessing.set_sharing_strategy(strategy)  # type: ignore[no-untyped-call]
        if config.trainer_cpus is not None:
            _run_on(cpus)
            torch.set_num_threads(num_threads)


def _run_on(cpus: Iterable[int]) -> None:
    """Restrict every thread of this process to these CPUs; threads and processes that they start later inherit this."""
    wanted = set(cpus)
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # the thread has ended
            os.sched_setaffinity(int(thread), wanted)
