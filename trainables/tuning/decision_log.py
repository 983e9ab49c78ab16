"""`DecisionLog`: the decisions of a training, as lines of live.jsonl and as lines for people on standard error, and its course."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from feedrate.analysis.run_folder import RunFolder
from feedrate.trainables.deciding.decision import Decision
from feedrate.trainables.deciding.rate_point import RatePoint


class DecisionLog:
    """Where decisions are written.

    Args:
        folder: folder of live.jsonl; None writes none.
        quiet: print nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> None:
        self.path = RunFolder(folder).live if folder is not None else None
        self.quiet = quiet
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, decision: Decision) -> None:
        """Write one decision. A full disk must not end a training: the line for people says that it was not written."""
        words = f"feedrate: step {decision.step:,}, {decision.time_s:.0f} s: {decision.reason}"
        if self.path is not None:
            try:
                self._append([decision.to_json()], to_disk=True)
            except OSError as error:
                words += f" (not written to {self.path}: {error})"
        if not self.quiet:
            print(words, file=sys.stderr, flush=True)

    def write_course(self, points: Iterable[RatePoint]) -> None:
        """Write what happened between the decisions. These lines are not forced to disk, because that would hold up the training."""
        lines = [each.to_json() for each in points]
        if self.path is not None and lines:
            with contextlib.suppress(OSError):  # the next decision says it
                self._append(lines, to_disk=False)

    def _append(self, lines: Iterable[dict[str, Any]], *, to_disk: bool) -> None:
        assert self.path is not None
        text = "".join(json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n" for line in lines)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            if to_disk:
                file.flush()
                os.fsync(file.fileno())
