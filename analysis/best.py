"""best.json: the answer of a search, checked when it is written and when it is read.

`best-config-1.schema.json` in this folder describes the format for other tools; `check_best` makes the same checks in plain
Python. A reader ignores keys that it does not know, except in `dataloader`, which is passed to `DataLoader` unchanged.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from feedrate.analysis.clean import printable
from feedrate.analysis.paste import loader_call, paste_heading
from feedrate.analysis.remote import is_url, read_url
from feedrate.analysis.run_folder import RunError, RunFolder, parse_object, read_object, write_atomic

BEST_SCHEMA = "feedrate/best-config/1"
SCHEMA_FILE = "best-config-1.schema.json"

# every required field and its kind; a question mark allows null, and if a field is null, the fields below it are not checked
_FIELDS = {
    "schema": "text", "dataloader": "loader", "process": "object",
    "throughput": "object", "throughput.samples_per_second": "rate", "throughput.ci95": "interval",
    "throughput.unit": "text", "throughput.per": "text",
    "baseline": "object?", "baseline.dataloader": "loader", "baseline.samples_per_second": "rate",
    "baseline.speedup": "rate", "baseline.speedup_ci95": "interval",
    "ceiling": "object?", "ceiling.step_only_samples_per_second": "rate", "ceiling.fraction_of_ceiling": "rate",
    "verdict": "text", "confirmed": "flag", "tied_with": "list", "best_by_batch_size": "object",
    "scope": "object", "measured_on": "object", "workload": "object", "search": "object",
}  # fmt: skip
_WORDS = {
    "text": "a text", "object": "an object", "loader": "an object", "rate": "a number above 0", "flag": "true or false",
    "interval": "two numbers, low and high", "list": "a list of objects",
}  # fmt: skip
_LOADER = {
    "batch_size": "a whole number, 1 or more", "num_workers": "a whole number, 0 or more",
    "prefetch_factor": "a whole number, 1 or more", "pin_memory": "true or false",
    "persistent_workers": "true or false", "in_order": "true or false",
    "multiprocessing_context": "fork, forkserver or spawn",
}  # fmt: skip
_PROCESS = {
    "sharing_strategy": "file_descriptor or file_system", "trainer_cpus": "a whole number, 1 or more",
    "torch_num_threads": "a whole number, 1 or more",
}  # fmt: skip


class BestConfig(Mapping[str, Any]):
    """The DataLoader arguments of a best.json: `DataLoader(dataset, **load_best(path))`.

    If `process` is not empty, the arguments alone do not reproduce the rate.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw: dict[str, Any] = dict(raw)
        """The whole content of the file."""
        self.process: dict[str, Any] = self.raw["process"]
        self.throughput: dict[str, Any] = self.raw["throughput"]
        self.baseline: dict[str, Any] | None = self.raw["baseline"]
        """None if no baseline was measured."""
        self.ceiling: dict[str, Any] | None = self.raw["ceiling"]
        """None if the rate of the training step alone is not known."""
        self.verdict: str = self.raw["verdict"]
        self.confirmed: bool = self.raw["confirmed"]
        self.measured_on: dict[str, Any] = self.raw["measured_on"]
        self.workload: dict[str, Any] = self.raw["workload"]

    def __getitem__(self, name: str) -> Any:
        return self.raw["dataloader"][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw["dataloader"])

    def __len__(self) -> int:
        return len(self.raw["dataloader"])

    def __repr__(self) -> str:
        return f"BestConfig({self.raw['dataloader']!r}, confirmed={self.confirmed})"


def load_best(path: str | os.PathLike[str]) -> BestConfig:
    """Read best.json; `path` is the file, the run folder that contains it, or an address of either.

    Raises:
        RunError: there is no such file, or it is broken, or another version of feedrate wrote it.

    Example:
        >>> from feedrate.analysis import load_best
        >>> sorted(load_best("docs/example-run"))
        ['batch_size', 'num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor']
    """
    file: Path | str
    try:
        if is_url(path):
            file = os.fspath(path)
            file = file if file.endswith(".json") else f"{file.rstrip('/')}/best.json"
            best = parse_object(read_url(file), file)
        else:
            file = Path(path) / "best.json" if Path(path).is_dir() else Path(path)
            best = read_object(file)
        check_best(best)
    except (FileNotFoundError, NotADirectoryError):
        way_out = "A search writes best.json once a setting has worked; feedrate resume continues an interrupted search"
        raise RunError(f"{file} does not exist. {way_out}") from None
    except ValueError as error:
        raise RunError(f"{file} cannot be used: {error}") from None
    return BestConfig(best)


def best_if_usable(folder: RunFolder, problems: list[str]) -> dict[str, Any] | None:
    """Return the content of a run folder's best.json; None if there is none, or if it is wrong: then `problems` gets a sentence."""
    try:
        best = read_object(folder.best)
        check_best(best)
    except FileNotFoundError:
        return None
    except (RunError, ValueError) as error:
        problems.append(f"best.json was left out: {error}")
        return None
    return dict(printable(best))


def final_best(folder: RunFolder, problems: list[str]) -> dict[str, Any] | None:
    """Return the content of a run folder's best.json if it is the answer of a search that has ended; None otherwise. If the file cannot be used, `problems` gets a sentence."""
    best = best_if_usable(folder, problems)
    return None if best is None or not is_final(best) else best


def is_final(best: Mapping[str, Any]) -> bool:
    """Return whether a best.json is the answer of a search that has ended; files of an earlier release are."""
    searched = best.get("search")
    return not isinstance(searched, Mapping) or searched.get("is_final") is not False


def write_best(path: str | os.PathLike[str], best: Mapping[str, Any]) -> None:
    """Check the content, then replace the file atomically.

    Raises:
        ValueError: the content does not fit the format, which is a defect of the writer; nothing was written.
    """
    check_best(best)
    write_atomic(Path(path), json.dumps(best, indent=2, allow_nan=False) + "\n")


def check_best(best: Mapping[str, Any]) -> None:
    """Refuse a best.json that another reader could not use.

    Raises:
        ValueError: a sentence that names the field.
    """
    if best.get("schema") != BEST_SCHEMA:
        way_out = "use the feedrate that wrote it"
        raise ValueError(f"it has schema {best.get('schema')!r}, but this feedrate reads {BEST_SCHEMA!r}; {way_out}")
    for path, kind in _FIELDS.items():
        parent, _, name = path.rpartition(".")
        holder = best[parent] if parent else best
        if holder is None:
            continue
        if name not in holder:
            raise ValueError(f"{path} is missing")
        value = holder[name]
        if not (_fits(value, kind.rstrip("?")) or (value is None and kind.endswith("?"))):
            raise ValueError(f"{path} must be {_WORDS[kind.rstrip('?')]}, not {str(value)[:40]!r}")
        if kind == "loader":
            _check_loader(path, value)
    for path, process in (("process", best["process"]), ("baseline.process", (best["baseline"] or {}).get("process", {}))):
        if not isinstance(process, dict):
            raise ValueError(f"{path} must be an object, not {str(process)[:40]!r}")
        for name, value in process.items():
            if name in _PROCESS and not _fits_process(name, value):
                raise ValueError(f"{path}.{name} must be {_PROCESS[name]}, not {str(value)[:40]!r}")


def to_paste(best: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """Return the words that say where to paste, and the code, usually one line; None without a best.json."""
    return None if best is None else (paste_heading(best), python_snippet(best))


def python_snippet(best: Mapping[str, Any]) -> str:
    """Return Python code to paste into a program; `best` is the content of best.json or a `BestConfig`.

    It is one line unless `process` is not empty (then the code that sets up the process comes before the DataLoader), or the framework that
    makes the loader cannot set an option (then a comment names it).
    """
    raw = best.raw if isinstance(best, BestConfig) else best
    process: dict[str, Any] = raw.get("process", {})
    known = {name: value for name, value in process.items() if name in _PROCESS and _fits_process(name, value)}
    also = [
        f"# the rate also needs {' '.join(name.split())} = {json.dumps(value)}"
        for name, value in process.items()
        if name not in known
    ]
    before, worker_init_fn = _process_lines(**known) if known else ([], None)
    return "\n".join([*also, *before, *loader_call(raw, worker_init_fn)])


def _process_lines(
    sharing_strategy: str | None = None, trainer_cpus: int | None = None, torch_num_threads: int | None = None
) -> tuple[list[str], str | None]:
    """Return the lines before the DataLoader, and the expression for its worker_init_fn."""
    imports, now, in_worker, worker_init_fn = ["import torch"], [], [], None
    if sharing_strategy is not None:
        in_worker.append(f"torch.multiprocessing.set_sharing_strategy({sharing_strategy!r})")
        now, worker_init_fn = list(in_worker), "init_worker"
    if torch_num_threads is not None or trainer_cpus is not None:
        now.append(f"torch.set_num_threads({torch_num_threads or f'min(torch.get_num_threads(), {trainer_cpus})'})")
    if trainer_cpus is not None:
        imports = ["import functools", "import os", "", *imports]
        in_worker.append("os.sched_setaffinity(0, cpus)")
        now += [
            "cpus = sorted(os.sched_getaffinity(0))",
            'for thread in os.listdir("/proc/self/task"):  # before the workers start; those of torch run already',
            f"    os.sched_setaffinity(int(thread), cpus[:{trainer_cpus}])",
        ]
        worker_init_fn = f"functools.partial(init_worker, cpus[{trainer_cpus}:])"
    lines = [*imports, ""]
    if worker_init_fn:
        parameters = "worker_id" if trainer_cpus is None else "cpus, worker_id"
        lines += ["", f"def init_worker({parameters}):  # then call your own worker_init_fn, if you have one"]
        lines += [*(f"    {line}" for line in in_worker), "", ""]
    return lines + now, worker_init_fn


def best_schema() -> dict[str, Any]:
    """Return the JSON Schema of best.json that is part of the package."""
    return dict(json.loads(resources.files(__package__).joinpath(SCHEMA_FILE).read_text(encoding="utf-8")))


def _fits(value: Any, kind: str) -> bool:
    if kind in ("object", "loader"):
        return isinstance(value, dict)
    if kind == "interval":
        return isinstance(value, list) and len(value) == 2 and all(map(_finite, value)) and 0 <= value[0] <= value[1]
    if kind == "list":
        return isinstance(value, list) and all(isinstance(element, dict) for element in value)
    if kind == "rate":
        return _finite(value) and value > 0
    return isinstance(value, bool) if kind == "flag" else isinstance(value, str) and bool(value)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _fits_process(name: str, value: Any) -> bool:
    if name == "sharing_strategy":
        return value in ("file_descriptor", "file_system")
    return type(value) is int and value >= 1


def _check_loader(path: str, kwargs: Mapping[str, Any]) -> None:
    if "num_workers" not in kwargs:
        raise ValueError(f"{path}.num_workers is missing")
    for name, value in kwargs.items():
        if name not in _LOADER:
            raise ValueError(f"{path}.{name} is not one of {', '.join(_LOADER)}")
        if name == "multiprocessing_context":
            fits = value in ("fork", "forkserver", "spawn")
        elif _LOADER[name].startswith("a whole"):
            fits = type(value) is int and value >= (name != "num_workers")
        else:
            fits = isinstance(value, bool)
        if not fits:
            raise ValueError(f"{path}.{name} must be {_LOADER[name]}, not {str(value)[:40]!r}")
    needs_workers = [n for n in ("prefetch_factor", "multiprocessing_context", "persistent_workers") if kwargs.get(n)]
    if kwargs["num_workers"] == 0 and needs_workers:
        raise ValueError(f"{path}.{needs_workers[0]} needs num_workers of 1 or more; torch refuses it with 0")
