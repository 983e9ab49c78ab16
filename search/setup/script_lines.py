"""What feedrate says first about a training command: its loaders, which one is measured, and why."""

from __future__ import annotations

from feedrate.trainables.checking.described import Described
from feedrate.trainables.checking.script_facts import LoaderFacts


def loader_lines(described: Described) -> list[str]:
    """Return one line for each DataLoader of a training command; no line for any other workload.

    Args:
        described: facts about the workload (prepare.describe_workload).
    """
    script = described.script
    if script is None:
        return []
    wide = max(len(each.where) for each in script.loaders)
    return [f"{each.where:{wide}}  {each.call}  {_role(each, script.chosen)}" for each in script.loaders]


def loader_remarks(described: Described) -> list[str]:
    """Return one sentence for each loader whose workers will live beside those of the measured one."""
    loaders = () if described.script is None else described.script.loaders
    return [
        f"the {each.kept_workers} worker{'s' * (each.kept_workers > 1)} of the loader at {each.where} stay alive between its epochs "
        "(persistent_workers=True). Beside the measured loader's workers they need memory and CPUs of their own in your training. They "
        "need not run while feedrate measures, but their memory and their part of /dev/shm count in whether a setting fits"
        for each in loaders
        if each.role != "measured" and each.kept_workers
    ]


def explanation(described: Described) -> list[str]:
    """Return everything that is known about a training command, for --explain."""
    script = described.script
    if script is None:
        return []
    lines = loader_lines(described)
    for each in script.loaders:
        made = f"made {each.num_made} times" if each.num_made > 1 else "made once"
        lines.append(f"  {each.number}. {each.where}: {made}; {each.num_batches} batches read, {each.num_steps} optimizer steps between them")
    if script.num_ranks > 1:
        lines.append(f"{script.num_ranks} ranks train together; rates are those of all of them, and the settings are those of each rank's loader")
    lines.append(f"feedrate took over after {script.setup_s:.1f} s, with {script.python}; the training runs on {script.device or 'an unknown device'}")
    return lines


def _role(loader: LoaderFacts, chosen: str | None) -> str:
    if loader.role == "measured":
        why = "an optimizer steps between its batches" if chosen is None else f"--loader {chosen}"
        return f"<- measured: {why}"
    return f"({loader.role})"
