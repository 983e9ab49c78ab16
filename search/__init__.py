"""What to try, where it runs, when to stop: Ray Tune as the engine, an Optuna study as the brain.

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {"run_search": "run", "SearchResult": "result", "SearchSpace": "space.search_space", "SearchOptions": "options"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
