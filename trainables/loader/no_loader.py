"""Explain what `make_loader` returned if that is not one DataLoader, and which object it should return instead."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from feedrate.trainables.loader.loader_watch import loaders_in

NEEDED = ("dataset", "batch_size", "num_workers", "prefetch_factor", "sampler", "collate_fn")
"""Attributes that every torch DataLoader has."""
ONE = "feedrate measures one DataLoader at a time"
MAX_DEPTH, MAX_REFERENTS = 3, 100


def why_no_loader(made: Any) -> str | None:
    """Return a clause that follows "make_loader of ..." and says what it returned and what it should return; None for a DataLoader."""
    kind = type(made).__name__
    a_kind = f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
    if isinstance(made, DataLoader):
        lacking = next((name for name in NEEDED if not hasattr(made, name)), None)
        if lacking is None:
            return None
        return f"returned {a_kind} without the attribute {lacking} that every torch DataLoader has: {_part(made)}"
    if made is None:
        return "returned None: return the DataLoader"
    if isinstance(made, (list, tuple, Mapping)):
        keys = [key for key, value in (made.items() if isinstance(made, Mapping) else enumerate(made)) if isinstance(value, DataLoader)]
        if keys:
            return f"returned {len(keys)} DataLoader{'s' * (len(keys) > 1)} in {a_kind}: {ONE}. Return the one that training reads, perhaps [{keys[0]!r}]"
    if isinstance(made, _BaseDataLoaderIter):
        return "returned an iterator over a DataLoader, which can be read only once: return the DataLoader itself, without iter()"
    if isinstance(made, Iterator):
        inside = _inside(made)
        what = a_kind + (f" that reads {len(inside)} DataLoader{'s' * (len(inside) > 1)}" if inside else "")
        out = "Return the DataLoader that is to be searched; if there are several, write a workload function for each"
        once = f"{what} {'and' if inside else 'that'} can be read only once"
        return f"returned {once}: {ONE}. {out}. Build whatever else the step needs in make_step"
    return f"returned {kind}, not a torch DataLoader: {_part(made)}"


def _part(made: Any) -> str:
    """Return a clause that says which object to return: an attribute that is a DataLoader, if there is one."""
    names = [name for name, value in getattr(made, "__dict__", {}).items() if isinstance(value, DataLoader)]
    if not names:
        return "return torch.utils.data.DataLoader(...), or an instance of a subclass"
    return (
        f"it wraps a DataLoader (its attribute .{names[0]}). Return that DataLoader itself, and move what the wrapper does to each "
        "batch into step(batch)"
    )


def _inside(iterator: Any) -> list[Any]:
    """Return the DataLoaders, or their iterators, that a zip, a generator or another iterator refers to."""
    found: dict[int, Any] = {}
    waiting = [(each, 0) for each in _referents(iterator)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, (DataLoader, _BaseDataLoaderIter)):
            found[id(value)] = value
        elif depth < MAX_DEPTH and isinstance(value, (Iterator, list, tuple)):
            waiting += [(each, depth + 1) for each in _referents(value)]
        else:
            found |= {id(each): each for each in loaders_in(value, depth=1)}
    return list(found.values())


def _referents(value: Any) -> list[Any]:
    if inspect.isgenerator(value):
        return list(inspect.getgeneratorlocals(value).values())
    return gc.get_referents(value)[:MAX_REFERENTS]
