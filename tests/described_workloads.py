"""A description of a workload, as `describe` returns it, for tests of what is done with one."""

from dataclasses import replace

from feedrate.trainables.checking.described import Described
from feedrate.trainables.checking.quick_look import QuickLook
from feedrate.trainables.checking.script_facts import LoaderFacts, ScriptFacts
from feedrate.trainables.machine.host_facts import HostFacts

HERE = HostFacts(
    device="cpu",
    device_name="a CPU",
    host_id="h",
    hostname="here",
    num_cpus=4,
    num_cpus_source="affinity",
    torch_num_threads=4,
    nice=0,
    versions={"python": "3.13.1", "torch": "2.13.0"},
)
SHORT = Described(
    name="rows",
    unit="samples",
    is_short=True,
    iterable=False,
    epoch_samples=64,
    baseline=None,
    fixed=(),
    notes=(),
    data=QuickLook(),
    facts=HERE,
    num_gpus=0,
)
"""A workload in the short form, on a machine without an accelerator, whose data nothing repeats."""

_LOADER = LoaderFacts(
    number=1,
    where="train.py:20",
    name="DataLoader",
    call="DataLoader(Rows, batch_size=16, num_workers=1)",
    num_made=1,
    num_batches=1,
    num_steps=1,
    role="measured",
    kept_workers=0,
)
_VALID = replace(_LOADER, number=2, where="train.py:21", num_batches=0, num_steps=0, role="not read", kept_workers=2)
SCRIPT = ScriptFacts(loaders=(_LOADER, _VALID), chosen=None, setup_s=2.5, python="/usr/bin/python3", device="cpu")
"""A training command with a second loader, whose workers stay alive."""
