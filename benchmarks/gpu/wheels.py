"""Collects the wheels that feedrate needs on the GPU machine and that are not installed there; wheels.sh calls it.

    python benchmarks/gpu/wheels.py feedrate-0.1.0-py3-none-any.whl FOLDER

Each wheel's own list of requirements is followed, except to packages of present.txt, so that neither torch nor what it brings is
fetched. What is larger than a transfer takes is cut: FOLDER/1, FOLDER/2, ... hold at most PART_BYTES each.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import Parser
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = "3.12"
GLIBC = (39, 36, 35, 34, 31, 28, 27, 24, 17)
"""Second numbers of manylinux_2_N platforms that run there."""
PART_BYTES = 48 * 2**20
"""A transfer takes 64 MiB, the work tree included."""
WANTED = ("ray[tune]", "pytest-timeout")
"""What is asked for besides what the wheel requires: the tests' options name pytest-timeout."""


def pins() -> dict[str, str]:
    """constraints.txt: canonical name -> version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): number for name, number in (line.split("==") for line in lines)}


def present() -> set[str]:
    """The packages that the machine has, by canonical name."""
    lines = (HERE / "present.txt").read_text().splitlines()
    return {canonicalize_name(line) for line in lines if line and not line.startswith("#")}


def requirements(wheel: Path, extras: Iterable[str]) -> Iterator[Requirement]:
    """What a wheel requires on the GPU machine with these extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", each))
        metadata = Parser().parsestr(archive.read(name).decode())
    there: dict[str, str] = {**default_environment(), "python_version": PYTHON, "python_full_version": f"{PYTHON}.3"}  # type: ignore[dict-item]
    for requirement in map(Requirement, metadata.get_all("Requires-Dist") or []):
        if requirement.marker is None or any(requirement.marker.evaluate(there | {"extra": extra}) for extra in ("", *extras)):
            yield requirement


def download(name: str, number: str | None, folder: Path) -> Path:
    """Fetch one wheel for that Python and platform."""
    platforms = [word for minor in GLIBC for word in ("--platform", f"manylinux_2_{minor}_x86_64")]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON,
        "--implementation", "cp", *platforms, "--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64",
        "-d", str(folder), f"{name}=={number}" if number else name,
    ]  # fmt: skip
    before = set(folder.iterdir())
    subprocess.run(command, check=True)
    (wheel,) = set(folder.iterdir()) - before
    return wheel


def collect(ours: Path, folder: Path, there: set[str], numbers: dict[str, str]) -> tuple[list[Path], list[str]]:
    """Our wheel and everything that it needs and is not there; and the names of what it needs and is."""
    found = {canonicalize_name(ours.name.partition("-")[0]): Path(shutil.copy(ours, folder))}
    seen: set[tuple[str, frozenset[str]]] = set()
    relied_on: set[str] = set()
    waiting = [*requirements(ours, ()), *map(Requirement, WANTED)]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in there:
            relied_on.add(name)
            continue
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        if name not in found:
            found[name] = download(name, numbers.get(name), folder)
        waiting += requirements(found[name], wanted.extras)
    return list(found.values()), sorted(relied_on)


def parts(wheels: Iterable[Path], folder: Path, most_bytes: int = PART_BYTES) -> int:
    """Put the wheels into folders of at most this number of bytes, larger wheels in pieces NAME.whl.part-00, -01, ...; return the number of folders."""
    pieces: list[tuple[str, bytes]] = []
    for wheel in sorted(wheels, key=lambda path: path.stat().st_size, reverse=True):
        content = wheel.read_bytes()
        if len(content) <= most_bytes:
            pieces.append((wheel.name, content))
            continue
        starts = range(0, len(content), most_bytes)
        pieces += [(f"{wheel.name}.part-{index:02d}", content[start : start + most_bytes]) for index, start in enumerate(starts)]
    room: list[int] = []
    for name, content in pieces:
        where = next((index for index, left in enumerate(room) if left >= len(content)), len(room))
        if where == len(room):
            room.append(most_bytes)
            (folder / str(where + 1)).mkdir(parents=True)
        room[where] -= len(content)
        (folder / str(where + 1) / name).write_bytes(content)
    return len(room)


def main() -> None:
    """Collect, and say what goes into which folder."""
    ours, folder = Path(sys.argv[1]), Path(sys.argv[2])
    downloads = folder / "all"
    downloads.mkdir(parents=True)
    wheels, relied_on = collect(ours, downloads, present(), pins())
    number = parts(wheels, folder)
    for part in range(1, number + 1):
        names = sorted(path.name for path in (folder / str(part)).iterdir())
        size = sum(path.stat().st_size for path in (folder / str(part)).iterdir())
        print(f"{folder / str(part)}: {size / 2**20:.1f} MiB: {', '.join(names)}")
    print(f"taken as installed there: {' '.join(relied_on)}")
    shutil.rmtree(downloads)


if __name__ == "__main__":
    main()
