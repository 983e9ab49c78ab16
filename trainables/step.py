"""One training step: the step of a workload in the short form, and the copy of a batch to the device.

In the general form the user writes the step, which copies its batch itself.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch

from feedrate.trainables.failure import Refused

Step = Callable[[Any], Any]
"""`step(batch)`: if it returns an int, that is the number of items it trained; any other value is ignored."""
AUTOCAST = {"bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepContext:
    """Where a training step runs; passed to `make_step`."""

    device: torch.device
    batch_size: int | None
    """Items per batch of the measured setting; None if the workload's own batch sampler decides."""
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    amp: str | None = None
    """For the short form: bf16 runs forward and loss under autocast. A step of the general form decides for itself."""
    compile: bool = False
    """For the short form: apply torch.compile; the first step compiles. A step of the general form decides for itself."""


def short_step(
    model: Callable[[], torch.nn.Module],
    loss: Callable[[Any, Any], torch.Tensor],
    optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer],
) -> Callable[[StepContext], Step]:
    """Return `make_step` of the short form: copy to the device, forward, loss, backward, optimizer step; in several ranks with DistributedDataParallel."""

    def make_step(context: StepContext) -> Step:
        module = model().to(context.device).train()
        optim = optimizer(module.parameters())
        # a loss module may contain tensors (class weights), so it moves to the device too
        criterion = loss.to(context.device) if isinstance(loss, torch.nn.Module) else loss
        forward: Any = module
        if context.world_size > 1:
            forward = torch.nn.parallel.DistributedDataParallel(module, device_ids=None if context.device.type == "cpu" else [context.device])
        # a pool of compiler processes would outlive compilation and use the CPUs that are being measured
        forward = torch.compile(forward, options={"compile_threads": 1}) if context.compile else forward

        def objective(inputs: Any, target: Any) -> Any:
            if context.amp is None:
                return criterion(forward(inputs), target)
            with torch.autocast(context.device.type, AUTOCAST[context.amp]):
                return criterion(forward(inputs), target)

        def step(batch: Any) -> None:
            inputs, target = _pair(to_device(batch, context.device))
            optim.zero_grad(set_to_none=True)
            current = objective(inputs, target)
            current.backward()
            optim.step()
            step.last_loss = current.detach()  # type: ignore[attr-defined]

        return step

    return make_step


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return batch[0], batch[1]
    size = f" of {len(batch)}" if isinstance(batch, (list, tuple, Mapping)) else ""
    raise Refused(
        f"the short form of a workload needs batches that are pairs (input, target), but this batch is a {type(batch).__name__}{size}: "
        "return a pair from collate_fn, or write your own step with Workload.from_loader"
    )


def loss_is_finite(step: Step) -> bool | None:
    """Return whether the step's last loss was finite; None if the step does not store it.

    Reading the loss waits for the device: call this only when nothing is timed any more. A step of the general form
    supports it by storing the loss, a tensor, as `step.last_loss`.
    """
    last = getattr(step, "last_loss", None)
    return bool(torch.isfinite(last).all()) if isinstance(last, torch.Tensor) else None


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy a nested batch with every tensor moved to `device`, with `non_blocking`, which helps for pinned batches."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, MutableMapping):  # copy it, because a defaultdict cannot be constructed from a dict
        moved = copy.copy(batch)
        moved.update({key: to_device(value, device) for key, value in batch.items()})
        return moved
    if isinstance(batch, Mapping):
        return type(batch)({key: to_device(value, device) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {field.name: to_device(getattr(batch, field.name), device) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **fields)
    return batch


def is_count(returned: Any) -> bool:
    """Return whether the value that a step returned is a number of items: an int, or one of NumPy's.

    Training steps also return their loss or a success flag: a float, tensor, dictionary or bool is no count.
    """
    return isinstance(returned, (int, np.integer)) and not isinstance(returned, bool)


def count_items(batch: Any, returned: Any) -> int:
    """Return the number of items in a batch: the int that the step returned, otherwise the first tensor's first dimension.

    If a batch holds nothing (see `holds_nothing`), it has no items.

    Raises:
        Refused: the step returned no int and the batch contains no tensor, or it returned less than 0. Let the step
            return its number of items.
    """
    if is_count(returned):
        if returned < 0:
            raise Refused(
                f"step(batch) returned {returned}, which is not a valid number of items: return the number of items that it trained "
                "(an int, 0 or more)"
            )
        return int(returned)
    if next(tensors(batch), None) is not None:
        return count_samples(batch)
    if holds_nothing(batch):
        return 0
    raise Refused("the batch has no tensor whose samples could be counted: return from step(batch) the number of items that it trained, as an int")


def holds_nothing(batch: Any) -> bool:
    """Return whether there is nothing to train on: no tensor has an element, or without tensors there is nothing but None."""
    sizes = [tensor.numel() for tensor in tensors(batch)]
    return not any(sizes) if sizes else _is_none(batch)


def _is_none(batch: Any) -> bool:
    if isinstance(batch, Mapping):
        return all(map(_is_none, batch.values()))
    return all(map(_is_none, batch)) if isinstance(batch, (list, tuple)) else batch is None


def count_samples(batch: Any) -> int:
    """Return the first tensor's first dimension; 1 if the batch has no tensor or the tensor no dimension."""
    for tensor in tensors(batch):
        return int(tensor.shape[0]) if tensor.ndim else 1
    return 1


def num_bytes(batch: Any) -> int | None:
    """Return the bytes of a batch's tensors, without what else is in their storages; None if it has no tensors."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors(batch) if tensor.layout == torch.strided]
    return sum(sizes) if sizes else None


def tensors(batch: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in a nested batch, in order."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from tensors(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from tensors(getattr(batch, field.name))
