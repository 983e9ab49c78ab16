"""benchmarks/gpu: what goes to a machine with a GPU arrives there, and run.sh says what it cannot do."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
RUN = ROOT / "benchmarks" / "gpu" / "run.sh"


@pytest.fixture(scope="module")
def wheels():
    spec = importlib.util.spec_from_file_location("gpu_wheels", ROOT / "benchmarks" / "gpu" / "wheels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(["bash", RUN, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False)


def wheel(folder, name, *requires):
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {each}" for each in requires)]
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{name}/__init__.py", f"NAME = {name!r}\n")
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


def test_requirements_are_those_of_the_other_machine(wheels, tmp_path):
    """Of its Python and platform, with the extras that were asked for."""
    made = wheel(tmp_path, "mine", "first>=1", 'older; python_version < "3.12"', 'windows; sys_platform == "win32"', 'more[x]; extra == "tune"')
    assert [each.name for each in wheels.requirements(made, ())] == ["first"]
    assert [str(each) for each in wheels.requirements(made, ("tune",))] == ["first>=1", 'more[x]; extra == "tune"']


def test_what_is_there_is_neither_fetched_nor_followed(wheels, tmp_path, monkeypatch):
    """torch would bring gigabytes."""
    (tmp_path / "index").mkdir()
    (tmp_path / "all").mkdir()
    made = {name: wheel(tmp_path / "index", name, *more) for name, *more in (("a", "torch>=2", "b"), ("b", "a", "pandas"), ("c",))}
    monkeypatch.setattr(wheels, "download", lambda name, number, folder: made[name])
    monkeypatch.setattr(wheels, "WANTED", ("c",))
    found, relied_on = wheels.collect(made["a"], tmp_path / "all", wheels.present(), {})
    assert sorted(path.name[0] for path in found) == ["a", "b", "c"]
    assert relied_on == ["pandas", "torch"]


def test_the_machine_has_what_is_left_out(wheels):
    """torch and what the short list of the machine's packages names; never Ray or Optuna."""
    there = wheels.present()
    assert {"torch", "numpy", "pandas", "pyarrow", "psutil", "rich", "pillow", "torchvision", "timm", "lightning"} <= there
    assert not {"ray", "optuna", "feedrate", "plotly"} & there


@pytest.mark.parametrize("size", [0, 9, 10, 11, 25])
def test_parts_fit_a_transfer_and_hold_everything(wheels, tmp_path, size):
    """A wheel that is larger than a part is cut; the pieces in order of their names are the wheel."""
    (tmp_path / "a").mkdir()
    contents = {"large.whl": bytes(range(size)), "small.whl": b"12345", "tiny.whl": b"1"}
    for name, content in contents.items():
        (tmp_path / "a" / name).write_bytes(content)
    number = wheels.parts((tmp_path / "a").iterdir(), tmp_path / "parts", most_bytes=10)
    folders = sorted((tmp_path / "parts").iterdir())
    assert len(folders) == number
    assert all(sum(path.stat().st_size for path in folder.iterdir()) <= 10 for folder in folders)
    joined = dict.fromkeys(contents, b"")
    for path in sorted((tmp_path / "parts").rglob("*.whl*"), key=lambda path: path.name):
        joined[path.name.partition(".part-")[0]] += path.read_bytes()
    assert joined == contents


def test_unknown_arguments_and_missing_gpus_are_one_sentence(tmp_path):
    """Nothing is measured then."""
    done = run("--nonsense")
    assert (done.returncode, done.stderr) == (2, f"run.sh: unknown argument --nonsense; see the first lines of {RUN}\n")
    if not torch.cuda.is_available():
        done = run("--out", tmp_path / "out")
        assert done.returncode == 1
        assert done.stderr == "run.sh: torch sees no GPU here; --cpu rehearses without one\n"


def test_a_step_without_time_is_skipped_and_says_so(tmp_path):
    """With 0 seconds that is every step: the results name each, and what they ran with."""
    done = run("--cpu", "--seconds", "0", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert '"step": "versions"' in lines[0]
    skipped = [line for line in lines if '"skipped"' in line]
    assert {"tests", "workload resnet50", "workload float32", "workload uint8", "pin", "search", "stock", "judge", "two at once", "memory"} <= {
        line.split('"')[3] for line in skipped
    }
    assert '"failed": 0' in lines[-1]


def test_cut_wheels_are_installed_whole(wheels, tmp_path):
    """As run.sh puts them together: pip refuses a wheel of which a piece is missing or in the wrong place."""
    made = wheel(tmp_path, "cut_in_pieces")
    wheels.parts([made], tmp_path / "parts", most_bytes=100)
    done = run("--cpu", "--seconds", "0", "--wheels", tmp_path / "parts", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr + (tmp_path / "out" / "log.txt").read_text()
    assert '{"ran": "install", "exit_code": 0' in (tmp_path / "out" / "results.jsonl").read_text()
