"""`RandomState`: the state of the global random generators, to notice code that draws from them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(slots=True)
class RandomState:
    """The states of Python's, numpy's and torch's global generators; equal states mean that nothing was drawn between them."""

    python: tuple[Any, ...]
    numpy: tuple[bytes, int]
    torch: bytes

    @classmethod
    def now(cls) -> RandomState:
        """Return the present states."""
        legacy: Any = np.random.get_state(legacy=False)
        state = legacy["state"]
        return cls(random.getstate(), (state["key"].tobytes(), state["pos"]), torch.get_rng_state().numpy().tobytes())

    def draw_seed(self) -> None:
        """Change this state as torch does when it begins to iterate a loader: it draws one seed."""
        generator = torch.Generator()
        generator.set_state(torch.frombuffer(bytearray(self.torch), dtype=torch.uint8))
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        self.torch = generator.get_state().numpy().tobytes()
