"""Train a workload in several ranks, endlessly: the training script of `--ranks N`, which torchrun starts and feedrate measures as it does anybody's.

    torchrun --standalone --nproc-per-node 2 -m feedrate.trainables.workload_main images --options '{"image_size": 64}'
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.resolve import UnknownWorkload, load, make_ref
from feedrate.trainables.step import StepContext
from feedrate.trainables.workload import Workload

BATCH_SIZE = 32
"""Of a workload in the short form, which has none of its own."""


def main(argv: Sequence[str]) -> None:
    """Train in this rank, until somebody ends it."""
    parser = argparse.ArgumentParser(prog="workload_main", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workload")
    parser.add_argument("--options", type=json.loads, default={})
    args = parser.parse_args(argv)
    rank = Rank.of_environment()
    if rank is None:
        parser.error("start it with torchrun and --nproc-per-node 2 or more")
    device = torch.device("cuda", rank.local_number) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda" and rank.local_world_size > (num := torch.cuda.device_count()):
        raise SystemExit(f"{rank.local_world_size} ranks need as many GPUs, and this host has {num}: ask for at most {num}, or hide the GPUs with CUDA_VISIBLE_DEVICES=")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    workload = _load(args.workload, args.options, rank)
    sys.argv = [workload.name]
    torch.manual_seed(0)
    loader = workload.make_loader(**{"batch_size": BATCH_SIZE} if workload.is_short and not _has_own_batches(workload) else {})
    step = workload.make_step(
        StepContext(device=device, batch_size=loader.batch_size, rank=rank.number, local_rank=rank.local_number, world_size=rank.world_size)
    )
    for epoch in itertools.count():
        for each in _with_epochs(loader):
            each.set_epoch(epoch)
        for batch in loader:
            step(batch)


def _load(name: str, options: Mapping[str, Any], rank: Rank) -> Workload:
    """Make the workload, in rank 0 first: it may make files that the other ranks read."""
    try:
        if rank.number:
            dist.barrier()
        workload: Workload = load(make_ref(name, options))
        if not rank.number:
            if workload.is_short:
                _ = workload.dataset
            dist.barrier()
    except UnknownWorkload as error:
        raise SystemExit(str(error)) from None
    return workload


def _has_own_batches(workload: Workload) -> bool:
    return "batch_sampler" in workload.loader_kwargs


def _with_epochs(loader: Any) -> Iterable[Any]:
    return (each for each in (getattr(loader, "batch_sampler", None), loader.sampler, loader.dataset) if hasattr(each, "set_epoch"))


if __name__ == "__main__":
    main(sys.argv[1:])
