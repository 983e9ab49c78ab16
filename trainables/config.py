"""`LoaderConfig`: one DataLoader setting. It refuses impossible settings and normalises equivalent ones. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from feedrate.analysis.setting import config_text

START_METHODS = ("fork", "forkserver", "spawn")
SHARING_STRATEGIES = ("file_descriptor", "file_system")
"""How workers share tensors; the first is Linux's default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """One setting, with torch's option names.

    With 0 workers, the options that need workers are reset, so that two spellings of one loader compare equal.

    Raises:
        ValueError: the setting cannot work in torch; the message gives the reason and the way out.
    """

    num_workers: int = 0
    """Number of loader processes; 0 loads in the training process."""
    batch_size: int | None = 1
    """Items per batch; None leaves the batch size to the workload's own batch sampler."""
    pin_memory: bool = False
    """Copy batches into page-locked memory (needs an accelerator)."""
    prefetch_factor: int | None = None
    """Batches that each worker loads ahead; None is torch's default (2)."""
    persistent_workers: bool = False
    """Keep workers alive at the end of an epoch."""
    multiprocessing_context: str | None = None
    """Start method of the workers: fork, forkserver or spawn; None is Python's default."""
    in_order: bool = True
    """Whether the loader returns batches in the sampler's order."""
    sharing_strategy: str | None = None
    """How workers share tensors, an attribute of the process: file_system; None is file_descriptor, Linux's default."""
    trainer_cpus: int | None = None
    """CPUs reserved for the training process, an attribute of the process; None lets workers run on all CPUs."""

    def __post_init__(self) -> None:
        _whole("num_workers", self.num_workers, 0, "0 loads in the training process")
        if self.batch_size is not None:
            _whole("batch_size", self.batch_size, 1, "a batch has at least one item")
        for name in ("pin_memory", "persistent_workers", "in_order"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.multiprocessing_context not in (None, *START_METHODS):
            raise ValueError(
                f"multiprocessing_context must be one of {', '.join(START_METHODS)}, not {self.multiprocessing_context!r}"
            )
        if self.sharing_strategy not in (None, *SHARING_STRATEGIES):
            raise ValueError(
                f"sharing_strategy must be one of {', '.join(SHARING_STRATEGIES)}, not {self.sharing_strategy!r}"
            )
        if self.trainer_cpus is not None:
            _whole("trainer_cpus", self.trainer_cpus, 1, "None lets the workers run on every CPU")
        if self.sharing_strategy == SHARING_STRATEGIES[0]:
            object.__setattr__(self, "sharing_strategy", None)
        if self.num_workers == 0:
            for name, value in (
                ("prefetch_factor", None),
                ("persistent_workers", False),
                ("multiprocessing_context", None),
                ("in_order", True),
                ("sharing_strategy", None),
                ("trainer_cpus", None),
            ):
                object.__setattr__(self, name, value)
        elif self.prefetch_factor is None:
            object.__setattr__(self, "prefetch_factor", 2)
        if self.prefetch_factor is not None:
            _whole("prefetch_factor", self.prefetch_factor, 1, "torch fails at iteration otherwise")

    def without_accelerator(self) -> LoaderConfig:
        """Return the equal setting for a machine without an accelerator: torch ignores pin_memory there (with a warning)."""
        return replace(self, pin_memory=False)

    def to_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments for `DataLoader`, without those that torch refuses if there are 0 workers."""
        kwargs: dict[str, Any] = {} if self.batch_size is None else {"batch_size": self.batch_size}
        kwargs |= {"num_workers": self.num_workers, "pin_memory": self.pin_memory}
        if self.num_workers:
            kwargs |= {"prefetch_factor": self.prefetch_factor, "persistent_workers": self.persistent_workers}
            if self.multiprocessing_context:
                kwargs["multiprocessing_context"] = self.multiprocessing_context
            if not self.in_order:
                kwargs["in_order"] = False
        return kwargs

    def to_process(self, threads: int | None = None) -> dict[str, Any]:
        """Return the settings that are not arguments of `DataLoader`, so that the process must apply them; usually none.

        Args:
            threads: the requested number of torch threads; limited to the CPUs that are reserved for the training process.
        """
        if threads is not None:
            threads = min(threads, self.trainer_cpus or threads)
        settings = {
            "sharing_strategy": self.sharing_strategy,
            "trainer_cpus": self.trainer_cpus,
            "torch_num_threads": threads,
        }
        return {name: value for name, value in settings.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return every field, for a record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> LoaderConfig:
        """Return the setting in a record or request; ignore other keys."""
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})

    def short(self) -> str:
        """Return a short text for tables: `w8 p4 pin pers`, preceded by `b64 ` if the batch size is a number."""
        return config_text({name: getattr(self, name) for name in self.__dataclass_fields__})


def _whole(name: str, value: object, least: int, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}: {why}")
