"""The wheel holds exactly what the three folders hold, and works where the repository is not."""

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("search", "trainables", "analysis")


def build_wheel(folder: Path) -> Path:
    """Builds the wheel as 'make wheel' does."""
    command = ["bash", ROOT / ".ci/wheel.sh", folder, sys.executable]
    built = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def files_of(*folders: str) -> set[str]:
    """What git knows, or would add, and is there."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel installed and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(command, check=True)
    return folder


def test_the_wheel_holds_the_files_of_the_three_folders_and_nothing_else(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {f"feedrate/{name}" for name in files_of(*PARTS)}
    assert {f"feedrate/{part}/py.typed" for part in PARTS} <= packed


def test_the_wheel_names_its_command_and_carries_its_licence(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    commands = configparser.ConfigParser()
    commands.read_string(archive.read(entry_points).decode())
    assert commands["console_scripts"]["feedrate"] == "feedrate.search.cli.main:main"
    assert "feedrate/search/cli/main.py" in archive.namelist()
    (licence,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("part", PARTS)
def test_the_installed_wheel_imports_away_from_the_repository(part, site, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import feedrate.{part} as part; print(part.__file__)"
    command = [sys.executable, "-c", code]
    imported = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert imported.strip() == str(site / "feedrate" / part / "__init__.py")
