"""The device that a trial trains on: an accelerator of any make that torch supports, otherwise the CPU.

CUDA devices (and those of torch's ROCm builds, which have the same name) are queried through torch.cuda, because their memory is
recorded too; other makes, such as Intel's XPU, through torch.accelerator. A query initialises the device, and an initialised
device cannot be used after a fork, so only a trial's own process makes such queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from feedrate.trainables.machine import host


def pick_device(name: str | None = None) -> torch.device:
    """Return the device to train on: the named one, otherwise the first visible accelerator, otherwise the CPU."""
    if name is not None:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        if found is not None:
            return torch.device(found.type, 0)
    return torch.device("cpu")


def num_accelerators() -> int:
    """Return how many accelerators this process may use."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def device_name(device: torch.device) -> str:
    """Return the model name of the accelerator, or of the processor."""
    if device.type == "cpu":
        return host.cpu_model()
    named = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(device) if named is None else str(named(device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished the work in its queue; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


class StepTimer:
    """Measures the time that the accelerator spends in training steps, with a pair of events around each; does nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pairs: list[Sequence[Any]] = []

    def begin(self) -> Any:
        """Mark the beginning of a step; pass the returned value to `end`."""
        if self._device.type == "cpu":
            return None
        pair = [self._event(), self._event()]
        pair[0].record()
        return pair

    def end(self, pair: Any) -> None:
        """Mark the end of a step."""
        if pair is not None:
            pair[1].record()
            self._pairs.append(pair)

    def take_s(self) -> float | None:
        """Return the accelerator's seconds in steps since the last call; None on a CPU. Call `synchronize` first."""
        if self._device.type == "cpu":
            return None
        taken_s = float(sum(begin.elapsed_time(end) for begin, end in self._pairs)) / 1000
        self._pairs.clear()
        return taken_s

    def _event(self) -> Any:
        if self._device.type == "cuda":
            return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        return torch.Event(self._device, enable_timing=True)
