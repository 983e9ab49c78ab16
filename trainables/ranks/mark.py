"""`Mark`: the clock and the counters of one rank at the moment when it has trained a batch."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """What a rank had done when its step with this number was over. All times are of CLOCK_MONOTONIC, which the ranks of a host share; `Lead` corrects those of ranks on other hosts."""

    number: int
    """Number of batches that the rank has trained since its loader started."""
    time_s: float
    items: int
    """Items trained so far."""
    wait_s: float
    """Seconds spent in next(loader) so far."""
    made: int
    """Batches that were made and not trained: ready ones and discarded ones."""
    made_ahead: int
    """Ready batches of later production cycles than the current one; meaningful only if `is_waiting`."""
    is_waiting: bool
    """Whether the queue of ready batches was empty within the last production cycle."""
    num_asides: int
    """How often the script did something other than training so far."""

    def to_list(self) -> list[float]:
        """Return the values, from which `of_list` makes an equal mark."""
        return list(astuple(self))

    @classmethod
    def of_list(cls, values: list[float]) -> Mark:
        """Return the mark with the values of `to_list`."""
        number, time_s, items, wait_s, made, made_ahead, is_waiting, num_asides = values
        return cls(
            number=int(number),
            time_s=time_s,
            items=int(items),
            wait_s=wait_s,
            made=int(made),
            made_ahead=int(made_ahead),
            is_waiting=bool(is_waiting),
            num_asides=int(num_asides),
        )
