"""A run is read where neither torch nor Ray nor Optuna is: feedrate without its dependencies, and what the tables need."""

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example-run"
NEEDED = ("pandas", "pyarrow", "plotly", "rich")


def closure(names):
    """The distributions that these need, themselves included; extras are left out."""
    found, todo = {}, list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = distribution(name)
            needs = map(Requirement, found[name].requires or ())
            todo += [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """Runs Python with the wheel and those four packages, and nothing else that is installed here."""
    from test_wheel import build_wheel

    site = tmp_path_factory.mktemp("site")
    wheel = build_wheel(tmp_path_factory.mktemp("dist"))
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    for each in closure(NEEDED).values():
        for top in {file.parts[0] for file in each.files if file.parts[0] not in ("..", "__pycache__", "bin")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(each.locate_file(top)))

    def run(*arguments):
        # -S: the packages of this environment stay out
        start = f"import sys; sys.path.append({str(site)!r}); "
        return subprocess.run([sys.executable, "-I", "-S", "-c", start + arguments[0], *map(str, arguments[1:])], check=False, capture_output=True, text=True)

    return run


def test_the_environment_holds_no_torch(laptop):
    """What the other tests here rest on."""
    for name in ("torch", "ray", "optuna"):
        assert f"No module named '{name}'" in laptop(f"import {name}").stderr


COMMAND = "from feedrate.search.cli.main import main; sys.exit(main())"


def test_a_run_is_read_and_its_answer_taken_away(laptop, tmp_path):
    """Report, tables, export, lists and comparisons, and the functions of the notebook."""
    done = laptop(COMMAND, "report", EXAMPLE, "-o", tmp_path, "--format", "html,csv,parquet,markdown")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "trials.csv", "trials.parquet", "report.md"}
    for arguments in (("show", EXAMPLE), ("runs", EXAMPLE), ("compare", EXAMPLE, EXAMPLE), ("export", EXAMPLE)):
        done = laptop(COMMAND, *arguments)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dataloader"]["num_workers"] == 14
    done = laptop("import feedrate.analysis as a; run = a.load_run(sys.argv[1]); print(len(a.ranking(run)), dict(a.load_best(sys.argv[1]))['batch_size'])", EXAMPLE)
    assert done.stdout == "10 32\n", done.stderr
