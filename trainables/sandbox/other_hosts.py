"""`OtherHosts`: what a template asks while its child is one of several processes, on several hosts, that serve a request together."""

from __future__ import annotations

from typing import Protocol

from feedrate.trainables.protocol import Failed


class OtherHosts(Protocol):
    """The hosts on which the other processes of a child's training run."""

    def begin(self) -> None:
        """Start them, because a child starts; do not wait for them."""

    def failure(self) -> Failed | None:
        """Return the failure that one of them has reported; None as long as there is none. Called several times a second.

        Raises:
            Exception: one of them was lost, or cannot run the training.
        """

    def heard(self, failed: Failed) -> None:
        """Note a failure on this host, before its processes are ended: that may take seconds, and breaks what ranks elsewhere wait for.

        Raises:
            Exception: another host was lost, which is the cause of the failure.
        """

    def waited_for(self) -> str | None:
        """Return which rank there hangs while the others wait for it, as the beginning of a sentence; None if none does."""

    def end(self) -> None:
        """End them, and wait until they have ended, because the child has."""
