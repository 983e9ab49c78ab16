"""The template process of a trial on one host, as the Ray actor on that host starts it from the trial's request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from feedrate.search.engine.nodes import here
from feedrate.search.shipping.job_environment import unpacked
from feedrate.search.shipping.shipping import on_this_node
from feedrate.trainables.machine.host import share_of_cpus
from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.sandbox.other_hosts import OtherHosts
from feedrate.trainables.sandbox.template import Template


def template_of(
    request: Mapping[str, Any], gpus: Sequence[int], *, environment: Mapping[str, str | None] | None = None, other_hosts: OtherHosts | None = None
) -> Template:
    """Return the template of a trial's request.

    Args:
        request: as tuner.py makes it.
        gpus: numbers of the trial's GPUs if it shares its host; otherwise empty.
        environment: variables that this host has besides, or has not (None).
        other_hosts: where other processes of the training run; None if there are none.
    """
    num_cpus = request["cpus_per_trial"]
    return Template(
        on_this_node(WorkloadRef.from_json(request["workload"]), **request["shipped"]),
        cpus=share_of_cpus(gpus, here().num_gpus, num_cpus) if gpus else _affinity(num_cpus),
        threads=request["threads"],
        environment=_user_environment(unpacked() | request["environment"], request["gpus_per_trial"]) | dict(environment or {}),
        log_path=_log_path(request["log_path"]),
        num_hosts=request["num_hosts"],
        other_hosts=other_hosts,
    )


def gpu_numbers() -> list[int]:
    """Return which of the node's GPUs this actor has, counted from 0.

    Ray names GPUs as CUDA_VISIBLE_DEVICES did when the node started.
    """
    visible = ray._private.worker.global_worker.original_visible_accelerator_ids.get("GPU")
    ids = ray.get_gpu_ids()
    return sorted(int(each) if visible is None else visible.index(str(each)) for each in ids)


def _affinity(num_cpus: int | None) -> set[int] | None:
    """Return the first `num_cpus` of the CPUs that this process may use; None if that is all of them."""
    allowed = sorted(os.sched_getaffinity(0))
    return set(allowed[:num_cpus]) if num_cpus is not None and num_cpus < len(allowed) else None


def _log_path(path: str | None) -> str | None:
    """Return the file for the output of a training script; None if its folder, the run folder, is on another machine."""
    return path if path is not None and os.path.isdir(os.path.dirname(path)) else None


def _user_environment(environment: dict[str, str | None], gpus: int) -> dict[str, str | None]:
    """Return the environment variables that the user's own training would have, which differ from Ray's.

    `environment` undoes Ray's OMP_NUM_THREADS. CUDA_VISIBLE_DEVICES is limited to the trial's number of GPUs: Ray leaves every GPU
    visible to a CPU trial, and a trial that reserved a whole node (--exclusive) sees all of its GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if gpus and len(visible) <= gpus:
        return environment
    return {**environment, "CUDA_VISIBLE_DEVICES": ",".join(visible[:gpus])}
