"""`LiveCallback`: tunes the loader of a Lightning or Hugging Face trainer while it trains, for code that nobody starts with `feedrate train`."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from feedrate.trainables.accompanying.train_hooks import TrainHooks
from feedrate.trainables.accompanying.trained_script import CLAIM
from feedrate.trainables.deciding.budget import Budget


class LiveCallback:
    """A callback that does what `feedrate train` does, from the beginning of a training to its end.

    No callback can exchange the loader that a framework iterates, and none needs to: from the beginning of the training
    to its end, every iteration of a torch DataLoader in this process passes by feedrate, which tunes the one between whose batches
    an optimizer steps. Everything else is left alone. In a process that `feedrate train` started, the callback does nothing.

        trainer = lightning.Trainer(callbacks=[LiveCallback.lightning(folder="live-run")])
        trainer = transformers.Trainer(..., callbacks=[LiveCallback.hugging_face(folder="live-run")])

    Args:
        folder: run folder for live.jsonl and train.json; `feedrate report` makes a page of it.
        observe: change nothing, only write down what waiting costs.
        budget_fraction: share of the time that may be lost to slower settings; None is 2 %, and 5 minutes at most. 0 tries nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], *, observe: bool = False, budget_fraction: float | None = None) -> None:
        super().__init__()
        self._folder = Path(folder).absolute()
        fields = {name: value for name, value in asdict(Budget.of(budget_fraction)).items() if not name.startswith("_")}
        self._options = {"folder": str(self._folder), "observe": observe, "budget": fields}
        self._hooks: TrainHooks | None = None
        self._again: Callable[[], Any] = functools.partial(type(self), folder, observe=observe, budget_fraction=budget_fraction)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a launcher send the callback to its processes: the frameworks' classes exist only once they are imported."""
        return self._again, ()

    @classmethod
    def lightning(cls, folder: str | os.PathLike[str], **options: Any) -> Any:
        """Return a callback for `lightning.Trainer` (or that of pytorch_lightning, if only that is imported); for the arguments see the class.

        Raises:
            ImportError: neither package is installed.
        """
        if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
            callback_class = import_module("pytorch_lightning").Callback
        else:
            callback_class = import_module("lightning.pytorch").Callback

        class LightningCallback(cls, callback_class):  # type: ignore[misc, valid-type]
            def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
                self.begin()

            def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
                self.end()

            def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
                self.end()

        callback = LightningCallback(folder, **options)
        callback._again = functools.partial(cls.lightning, folder, **options)
        return callback

    @classmethod
    def hugging_face(cls, folder: str | os.PathLike[str], **options: Any) -> Any:
        """Return a callback for `transformers.Trainer`; for the arguments see the class.

        Raises:
            ImportError: the package is not installed.
        """
        callback_class = import_module("transformers").TrainerCallback

        class HuggingFaceCallback(cls, callback_class):  # type: ignore[misc, valid-type]
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.begin()

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                self.end()

        callback = HuggingFaceCallback(folder, **options)
        callback._again = functools.partial(cls.hugging_face, folder, **options)
        return callback

    def begin(self) -> None:
        """Let the iterations of loaders pass by, from now on."""
        self.end()
        loaders, optimizers = import_module("torch.utils.data.dataloader"), import_module("torch.optim.optimizer")
        if hasattr(loaders.DataLoader.__iter__, "_feedrate_own"):
            return  # feedrate has started this process, or another callback is at work
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / CLAIM).unlink(missing_ok=True)
        self._hooks = TrainHooks(self._options)
        self._hooks.patch_loaders(loaders)
        self._hooks.patch_optimizers(optimizers)

    def end(self) -> None:
        """Write train.json, end feedrate's workers, and leave torch as it was."""
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.remove()
            (self._folder / CLAIM).unlink(missing_ok=True)
