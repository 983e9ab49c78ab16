"""What one trial does: it loads batches, trains and measures. Usable without Ray.

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Workload": "workload",
    "LoaderConfig": "config",
    "measure": "measuring.measure",
    "MeasureOptions": "measuring.measure_options",
    "Measurement": "measurement",
    "check": "checking.check",
    "live": "tuning.live",
    "LiveCallback": "accompanying.live_callback",
    "Failure": "failure",
    "TrialFailed": "failure",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
