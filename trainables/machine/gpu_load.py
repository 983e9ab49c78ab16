"""How much others use the GPUs of a trial, as nvidia-smi tells, which comes with the driver; torch asks for another package."""

from __future__ import annotations

import os
import shutil
import subprocess

ANSWER_S = 10.0


def gpu_busy_fraction() -> float | None:
    """Share of the last moment in which a kernel ran on the busiest GPU that this process may use (0..1).

    Asked before this process has work there, so that it is others'. None where there is no GPU, or it does not tell (MIG).
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or visible == "":
        return None
    only = [f"--id={visible}"] if visible is not None else []
    command = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", *only]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True, stdin=subprocess.DEVNULL)
        return max(float(line) for line in done.stdout.splitlines()) / 100
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
