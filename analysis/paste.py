"""The call into which the best setting is pasted, in the words of the framework that makes the loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TORCHS = ("batch_size", "num_workers", "pin_memory", "prefetch_factor", "persistent_workers", "multiprocessing_context", "in_order", "worker_init_fn")
_DEFAULTS = {"prefetch_factor": 2, "pin_memory": False, "persistent_workers": False, "in_order": True}
"""Torch's defaults, which need not be passed on."""


@dataclass(frozen=True, slots=True)
class _Call:
    """How a framework lets its user set the loader."""

    call: str
    """The beginning of the call."""
    where: str
    """What the user changes."""
    names: Mapping[str, str]
    """Torch's name of each option that can be set -> the framework's name."""
    way_out: str
    """What to do about an option that cannot be set."""


_CALLS = {
    "transformers": _Call(
        "TrainingArguments(...",
        "your TrainingArguments",
        {name: f"dataloader_{name}" for name in _TORCHS[1:7]} | {"batch_size": "per_device_train_batch_size"},
        "override Trainer.get_train_dataloader",
    ),
    "timm": _Call(
        "create_loader(...",
        "your call of timm.data.create_loader",
        {name: name for name in ("batch_size", "num_workers", "pin_memory", "persistent_workers")},
        "set it on the loader that create_loader returns, or make the loader yourself",
    ),
    "ultralytics": _Call(
        "model.train(...",
        "your call of train (or the command line of yolo)",
        {"batch_size": "batch", "num_workers": "workers"},
        "override the trainer's get_dataloader",
    ),
}
"""Frameworks that make the loader from arguments of their own."""
_CLASSES = {"webdataset": "wds.WebLoader(dataset", "torchdata": "StatefulDataLoader(dataset", "monai": "monai.data.DataLoader(dataset"}
"""Frameworks whose users call a loader class that takes torch's arguments."""


def loader_call(best: Mapping[str, Any], worker_init_fn: str | None = None) -> list[str]:
    """Return the lines to paste: the call with the answer's options, after a comment about each option that the framework cannot set.

    Args:
        best: the content of best.json.
        worker_init_fn: an expression for DataLoader's argument of that name; None if none is needed.
    """
    options: dict[str, Any] = {name: repr(value) for name, value in best["dataloader"].items()}
    if worker_init_fn is not None:
        options["worker_init_fn"] = worker_init_fn
    framework = (_measured(best) or {}).get("framework")
    call = _CALLS.get(framework or "")
    if call is None:
        return [f"{_CLASSES.get(framework or '', 'DataLoader(dataset')}{_arguments(options)})"]
    lacking = {name for name in options if name not in call.names}
    lacking -= {name for name, value in _DEFAULTS.items() if best["dataloader"].get(name) == value}
    comments = [f"# {name}={options[name]} cannot be set here: {call.way_out}" for name in options if name in lacking]
    return [*comments, f"{call.call}{_arguments({call.names[name]: value for name, value in options.items() if name in call.names})})"]


def paste_heading(best: Mapping[str, Any]) -> str:
    """Return the words before the code: `Paste into train.py:27, in Data.train_dataloader:`, or `Paste:` where the place is not known."""
    place = paste_place(best)
    return "Paste:" if place is None else f"Paste into {place}:"


def paste_place(best: Mapping[str, Any]) -> str | None:
    """Return where the answer belongs: `train.py:27, in Data.train_dataloader`, or a framework's own arguments; None if it is not known."""
    measured = _measured(best)
    if measured is None:
        return None
    call = _CALLS.get(measured.get("framework") or "")
    if call is not None:
        return call.where
    where, function = measured["where"], measured.get("function")
    if where.startswith("<"):  # no file: feedrate's own code made the loader, for a workload in several ranks
        return None
    return f"{where}, in {function}" if function else f"{where}"


def _arguments(options: Mapping[str, str]) -> str:
    return "".join(f", {name}={value}" for name, value in options.items())


def _measured(best: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what is known about the measured loader of a training command; None for any other workload."""
    script = best["workload"].get("script")
    loaders = script.get("loaders") if isinstance(script, dict) else None
    return next((each for each in loaders or () if each["role"] == "measured"), None)
