"""`Verdict`: where the time of a training goes with one setting, and the numbers that say so.

Three rates are compared: the step alone G on a batch that is on the device already, the copy to the device alone C, and
both with loading O. Of each second the step takes O/G, the copy O/C, and a share is waited for data. G counts only where it
is known (ceilings.py), and nothing is concluded from a rate that was still changing.
  compute-bound           O is at G, or near it with a step that is not kept waiting: on a CPU the workers slow the step
                          itself down, so that its ceiling cannot be reached. Where G is not known: a trainer without workers,
                          which waits for itself alone, is not kept waiting
  transfer-bound          step and copy in turn explain O (O is near 1/(1/G + 1/C), which lies below C), the copy takes a
                          part worth having, and more than waiting does
  loader-bound (CPU)      neither, and the processes that load use most of the CPU time they could have
  loader-bound (waiting)  neither, and they do not: they wait for storage or a network
  too noisy to say        the rate was still changing; or G is not known, and the step waits less than half of the time; or the CPU
                          time is not known
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feedrate.analysis.estimate import copy_only_sps, record_change, record_steady, wait_fraction

COMPUTE_BOUND_FRACTION = 0.95
"""Of the step alone: this close to it, the run-to-run spread hides the rest."""
NEAR_FRACTION = 0.8
"""Of the step alone: near enough for a step that is never kept waiting."""
WAIT_FRACTION = 0.03
"""A step that waits less than this is not kept waiting."""
MOSTLY_FRACTION = 0.5
"""A step that waits more than this is limited by its loader, also where its own rate is not known."""
BUSY_FRACTION = 0.85
COPY_FRACTION = 0.1
"""A copy that takes less of the time than this is not worth naming."""
EXPLAINED_FRACTION = 0.9
"""Step and copy explain a rate that is at least this part of what they allow."""
NOTABLE_FRACTION = 0.05
"""Throttling, stolen CPU time and pressure on storage above this are named."""
SHARED_FRACTION = 0.05
"""CPU time of other processes above this makes a host a shared one, whose rates are not those of a quiet one."""
NOISY = "too noisy to say"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where the time goes, and why we think so."""

    name: str
    """compute-bound, transfer-bound, loader-bound (CPU), loader-bound (waiting), or too noisy to say."""
    evidence: tuple[str, ...] = ()
    """Clauses for people, the most telling first."""

    def __str__(self) -> str:
        return f"{self.name}: {'; '.join(self.evidence)}" if self.evidence else self.name


def judge(facts: Mapping[str, Any], ceiling_sps: float | None, why_not: str | None = None) -> Verdict:
    """The verdict of one measured setting.

    Args:
        facts: names of `record_facts`, or of a row of `Run.trials`; those that are missing or None are not known.
        ceiling_sps: items per second of the step alone at this batch size, as `Ceilings.at` gives it; None where not known.
        why_not: why it is not known (`Ceilings.why_not`).
    """
    sps, num_cpus = facts.get("steady_sps"), facts.get("num_cpus")
    waits, copy_sps = facts.get("wait_fraction"), facts.get("copy_only_sps")
    num_workers = int(facts.get("num_workers") or 0)
    busy = busy_fraction(facts.get("own_cpu_fraction"), num_cpus, num_workers)
    fraction = sps / ceiling_sps if sps and ceiling_sps else None
    copying = sps / copy_sps if sps and copy_sps else None
    is_changing = bool(facts.get("change_fraction"))
    name = NOISY if is_changing else _name(fraction, waits, busy, copying, num_workers)
    evidence = [f"the rate was {changing(facts['change_fraction'])}"] if is_changing else []
    if fraction is not None and ceiling_sps is not None:
        evidence.append(f"{fraction:.0%} of the ceiling ({ceiling_sps:,.0f}/s without loading)")
    elif why_not is not None:
        evidence.append(f"the ceiling is not known, because {why_not}")
    if waits is not None:
        evidence.append(f"the step waits {waits:.0%} of the time")
    if copying is not None and copying >= COPY_FRACTION:
        evidence.append(f"copying to the accelerator takes {copying:.0%} of the time ({copy_sps:,.0f}/s at most)")
    if busy is not None and num_cpus:
        some = min(num_cpus, max(num_workers, 1))
        evidence.append(f"loading and training used {busy:.0%} of the time of {some:.0f} CPU{'s' * (some > 1)}")
    if facts.get("cache_state") in ("cold", "mixed"):
        evidence.append("samples came from storage")
    for column, text in (
        ("throttled_fraction", "the container's CPU quota ran out in {:.0%} of its periods"),
        ("steal_fraction", "the hypervisor took {:.0%} of the CPU time away"),
        ("psi_io_fraction", "processes of this machine waited for storage {:.0%} of the time"),
    ):
        value = facts.get(column)
        if value is not None and value >= NOTABLE_FRACTION:
            evidence.append(text.format(value))
    return Verdict(name, tuple(evidence))


def record_facts(record: dict[str, Any]) -> dict[str, Any]:
    """What `judge` looks at, from a record of `trials.jsonl` that holds windows."""
    steady = record_steady(record)
    return record | {
        "steady_sps": None if steady is None else steady.sps,
        "copy_only_sps": copy_only_sps(record),
        "wait_fraction": None if steady is None else wait_fraction(record),
        "change_fraction": record_change(record, "steady"),
    }


def busy_fraction(own_cpu_fraction: float | None, num_cpus: float | None, num_workers: int) -> float | None:
    """CPU time of a trial, of what its loading processes could have used at once (0..1); None where not known."""
    if own_cpu_fraction is None or not num_cpus:
        return None
    return min(own_cpu_fraction * num_cpus / min(num_cpus, max(num_workers, 1)), 1.0)


def changing(change_fraction: float) -> str:
    """How a rate was still changing, for people."""
    times = 1 + change_fraction
    which = "rising" if change_fraction > 0 else "falling"
    return f"still {which} ({f'{times:,.0f}' if times >= 10 else f'{times:.2g}'} times the rate of its first windows)"


def alternating_sps(*rates_sps: float) -> float:
    """Items per second of things that take turns: 1/(1/a + 1/b)."""
    return 1 / sum(1 / rate for rate in rates_sps)


def _name(fraction: float | None, waits: float | None, busy: float | None, copying: float | None, num_workers: int) -> str:
    """The verdict's name from shares of the time: of the step, of waiting, of the CPUs that loading can use, of the copy."""
    kept_waiting = waits is None or waits >= WAIT_FRACTION
    if fraction is not None and fraction < COMPUTE_BOUND_FRACTION and copying is not None:
        # fraction + copying = O/G + O/C = O / (1/(1/G + 1/C)): what step and copy explain when they take turns
        explained = fraction + copying >= EXPLAINED_FRACTION
        if explained and copying >= max(COPY_FRACTION, waits or 0.0):
            return "transfer-bound"
    if fraction is not None:
        at_ceiling = fraction >= (COMPUTE_BOUND_FRACTION if kept_waiting else NEAR_FRACTION)
    else:
        at_ceiling = not kept_waiting and num_workers == 0 and waits is not None
    if at_ceiling:
        return "compute-bound"
    # where it does not mostly wait, the rest may be the step, or workers that take its CPUs: only a ceiling can tell
    if busy is None or (fraction is None and (waits or 0.0) < MOSTLY_FRACTION):
        return NOISY
    return "loader-bound (CPU)" if busy >= BUSY_FRACTION else "loader-bound (waiting)"
