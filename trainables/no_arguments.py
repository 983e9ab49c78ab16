"""`NoArguments`: the command line that a user's file sees while feedrate imports it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from typing import Any, SupportsIndex, overload


class NoSuchArgument(IndexError):
    """A file read a command-line argument that does not exist."""


class NoArguments(list[str]):
    """A `sys.argv` without arguments that remembers whether it was read, and raises `NoSuchArgument` beyond its end.

    Slices of it do the same, because `args = sys.argv[1:]` is read elsewhere. A spawned process gets it as a plain list.
    """

    was_read = False

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: Any) -> Any:
        self.was_read = True
        try:
            found = super().__getitem__(index)
        except IndexError as error:
            raise NoSuchArgument(str(error)) from None
        return NoArguments(found) if isinstance(index, slice) else found

    def __iter__(self) -> Iterator[str]:
        self.was_read = True
        return super().__iter__()

    def __len__(self) -> int:
        self.was_read = True
        return super().__len__()

    def pop(self, index: SupportsIndex = -1) -> str:
        """Remove and return an argument.

        Raises:
            NoSuchArgument: there is none.
        """
        self.was_read = True
        try:
            return super().pop(index)
        except IndexError as error:
            raise NoSuchArgument(str(error)) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def argument_read(error: BaseException) -> str | None:
    """Return the file, line and code that read an argument which does not exist; None if this error has another cause.

    A list does not notice that it is unpacked into more names than it has items, so a ValueError counts if its line of code
    mentions `argv`.
    """
    frame = next(each for each in reversed(traceback.extract_tb(error.__traceback__)) if each.filename != __file__)
    is_missing = isinstance(error, NoSuchArgument) or (isinstance(error, ValueError) and "argv" in (frame.line or ""))
    return f"{os.path.basename(frame.filename)}, line {frame.lineno}: {frame.line}" if is_missing else None
