"""analysis/best.py: the answer of a search goes straight into a DataLoader."""

import copy
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from synthetic import EXAMPLE_BEST, example_best
from torch.utils.data import DataLoader

from feedrate.analysis import load_best
from feedrate.analysis.best import BEST_SCHEMA, best_schema, check_best, python_snippet, write_best
from feedrate.analysis.run_folder import RunError

DATASET = list(range(100))


def test_the_schema_in_the_package_describes_the_example() -> None:
    """The file is a valid JSON Schema, and the example answer fits it."""
    jsonschema.Draft202012Validator.check_schema(best_schema())
    jsonschema.validate(EXAMPLE_BEST, best_schema(), jsonschema.Draft202012Validator)
    assert best_schema()["properties"]["schema"]["const"] == BEST_SCHEMA


def test_the_fields_are_in_the_page_for_programs() -> None:
    """docs/json.md lists all of them, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    section = page.partition("\n## best.json\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted([*listed, "schema"]) == sorted(best_schema()["properties"])


def test_what_is_written_passes_the_schema(tmp_path: Path) -> None:
    """Also with no baseline, no ceiling, settings of the process, and keys that only a later version knows."""
    process = {"sharing_strategy": "file_system", "trainer_cpus": 2, "torch_num_threads": 4, "later": "x"}
    placed = example_best(process=process, baseline=EXAMPLE_BEST["baseline"] | {"process": {"trainer_cpus": 1}})
    for best in (EXAMPLE_BEST, example_best(baseline=None, ceiling=None), example_best(later={"x": None}), placed):
        write_best(tmp_path / "best.json", best)
        written = json.loads((tmp_path / "best.json").read_text())
        assert written == best
        jsonschema.validate(written, best_schema(), jsonschema.Draft202012Validator)


def test_both_ways_feed_a_real_dataloader(tmp_path: Path) -> None:
    """`load_best` and plain json give the same loader, and it loads."""
    kwargs = {"batch_size": 32, "num_workers": 1, "prefetch_factor": 4, "pin_memory": False, "persistent_workers": True}
    path = tmp_path / "best.json"
    write_best(path, example_best(dataloader=kwargs))
    for loader in (
        DataLoader(DATASET, **load_best(path)),
        DataLoader(DATASET, **json.loads(path.read_text())["dataloader"]),
        eval(python_snippet(load_best(path)), {"DataLoader": DataLoader, "dataset": DATASET}),
    ):
        assert (loader.batch_size, loader.num_workers, loader.prefetch_factor) == (32, 1, 4)
        assert [len(batch) for batch in loader] == [32, 32, 32, 4]


def test_the_rest_of_the_file_is_at_hand(tmp_path: Path) -> None:
    """Throughput, baseline, ceiling, verdict, process, where it was measured; also from the folder's path."""
    write_best(tmp_path / "best.json", EXAMPLE_BEST)
    best = load_best(tmp_path)
    assert dict(best) == EXAMPLE_BEST["dataloader"]
    assert best.throughput["ci95"] == [1821.0, 1866.1]
    assert best.baseline is not None
    assert best.baseline["speedup"] == 4.46
    assert best.ceiling is not None
    assert best.ceiling["fraction_of_ceiling"] == 0.965
    assert (best.verdict, best.confirmed, best.process) == ("compute-bound", True, {})
    assert (best.measured_on, best.workload) == ({}, {})
    assert best.raw == EXAMPLE_BEST
    assert "num_workers" in repr(best)


def test_the_snippet_is_python() -> None:
    """Readable, and it says what DataLoader alone does not set; no text of a user can leave its comment."""
    assert python_snippet(EXAMPLE_BEST) == (
        "DataLoader(dataset, batch_size=64, num_workers=6, prefetch_factor=4, pin_memory=True, persistent_workers=True)"
    )
    snippet = python_snippet(example_best(process={"a\nimport os": "b\nimport os", "trainer_cpus": "1\nimport os"}))
    assert [line[:1] for line in snippet.splitlines()] == ["#", "#", "D"]
    assert "# the rate also needs a import os = " in snippet


@pytest.mark.parametrize(
    "process",
    [
        {"torch_num_threads": 1},
        {"sharing_strategy": "file_system"},
        {"trainer_cpus": 1},
        {"sharing_strategy": "file_system", "trainer_cpus": 1, "torch_num_threads": 1},
    ],
    ids=lambda process: "+".join(process),
)
def test_the_snippet_makes_the_process_what_the_setting_needs(process: dict[str, Any], tmp_path: Path) -> None:
    """As a program of its own: the trainer's and a worker's CPUs, strategy and threads are what `process` says."""
    allowed = sorted(os.sched_getaffinity(0))
    if "trainer_cpus" in process and len(allowed) < 2:
        pytest.skip("one CPU cannot be divided")
    best = example_best(dataloader={"num_workers": 1, "multiprocessing_context": "fork"}, process=process)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT % textwrap.indent(python_snippet(best), "    ").replace("DataLoader(", "loader = DataLoader("))
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    trainer, worker = (json.loads(line) for line in run.stdout.splitlines())
    strategy = process.get("sharing_strategy", "file_descriptor")
    assert trainer["strategy"] == worker["strategy"] == strategy
    if "torch_num_threads" in process or "trainer_cpus" in process:
        assert trainer["num_threads"] == 1
    apart = "trainer_cpus" in process
    assert trainer["cpus"] == (allowed[:1] if apart else allowed)
    assert worker["cpus"] == (allowed[1:] if apart else allowed)


SCRIPT = """
import json, os, warnings
import torch, torch.multiprocessing
from torch.utils.data import DataLoader, Dataset

def facts():
    return json.dumps({"cpus": sorted(os.sched_getaffinity(0)), "num_threads": torch.get_num_threads(),
                       "strategy": torch.multiprocessing.get_sharing_strategy()})

class Facts(Dataset):
    def __len__(self):
        return 1
    def __getitem__(self, index):
        return facts()

if __name__ == "__main__":
    dataset = Facts()
%s
    print(facts())
    print(next(iter(loader))[0])
"""


BROKEN: list[tuple[str, Any]] = [
    *((key, ...) for key in EXAMPLE_BEST),
    ("schema", "feedrate/best-config/2"),
    ("dataloader", []),
    ("dataloader", {"batch_size": 64}),
    ("dataloader.num_workers", -1),
    ("dataloader.num_workers", True),
    ("dataloader.batch_size", 0),
    ("dataloader.batch_size", None),
    ("dataloader.prefetch_factor", 2.5),
    ("dataloader.pin_memory", 1),
    ("dataloader.multiprocessing_context", "thread"),
    ("dataloader.torch_num_threads", 4),
    ("dataloader", {"num_workers": 0, "prefetch_factor": 2}),
    ("dataloader", {"num_workers": 0, "persistent_workers": True}),
    ("dataloader", {"num_workers": 0, "multiprocessing_context": "fork"}),
    ("process", None),
    ("process.sharing_strategy", "memory"),
    ("process.trainer_cpus", 0),
    ("process.torch_num_threads", True),
    ("throughput", None),
    ("throughput.samples_per_second", None),
    ("throughput.samples_per_second", 0),
    ("throughput.ci95", [1.0]),
    ("throughput.ci95", [1.0, "2"]),
    ("throughput.unit", ""),
    ("throughput.per", ...),
    ("baseline.samples_per_second", None),
    ("baseline.dataloader", {}),
    ("baseline.process", []),
    ("baseline.speedup_ci95", None),
    ("ceiling.fraction_of_ceiling", None),
    ("verdict", None),
    ("confirmed", "yes"),
    ("tied_with", [1]),
    ("best_by_batch_size", []),
]


@pytest.mark.parametrize(("path", "value"), BROKEN)
def test_the_two_checks_refuse_the_same(path: str, value: Any, tmp_path: Path) -> None:
    """What the JSON Schema refuses, the hand-written check refuses too, by the field's name; nothing is written."""
    best = copy.deepcopy(EXAMPLE_BEST)
    *parents, name = path.split(".")
    holder = best[parents[0]] if parents else best
    holder.pop(name, None)
    if value is not ...:
        holder[name] = value
    with pytest.raises(ValueError, match=name):
        check_best(best)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(best, best_schema(), jsonschema.Draft202012Validator)
    with pytest.raises(ValueError, match=name):
        write_best(tmp_path / "best.json", best)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_is_finite(value: float) -> None:
    """JSON has no NaN."""
    with pytest.raises(ValueError, match=r"throughput\.samples_per_second must be a number above 0"):
        check_best(example_best(throughput=EXAMPLE_BEST["throughput"] | {"samples_per_second": value}))


def test_an_interval_is_not_backwards() -> None:
    """The low end comes first."""
    with pytest.raises(ValueError, match=r"ci95 must be two numbers, low and high"):
        check_best(example_best(throughput=EXAMPLE_BEST["throughput"] | {"ci95": [2.0, 1.0]}))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist. A search writes best.json once a setting has worked"),
        ("", "cannot be read"),
        ("[]", "does not contain a JSON object"),
        (json.dumps(EXAMPLE_BEST)[:200], "cannot be read"),
        (json.dumps(EXAMPLE_BEST | {"schema": "feedrate/best-config/2"}), "has schema 'feedrate/best-config/2'"),
        (json.dumps({"dataloader": {}}), "has schema None"),
        (json.dumps(EXAMPLE_BEST | {"verdict": 3}), "verdict must be a text, not '3'"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_sentence(tmp_path: Path, content: str | None, sentence: str) -> None:
    """Missing, empty, torn, of another version, or wrong."""
    path = tmp_path / "best.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError) as caught:
        load_best(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
