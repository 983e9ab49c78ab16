"""Find the kernel's folders for this process's control groups: its own group and all groups around it.

A limit of any group up the hierarchy applies, so all of them have to be read. In a container, the paths in /proc/self/cgroup
may not exist below the mount point; then the mount point itself is the container's group.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def folders(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[Path]:
    """Return the existing folders of cgroup v2 and v1 that may hold this controller's files, innermost group first.

    Args:
        controller: cpu, memory or io.
        root: where the hierarchies are mounted.
        membership: file with lines `number:controllers:path`; v2 has number 0 and no controllers.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    found: list[Path] = []
    for line in [*lines, "0::/", f"0:{controller}:/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (root / controllers, root / controller) if controllers else (root, root / "unified"):
            group = mount / path.lstrip("/")
            found += [mount] if ".." in group.parts else [group, *group.parents[: len(group.parts) - len(mount.parts)]]
    return [each for each in dict.fromkeys(found) if each.is_dir()]


def numbers(path: Path) -> dict[str, int]:
    """Read a file of `name number` lines, such as cpu.stat; return an empty dictionary if there is no such file."""
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
    except OSError:
        return {}
