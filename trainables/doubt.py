"""What a failed trial cannot find out itself: whether the batch also fails without loader workers.

The trial's own process cannot try this: unlike the user's program, it has already forked workers, and its files, locks
and connections are still in use. So the trial reports a `Doubt` with its failure, and the supervisor ends the trial. Then
a fresh process loads the batch again without workers (rerun.py), and settling.py completes the failure's message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """What a fresh process should load again, and the parts of the failure's message."""

    about: str
    """raised: the loader raised an exception; killed: a worker died; silent: no batch came before the loader's timeout."""
    message: str
    """The failure's message, without anything about samples."""
    samples: str = ""
    """The batches in words; empty for an iterable dataset."""
    batches: str = ""
    """The sample indices of the batches, encoded by rerun.py."""
    batch_size: int | None = None
    num_workers: int = 0
    waits_for: str | None = None
    """Only for silent: which worker hangs, and in which function; None if no worker is busy."""
    dropped: str | None = None
    """Only for silent: why a worker could not send a batch, according to its output."""
    threads: Sequence[str] = ()
    """Only for silent: names of the threads that user code started in the training process; forked workers lack them."""

    @property
    def pickled(self) -> bool:
        """Whether the fresh process also pickles the batch, as a worker does to send it."""
        return self.about == "silent"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal doubt."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Doubt:
        """Return the doubt in an object of `to_json`."""
        return cls(**{**saved, "threads": tuple(saved["threads"])})
