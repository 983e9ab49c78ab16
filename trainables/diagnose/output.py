"""Read what this process and its workers have printed, if it goes to a file."""

from __future__ import annotations

import contextlib
import os
import stat

TAIL_CHARACTERS = 1500


def output(num_bytes: int = 1 << 16) -> str:
    """Return the end of what this process and its workers printed; empty if stderr is no file."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(2).st_mode):
            with open("/proc/self/fd/2", "rb") as file:
                file.seek(max(os.fstat(2).st_size - num_bytes, 0))
                return file.read().decode(errors="replace")
    return ""


def output_tail() -> str:
    """Return the last lines of the output as the end of a failure's message; empty if there are none."""
    text = output(TAIL_CHARACTERS).strip()
    return f"; its last output: {text}" if text else ""
