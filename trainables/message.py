"""`Message`: the base of the frozen dataclasses that one process sends another as a line of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self, TypeVar

C = TypeVar("C")


class Message:
    """A message whose fields are JSON values; a class with other fields overrides both methods."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal message."""
        return values_of(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Return the message in an object of `to_json`."""
        return cls(**saved)


def values_of(message: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, as they are: asdict() would copy every window of every measurement, while the trial is timed."""
    return {each.name: getattr(message, each.name) for each in fields(message)}


def name_of(message: object, classes: Mapping[str, type[C]]) -> str:
    """Return the name under which the class of a message is listed."""
    return next(name for name, each in classes.items() if type(message) is each)
