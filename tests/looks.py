"""Helpers of the tests of `feedrate check`: datasets with random numbers, streams, and a quick check."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info
from workloads import Rows, Stream

from feedrate.trainables.checking import check as check_module
from feedrate.trainables.checking.check import check


def found(workload, **options):
    """{name: finding} of a check, in JSON; without starting new interpreters, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_module, "start_findings", lambda loader, seconds_left, known: ([], []))
        report = check(workload, **options).to_json()
    json.dumps(report)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert (report["changes_data"] is not False) == any(finding["level"] == "error" for finding in findings.values())
    return findings


def levels(findings):
    return {name: finding["level"] for name, finding in findings.items()}


def step(batch):
    return None


class Augmented(Rows):
    """Adds noise from the global generators, which torch seeds in every worker."""

    def __getitem__(self, index):
        noise = torch.rand(4) + float(np.random.rand()) + random.random()
        return torch.full((4,), float(index)) + noise, torch.tensor(index % 2)


class Owner(Rows):
    """Adds noise from a generator of its own."""

    def __init__(self, rng):
        super().__init__()
        self.rng = rng

    def __getitem__(self, index):
        own = isinstance(self.rng, torch.Generator)
        noise = float(torch.rand(1, generator=self.rng)) if own else self.rng.random()
        return torch.full((4,), float(index) + noise), torch.tensor(index % 2)


class Divided(Stream):
    """Every worker gives its own part."""

    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        return itertools.islice(super().__iter__(), first, None, step)


def with_noise(stream):
    """The same stream with an augmentation."""

    class Noisy(type(stream)):
        def __iter__(self):
            for row, label in super().__iter__():
                yield row + torch.rand(4), label

    return Noisy(stream.num_rows)
