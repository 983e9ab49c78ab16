"""resolve.py: finds a workload by its name in any process, or lists the names that exist."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from workloads import PATH

from feedrate.trainables.resolve import BUNDLED, UnknownWorkload, WorkloadRef, load, make_ref, preload

WORKLOAD = """
import torch
from feedrate.trainables import Workload

def workload(rows: int = 8):
    return Workload(
        name=f"rows-{rows}",
        dataset=torch.utils.data.TensorDataset(torch.zeros(rows, 4)),
        model=lambda: torch.nn.Linear(4, 1),
        loss=torch.nn.MSELoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )

def other():
    return 3

NOT_A_FUNCTION = 4
"""


@pytest.fixture(autouse=True)
def own_modules(monkeypatch, tmp_path):
    """Modules imported by a test are forgotten with it, and the test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_name_is_enough(name):
    """The bundled workloads are found by name, and their functions are there."""
    ref = make_ref(name, {"model": "small"})
    assert (ref.target, ref.options, ref.folder) == (name, {"model": "small"}, None)
    assert preload(ref).__name__ == name


def test_a_file_is_found_from_the_current_folder(tmp_path):
    """path/to/file.py:function is relative to the current folder, absolute, or climbs; options are passed on."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "own_train.py").write_text(WORKLOAD)
    for text in (
        "deep/own_train.py:workload",
        "./deep/../deep/own_train.py:workload",
        f"{tmp_path}/deep/own_train.py:workload",
    ):
        ref = make_ref(text, {"rows": 5})
        assert ref.target == f"{tmp_path}/deep/own_train.py:workload"
        assert (ref.folder, ref.cwd) == (f"{tmp_path}/deep", str(tmp_path))
        assert load(ref).name == "rows-5"
    assert make_ref("own_train.py:workload", cwd=tmp_path / "deep").folder == f"{tmp_path}/deep"


def test_a_module_is_found_from_the_current_folder(tmp_path):
    """package.module:function is imported as it would be in the current folder."""
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "training.py").write_text(WORKLOAD)
    assert load(make_ref("own_package.training:workload")).name == "rows-8"


@pytest.mark.parametrize("text", ["imagenet", "images:", ":workload", "train.py", "train.py:", "a:b c", ""])
def test_an_unknown_name_lists_the_known_ones(text):
    """What has none of the three forms is answered with all of them."""
    with pytest.raises(UnknownWorkload, match=r"images, objects, table.*package.module:function.*file.py:function"):
        make_ref(text)


def test_a_missing_file_or_module_is_named():
    """A file that does not exist is known at once, a module when it is imported."""
    with pytest.raises(UnknownWorkload, match=r"workload file nowhere/train.py does not exist"):
        make_ref("nowhere/train.py:workload")
    with pytest.raises(UnknownWorkload, match=r"no module named 'own_nowhere.deep' is importable from /"):
        preload(make_ref("own_nowhere.deep:workload"))


def test_a_missing_function_lists_those_of_the_file(tmp_path):
    """A file without the function is answered with the functions that it defines, not those that it imports."""
    (tmp_path / "own_train.py").write_text(WORKLOAD + "from os.path import join\n")
    for name in ("wrkload", "NOT_A_FUNCTION"):
        with pytest.raises(UnknownWorkload, match=f"has no function '{name}'; it defines: workload, other$"):
            preload(make_ref(f"own_train.py:{name}"))


def test_options_must_fit(tmp_path):
    """An option that the function does not take is refused before the function runs."""
    (tmp_path / "own_train.py").write_text(WORKLOAD)
    with pytest.raises(
        UnknownWorkload, match="does not take --latency: leave it out"
    ):
        load(make_ref("own_train.py:workload", {"latency_s": 1}))


def test_a_function_must_return_a_workload(tmp_path):
    """Something else is refused with its type."""
    (tmp_path / "own_train.py").write_text(WORKLOAD)
    with pytest.raises(UnknownWorkload, match=r"own_train.py:other returned int, not a feedrate.trainables.Workload"):
        load(make_ref("own_train.py:other"))


def test_errors_of_the_users_module_come_through(tmp_path):
    """A module that cannot be imported raises its own error, each time it is tried, and a missing import is not ours."""
    (tmp_path / "own_broken.py").write_text("import own_missing\n")
    for text in ("own_broken.py:workload", "own_broken:workload"):
        for _ in range(2):
            with pytest.raises(ModuleNotFoundError, match="own_missing"):
                preload(make_ref(text))
    assert "own_broken" not in sys.modules


@pytest.mark.parametrize("text", ["own_train.py:workload", "own_train:workload"])
@pytest.mark.parametrize("where", ["at import", "in the function"])
def test_a_command_line_that_is_read_is_told_in_a_sentence(tmp_path, monkeypatch, capfd, text, where):
    """argparse's message under the name of the user's file, the way out, and no usage text; ours is no argument of theirs."""
    monkeypatch.setattr(sys, "argv", ["template.py", "7", "--once"])
    lines = "parser = argparse.ArgumentParser()\nparser.add_argument('--data-root', required=True)\n"
    if where == "at import":
        (tmp_path / "own_train.py").write_text(f"import argparse\n{lines}parser.parse_args()\n")
        ended = r"own_train\.py ended the program while it was imported"
    else:
        (tmp_path / "own_train.py").write_text(f"import argparse\n{lines}def workload():\n    parser.parse_args()\n")
        ended = "the workload's function 'workload' ended the program"
    message = r" \(own_train\.py: error: the following arguments are required: --data-root\): your code parses command-line arguments.*__main__.*default"
    with pytest.raises(UnknownWorkload, match=ended + message):
        load(make_ref(text))
    assert capfd.readouterr() == ("", "")


READS = {
    "an index": "path = sys.argv[1]",
    "a slice": "arguments = sys.argv[1:]\npath = arguments[0]",
    "one that is taken away": "sys.argv.pop(0)\npath = sys.argv.pop(0)",
    "unpacking": "_, path = sys.argv",
    "a search": "at = sys.argv.index('--data')",
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("where", ["at import", "in the function"])
def test_an_argument_that_is_read_from_sys_argv_is_told_in_a_sentence(tmp_path, read, where):
    """It says which line reads it, and how to run the file with its arguments."""
    indent = "" if where == "at import" else "    "
    body = "".join(f"{indent}{line}\n" for line in read.splitlines())
    head = "import sys\n" if where == "at import" else "import sys\ndef workload():\n"
    (tmp_path / "own_train.py").write_text(head + body)
    who = r"own_train\.py read" if where == "at import" else "the workload's function 'workload' read"
    with pytest.raises(UnknownWorkload, match=who + r" the command line's arguments") as raised:
        load(make_ref("own_train.py:workload"))
    last = read.splitlines()[-1]
    assert f"(own_train.py, line {len((head + body).splitlines())}: {last}), and feedrate does not pass any." in str(raised.value)
    assert "if __name__" in str(raised.value)
    assert str(raised.value).endswith("feedrate search -- python own_train.py ARGUMENTS")


def test_other_errors_are_not_blamed_on_the_command_line(tmp_path):
    """Also in a file that read its command line before."""
    (tmp_path / "own_train.py").write_text("import sys\nnames = sys.argv[1:]\nfirst = [][0]\n")
    with pytest.raises(IndexError, match="list index out of range"):
        preload(make_ref("own_train.py:workload"))
    (tmp_path / "own_other.py").write_text("size = int('many')\n")
    with pytest.raises(ValueError, match="invalid literal"):
        preload(make_ref("own_other.py:workload"))


def test_a_file_that_asks_for_arguments_and_ends_is_told_how_to_pass_them(tmp_path):
    """Whatever its exit code."""
    (tmp_path / "own_train.py").write_text("import sys\nif len(sys.argv) < 2:\n    sys.exit('usage: own_train.py DATA')\n")
    with pytest.raises(UnknownWorkload, match=r"SystemExit: usage: own_train.py DATA\): your code probably parses .* -- python own_train.py"):
        preload(make_ref("own_train.py:workload"))


def test_the_command_line_is_a_plain_list_afterwards(tmp_path):
    """Spawned workers and libraries get it."""
    (tmp_path / "own_train.py").write_text("import sys\nREST = sys.argv[1:]\n" + WORKLOAD)
    load(make_ref("own_train.py:workload"))
    assert type(sys.argv) is list
    assert type(pickle.loads(pickle.dumps(sys.modules["own_train"].REST))) is list


def test_arguments_with_defaults_are_no_trouble(tmp_path, monkeypatch):
    """A file that parses its command line while it is imported sees none."""
    monkeypatch.setattr(sys, "argv", ["template.py", "7"])
    parsed = "import argparse, sys\nparser = argparse.ArgumentParser()\nparser.add_argument('--rows', type=int, default=5)\n"
    parsed += "args = parser.parse_args()\nARGV = sys.argv\n"
    (tmp_path / "own_train.py").write_text(parsed + WORKLOAD)
    assert load(make_ref("own_train.py:workload")).name == "rows-8"
    assert [f"{tmp_path}/own_train.py"] == sys.modules["own_train"].ARGV


@pytest.mark.parametrize(("end", "said"), [("'no data here'", r"\(SystemExit: no data here\): feedrate imports"), ("2", r"\(SystemExit: 2\): your code probably parses")])
def test_the_end_of_the_program_is_a_sentence(tmp_path, end, said):
    """Whatever ends it."""
    (tmp_path / "own_train.py").write_text(f"import sys\nsys.exit({end})\n")
    with pytest.raises(UnknownWorkload, match=r"own_train\.py ended the program while it was imported " + said):
        preload(make_ref("own_train.py:workload"))


def test_a_file_is_imported_once(tmp_path):
    """Two names in one file share its module, which spawned workers find under the file's stem."""
    (tmp_path / "own_train.py").write_text(WORKLOAD)
    first, second = preload(make_ref("own_train.py:workload")), preload(make_ref("own_train.py:other"))
    assert first.__globals__ is second.__globals__
    assert first.__module__ == "own_train"
    assert sys.modules["own_train"].workload is first


def test_a_reference_travels_as_json():
    """A reference goes to another process as JSON and is the same there."""
    ref = make_ref(f"{PATH}:rows", {"num_rows": 3})
    assert WorkloadRef(**json.loads(json.dumps(ref.to_json()))) == ref


def test_the_users_folders_may_be_called_like_ours(tmp_path):
    """`search/` and `analysis/` beside the user's file are theirs, while feedrate's stay feedrate's."""
    for name in ("search", "analysis", "trainables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"WHOSE = 'theirs: {name}'\n")
    lines = "import search, analysis, trainables\nimport feedrate.search, feedrate.analysis\n" + WORKLOAD
    lines += "\nFOUND = [search.WHOSE, analysis.WHOSE, trainables.WHOSE, feedrate.search.__file__, feedrate.analysis.__file__]\n"
    (tmp_path / "own_train.py").write_text(lines)
    code = (
        "import json, sys; from feedrate.trainables.resolve import load, make_ref;"
        "name = load(make_ref('own_train.py:workload')).name;"
        "print(json.dumps([name, *sys.modules['own_train'].FOUND]))"
    )
    command = [sys.executable, "-c", code]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout)
    assert found[:4] == ["rows-8", "theirs: search", "theirs: analysis", "theirs: trainables"]
    assert [Path(file).parts[-2] for file in found[4:]] == ["search", "analysis"]
    assert not any(file.startswith(str(tmp_path)) for file in found[4:])
