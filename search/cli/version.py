"""`feedrate version`: print the versions that a bug report should contain."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from feedrate.search.terminal import arguments
from feedrate.search.terminal.machine_output import answer


class Version:
    """Print the versions of feedrate, Python, the operating system and the packages that feedrate uses.

    feedrate version
    feedrate version --json
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.search.versions import everything

        facts = everything()
        answer("version", facts)
        if args.json:
            return None
        system = facts["os"]
        rows = {
            "feedrate": facts["feedrate"],
            "Python": f"{facts['python']} ({facts['implementation']}, {facts['executable']})",
            "system": ", ".join(filter(None, (system["distribution"], f"{system['system']} {system['kernel']}", system["machine"], system["libc"]))),
        } | {name: number or "not installed" for name, number in facts["packages"].items()}
        width = max(map(len, rows))
        for name, text in rows.items():
            tested = facts["tested"].get(name)
            more = f"  (tested: {tested['oldest']} to {tested['newest']})" if tested else ""
            print(f"{name:{width}}  {text}{more}")
        for note in facts["notes"]:
            print(f"note: {note}")
        return None
