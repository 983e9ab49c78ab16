"""One dimension of a search: a range of whole numbers or a list of choices. Values that cannot work in torch are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feedrate.trainables.config import SHARING_STRATEGIES, START_METHODS

LEAST = {
    "num_workers": (0, "0 loads in the training process"),
    "batch_size": (1, "a batch has at least one item"),
    "prefetch_factor": (1, "torch fails at iteration otherwise"),
}
"""Dimension whose values are numbers -> the smallest number that works, and why."""
WORDS: dict[str, dict[str, Any]] = {
    "multiprocessing_context": {"default": None} | {method: method for method in START_METHODS},
    "sharing_strategy": dict(zip(SHARING_STRATEGIES, (None, "file_system"), strict=True)),
    "trainer_cpus": {"none": None},
}
"""Dimension whose choices have names -> name -> value. trainer_cpus also takes whole numbers."""
_TRUTH: dict[str, Any] = {"true": True, "false": False}
MAX_VALUES = 100_000


@dataclass(frozen=True, slots=True)
class Range:
    """Every whole number from low to high, including both."""

    low: int
    high: int

    @property
    def values(self) -> tuple[Any, ...]:
        """Every value, ascending."""
        return tuple(range(self.low, self.high + 1))


@dataclass(frozen=True, slots=True)
class Choice:
    """The listed values, without duplicates; if all are whole numbers, in ascending order."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        unique = tuple({(type(value), value): value for value in self.values}.values())
        if all(type(value) is int for value in unique):
            unique = tuple(sorted(unique))
        object.__setattr__(self, "values", unique)


Dimension = Range | Choice


def parse_dimension(name: str, text: str) -> Dimension:
    """Parse one dimension of a command line: `0..32`, `32,64,128`, `true,false`, `4`.

    Raises:
        ValueError: the text is no such dimension; the message names the flag, says what is wrong and what to write instead.
    """
    flag = "--" + name.replace("_", "-")
    try:
        dimension = _parse(name, text.strip())
    except ValueError as error:
        raise ValueError(f"{flag} {text!r}: {error}") from None
    if said := problem(name, dimension):
        raise ValueError(f"{flag} {text!r}: {said}")
    return dimension


def problem(name: str, dimension: Dimension) -> str | None:
    """Return what is wrong with a dimension, as the rest of a sentence; None if it can be searched."""
    if isinstance(dimension, Range):
        low, high = dimension.low, dimension.high
        if name not in LEAST:
            return "takes a list of choices, not a range"
        if any(type(end) is not int for end in (low, high)):
            return f"the range {low!r}..{high!r} must end in whole numbers"
        if low > high:
            return f"the range {low}..{high} is backwards; write {high}..{low}"
        if high - low >= MAX_VALUES:
            return f"the range {low}..{high} is too wide; list a few choices, such as 32,64,128"
        return _number_problem(name, (low, high))
    if not dimension.values:
        return "the list is empty; name at least one value"
    if name in LEAST:
        return None if name == "batch_size" and dimension.values == (None,) else _number_problem(name, dimension.values)
    if name == "trainer_cpus":
        return _number_problem(name, tuple(value for value in dimension.values if value is not None))
    allowed = WORDS.get(name, _TRUTH)
    for value in dimension.values:
        if (type(value), value) not in {(type(good), good) for good in allowed.values()}:
            return f"{value!r} is not one of {', '.join(allowed)}"
    return None


def _number_problem(name: str, values: tuple[Any, ...]) -> str | None:
    least, why = LEAST.get(name) or (1, "none lets the workers run on every CPU")
    for value in values:
        if type(value) is not int:
            return f"{value!r} is not a whole number"
        if value < least:
            return f"must be {least} or more, not {value}: {why}"
    return None


def _parse(name: str, text: str) -> Dimension:
    if name in LEAST and ".." in text:
        low, _, high = text.partition("..")
        return Range(_number(low), _number(high))
    words = [word.strip() for word in text.split(",") if word.strip()]
    if name in LEAST:
        return Choice(tuple(_number(word) for word in words))
    names = WORDS.get(name, _TRUTH)
    if name == "trainer_cpus":
        return Choice(tuple(None if word.lower() in names else _number(word) for word in words))
    return Choice(tuple(names.get(word.lower(), word) for word in words))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        way_out = "write a range like 0..32, a list like 32,64,128, or one number"
        raise ValueError(f"{text.strip()!r} is not a whole number; {way_out}") from None
