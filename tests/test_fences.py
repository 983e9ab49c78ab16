"""The import fences of the layout hold: search -> trainables -> analysis, each with its own libraries."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("search", "trainables", "analysis")

# The files that talk to Ray and to Optuna. A file in both lists is named a third time: it should have a reason.
RAY_FILES = {
    "search/engine/compat.py",
    "search/space/domains.py",
    "search/engine/ray_cluster.py",
    "search/service/folder_job.py",
    "search/service/jobs.py",
    "search/engine/nodes.py",
    "search/engine/scheduler.py",
    "search/engine/searcher.py",
    "search/engine/slots.py",
    "search/engine/trainable.py",
    "search/engine/tuner.py",
}
OPTUNA_FILES = {
    "search/study/compat.py",
    "search/space/domains.py",
    "search/study/observed.py",
    "search/study/pruner.py",
    "search/study/reconcile.py",
    "search/study/sampler.py",
    "search/study/storage.py",
    "search/study/brain.py",
}
# domains.py translates Tune's domains into Optuna's distributions
RAY_AND_OPTUNA_FILES = {"search/space/domains.py"}

# What each part never imports.
BANNED = {
    "search": (),
    "trainables": ("ray", "optuna", "pandas", "feedrate.search"),
    "analysis": ("torch", "ray", "optuna", "feedrate.search", "feedrate.trainables"),
}
OF_ANALYSIS_IN_TRAINABLES = (
    "feedrate.analysis.schema", "feedrate.analysis.estimate", "feedrate.analysis.trend", "feedrate.analysis.run_folder",
)  # fmt: skip
# The files of analysis that a trial imports stay light.
ONLY_BESIDES_STDLIB = {
    "analysis/schema.py": (),
    "analysis/run_folder.py": ("feedrate.analysis.schema",),
    "analysis/trend.py": (),
    "analysis/estimate.py": ("numpy", "feedrate.analysis.schema", "feedrate.analysis.trend"),
}
HEAVY = ("torch", "ray", "optuna", "pandas", "numpy")


def sources() -> list[str]:
    """The Python files that git knows, or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).exists())


def part_of(path: str) -> str | None:
    part = PurePosixPath(path).parts[0]
    return part if part in PARTS else None


def imports(path: str, source: str) -> Iterator[str]:
    """The dotted names that a file imports anywhere in it: 'from a.b import c' gives a.b.c, as c may be a module."""
    package = ["feedrate", *PurePosixPath(path).parent.parts]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                base = package[: len(package) - node.level + 1] if node.level else []
                base += node.module.split(".") if node.module else []
                yield from (".".join([*base, alias.name]) for alias in node.names)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(str(module)), *_]):
                if name in ("import_module", "__import__"):
                    yield module


def inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def breaches(path: str, source: str) -> list[str]:
    """What a file does that its place does not allow."""
    part, found = part_of(path), []
    if part and len(PurePosixPath(path).parts) != 2:
        found.append(f"{path}: a sub-package, which the wheel would not contain")
    for module in imports(path, source):
        allowed = not inside(module, *PARTS) and not inside(module, *BANNED.get(part, ()))
        if part == "trainables" and inside(module, "feedrate.analysis"):
            allowed = allowed and inside(module, *OF_ANALYSIS_IN_TRAINABLES)
        if part == "search" and inside(module, "ray"):
            allowed = allowed and path in RAY_FILES
        if part == "search" and inside(module, "optuna"):
            allowed = allowed and path in OPTUNA_FILES
        if path in ONLY_BESIDES_STDLIB and module.partition(".")[0] not in sys.stdlib_module_names:
            allowed = allowed and inside(module, *ONLY_BESIDES_STDLIB[path])
        if not allowed:
            found.append(f"{path}: imports {module}")
    return found


def loaded_by(code: str) -> list[str]:
    """The heavy packages that a fresh interpreter has loaded after `code`."""
    code += f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_every_file_keeps_to_its_fence():
    found = [breach for path in sources() for breach in breaches(path, (ROOT / path).read_text())]
    assert not found, "\n".join(found)


def test_the_lists_of_files_that_talk_to_ray_and_optuna_are_true():
    for package, files in (("ray", RAY_FILES), ("optuna", OPTUNA_FILES)):
        for path in files:
            assert any(inside(module, package) for module in imports(path, (ROOT / path).read_text())), path
    assert RAY_FILES & OPTUNA_FILES == RAY_AND_OPTUNA_FILES


def named_files(line: str) -> tuple[str, list[str]]:
    """The package of a dependency line of pyproject.toml, and the files and folders that its comment names."""
    package, comment = re.fullmatch(r'  "([\w-]+).*?",\s*# (.*)', line).groups()
    return package, re.findall(rf"\b(?:{'|'.join(PARTS)})/[\w.]*", comment)


def test_each_dependency_line_names_the_files_that_import_it():
    text = (ROOT / "pyproject.toml").read_text()
    lines = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1].splitlines()
    assert len(lines) == len(tomllib.loads(text)["project"]["dependencies"])
    wrong = []
    for package, named in map(named_files, lines):
        module = {"pillow": "PIL"}.get(package, package)
        for name in named or [f"(no file is named for {package})"]:
            paths = [path for path in sources() if path == name or (name.endswith("/") and path.startswith(name))]
            found = (module for path in paths for module in imports(path, (ROOT / path).read_text()))
            if not any(inside(imported, module) for imported in found):
                wrong.append(f"{name} does not import {module}")
    assert not wrong, "\n".join(wrong)


def test_importing_the_three_parts_loads_nothing_heavy():
    assert loaded_by("import feedrate.search, feedrate.trainables, feedrate.analysis") == []


def test_a_heavy_import_would_be_noticed():
    assert loaded_by("import numpy") == ["numpy"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("trainables/planted.py", "import ray"),
        ("trainables/planted.py", "def f():\n    from optuna.trial import Trial"),
        ("trainables/planted.py", "import importlib\nimportlib.import_module('pandas')"),
        ("trainables/planted.py", "from feedrate import search"),
        ("trainables/planted.py", "from ..search import run"),
        ("trainables/planted.py", "from feedrate.analysis import load_run"),
        ("trainables/planted.py", "import feedrate.analysis.page"),
        ("trainables/planted/deeper.py", ""),
        ("analysis/planted.py", "from torch import Tensor"),
        ("analysis/planted.py", "import feedrate.trainables.config"),
        ("analysis/schema.py", "import numpy"),
        ("search/planted.py", "from ray import tune"),
        ("search/planted.py", "import optuna"),
        ("tests/test_planted.py", "from trainables.config import LoaderConfig"),
    ],
)
def test_a_breach_would_be_noticed(path, source):
    assert breaches(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("trainables/planted.py", "from feedrate.analysis import schema\nfrom feedrate.analysis.estimate import rate"),
        ("trainables/planted.py", "from .config import LoaderConfig\nimport torch"),
        ("search/planted.py", "from feedrate.trainables.config import LoaderConfig\nimport rayleigh"),
        ("tests/test_planted.py", "import ray\nfrom feedrate.search import run_search"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert breaches(path, source) == []
