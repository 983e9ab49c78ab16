"""Compares the objects that commands print with --json with the tables of docs/json.md."""

import json
import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "json.md").read_text()
COMMON = {"schema", "exit_code"}


def documented():
    """Schema -> the names of its fields; `a.b` is field b of the object in a."""
    found = {}
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        if title.startswith("feedrate/cli/"):
            found[title.strip()] = set(re.findall(r"^\| `([\w.]+)` \|", body, re.MULTILINE))
    return found | {"feedrate/cli/resume/1": found["feedrate/cli/search/1"]}


def exit_codes():
    """The codes of the table."""
    table = PAGE.partition("## Exit codes\n")[2].partition("\n## ")[0]
    return [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]


def answer(stdout, command=None):
    """The one object that a command printed, which has exactly the fields that are documented."""
    assert stdout.endswith("\n")
    assert stdout.count("\n") == 1, stdout
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", re.sub(r'"(\\.|[^"])*"', "", stdout)))
    facts = json.loads(stdout)
    if command is not None:
        assert facts["schema"] == f"feedrate/cli/{command}/1"
    fields = documented()[facts["schema"]]
    assert set(facts) == COMMON | {name for name in fields if "." not in name}
    for parent in {name.partition(".")[0] for name in fields if "." in name}:
        if facts[parent] is not None:
            assert set(facts[parent]) == {name.partition(".")[2] for name in fields if name.startswith(f"{parent}.")}
    return facts
