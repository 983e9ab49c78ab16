"""Several ranks, each with a GPU of its own and NCCL between them. Run with `.venv/bin/pytest tests/gpu`."""

from __future__ import annotations

import json

import pytest
import torch

from feedrate.search.cli.main import main

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def test_each_rank_trains_on_a_gpu_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    """The world's items are those of both ranks, and pinned memory takes part."""
    words = ["--num-workers", "2", "--batch-size", "64", "--pin-memory", "true", "--max-trial-s", "5", "--json"]
    assert main(["measure", "table", "--ranks", "2", *words]) == 0
    columns = json.loads(capfd.readouterr().out)["measurement"]
    assert [each["rank"] for each in columns["ranks"]] == [0, 1]
    assert columns["device"].startswith("cuda")
    assert columns["window_num_items"] == [2 * 64 * number for number in columns["window_num_batches"]]


def test_more_ranks_than_gpus_are_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    """The training script of --ranks says how many GPUs there are."""
    assert main(["measure", "table", "--ranks", str(torch.cuda.device_count() + 1)]) != 0
    assert "ranks need as many GPUs, and this host has" in capfd.readouterr().err
