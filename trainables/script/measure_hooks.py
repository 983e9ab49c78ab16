"""Patch torch's DataLoader and optimizers as soon as a script imports them: this is how feedrate sees what a script does that it measures.

This module loads in every interpreter of a training command, so it imports little, and never torch. accompanying/train_hooks.py is its
counterpart for a script that `feedrate train` trains to its end.
"""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from types import ModuleType, SimpleNamespace
from typing import Any

import wrapt

from feedrate.trainables.diagnose import stacks
from feedrate.trainables.script.loader_recipe import bind
from feedrate.trainables.script.measured_script import Control, MeasuredScript
from feedrate.trainables.script.tap import Tap


def install(address: str, *, is_spawned: bool = False) -> None:
    """Wait for the modules to be imported.

    Args:
        address: path of the launcher's socket.
        is_spawned: whether the script started this interpreter with multiprocessing, be it as a loader worker, as a rank of its training or for anything else.
    """
    # `feedrate` has no __init__.py: Python would add another folder of that name on sys.path, such as a clone, to the package
    package = sys.modules["feedrate"]
    package.__path__ = list(package.__path__)
    stacks.install()
    hooks = MeasureHooks(address, is_spawned=is_spawned)
    wrapt.register_post_import_hook(hooks.patch_loaders, "torch.utils.data.dataloader")
    wrapt.register_post_import_hook(hooks.patch_optimizers, "torch.optim.optimizer")
    wrapt.register_post_import_hook(hooks.patch_schedules, "torch.optim.lr_scheduler")
    wrapt.register_post_import_hook(hooks.patch_saving, "torch.serialization")
    wrapt.register_post_import_hook(hooks.patch_groups, "torch.distributed.distributed_c10d")
    wrapt.register_post_import_hook(hooks.patch_spawning, "torch.multiprocessing.spawn")
    if is_spawned:
        hooks.patch_process()


class MeasureHooks:
    """The patches of one interpreter."""

    def __init__(self, address: str, *, is_spawned: bool) -> None:
        self.address, self._is_spawned = address, is_spawned
        self._script: MeasuredScript | None = None

    @property
    def script(self) -> MeasuredScript:
        if self._script is None:
            self._script = MeasuredScript(self.address, _take_over, is_spawned=self._is_spawned)
        return self._script

    def patch_loaders(self, module: ModuleType) -> None:
        """Let every new DataLoader be remembered with its arguments, and every iteration of one pass by `MeasuredScript.opened`."""
        # workers of a loader that the script has not read to its end are killed with it, and would leave their folders in /tmp
        multiprocessing.current_process()._config["tempdir"] = os.path.dirname(self.address)  # type: ignore[attr-defined]
        script, loader_class = self.script, module.DataLoader
        own_init = loader_class.__init__
        wrap_iter(loader_class, script)

        def __new__(cls: type, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            loader: Any = object.__new__(cls)
            for base in cls.__mro__[: cls.__mro__.index(loader_class)]:
                wrap_iter(base, script)
            script.loaders.made(loader, args, kwargs)
            return loader

        @functools.wraps(own_init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            bound = bind(own_init, self, args, kwargs)
            script.loaders.bound(self, bound)
            own_init(self, **bound)

        __new__.__signature__ = inspect.signature(own_init)  # type: ignore[attr-defined]
        loader_class.__new__ = staticmethod(__new__)
        loader_class.__init__ = __init__

    def patch_optimizers(self, module: ModuleType) -> None:
        """Count the steps of all optimizers."""
        module.register_optimizer_step_post_hook(self.script.stepped)

    def patch_schedules(self, module: ModuleType) -> None:
        """Let learning-rate schedules go on beyond their end, because a measured script takes more steps than it planned."""
        for cls in list(vars(module).values()):
            if isinstance(cls, type) and issubclass(cls, module.LRScheduler) and "step" in vars(cls):
                wrap_schedule(cls, self.script)

    def patch_saving(self, module: ModuleType) -> None:
        """Notice checkpoints."""
        own = module.save

        @functools.wraps(own)
        def save(*args: Any, **kwargs: Any) -> Any:
            self.script.saves(args[1] if len(args) > 1 else kwargs.get("f"))
            begin = time.perf_counter()
            try:
                return own(*args, **kwargs)
            finally:
                self.script.saved(time.perf_counter() - begin)

        module.save = save  # type: ignore[attr-defined]

    def patch_groups(self, module: ModuleType) -> None:
        """Learn from torch's process group which rank this process is."""
        own = module.init_process_group

        @functools.wraps(own)
        def init_process_group(*args: Any, **kwargs: Any) -> Any:
            found = own(*args, **kwargs)
            self.script.joined()
            return found

        module.init_process_group = init_process_group  # type: ignore[attr-defined]

    def patch_process(self) -> None:
        """Report an exception that ends this process, which multiprocessing catches before `sys.excepthook` sees it."""
        BaseProcess.run = self._reporting(BaseProcess.run)  # type: ignore[method-assign]

    def patch_spawning(self, module: ModuleType) -> None:
        """Report an exception that ends a process of `torch.multiprocessing.spawn`, which catches it even before `BaseProcess.run` does.

        The files in which torch passes on such exceptions go where feedrate removes them: torch never does.
        """
        own = module._wrap
        temporary = functools.partial(tempfile.NamedTemporaryFile, dir=os.path.dirname(self.address))
        module.tempfile = SimpleNamespace(NamedTemporaryFile=temporary)  # type: ignore[attr-defined]

        @functools.wraps(own)
        def _wrap(fn: Callable[..., Any], *args: Any) -> None:
            own(self._reporting(fn), *args)

        module._wrap = _wrap  # type: ignore[attr-defined]

    def _reporting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def reporting(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                self.script.raised(error)
                raise

        return reporting


def _take_over(script: MeasuredScript, tap: Tap) -> Control:
    from feedrate.trainables.script.takeover import Takeover  # it imports everything that a trial needs

    return Takeover(script, tap)


def wrap_iter(cls: type, script: MeasuredScript) -> None:
    """Let the iteration of a loader class pass by the script, if the class defines it.

    An `__iter__` that calls another class's is one iteration: only the outermost one passes by.
    """
    own: Callable[[Any], Any] | None = vars(cls).get("__iter__")
    if own is None or hasattr(own, "_feedrate_own"):
        return

    @functools.wraps(own)
    def __iter__(self: Any) -> Any:  # noqa: N807
        if getattr(type(self), "__iter__", None) is not __iter__ or os.getpid() != script.pid:
            return own(self)
        return script.opened(self, own)

    __iter__._feedrate_own = own  # type: ignore[attr-defined]
    cls.__iter__ = __iter__  # type: ignore[attr-defined]


def wrap_schedule(cls: type, script: MeasuredScript) -> None:
    """Let the steps of a class of schedules be no failure of the training, if the script says so (`MeasuredScript.outlives`)."""
    own = vars(cls)["step"]

    @functools.wraps(own)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return own(self, *args, **kwargs)
        except Exception as error:
            if not script.outlives(self, error):
                raise
            return None

    cls.step = step  # type: ignore[attr-defined]
