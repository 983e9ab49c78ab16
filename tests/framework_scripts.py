"""Runs the scripts in tests/frameworks/scripts, which train with other frameworks, under feedrate as `feedrate measure` does."""

import os
import sys
from pathlib import Path

from feedrate.trainables.checking.described import Described
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import DescribeRequest, Failed, Measured, MeasureRequest, read
from feedrate.trainables.resolve import make_command_ref
from feedrate.trainables.sandbox.template import Template

SCRIPTS = Path(__file__).parent / "frameworks" / "scripts"


class ScriptRun:
    """One of the scripts, in the current folder.

    Args:
        name: its file.
        arguments: those of the script.
        environment: for its process and its workers.
        launcher: words between the interpreter and the file.
    """

    def __init__(self, name, *arguments, environment, launcher=()):
        self.lines = (SCRIPTS / name).read_text().splitlines()
        self.command = (sys.executable, *launcher, str(SCRIPTS / name), *arguments)
        self.template = Template(make_command_ref(self.command), environment=environment)

    def close(self):
        self.template.close()

    def described(self):
        """What feedrate sees of the script."""
        event = read(self.template.run(DescribeRequest(), max_s=120), lambda news: None)
        assert isinstance(event, Described), event.failure.message
        return event

    def measured(self, num_workers, batch_size=16, prefetch_factor=None, **options):
        """The columns of a short measurement, and which of the loader's workers read anything meanwhile."""
        config = LoaderConfig(num_workers=num_workers, batch_size=batch_size, prefetch_factor=prefetch_factor)
        request = MeasureRequest(config=config, options=MeasureOptions(**{"max_trial_s": 2.0, "measure_step": False} | options))
        notes = Path(os.environ["SCRIPT_NOTES"])
        notes.unlink(missing_ok=True)
        event = read(self.template.run(request, max_s=60), lambda news: None)
        assert isinstance(event, Measured), event.failure.message
        lines = [line.split() for line in notes.read_text().splitlines()]
        return event.columns, {int(worker) for worker, of_workers in lines if int(of_workers) == num_workers}

    def refused(self):
        """The failure of a script that cannot be measured."""
        event = read(self.template.run(DescribeRequest(), max_s=120), lambda news: None)
        assert isinstance(event, Failed)
        return event.failure

    def line_of(self, text):
        """The number of the line that contains a text."""
        return next(number for number, line in enumerate(self.lines, 1) if text in line)
