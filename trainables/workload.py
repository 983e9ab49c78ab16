"""`Workload`: what is trained, and how its loader is made.

There are two forms. The short form takes a dataset, a model, a loss and an optimizer. The general form,
`Workload.from_loader`, takes the user's own loader and training step; the short form is built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from feedrate.trainables.beside_loader import BesideLoader
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.step import Step, StepContext, short_step

TUNED = tuple(LoaderConfig.__dataclass_fields__)


class WorkloadError(Exception):
    """The workload cannot be used as requested (no data, wrong option). The message gives the reason and the way out."""


class WorkloadRaised(WorkloadError):
    """The user's code raised an exception while the workload was made; the message ends with the user's traceback."""


class Workload:
    """What is trained and how its loader is made, in the short form. `Workload.from_loader` makes the general form.

    Args:
        name: shown in tables and recorded with the result.
        dataset: a Dataset, or a function without arguments that makes it (called once in every trial).
        model: function without arguments that returns the module to train.
        loss: (output, target) -> scalar tensor; batches are (input, target) pairs.
        optimizer: parameters -> torch optimizer.
        collate_fn: as for DataLoader; None is torch's default.
        loader_kwargs: fixed DataLoader arguments: shuffle (default True for map-style), sampler, drop_last,
            worker_init_fn, generator, ... In several ranks (`--ranks N`), a map-style dataset without a sampler gets a `DistributedSampler`.
        check: called once before a search, not in trials. It inspects the data, returns sentences for the user, and
            raises `WorkloadError` if nothing can be loaded.

    Raises:
        ValueError: `loader_kwargs` fixes an option that is searched. Leave it out and use the flag of the same name.
    """

    def __init__(
        self,
        *,
        name: str,
        dataset: Dataset[Any] | Callable[[], Dataset[Any]],
        model: Callable[[], torch.nn.Module],
        loss: Callable[[Any, Any], torch.Tensor],
        optimizer: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer],
        collate_fn: Callable[[list[Any]], Any] | None = None,
        loader_kwargs: Mapping[str, Any] | None = None,
        check: Callable[[], list[str]] | None = None,
    ) -> None:
        fixed = dict(loader_kwargs or {})
        searched = [key for key in fixed if key in TUNED]
        if searched:
            raise ValueError(
                f"loader_kwargs of workload {name!r} fixes {searched[0]}, which is searched: leave it out and pass --baseline {searched[0]}=... or the flag of its name"
            )
        self.name = name
        self.unit = "samples"
        self._dataset = dataset
        self._built: Dataset[Any] | None = dataset if isinstance(dataset, Dataset) else None
        self.collate_fn = collate_fn
        self.loader_kwargs = fixed
        self.check = check
        self.make_step = short_step(model, loss, optimizer)
        self.make_loader: Callable[..., DataLoader[Any]] = self._short_loader
        self.is_short = True
        self.beside: tuple[BesideLoader, ...] = ()
        """Other loaders of the same training, as far as feedrate sees them (script/takeover.py)."""
        self.has_made_a_loader = False

    @classmethod
    def from_loader(
        cls,
        *,
        name: str,
        make_loader: Callable[..., DataLoader[Any]],
        make_step: Callable[[StepContext], Step],
        unit: str = "samples",
    ) -> Workload:
        """Make a workload in the general form: your own loader and your own training step.

        Args:
            name: shown in tables and recorded with the result.
            make_loader: takes keyword overrides with torch's names and returns your DataLoader (or a subclass). Called
                without overrides, it returns the baseline's loader.
            make_step: context -> step; `step(batch)` does one training step. If it returns an int, this is the number of
                items that it trained, which may be 0. If it returns anything else (nothing, a loss), feedrate counts the
                first tensor's first dimension.
            unit: what an item is: "samples", or "tokens" if the step returns how many tokens it trained.
        """
        self = cls.__new__(cls)
        self.name, self.unit = name, unit
        self.make_loader, self.make_step = make_loader, make_step
        self._dataset, self._built, self.collate_fn, self.loader_kwargs = None, None, None, {}  # type: ignore[assignment]
        self.check = None
        self.is_short = False
        self.beside = ()
        self.has_made_a_loader = False
        return self

    @property
    def dataset(self) -> Dataset[Any]:
        """The dataset of the short form, made on first use."""
        if self._built is None:
            self._built = self._dataset()  # type: ignore[operator]
        return self._built

    def _short_loader(self, **overrides: Any) -> DataLoader[Any]:
        fixed = dict(self.loader_kwargs)
        if not isinstance(self.dataset, IterableDataset) and not {"sampler", "batch_sampler"} & fixed.keys():
            shuffle = bool(fixed.pop("shuffle", True))
            if _has_ranks():
                fixed["sampler"] = DistributedSampler(self.dataset, shuffle=shuffle, drop_last=bool(fixed.get("drop_last", False)))
            else:
                fixed["shuffle"] = shuffle
        return DataLoader(self.dataset, collate_fn=self.collate_fn, **fixed, **overrides)


def _has_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
