"""The loadtune side of live.py: a bundled workload in loadtune's form, with the training step that the other sides train.

    pip install --no-deps --target loadtune_0.3 loadtune==0.3.0
    python benchmarks/live.py images --loadtune loadtune_0.3

loadtune needs jinja2, matplotlib and psutil, which feedrate's environment for tests has.
"""

import importlib
import os

import torch
from loadtune.workload import Workload

from feedrate.trainables.step import StepContext

STEPS: dict[torch.device, object] = {}


def get_workload() -> Workload:
    """The bundled workload that the variable FEEDRATE_WORKLOAD names."""
    name = os.environ["FEEDRATE_WORKLOAD"]
    workload = getattr(importlib.import_module(f"feedrate.trainables.bundled.{name}"), name)()

    def train_step(model: object, optimizer: object, batch: object, device: torch.device) -> torch.Tensor:
        if device not in STEPS:
            STEPS[device] = workload.make_step(StepContext(device=device, batch_size=None))
        STEPS[device](batch)
        return torch.zeros(())

    return Workload(
        name=name,
        make_dataset=lambda: workload.dataset,
        make_model=torch.nn.Identity,  # the step has its own
        train_step=train_step,
        make_optimizer=lambda model: None,
        collate_fn=workload.collate_fn,
    )
