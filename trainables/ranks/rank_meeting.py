"""`RankMeeting`: how the ranks of a training find the board that they share: its path is in the store of torch's process group."""

from __future__ import annotations

import atexit
import itertools
import os
import time
from pathlib import Path
from typing import ClassVar

from feedrate.trainables.ranks.rank import Rank, store_of_process_group
from feedrate.trainables.ranks.rank_board import RankBoard

ASK_PERIOD_S = 0.1
"""A rank asks the store for the path at most this often; each time takes about 0.1 ms."""


class RankMeeting:
    """Finds the `RankBoard` that this rank shares with the others, without waiting for them.

    Each loader that is tuned has a meeting of its own: the first one that looks for a board in this process gets the same board as the first one in
    every other rank, the second the same as the second.

    Args:
        rank: which one this process is.
        own: the user's own number of workers.
        folder: where rank 0 puts the file; None is where temporary files are.
    """

    _numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self, rank: Rank, own: int, folder: str | os.PathLike[str] | None = None) -> None:
        self.rank, self._own = rank, own
        self._folder = None if folder is None else Path(folder)
        self._board: RankBoard | None = None
        self._key = ""
        self._next_s = 0.0
        self._is_closed = False
        self.why_none: str | None = None
        """Why there can be no board, as a sentence."""

    def board(self) -> RankBoard | None:
        """Return the board; None as long as it is not known. Nothing is waited for."""
        if self._board is None and self.why_none is None and (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + ASK_PERIOD_S
            try:
                self._find()
            except Exception as error:  # the store's errors are torch's, and a training goes on without a board
                self.why_none = f"the ranks cannot agree on a number of workers ({error}), so it stays"
        return self._board

    def close(self) -> None:
        """Remove the file, once all ranks have opened it or no other will."""
        if self._board is not None and self.rank.number == 0 and not self._is_closed:
            self._is_closed = True
            self._board.remove()
            atexit.unregister(self._board.remove)

    def _find(self) -> None:
        store = store_of_process_group()
        if store is None:
            self.why_none = "the ranks have no torch process group by which they could agree on a number of workers, so it stays"
            return
        self._key = self._key or f"feedrate/board/{next(self._numbers)}"
        if self.rank.number == 0:
            self._board = RankBoard.create(self.rank.world_size, self._own, self._folder)
            atexit.register(self._board.remove)
            store.set(self._key, str(self._board.path))
        elif store.check([self._key]):
            self._board = RankBoard(Path(store.get(self._key).decode()), self.rank.world_size, self.rank.number)
