"""A setting as a short text for tables, the same everywhere: in reports, in the trials and on the terminal. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def config_text(setting: Mapping[str, Any]) -> str:
    """Return a setting as a short text: `b64 w8 p4 pin pers`; `b64` is missing if the batch size is no number.

    Args:
        setting: the fields of a `LoaderConfig`, or the arguments of a DataLoader; a missing one has torch's default.
    """
    batch_size, prefetch_factor = setting.get("batch_size"), setting.get("prefetch_factor")
    parts = [] if batch_size is None else [f"b{batch_size}"]
    parts.append(f"w{setting.get('num_workers', 0)}")
    parts += [] if prefetch_factor is None else [f"p{prefetch_factor}"]
    parts += ["pin"] if setting.get("pin_memory") else []
    parts += ["pers"] if setting.get("persistent_workers") else []
    parts += ["any-order"] if setting.get("in_order") is False else []
    parts += [setting[name] for name in ("multiprocessing_context", "sharing_strategy") if setting.get(name)]
    trainer_cpus = setting.get("trainer_cpus")
    return " ".join(parts if trainer_cpus is None else [*parts, f"trainer_cpus={trainer_cpus}"])


def setting_text(entry: Mapping[str, Any]) -> str:
    """Return the same text for a best.json, its baseline, or an entry of its tied_with."""
    return config_text({**entry.get("process", {}), **entry.get("dataloader", entry)})
