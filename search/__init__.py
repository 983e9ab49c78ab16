"""The search: what to try, where it runs and when to stop. Ray Tune runs the trials, an Optuna study keeps them.

The public names load on first use, so importing the package imports neither Ray nor torch.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {"run_search": "run", "resume_search": "resume", "SearchResult": "result", "SearchSpace": "space.search_space", "SearchOptions": "options"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
