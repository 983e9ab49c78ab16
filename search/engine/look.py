"""Ask the nodes of a joined cluster for what Ray does not know of them, and find out which of them can run a trial."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from feedrate.search.engine.nodes import Host, check_versions, facts, living, versions_here
from feedrate.search.options import UsageError

ANSWER_S = 90.0
"""Longest wait for a node's answer; a node without an answer is left out. Making a runtime environment takes seconds, but a stuck
node never answers."""


def look() -> tuple[list[Host], list[str]]:
    """Ask each node of the connected cluster for its facts.

    Returns:
        The nodes that answered with their facts, and a sentence about each other node.

    Raises:
        UsageError: a node has other versions than the driver, or no node can run a task of feedrate.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    hosts = living()
    if not hosts:
        return [], []
    ask = ray.remote(num_cpus=0, max_retries=0)(_facts)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(host.node_id, soft=False)).remote(): host
        for host in hosts
    }
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    known, problems = [], [f"{asked[each].hostname} does not answer and is left out" for each in silent]
    for each in ready:
        host = asked[each]
        try:
            told = ray.get(each)
        except Exception as error:  # raised by the node's Python, for example because a package is missing there
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            problems.append(f"{host.hostname} is left out: {reason.strip()}")
            continue
        known.append(replace(host, **told))
    if not known:
        raise UsageError(f"no node of the cluster can run a trial: {'; '.join(problems)}")
    check_versions(known, versions_here())
    return known, problems


def left_out_of(hosts: Iterable[Host] | None) -> frozenset[str]:
    """Return Ray's ids of the living nodes that are not in `hosts`, which `look` returned; none if `hosts` is None."""
    return frozenset() if hosts is None else frozenset(host.node_id for host in living()) - {host.node_id for host in hosts}


def _facts() -> dict[str, Any]:
    """Return the facts of the node that runs this task.

    Raises:
        ImportError: a package that a trial needs is missing on this node, so it cannot run one.
    """
    import feedrate.search.engine.trainable  # noqa: F401

    return facts()
