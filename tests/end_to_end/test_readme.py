"""Every example of README.md and docs/ works as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def blocks(document: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block, in order."""
    return BLOCK.findall(document.read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("document", [each for each in DOCUMENTS if blocks(each)], ids=lambda path: path.name)
def test_examples_run_in_their_order(document: Path, tmp_path: Path) -> None:
    """Shell lines and Python programs of a document run one after the other in one folder; `# name.py` makes a file."""
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for language, text in blocks(document):
        named = re.match(r"# (\w+\.py)\n", text)
        if language == "python" and named:
            (tmp_path / named[1]).write_text(text)
            continue
        if language == "python":
            command = [sys.executable, "-c", text]
        elif language == "sh":
            command = ["bash", "-e", "-c", text]
        else:
            continue  # console and text: what needs a cluster or prints figures
        done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file of the repository."""
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target


def test_commands_in_the_documents_exist() -> None:
    """Every `feedrate COMMAND` that a document names is a command."""
    from feedrate.search.cli.main import COMMANDS

    known = {type(command).__name__.lower() for command in COMMANDS}
    texts = "\n".join(text for document in DOCUMENTS for _, text in blocks(document))
    named = set(re.findall(r"^(?:\$ )?feedrate (\w+)", texts, re.MULTILINE))
    assert named
    assert named <= known
