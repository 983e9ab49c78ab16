"""`RankBoard`: memory in which the ranks of a host note their steps while a training is tuned, and read which setting rank 0 asks for."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

NUM_KEPT = 64
"""Number of each rank's latest steps that can be read."""
MAX_TEXT_BYTES = 1024
COMPLAINTS = ("leave", "failure", "limit")
"""The kinds of decision with which a rank may ask for the user's own setting, for good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotedStep:
    """One step of a rank."""

    wait_s: float
    """How long the rank waited for its batch."""
    num_workers: int
    """The setting that loaded the batch."""


class RankBoard:
    """The memory, as one rank sees it.

    Nobody waits for anybody here: a rank writes only its own place, and rank 0 writes the setting, too. Each value is one machine word, and
    the number of a step is written after its values, so a reader never takes half of a note for a whole one. The memory is a file that
    no other user may open; it can be removed as soon as all ranks have opened it.

    Args:
        path: the file.
        world_size: number of ranks.
        number: of this rank.

    Raises:
        OSError: the file cannot be opened, or has another size.
    """

    _HEAD: ClassVar[int] = 2
    _PLACE: ClassVar[int] = 3 + 3 * NUM_KEPT

    def __init__(self, path: Path, world_size: int, number: int) -> None:
        self.path, self.world_size, self.number = path, world_size, number
        size = self._size(world_size)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size != size:
                raise OSError(f"{path} is not the board of {world_size} ranks")
            self._memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._values = memoryview(self._memory)[: size - world_size * MAX_TEXT_BYTES].cast("d")
        self._texts = size - world_size * MAX_TEXT_BYTES
        self._values[self._place(number)] = 1.0

    @classmethod
    def create(cls, world_size: int, num_workers: int, folder: Path | None = None) -> RankBoard:
        """Return a new board for rank 0, which asks for this setting; the file is in `folder`, or where temporary files are."""
        descriptor, path = tempfile.mkstemp(prefix="ranks-", dir=folder)
        try:
            os.truncate(descriptor, cls._size(world_size))
        finally:
            os.close(descriptor)
        board = cls(Path(path), world_size, 0)
        board.ask(num_workers, num_workers)
        return board

    @classmethod
    def _size(cls, world_size: int) -> int:
        return 8 * (cls._HEAD + world_size * cls._PLACE) + world_size * MAX_TEXT_BYTES

    def remove(self) -> None:
        """Remove the file; whoever has opened it keeps the memory."""
        with contextlib.suppress(OSError):
            self.path.unlink()

    def are_all_here(self) -> bool:
        """Return whether all ranks have opened the board."""
        return all(self._values[self._place(number)] for number in range(self.world_size))

    def ask(self, target: int, best: int) -> None:
        """Ask all ranks for a number of workers.

        Args:
            target: the number from now on.
            best: the number that the training keeps if no other is compared with it.
        """
        self._values[0], self._values[1] = target, best

    def asked(self) -> tuple[int, int]:
        """Return the two numbers that rank 0 asks for."""
        return int(self._values[0]), int(self._values[1])

    def note(self, step: int, wait_s: float, num_workers: int) -> None:
        """Note a step of this rank; the first one has the number 1."""
        place = self._step(self.number, step)
        self._values[place] = 0.0
        self._values[place + 1], self._values[place + 2] = wait_s, num_workers
        self._values[place] = step

    def noted(self, number: int, step: int) -> NotedStep | None:
        """Return what a rank noted of a step; None if the rank has not come to it, or has noted NUM_KEPT later ones since."""
        place = self._step(number, step)
        if self._values[place] != step:
            return None
        found = NotedStep(wait_s=self._values[place + 1], num_workers=int(self._values[place + 2]))
        return found if self._values[place] == step else None

    def complain(self, kind: str, reason: str) -> None:
        """Ask rank 0 to go back to the user's own setting for good; only the first time counts.

        Args:
            kind: of COMPLAINTS.
            reason: as a sentence.
        """
        place = self._place(self.number)
        if self._values[place + 1]:
            return
        data = reason.encode()[:MAX_TEXT_BYTES]
        begin = self._texts + self.number * MAX_TEXT_BYTES
        self._memory[begin : begin + len(data)] = data
        self._values[place + 2] = len(data)
        self._values[place + 1] = 1 + COMPLAINTS.index(kind)

    def complaint(self) -> tuple[int, str, str] | None:
        """Return a rank that has complained, the kind and the reason; None if none has."""
        for number in range(self.world_size):
            place = self._place(number)
            if kind := int(self._values[place + 1]):
                begin = self._texts + number * MAX_TEXT_BYTES
                data = self._memory[begin : begin + int(self._values[place + 2])]
                return number, COMPLAINTS[kind - 1], data.decode(errors="ignore")
        return None

    def _place(self, number: int) -> int:
        """Return where the values of a rank begin: whether it is here, its complaint, the length of its reason, and its steps."""
        return self._HEAD + number * self._PLACE

    def _step(self, number: int, step: int) -> int:
        return self._place(number) + 3 + 3 * (step % NUM_KEPT)
