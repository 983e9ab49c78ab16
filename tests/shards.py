"""A /tmp and a /dev/shm of its own for each process of pytest-xdist, because tests count what trials leave in them."""

import ctypes
import os
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x00020000  # linux/sched.h; os.unshare needs Python 3.12


def set_apart(basetemp):
    """Move this process into a mount namespace with a /tmp and /dev/shm of its own, in which `basetemp`, pytest's folder, can be made.

    What is /tmp here is a folder beside `basetemp` elsewhere, so pytest removes it when it removes the folders of older runs.
    Needs root. Raises OSError where the kernel refuses.
    """
    basetemp = Path(basetemp)
    folder = basetemp.with_name(f"{basetemp.name}-tmp")
    folder.mkdir()
    folder.chmod(0o1777)  # PostgreSQL's server, which is not root, works there
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "no mount namespace: run the tests in one process (make test JOBS=0)")
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "--bind", folder, "/tmp"],
        ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"],
    ):
        subprocess.run(command, check=True)
    basetemp.parent.mkdir(parents=True, exist_ok=True)
    os.environ["FEEDRATE_HOST_ID"] = str(folder)  # its trials do not wait for those of the other processes
