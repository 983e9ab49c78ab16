"""Say which rank of a training hangs: the one that does something while the others wait for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from feedrate.trainables.diagnose.hang_message import what_hangs
from feedrate.trainables.diagnose.stacks import Stack

_COLLECTIVES = ("torch/distributed/", "torch/autograd/", "torch/nn/parallel/")
"""Where the innermost Python call of a rank is that waits for other ranks: gradients are exchanged inside of backward()."""
_OURS = str(Path(__file__).parents[1]) + os.sep


def ranks_of(pids: Iterable[int]) -> dict[int, int]:
    """Return rank -> pid of the ranks that torchrun has started among these processes, also before they import torch.

    Of the processes with the same RANK in their environment, the outermost one is the rank.
    """
    ranks: dict[int, int] = {}
    numbers = {pid: number for pid in pids if (number := _rank(pid)) is not None}
    for pid, number in numbers.items():
        if numbers.get(_parent(pid)) != number:
            ranks.setdefault(number, pid)
    return ranks


def which_rank_hangs(stacks: Sequence[Stack], ranks: dict[int, int], phase: str) -> str | None:
    """Return which rank hangs and where, as the beginning of a sentence; None if there are no ranks.

    Args:
        stacks: of all processes of the trial.
        ranks: rank -> pid.
        phase: the phase that rank 0 last reported.
    """
    if len(ranks) < 2:
        return None
    own = _of_ranks(stacks, ranks)
    if len({_waits_for_ranks(stack) for stack in own.values()}) < 2:  # all wait, or none does
        places = ", ".join(f"rank {number} in {stack.place() or 'no code of the script'}" for number, stack in own.items())
        return f"the ranks hang: {places}"
    return rank_that_is_waited_for(stacks, ranks, phase)


def rank_that_is_waited_for(stacks: Sequence[Stack], ranks: dict[int, int], phase: str) -> str | None:
    """Return which rank of this host does something instead of waiting for others, and where, as the beginning of a sentence; None if all wait.

    Args:
        stacks, ranks, phase: as for `which_rank_hangs`.
    """
    own = _of_ranks(stacks, ranks)
    number = next((number for number, stack in own.items() if not _waits_for_ranks(stack)), None)
    if number is None:
        return None
    workers = [stack for stack in stacks if stack.role.startswith("loader worker") and _parent(stack.pid) == ranks[number]]
    return f"rank {number}: {what_hangs([own[number], *workers], phase)}, and the other ranks wait for it"


def _of_ranks(stacks: Sequence[Stack], ranks: dict[int, int]) -> dict[int, Stack]:
    """Return the stack of each rank of which one is known."""
    of_pid = {stack.pid: stack for stack in stacks}
    return {number: replace(of_pid[pid], role="trainer") for number, pid in sorted(ranks.items()) if pid in of_pid}


def _waits_for_ranks(stack: Stack) -> bool:
    """Whether a rank waits for others: in a collective, or for feedrate's rank 0."""
    innermost = next((each.path for each in stack.main if "torch/_" not in each.path), "")
    return any(each in innermost for each in _COLLECTIVES) or (innermost.startswith(_OURS) and "ranks/" in innermost) or stack.goes_through("script/launcher_link.py")


def _rank(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry[5:])
    return None


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
