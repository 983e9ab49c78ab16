"""`Verdict`: where the time of a training goes with one setting, and the numbers that show it.

Three rates are compared: G of the step alone, on a batch that is already on the device; C of the copy to the device alone; and
O of training with loading. Of each second, the step takes O/G, the copy O/C, and for a further share the step waits for
batches. G is used only if it is known (ceilings.py), and no conclusion is drawn from a rate that was still changing.
  compute-bound           O is close to G; or fairly close, and the step does not wait: on a CPU, the workers slow the step
                          itself down, so that it cannot reach its ceiling. If G is not known: there are no workers, and the
                          step does not wait
  transfer-bound          step and copy in turn explain O (O is close to 1/(1/G + 1/C), which is below C), and the copy takes a
                          share worth naming, and more than waiting does
  step slowed by loader   neither, and what is left of the time (the step takes longer than alone) is a share worth naming, and more than
                          waiting is, while CPUs are short: the loading processes take them from the step
  loader-bound (CPU)      none of these, and the loading processes use most of the CPU time that they could use
  loader-bound (waiting)  none of these, and they use less: they wait for storage or a network
  too noisy to say        the rate was still changing; or G is not known, and the step waits less than half of the time; or the
                          CPU time is not known
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feedrate.analysis.estimate import copy_only_sps, record_change, record_steady, wait_fraction

COMPUTE_BOUND_FRACTION = 0.95
"""Share of the rate of the step alone from which on the run-to-run spread hides the rest."""
NEAR_FRACTION = 0.8
"""A rate of at least this share of the ceiling (the rate of the step without loading) counts as limited by the step, provided that the step does not wait for batches."""
WAIT_FRACTION = 0.03
"""A step that waits for a smaller share of the time than this counts as not waiting."""
MOSTLY_FRACTION = 0.5
"""A step that waits for a larger share of the time than this is limited by its loader, even if its own rate is not known."""
BUSY_FRACTION = 0.85
COPY_FRACTION = 0.1
"""The verdict names the copy to the accelerator only if it takes at least this share of a step."""
SLOWED_FRACTION = 0.25
"""The verdict names a step that takes longer than alone only if this costs at least this share of the time."""
EXPLAINED_FRACTION = 0.9
"""Step and copy explain a rate that is at least this share of the rate that they allow together."""
NOTABLE_FRACTION = 0.05
"""Throttling, stolen CPU time and pressure on storage are named from this share on."""
SHARED_FRACTION = 0.05
"""Share of CPU time of other processes above which a host counts as shared; its rates are not those of a quiet host."""
NOISY = "too noisy to say"
SLOWED = "step slowed by loader"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which resource limits the rate, and the evidence."""

    name: str
    """compute-bound, transfer-bound, step slowed by loader, loader-bound (CPU), loader-bound (waiting), or too noisy to say."""
    evidence: tuple[str, ...] = ()
    """Clauses for people, the most important first."""

    def __str__(self) -> str:
        return f"{self.name}: {'; '.join(self.evidence)}" if self.evidence else self.name


def judge(facts: Mapping[str, Any], ceiling_sps: float | None, why_not: str | None = None) -> Verdict:
    """Return the verdict on one measured setting.

    Args:
        facts: with the names of `record_facts`, or a row of `Run.trials`; missing values and None are unknown.
        ceiling_sps: items per second of the step alone at this batch size, from `Ceilings.at`; None if not known.
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
    if name == SLOWED and fraction and waits is not None:
        evidence.append(f"a step takes {(1 - waits - (copying or 0.0)) / fraction:.1f} times as long as without loading")
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
    """Return the facts that `judge` needs, from a record of `trials.jsonl` with windows."""
    steady = record_steady(record)
    return record | {
        "steady_sps": None if steady is None else steady.sps,
        "copy_only_sps": copy_only_sps(record),
        "wait_fraction": None if steady is None else wait_fraction(record),
        "change_fraction": record_change(record, "steady"),
    }


def busy_fraction(own_cpu_fraction: float | None, num_cpus: float | None, num_workers: int) -> float | None:
    """Return a trial's CPU time as a share of what its loading processes could have used at once (0..1); None if not known."""
    if own_cpu_fraction is None or not num_cpus:
        return None
    return min(own_cpu_fraction * num_cpus / min(num_cpus, max(num_workers, 1)), 1.0)


def changing(change_fraction: float) -> str:
    """Say how a rate was still changing, for people."""
    times = 1 + change_fraction
    which = "rising" if change_fraction > 0 else "falling"
    return f"still {which} ({f'{times:,.0f}' if times >= 10 else f'{times:.2g}'} times the rate of its first windows)"


def alternating_sps(*rates_sps: float) -> float:
    """Return the items per second of activities that take turns: 1/(1/a + 1/b)."""
    return 1 / sum(1 / rate for rate in rates_sps)


def _name(fraction: float | None, waits: float | None, busy: float | None, copying: float | None, num_workers: int) -> str:
    """Return the verdict's name from shares of time: of the step, of waiting, of the CPUs that loading can use, of the copy."""
    kept_waiting = waits is None or waits >= WAIT_FRACTION
    if fraction is not None and fraction < COMPUTE_BOUND_FRACTION and copying is not None:
        # fraction + copying = O/G + O/C = O / (1/(1/G + 1/C)): the share of O that step and copy explain if they take turns
        explained = fraction + copying >= EXPLAINED_FRACTION
        if explained and copying >= max(COPY_FRACTION, waits or 0.0):
            return "transfer-bound"
    if fraction is not None:
        at_ceiling = fraction >= (COMPUTE_BOUND_FRACTION if kept_waiting else NEAR_FRACTION)
    else:
        at_ceiling = not kept_waiting and num_workers == 0 and waits is not None
    if at_ceiling:
        return "compute-bound"
    # if the step does not mostly wait, the step may be the limit, or workers that take its CPUs: only a known ceiling can tell
    if busy is None or (fraction is None and (waits or 0.0) < MOSTLY_FRACTION):
        return NOISY
    slowed = 0.0 if fraction is None or waits is None else 1 - fraction - waits - (copying or 0.0)
    if busy >= BUSY_FRACTION and slowed >= max(SLOWED_FRACTION, waits or 0.0):
        return SLOWED
    return "loader-bound (CPU)" if busy >= BUSY_FRACTION else "loader-bound (waiting)"
