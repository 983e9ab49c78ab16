"""What feedrate adds to a process that was spawned: its stack can be read, and it refuses to train while it imports the script.

A spawned loader worker imports the script. If the script trains when it is imported, every worker first trains an epoch.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from types import ModuleType
from typing import Any

import wrapt

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.sandbox.launcher_protocol import IsImported
from feedrate.trainables.script.launcher_link import say_and_wait


def install(address: str) -> None:
    """Wait for torch.utils.data to be imported.

    Args:
        address: path of the launcher's socket.
    """
    stacks.install()
    wrapt.register_post_import_hook(functools.partial(_refuse_training, address), "torch.utils.data.dataloader")


def _refuse_training(address: str, module: ModuleType) -> None:
    own = module.DataLoader.__iter__

    @functools.wraps(own)
    def __iter__(self: Any) -> Any:  # noqa: N807
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # the script is being imported
            say_and_wait(address, IsImported())  # otherwise the training process could report first that a worker has died
            os._exit(1)
        return own(self)

    module.DataLoader.__iter__ = __iter__
