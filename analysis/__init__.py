"""What the numbers of a run say, as tables, plots and JSON. Needs neither torch nor Ray nor Optuna.

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Run": "run", "load_run": "load", "load_runs": "runs", "runs_table": "runs", "load_best": "best",
    "ranking": "summary", "best_by_batch_size": "summary", "effects": "questions", "pareto": "questions",
    "time_shares": "questions", "noise": "questions", "failures_by_reason": "questions", "compare": "two_runs",
    "load_costs": "questions", "rank_shares": "rank_table",
    "what_if": "outlook",
}  # fmt: skip
__all__ = list(_PUBLIC)


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
