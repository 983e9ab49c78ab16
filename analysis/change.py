"""`Change`: one thing that could be different, and what an item would cost then."""

from __future__ import annotations

from dataclasses import dataclass, replace

from feedrate.analysis.costs import Costs

MOST_STEP_CPUS = 1.5
"""If the step alone keeps more CPUs busy than this, its threads wait for each other actively while workers take their CPUs, and nobody can tell
what it would need with other CPUs: the number of CPUs is no change then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What would be different."""

    name: str
    change: str
    """In words."""
    costs: Costs
    """What an item costs each rank then."""
    num_ranks: int = 1


def usual_changes(costs: Costs) -> list[Change]:
    """Return the changes that are predicted for every run."""
    changed = {
        ("data_in_memory", "data in memory, so that loading never waits"): {"load_wait_s": 0.0},
        ("storage_twice_as_fast", "storage twice as fast"): {"load_wait_s": costs.load_wait_s / 2},
        ("storage_half_as_fast", "storage half as fast"): {"load_wait_s": costs.load_wait_s * 2},
        ("decoding_half", "decoding at half the cost"): {"load_cpu_s": costs.load_cpu_s / 2},
        ("step_fifth", "a step that takes a fifth less time"): {"step_s": 0.8 * costs.step_s, "step_cpu_s": 0.8 * costs.step_cpu_s},
    }
    found = [Change(name=name, change=change, costs=replace(costs, **values)) for (name, change), values in changed.items()]
    if costs.step_cpus > MOST_STEP_CPUS:
        return found
    twice = Change(name="cpus_twice", change="twice the CPUs", costs=replace(costs, num_cpus=2 * costs.num_cpus))
    half = Change(name="cpus_half", change="half the CPUs", costs=replace(costs, num_cpus=costs.num_cpus / 2))
    return [twice, *([half] if costs.num_cpus >= 2 else []), *found]


def changes_asked_for(costs: Costs, ceiling_sps: float | None, num_ranks: int | None) -> list[Change]:
    """Return the changes that the user asks for. With another accelerator, a step keeps its CPU time, but no more than its new duration."""
    found = []
    if ceiling_sps is not None:
        step_s = 1 / ceiling_sps
        other = replace(costs, step_s=step_s, step_cpu_s=min(costs.step_cpu_s, step_s))
        found.append(Change(name="ceiling", change=f"an accelerator that trains {ceiling_sps:,.6g}/s without loading", costs=other))
    if num_ranks is not None:
        each = replace(costs, num_cpus=costs.num_cpus / num_ranks)
        change = f"{num_ranks} ranks on these CPUs, each with its own accelerator (rate of all, workers of each)"
        found.append(Change(name="ranks", change=change, costs=each, num_ranks=num_ranks))
    return found
