"""The device that a trial trains on: an accelerator of any make that torch knows, else the CPU.

CUDA (ROCm builds of torch call theirs so too) is asked through torch.cuda, as its memory is recorded as well; other makes (Intel's
XPU, for one) through torch.accelerator. Asking initialises the device, which forking does not survive: only a trial's own
process asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from feedrate.trainables.machine import host


def pick_device(name: str | None = None) -> torch.device:
    """Return the device to train on: as named, else the first visible accelerator, else the CPU."""
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
    """Return the accelerator's model, or the processor's."""
    if device.type == "cpu":
        return host.cpu_model()
    named = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return str(device) if named is None else str(named(device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)


class StepTimer:
    """The time that the accelerator spends in training steps, by a pair of events around each; a CPU has none."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pairs: list[Sequence[Any]] = []

    def begin(self) -> Any:
        """Mark the beginning of a step; give what it returns to `end`."""
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
        """Return the seconds since the last call; None on a CPU. Only after `synchronize`."""
        if self._device.type == "cpu":
            return None
        taken_s = float(sum(begin.elapsed_time(end) for begin, end in self._pairs)) / 1000
        self._pairs.clear()
        return taken_s

    def _event(self) -> Any:
        if self._device.type == "cuda":
            return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        return torch.Event(self._device, enable_timing=True)
