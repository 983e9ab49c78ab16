"""CONTRIBUTING.md and docs/architecture.md agree with the repository, and no file cites a document that is not in it."""

import ast
import re
import subprocess
from pathlib import PurePosixPath

import pytest
from test_fences import FLOORS, PARTS, ROOT, graph, room_of

from feedrate.trainables.failure import KINDS

ARCHITECTURE = ROOT / "docs" / "architecture.md"
GUIDES = (ROOT / "CONTRIBUTING.md", ARCHITECTURE)
SECTIONS = [
    "Rooms", "The life of a trial", "The life of a live training", "What crosses processes", "Facts about torch", "Facts about Ray", "Facts about Optuna", "Facts about measuring",
]  # fmt: skip
ABSENT = re.compile(r"\b(?:DESIGN|MEASURING|RAY_OPTUNA|SCRIPTS|PEERS|STYLE|STYLE_ENGLISH|HOUSE|PACKAGING)\.md\b")
"""Notes of the authors that are not in the repository."""
CITING = ("*.py", "*.md", "*.toml", "*.yaml", "*.sh", "Makefile")
PATH = re.compile(r"(?<![\w./-])((?:search|trainables|analysis|tests|benchmarks|docs|deploy|\.ci)/[\w./-]*)(?:::(\w+))?|`((?!_)[\w-]+\.(?:md|toml|txt|yaml|py)|Makefile)`")
"""A path from the top of the repository, perhaps with a name that the file defines (`path::name`), or a file at the top."""


def tracked(*patterns: str) -> list[str]:
    """Return the files that git knows, or would add, and that exist."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def first_sentence(docstring: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(docstring.split()), maxsplit=1)[0]


def section(name: str) -> str:
    """Return the text of one section of docs/architecture.md."""
    return re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", ARCHITECTURE.read_text(), re.MULTILINE | re.DOTALL)[1]


def drawn(part: str) -> list[list[str]]:
    """Return the floors of one folder as the picture shows them, from the top."""
    picture = re.search(rf"^{part}/\n((?:  .*\n)+)", section("Rooms"), re.MULTILINE)[1]
    return [line.split() for line in picture.splitlines()]


def missing(text: str) -> list[str]:
    """Return the paths in a text that do not exist, and the names that their file does not define."""
    found = []
    for path, name, top in PATH.findall(text):
        where = ROOT / (path or top).rstrip(".")
        if not where.exists():
            found.append(path or top)
        elif name and not re.search(rf"^(?:def |class )?{name}\b", where.read_text(), re.MULTILINE):
            found.append(f"{path}::{name}")
    return found


def citations(text: str) -> list[str]:
    return [found[0] for found in ABSENT.finditer(text)]


def test_the_table_lists_every_room_with_its_sentence():
    """A room is a folder with an __init__.py; its sentence is the first one of that file."""
    listed = dict(re.findall(r"^\| `([\w/]+)/` \| (.*) \|$", section("Rooms"), re.MULTILINE))
    packages = tracked(*(f"{part}/*__init__.py" for part in PARTS))
    sentences = {str(PurePosixPath(path).parent): first_sentence(ast.get_docstring(ast.parse((ROOT / path).read_text()))) for path in packages}
    rows = "\n".join(f"| `{room}/` | {sentence} |" for room, sentence in sentences.items())
    assert listed == sentences, f"the table should have these rows:\n{rows}"


def test_the_sections_are_there_in_their_order():
    assert re.findall(r"^## (.*)$", ARCHITECTURE.read_text(), re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("part", FLOORS)
def test_the_picture_shows_the_floors(part):
    """Read from the bottom to the top it has the order of FLOORS, and rooms on one line do not import each other."""
    lines = drawn(part)
    assert [room for line in lines for room in line] == FLOORS[part][::-1]
    imports = {(room_of(path), room_of(target)) for path, targets in graph().items() for target in targets}
    beside = [(f"{part}/{one}", f"{part}/{other}") for line in lines for one in line for other in line if one != other]
    assert [pair for pair in beside if pair in imports] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_path_in_the_guides_exists(guide):
    text = guide.read_text()
    assert PATH.search(text)
    assert missing(text) == []


def test_every_failure_kind_is_explained():
    """docs/failures.md has a row for each, which says what to do."""
    rows = re.findall(r"^\| ([a-z, -]+) \|", (ROOT / "docs" / "failures.md").read_text(), re.MULTILINE)
    assert sorted(kind for row in rows for kind in row.split(", ")) == sorted(KINDS)


def test_the_gate_is_described():
    """CONTRIBUTING.md names the stages of .ci/run in their order."""
    stages = re.findall(r"^stage (make [\w-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    described = re.search(r"It runs (.*?), in this order", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    assert stages
    assert re.findall(r"`(make [\w-]+)`", described) == stages


def test_the_readme_links_to_both_guides():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert {"CONTRIBUTING.md", "docs/architecture.md"} <= set(links)


def test_no_file_cites_a_document_that_is_not_in_the_repository():
    found = {name: cited for name in tracked(*CITING) if (cited := citations((ROOT / name).read_text()))}
    assert found == {}


def test_an_absent_path_and_an_absent_document_would_be_noticed():
    text = "`search/planted.py`, `tests/test_fences.py::FLOORS`, `tests/test_fences.py::planted` and `planted.toml`"
    assert missing(text) == ["search/planted.py", "tests/test_fences.py::planted", "planted.toml"]
    assert citations("see " + "DESIGN" + ".md 3") == ["DESIGN" + ".md"]


def test_a_sentence_ends_with_its_full_stop():
    assert first_sentence("What the room does: best.json and\nits tables. More.") == "What the room does: best.json and its tables."
