"""Turn the stacks of a hanging trial into a sentence that says which process hangs, and where."""

from __future__ import annotations

from collections.abc import Sequence

from feedrate.trainables.diagnose.stacks import STARTING, Frame, Stack, waits_for_work
from feedrate.trainables.failure import kind_of

INTERPRETERS_S = 60.0
"""Time for spawned workers to start, because each imports torch and the workload's module before it loads anything."""
LOST = "the loader waits for a batch that no worker will ever make"
_DATALOADER = "torch/utils/data/dataloader.py"
_WORKER = "torch/utils/data/_utils/worker.py"
_FETCH = "torch/utils/data/_utils/fetch.py"


def what_hangs(stacks: Sequence[Stack], phase: str) -> str:
    """Return which part of the trial hangs, and in which function, as the beginning of a sentence.

    Args:
        stacks: of a trial's processes, the trainer's first.
        phase: the phase that the trainer last reported.
    """
    trainer = next((stack for stack in stacks if stack.role == "trainer"), None)
    if trainer is None or not trainer.main:
        return f"the training process does not answer in phase {phase}"
    if trainer.goes_through(_DATALOADER, "_shutdown_workers", "__del__"):
        return f"stopping the loader's workers hangs{_in(trainer)}"
    if trainer.goes_through(_DATALOADER, "_try_get_data"):
        return workers_hang(stacks) or LOST
    if trainer.goes_through(_DATALOADER, "__iter__", "_get_iterator") and not trainer.goes_through(
        _DATALOADER, "__next__"
    ):
        return workers_hang(stacks) or f"iter(loader) hangs{_in(trainer)}"
    if trainer.goes_through(_FETCH):
        return f"loading a batch in the training process hangs{_in(trainer)}"
    if trainer.goes_through(_DATALOADER):
        return f"next(loader) hangs in the training process{_in(trainer)}"
    what = {"setup": "set-up", "teardown": "teardown"}.get(phase, "the training step")
    return f"{what} hangs{_in(trainer)}"


def workers_hang(stacks: Sequence[Stack]) -> str | None:
    """Return which loader worker hangs, and in which function; None if all of them wait for work."""
    for stack in stacks:
        if stack.role == STARTING:
            return f"{STARTING} has not started yet{_in(stack)}"
    busy = [stack for stack in stacks if stack.role.startswith("loader worker") and not waits_for_work(stack)]
    for stack in busy:
        if not stack.goes_through(_FETCH):
            return f"{stack.role} hangs as it starts, in worker_init_fn{_in(stack)}"
    if len(busy) > 1:
        return f"{len(busy)} loader workers hang, one of them{_in(busy[0])}"
    if busy:
        return f"{busy[0].role} hangs{_in(busy[0])}"
    return None


def waits_where(stacks: Sequence[Stack]) -> str | None:
    """Return where a process that loads samples waits: in one of its loader workers or itself; None if it did not answer."""
    trainer = next((stack for stack in stacks if stack.role == "trainer"), None)
    own = f"it hangs{_in(trainer)}" if trainer is not None and trainer.main else None
    if trainer is not None and trainer.goes_through(_FETCH):
        return own
    return workers_hang(stacks) or own


def dropped(output: str) -> str | None:
    """Return why a batch was dropped, from a worker's output: only the feeder thread of the worker's queue prints the reason."""
    _, feeder, rest = output.rpartition("in _feed\n")
    return next((line for line in rest.splitlines() if line[:1].strip()), None) if feeder else None


def no_batch_because(why: str) -> tuple[str, str]:
    """Return kind and message of the failure that no batch came, given why torch dropped the batches (see `dropped`)."""
    kind, message = kind_of(RuntimeError(), why)
    if kind != "user-code":  # for example too many open files, because the queue opens a file for every tensor
        return kind, message
    return (
        "unpicklable",
        f"a batch cannot be pickled, so no worker can send it to the training process: {why}; return tensors from the dataset or collate_fn",
    )


def _in(stack: Stack) -> str:
    place: Frame | None = stack.place() or next(iter(stack.main), None)
    return f" in {place}" if place is not None else ""
