"""Patch torch in a training command that trains to its end (`feedrate train`), so that its loader can be tuned on the way.

This module loads in every interpreter of the command, so it imports little, and never torch. Nothing that goes wrong here may
end a training: it goes on untouched then. script/measure_hooks.py is its counterpart for a script that is measured.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
import traceback
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from feedrate.trainables.diagnose.origin import Origin

if TYPE_CHECKING:
    from feedrate.trainables.accompanying.trained_script import TrainedScript


def install(options: str) -> None:
    """Wait for the modules to be imported.

    Args:
        options: the JSON object that `feedrate train` puts into the environment.
    """
    # `feedrate` has no __init__.py: Python would add another folder of that name on sys.path, such as a clone, to the package
    package = sys.modules["feedrate"]
    package.__path__ = list(package.__path__)
    hooks = TrainHooks(json.loads(options))
    wrapt.register_post_import_hook(hooks.patch_making, "torch.utils.data.dataloader")
    wrapt.register_post_import_hook(hooks.patch_loaders, "torch.utils.data.dataloader")
    wrapt.register_post_import_hook(hooks.patch_optimizers, "torch.optim.optimizer")


class TrainHooks:
    """The patches of one interpreter."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.pid = os.getpid()
        self.num_steps = 0
        self.origins: weakref.WeakKeyDictionary[Any, Origin] = weakref.WeakKeyDictionary()
        """Who made each loader, as far as `patch_making` was called before."""
        self._script: TrainedScript | None = None
        self._undo: list[Callable[[], None]] = []

    def patch_making(self, module: ModuleType) -> None:
        """Remember who makes each loader. `remove` leaves this patch, which does nothing then: a class cannot lose its `__new__` again."""
        loader_class = module.DataLoader
        signature = inspect.signature(loader_class.__init__)

        def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            loader: Any = object.__new__(cls)
            if os.getpid() == self.pid:
                try:
                    self.origins[loader] = Origin.of_caller(cls)
                except Exception:
                    self._give_up()
            return loader

        __new__.__signature__ = signature  # type: ignore[attr-defined]
        loader_class.__new__ = staticmethod(__new__)

    def patch_loaders(self, module: ModuleType) -> None:
        """Let every iteration of torch's own pass by, also that of classes whose `__iter__` calls it."""
        own = module.DataLoader.__iter__

        @functools.wraps(own)
        def __iter__(loader: Any) -> Any:  # noqa: N807
            if os.getpid() != self.pid:
                return own(loader)
            try:
                if self._script is None:
                    from feedrate.trainables.accompanying.trained_script import TrainedScript

                    self._script = TrainedScript(self, self.options)
                found = self._script.opened(loader)
            except Exception:
                self._give_up()
                found = None
            return own(loader) if found is None else iter(found)

        __iter__._feedrate_own = own  # type: ignore[attr-defined]
        module.DataLoader.__iter__ = __iter__
        self._undo.append(lambda: setattr(module.DataLoader, "__iter__", own))

    def patch_optimizers(self, module: ModuleType) -> None:
        """Count the steps of all optimizers."""
        self._undo.append(module.register_optimizer_step_post_hook(self._stepped).remove)

    def remove(self) -> None:
        """End the tuning, and leave torch as it was."""
        self.pid = -1
        while self._undo:
            self._undo.pop()()
        if self._script is not None:
            self._script.end()

    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.num_steps += 1

    def _give_up(self) -> None:
        """Leave the training untouched from now on."""
        self.pid = -1
        print("feedrate: this is a defect of feedrate; the training goes on untouched", file=sys.stderr)
        traceback.print_exc()
