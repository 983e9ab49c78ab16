"""`MeasureOptions`: how one setting is measured. Needs no torch, because the supervisor makes them, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from feedrate.analysis.estimate import RUN_SD_FRACTION


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureOptions:
    """Options of one measurement."""

    max_trial_s: float = 20.0
    """Wall time for loading and training, from iter(loader) on; set-up does not count."""
    enough_fraction: float = RUN_SD_FRACTION
    """The trial ends when half the width of the interval of its windows is below this fraction of the rate. Fresh starts differ by at least
    as much, even on a quiet machine, so that a longer trial would hardly predict the next one better."""
    seed: int = 0
    measure_step: bool = True
    """Also time the step alone: the ceiling at this batch size."""
    between_epochs: bool = False
    """Also time what a training script does between two epochs; other workloads do nothing there."""
    loader_only: bool = False
    """Load batches and copy them to the device without training: the ceiling of the loader."""
    cold: bool = False
    """With `loader_only`: drop each file from the page cache before it is read."""
    objective: str = "epoch"
    """epoch: also measure epoch boundaries if they matter; steady: do not measure them."""
    epoch_samples: int | None = None
    """Items of the user's real epoch; None asks the dataset."""
    device: str | None = None
    """torch device; None takes the accelerator if there is one."""
    amp: str | None = None
    """bf16: forward and loss of the short form under torch.autocast."""
    compile: bool = False
    """torch.compile the model of the short form."""
    shares_host: bool = False
    """Other trials run on the host's other CPUs, so only foreign load on this process's own CPUs counts."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes equal options."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> MeasureOptions:
        """Return the options in a request; a missing option has its default."""
        return cls(**fields)
