"""`Workload`: what is trained and how its loader is made.

Two forms. The short one takes a dataset, a model, a loss and an optimizer; it is built on the general one,
`Workload.from_loader`, which takes the user's own loader and step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.step import Step, StepContext, short_step

TUNED = tuple(LoaderConfig.__dataclass_fields__)


class WorkloadError(Exception):
    """The workload cannot be used as asked (no data, wrong option); the message says why and the way out."""


class WorkloadRaised(WorkloadError):
    """The user's code raised while the workload was made; the message ends with their traceback."""


class Workload:
    """What is trained and how its loader is made: the short form. See `Workload.from_loader` for the general one.

    Args:
        name: shown in tables and recorded with the result.
        dataset: a Dataset, or a function without arguments that makes it (called once in every trial).
        model: function without arguments returning the module to train.
        loss: (output, target) -> scalar tensor; batches are (input, target) pairs.
        optimizer: parameters -> torch optimizer.
        collate_fn: as DataLoader's; None is torch's default.
        loader_kwargs: fixed DataLoader arguments: shuffle (default True for map-style), sampler, drop_last,
            worker_init_fn, generator, ...
        check: called once before a search, not in trials: looks at the data, returns sentences that the user should
            see, raises `WorkloadError` where nothing can be loaded.

    Raises:
        ValueError: `loader_kwargs` fixes something that is searched. Leave it out and use the flag of the same name.
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
        """The general form: your own loader and your own training step.

        Args:
            name: shown in tables and recorded with the result.
            make_loader: keyword overrides in torch's spelling -> your DataLoader (or a subclass). Called without
                overrides it gives the baseline.
            make_step: context -> step; `step(batch)` does one training step. An int that it returns is the number of items
                that it trained, 0 included; whatever else it returns (nothing, a loss) the first tensor's first dimension
                counts.
            unit: what an item is: "samples", or "tokens" when the step returns how many it trained.
        """
        self = cls.__new__(cls)
        self.name, self.unit = name, unit
        self.make_loader, self.make_step = make_loader, make_step
        self._dataset, self._built, self.collate_fn, self.loader_kwargs = None, None, None, {}  # type: ignore[assignment]
        self.check = None
        self.is_short = False
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
        if not isinstance(self.dataset, IterableDataset) and not {"sampler", "batch_sampler", "shuffle"} & fixed.keys():
            fixed["shuffle"] = True
        return DataLoader(self.dataset, collate_fn=self.collate_fn, **fixed, **overrides)
