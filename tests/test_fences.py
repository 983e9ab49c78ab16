"""The import fences of the layout hold: search -> trainables -> analysis, each with its own libraries."""

import ast
import copy
import functools
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("search", "trainables", "analysis")

# Where the heavy libraries are imported: rooms, or single files of search/.
RAY_ROOMS = {"search/engine", "search/service", "search/space"}
OPTUNA_ROOMS = {"search/study", "search/space"}
HOOK = "trainables/script/hook/sitecustomize.py"
"""Python finds it by its name, in a folder of its own on PYTHONPATH: it is no room."""
MAX_FILES = 12
"""Of a room, without its __init__.py."""
MAX_LINES = 60
"""Of a function, its docstring left out."""

# The rooms from the ground up: each may import those before it, and itself. A file at the top of a folder is a room of its own.
FLOORS = {
    "trainables": [
        "message", "doubt", "no_arguments", "failure", "config", "step", "beside_loader", "workload", "ranks", "resolve", "measurement", "machine", "diagnose", "isolation", "deciding", "loader",
        "measuring", "probing", "tuning", "accompanying", "checking", "protocol", "sandbox", "bundled", "script", "workload_main",
    ],
    "search": [
        "options", "versions", "terminal", "shipping", "space", "record", "study", "session", "engine", "best_json", "result", "interim_answer", "setup", "answers", "service", "trials", "run", "resume", "cli",
        "head", "job",
    ],
}  # fmt: skip

# What each part never imports.
BANNED = {
    "search": (),
    "trainables": ("ray", "optuna", "pandas", "feedrate.search"),
    "analysis": ("torch", "ray", "optuna", "feedrate.search", "feedrate.trainables"),
}
OF_ANALYSIS_IN_TRAINABLES = (
    "feedrate.analysis.schema", "feedrate.analysis.estimate", "feedrate.analysis.trend", "feedrate.analysis.run_folder",
    "feedrate.analysis.setting",
)  # fmt: skip
# The files of analysis that a trial imports stay light.
ONLY_BESIDES_STDLIB = {
    "analysis/schema.py": (),
    "analysis/run_folder.py": ("feedrate.analysis.schema",),
    "analysis/trend.py": (),
    "analysis/setting.py": (),
    "analysis/estimate.py": ("numpy", "feedrate.analysis.schema", "feedrate.analysis.trend"),
}
HEAVY = ("torch", "ray", "optuna", "pandas", "numpy")


@functools.cache
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


def room_of(path: str) -> str:
    """`search/engine` for search/engine/nodes.py, `search/run` for search/run.py; analysis is one room."""
    part, *rooms, name = PurePosixPath(path).with_suffix("").parts
    return part if part == "analysis" else f"{part}/{rooms[0] if rooms else name}"


def own_modules() -> dict[str, str]:
    """Dotted name -> path of each module of the three parts."""
    found = {}
    for path in sources():
        if part_of(path):
            pure = PurePosixPath(path)
            found[".".join(("feedrate", *(pure.parent if pure.name == "__init__.py" else pure.with_suffix("")).parts))] = path
    return found


@functools.cache
def graph() -> dict[str, set[str]]:
    """Path -> paths of the files of ours that it imports, anywhere in it."""
    modules = own_modules()
    found: dict[str, set[str]] = {}
    for path in modules.values():
        targets = set()
        for name in imports(path, (ROOT / path).read_text()):
            target = modules.get(name) or modules.get(name.rpartition(".")[0])
            if target is not None and target != path and not target.endswith("__init__.py"):
                targets.add(target)
        found[path] = targets
    return found


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """What is left when files that import nothing (more) are taken away, one after the other: circles, and who imports them."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while ends := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in ends:
            del left[name]
    return sorted(left)


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """Imports from a room of one that is above it."""
    found = []
    for path, targets in arrows.items():
        part, _, room = room_of(path).partition("/")
        for target in targets:
            other_part, _, other = room_of(target).partition("/")
            if part == other_part and room and not path.endswith("__init__.py"):
                floors = FLOORS[part]
                if floors.index(room) < floors.index(other):
                    found.append(f"{path} imports {target}, which is above it")
    return found


def inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def breaches(path: str, source: str) -> list[str]:
    """What a file does that its place does not allow."""
    part, found = part_of(path), []
    if part and path != HOOK and len(PurePosixPath(path).parts) > (2 if part == "analysis" else 3):
        found.append(f"{path}: a room inside a room")
    for module in imports(path, source):
        allowed = not inside(module, *PARTS) and not inside(module, *BANNED.get(part, ()))
        if part == "trainables" and inside(module, "feedrate.analysis"):
            allowed = allowed and inside(module, *OF_ANALYSIS_IN_TRAINABLES)
        if part == "search" and inside(module, "ray"):
            allowed = allowed and room_of(path) in RAY_ROOMS
        if part == "search" and inside(module, "optuna"):
            allowed = allowed and room_of(path) in OPTUNA_ROOMS
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


def test_the_rooms_that_import_ray_and_optuna_do():
    for package, rooms in (("ray", RAY_ROOMS), ("optuna", OPTUNA_ROOMS)):
        talking = {room_of(path) for path in sources() if part_of(path) for module in imports(path, (ROOT / path).read_text()) if inside(module, package)}
        assert talking == rooms


def test_no_files_import_each_other():
    assert circles(graph()) == []


def test_rooms_import_only_what_is_below_them():
    assert upward(graph()) == []


def test_a_circle_and_a_step_upward_would_be_noticed():
    arrows = copy.deepcopy(graph())
    arrows["search/space/domains.py"] |= {"search/engine/nodes.py"}
    assert upward(arrows) == ["search/space/domains.py imports search/engine/nodes.py, which is above it"]
    arrows["search/engine/nodes.py"] |= {"search/space/domains.py"}
    assert {"search/space/domains.py", "search/engine/nodes.py"} <= set(circles(arrows))


def test_a_room_holds_a_dozen_files_at_most():
    rooms = Counter(str(PurePosixPath(path).parent) for path in sources() if part_of(path) and not path.endswith("__init__.py"))
    assert {room: num for room, num in rooms.items() if num > MAX_FILES and room != "analysis"} == {}  # analysis is flat


def test_every_room_says_what_it_is_for():
    for room in sorted({str(PurePosixPath(path).parent) for path in sources() if part_of(path) and path != HOOK}):
        assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())), room


def test_a_class_is_not_named_like_another_file():
    """A class whose name is that of a file of its part lives in that file."""
    names: dict[tuple[str | None, str], list[str]] = {}
    for path in sources():
        names.setdefault((part_of(path), PurePosixPath(path).stem), []).append(path)
    wrong = []
    for path in sources():
        if not part_of(path):
            continue
        for node in ast.parse((ROOT / path).read_text()).body:
            if isinstance(node, ast.ClassDef):
                home = names.get((part_of(path), re.sub(r"(?<!^)(?=[A-Z])", "_", node.name).lower()), [])
                if home and path not in home:
                    wrong.append(f"{path}: class {node.name} belongs into {' or '.join(home)}")
    assert wrong == []


def num_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if is_docstring else 0)


def long_functions(path: str, source: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [f"{path}:{node.lineno}: {node.name} has {num_lines(node)} lines" for node in functions if num_lines(node) > MAX_LINES]


def test_a_function_fits_on_a_screen():
    assert [found for path in sources() if part_of(path) for found in long_functions(path, (ROOT / path).read_text())] == []
    assert long_functions("planted.py", "def f():\n" + "    pass\n" * MAX_LINES)



def named_files(line: str) -> tuple[str, list[str]]:
    """The package of a dependency line of pyproject.toml, and the files and folders that its comment names."""
    package, comment = re.fullmatch(r'  "([\w-]+).*?",\s*# (.*)', line).groups()
    return package, re.findall(rf"\b(?:{'|'.join(PARTS)})/[\w./]*", comment)


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
        ("trainables/planted/deeper/still.py", ""),
        ("analysis/planted.py", "from torch import Tensor"),
        ("analysis/planted.py", "import feedrate.trainables.config"),
        ("analysis/schema.py", "import numpy"),
        ("search/planted.py", "from ray import tune"),
        ("search/planted.py", "import optuna"),
        ("search/engine/planted.py", "import optuna"),
        ("search/study/planted.py", "import ray"),
        ("analysis/planted/deeper.py", ""),
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


def test_no_two_test_files_have_one_name():
    """The test folders have no __init__.py, so pytest would import the second file of a name as the first one."""
    names = Counter(PurePosixPath(path).name for path in sources() if path.startswith("tests/"))
    assert [name for name, count in names.items() if count > 1] == []
