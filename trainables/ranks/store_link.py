"""`StoreLink`: the link between two ranks of different hosts, through the store of torch's process group."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from torch.distributed import DistError

from feedrate.trainables.ranks.rank_link import RankGone, RankLink

LOOK_PERIOD = timedelta(seconds=1)
"""How long the store is asked to wait for a value before it is looked whether the store still answers."""
RING_SIZE = 128
"""Number of values that rank 0 may leave unread. It reads after 8 steps at the latest, and each step makes one."""
AT_ONCE = 8
"""Values that rank 0 reads with one question."""
POLL_S = 5e-4


class StoreLink(RankLink):
    """One end of a link. The two ways differ, because what a step costs counts: nobody waits for what rank 0 reads, and it reads several values with one question.

    Args:
        store: a `connection` to the store of torch's process group.
        number: of the rank other than rank 0.
        is_lead: whether this end is rank 0's.
    """

    def __init__(self, store: Any, number: int, *, is_lead: bool) -> None:
        super().__init__()
        self._is_lead = is_lead
        self._down, self._up = _Numbered(store, f"feedrate/{number}/down"), _Ring(store, f"feedrate/{number}/up")
        if not is_lead:
            _answered(self._up.fill)

    @staticmethod
    def connection(store: Any) -> Any:
        """Return a connection of its own to a store: one that waits for a value is occupied, and torch needs the store, too. The links of a process share it."""
        return store.clone() if hasattr(store, "clone") else store

    def _write(self, data: bytes) -> None:
        way = self._down if self._is_lead else self._up
        _answered(lambda: way.write(data.decode()))

    def _read(self, *, waits: bool) -> bytes:
        way = self._up if self._is_lead else self._down
        found: bytes = _answered(lambda: way.read(waits=waits))
        return found


class _Numbered:
    """Values under numbered keys, which the reader deletes."""

    def __init__(self, store: Any, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._num_written = self._num_read = 0

    def write(self, text: str) -> None:
        self._store.set(f"{self._prefix}/{self._num_written}", text)
        self._num_written += 1

    def read(self, *, waits: bool) -> bytes:
        key = f"{self._prefix}/{self._num_read}"
        if waits:
            self._wait(key)
        elif not self._store.check([key]):
            return b""
        data = bytes(self._store.get(key))
        self._store.delete_key(key)
        self._num_read += 1
        return data

    def _wait(self, key: str) -> None:
        while not self._store.check([key]):
            try:
                self._store.wait([key], LOOK_PERIOD)
                return
            except DistError:  # the time is over, or the store is gone, which the next look shows
                continue


class _Ring:
    """Values under RING_SIZE keys that are used again and again, so that there is nothing to delete. Each value begins with its number."""

    def __init__(self, store: Any, prefix: str) -> None:
        self._store = store
        self._keys = [f"{prefix}/{number}" for number in range(RING_SIZE)]
        self._num_written = self._num_read = 0
        self._is_filled = False

    def fill(self) -> None:
        """Make all keys, so that a reader need never wait for one."""
        self._store.multi_set(self._keys, [""] * RING_SIZE)

    def write(self, text: str) -> None:
        self._store.set(self._keys[self._num_written % RING_SIZE], f"{self._num_written} {text}")
        self._num_written += 1

    def read(self, *, waits: bool) -> bytes:
        """Return the next values together."""
        if not self._is_filled:
            while not self._store.check(self._keys):
                if not waits:
                    return b""
                time.sleep(POLL_S)
            self._is_filled = True
        while True:
            keys = [self._keys[(self._num_read + each) % RING_SIZE] for each in range(AT_ONCE)]
            found = b""
            for value in map(bytes, self._store.multi_get(keys)):
                number, _, data = value.partition(b" ")
                if number != b"%d" % self._num_read:
                    break
                found += data
                self._num_read += 1
            if found or not waits:
                return found
            time.sleep(POLL_S)


def _answered(ask: Any) -> Any:
    """Return what the store answers.

    Raises:
        RankGone: the store is gone. A rank that has ended closes nothing here; what ends the others then is feedrate on its host.
    """
    try:
        return ask()
    except DistError as error:
        raise RankGone(f"the store of torch's process group is gone ({error})") from None
