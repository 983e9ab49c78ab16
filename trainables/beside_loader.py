"""`BesideLoader`: a loader of the same training whose workers may live beside those of the measured one. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from feedrate.trainables.config import LoaderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class BesideLoader:
    """The settings of a loader that the training reads at another time, for example to validate."""

    where: str
    """file:line."""
    num_workers: int
    prefetch_factor: int | None
    batch_size: int | None
    persistent_workers: bool

    def lives_beside(self, config: LoaderConfig) -> bool:
        """Return whether its workers and those of a measured setting exist at one time: one of both keeps them between epochs."""
        return self.num_workers > 0 and (self.persistent_workers or config.persistent_workers)

    @property
    def num_batches(self) -> int:
        """Number of batches that may be in flight."""
        return (self.prefetch_factor or 2) * self.num_workers + 1

    def batch_bytes(self, config: LoaderConfig, batch_bytes: int) -> int:
        """Return the bytes of a batch, taking a sample to be as large as one of the measured loader.

        Args:
            config: the measured setting.
            batch_bytes: bytes of one of its batches.
        """
        if not self.batch_size or not config.batch_size:
            return batch_bytes
        return round(batch_bytes * self.batch_size / config.batch_size)
