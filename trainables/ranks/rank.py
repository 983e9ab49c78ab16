"""`Rank`: which of the processes of a distributed training this one is, according to its launcher or to torch's process group."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE")
"""Variables with the number of ranks on this host: torchrun's, Open MPI's, that of MPICH and Intel MPI, and srun's, such as "4(x2)" on two hosts."""


def with_process_group() -> Any:
    """Return the module torch.distributed if this process has a process group; None if not, or as long as nobody has imported it."""
    distributed: Any = sys.modules.get("torch.distributed")
    return distributed if distributed is not None and distributed.is_available() and distributed.is_initialized() else None


def store_of_process_group() -> Any:
    """Return the store in which the ranks of torch's process group have met; None if there is no group."""
    distributed = with_process_group()
    return None if distributed is None else distributed.distributed_c10d._get_default_store()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """One process of a training with several."""

    number: int
    local_number: int
    """Its number on its host."""
    world_size: int
    """Number of ranks."""
    local_world_size: int
    """Number of ranks on this host."""

    @classmethod
    def here(cls) -> Rank | None:
        """Return the rank that this process is, as far as is known now: by torch's process group, or else by torchrun's variables."""
        return cls.of_process_group() or cls.of_environment()

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Rank | None:
        """Return the rank that torchrun's variables name; None if they are not set, or if there is only one rank."""
        try:
            number, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            local_number = int(environment.get("LOCAL_RANK", number))
            local_world_size = int(environment.get("LOCAL_WORLD_SIZE", world_size))
        except (KeyError, ValueError):
            return None
        if world_size < 2:
            return None
        return cls(number=number, local_number=local_number, world_size=world_size, local_world_size=local_world_size)

    @classmethod
    def of_process_group(cls, environment: Mapping[str, str] = os.environ) -> Rank | None:
        """Return the rank in torch's process group; None if there is none, or if there is only one rank.

        Launchers that do not set torchrun's variables (mpirun, srun, Lightning, `torch.multiprocessing.spawn`) leave it to the
        script to tell torch which rank each process is. If no variable says how many ranks run on this host, all are assumed to.
        """
        distributed = with_process_group()
        if distributed is None:
            return None
        number, world_size = distributed.get_rank(), distributed.get_world_size()
        if world_size < 2:
            return None
        sizes = (re.match(r"\d+", environment.get(name, "")) for name in _LOCAL_SIZES)
        local_world_size = next((int(size[0]) for size in sizes if size is not None), world_size)
        return cls(number=number, local_number=number % local_world_size, world_size=world_size, local_world_size=local_world_size)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal rank."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any] | None) -> Rank | None:
        """Return the rank in an object of `to_json`; None for None."""
        return None if saved is None else cls(**saved)
