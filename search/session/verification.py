"""Judge whether a best.json still holds on this machine: compare its setting with its baseline in rounds, and list what has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feedrate.analysis.best import BestConfig
from feedrate.analysis.estimate import Rate
from feedrate.analysis.rounds import MIN_ROUNDS, TIED_FRACTION, Comparison, Round
from feedrate.trainables.config import LoaderConfig

NAMES = ("python", "torch", "platform", "feedrate")
"""Versions that matter for a rate; changes of others are not listed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What rounds on this machine say about an earlier answer."""

    holds: bool
    """Whether the answer is worth using here: it is faster than the baseline, or not slower if the search found no gain either."""
    sentence: str
    speedup: Rate | None
    """Speed-up over the baseline here, from paired measurements; None if the setting is the baseline."""
    throughput: Rate


def setting_of(best: BestConfig) -> LoaderConfig:
    """Return the setting of a best.json."""
    return _config(best.raw["dataloader"], best.process)


def baseline_of(best: BestConfig) -> LoaderConfig:
    """Return the baseline of a best.json; if it has none, torch's default at the same batch size."""
    if best.baseline is None:
        return LoaderConfig(num_workers=0, batch_size=best.raw["dataloader"].get("batch_size"))
    return _config(best.baseline["dataloader"], best.baseline.get("process", {}))


def verified(best: BestConfig, rounds: Sequence[Round]) -> Verified | None:
    """Judge rounds that measured the setting of `best` and its baseline here.

    Returns:
        The judgement; None if there are fewer than MIN_ROUNDS rounds of both, because the time was too short to say.
    """
    setting, baseline = setting_of(best).short(), baseline_of(best).short()
    comparison = Comparison(rounds)
    throughput = comparison.rate(setting)
    if throughput is None or min(comparison.num_rounds(setting), comparison.num_rounds(baseline)) < MIN_ROUNDS:
        return None
    if setting == baseline:
        text = "the answer is the baseline itself, because the search showed no setting to be faster, so there is no speed-up to verify; only its rate is compared with the one in best.json"
        return Verified(holds=True, sentence=text, speedup=None, throughput=throughput)
    speedup = comparison.ratio(setting, baseline)
    there = _recorded(best)
    gained = there is None or there.low_sps > 1
    here = f"{speedup.sps:.2f}x the baseline here [{speedup.low_sps:.2f}-{speedup.high_sps:.2f}]"
    if speedup.high_sps < 1:
        holds, text = False, f"the answer does not hold: {here}, which is slower than recorded. Search again"
    elif not gained and speedup.low_sps > 1:
        holds, text = True, f"the answer holds, and here it gains over the baseline, which it did not in the search: {here}"
    elif not gained:
        holds, text = True, f"the answer holds: no significant gain over the baseline in the search, and none here ({here})"
    elif speedup.low_sps <= 1:
        holds, text = False, f"the answer does not hold: no significant gain over the baseline here ({here}). Search again, or keep the baseline"
    elif there is not None and speedup.high_sps < there.low_sps * (1 - TIED_FRACTION):
        holds, text = True, f"the answer is still faster, but gains less: {here}, {there.sps:.2f}x in the search. Searching again may find more"
    else:
        was = "" if there is None else f", {there.sps:.2f}x in the search"
        holds, text = True, f"the answer holds: {here}{was}"
    return Verified(holds=holds, sentence=text, speedup=speedup, throughput=throughput)


def differences(best: BestConfig, facts: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that differs from the machine on which the answer was measured.

    Args:
        best: the answer.
        facts: facts about this machine, with the names of `measured_on` in best.json.
    """
    there = best.measured_on
    found = []
    versions, now = there.get("versions") or {}, facts.get("versions") or {}
    for name in NAMES:
        if versions.get(name) and now.get(name) and versions[name] != now[name]:
            found.append(f"{name} was {versions[name]}, and is {now[name]} here")
    for name, what in (("device_name", "the accelerator"), ("cpu_model", "the CPU"), ("num_cpus", "the number of CPUs"), ("hostname", "the host")):
        if there.get(name) is not None and facts.get(name) is not None and there[name] != facts[name]:
            found.append(f"{what} was {there[name]}, and is {facts[name]} here")
    return found


def _recorded(best: BestConfig) -> Rate | None:
    if best.baseline is None:
        return None
    low, high = best.baseline["speedup_ci95"]
    return Rate(sps=best.baseline["speedup"], low_sps=low, high_sps=high)


def _config(dataloader: Mapping[str, Any], process: Mapping[str, Any]) -> LoaderConfig:
    fields = {name: value for name, value in process.items() if name in LoaderConfig.__dataclass_fields__}
    return LoaderConfig.from_dict({"batch_size": None, **dataloader, **fields})
