"""What a failed trial cannot know itself: whether the batch fails without loader workers too.

The trial's own process is no place to find out: it is not as the user's program is after workers were forked from it,
and its files, locks and connections are still in use. So the trial reports a `Doubt` with its failure, the supervisor
ends the trial, a fresh process loads the batch again without workers (rerun.py), and settling.py completes the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """What a fresh process should load again, and what the sentence is made of."""

    about: str
    """raised: the loader raised; killed: a worker died; silent: no batch came until the loader's timeout."""
    message: str
    """The failure's sentence without anything about samples."""
    samples: str = ""
    """The batches in words; empty for an iterable dataset."""
    batches: str = ""
    """The indices of the batches, packed by rerun.py."""
    batch_size: int | None = None
    num_workers: int = 0
    waits_for: str | None = None
    """silent: which worker hangs where; None where none is at work."""
    dropped: str | None = None
    """silent: why a worker could not send a batch, as far as its output says."""
    threads: Sequence[str] = ()
    """silent: the user's threads of the training process, which forked workers lack."""

    @property
    def pickled(self) -> bool:
        """Whether the batch is pickled too, as a worker does to hand it over."""
        return self.about == "silent"

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `Doubt(**...)` takes back."""
        return asdict(self)
