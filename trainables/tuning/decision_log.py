"""`DecisionLog`: the decisions of a training, as lines of live.jsonl and as lines for people on standard error."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from feedrate.trainables.deciding.decision import Decision


class DecisionLog:
    """Where decisions are written.

    Args:
        folder: folder of live.jsonl; None writes none.
        quiet: print nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> None:
        self.path = Path(folder) / "live.jsonl" if folder is not None else None
        self.quiet = quiet
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, decision: Decision) -> None:
        """Write one decision. A full disk must not end a training: the line for people says that it was not written."""
        words = f"feedrate: step {decision.step:,}, {decision.time_s:.0f} s: {decision.reason}"
        if self.path is not None:
            line = json.dumps(decision.to_json(), allow_nan=False, separators=(",", ":")) + "\n"
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                words += f" (not written to {self.path}: {error})"
        if not self.quiet:
            print(words, file=sys.stderr, flush=True)
