"""What a setting asks of the process rather than of the DataLoader: the sharing strategy, and who runs on which CPUs.

Linux gives an affinity to a thread, and its children inherit it: the trainer's is set on every thread that it has, and
each worker takes the rest for itself before anything of the user's runs in it.
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
    """A worker_init_fn that makes a worker what the setting asks for. Picklable for every start method."""

    cpus: tuple[int, ...] | None
    """CPUs of the workers; None leaves the affinity alone."""
    sharing_strategy: str | None
    """None leaves it alone. A forked worker has the trainer's; the others begin with torch's default."""
    then: WorkerInit | None = None
    """The loader's own worker_init_fn."""

    def wrap(self, own: WorkerInit | None) -> PlacedWorker:
        """The same, followed by the loader's own worker_init_fn."""
        return replace(self, then=own)

    def __call__(self, worker_id: int) -> None:
        if self.sharing_strategy is not None:
            torch.multiprocessing.set_sharing_strategy(self.sharing_strategy)  # type: ignore[no-untyped-call]
        if self.cpus is not None:
            _run_on(self.cpus)
        if self.then is not None:
            self.then(worker_id)


def set_process(config: LoaderConfig) -> PlacedWorker | None:
    """Make this process what the setting asks for, and say what its workers have to do; see `placed` for a while only.

    Called before the training step is made: a compiled one has its number of threads built in. The trainer gets the
    lowest of the CPUs that it may use, and no more torch threads than CPUs.

    Returns:
        What goes into the loader, `loader.worker_init_fn = worker.wrap(loader.worker_init_fn)`; None where workers
        need nothing.

    Raises:
        TrialFailed: no CPU would be left for the workers. Ask for fewer trainer_cpus.
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
    """`set_process`, and everything as it was at the end: a measurement leaves its caller's process alone."""
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
    """Give every thread of this process these CPUs; what they start later inherits them."""
    wanted = set(cpus)
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread), wanted)
