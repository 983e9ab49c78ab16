"""`feedrate measure` and `feedrate workloads`, which run without Ray, and functions that other commands without Ray share with them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from feedrate.search.options import (
    ANY_ORDER,
    OWN_BATCHES,
    OWN_STEP,
    UsageError,
    between_epochs,
    counted_anyway,
    refusal,
)
from feedrate.search.space.idle_workers import IdleWorkers
from feedrate.search.terminal import arguments
from feedrate.search.terminal.machine_output import answer
from feedrate.trainables.config import SHARING_STRATEGIES, START_METHODS, LoaderConfig

if TYPE_CHECKING:
    from feedrate.analysis.ceilings import Ceilings
    from feedrate.trainables.failure import Failure
    from feedrate.trainables.protocol import Silent
    from feedrate.trainables.sandbox.template import Template

FAILED = 1


class Measure:
    """Measure one setting, without Ray: the way to debug a workload.

    feedrate measure images --num-workers 4 --batch-size 64
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        _add_arguments(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        with contextlib.closing(_template(args)) as template:
            config = _setting(args, template)
            columns, failure = _trial(args, config, {"between_epochs": True}, template)
        if failure is not None:
            return _print_failure(args.json, config, failure)
        from feedrate.analysis.ceilings import Ceilings
        from feedrate.analysis.estimate import naive_sps, record_change, record_rate, record_steady, wait_fraction
        from feedrate.analysis.ranks import rank_waits

        rate, steady = record_rate(columns, args.objective), record_steady(columns)
        assert rate is not None and steady is not None
        ceilings, size = Ceilings(), columns.get("batch_size")
        ceilings.learn_record(columns)
        change = record_change(columns, args.objective)
        wait = wait_fraction(columns)
        facts = {
            "throughput": rate.sps,
            "ci95": [rate.low_sps, rate.high_sps],
            "unit": columns["unit"],
            "objective": args.objective,
            "steady_sps": steady.sps,
            "naive_sps": naive_sps(columns["window_duration_s"], columns["window_num_items"]),
            "step_only_sps": ceilings.at(size),
            "change_fraction": change,
            "wait_fraction": wait,
            "dataloader": config.to_kwargs(),
            "process": config.to_process(args.threads),
            "measurement": columns,
        }
        if args.json:
            answer("measure", facts)
            return None
        unit = columns["unit"]
        print(
            f"{config.short()}  {rate.sps:,.1f} {unit}/s  [{rate.low_sps:,.1f}-{rate.high_sps:,.1f}]"
            + _settled(columns["settled"], change)
        )
        print(
            f"  step alone {_ceiling(ceilings, size, unit)} · waits for data {wait:.0%} · start-up {columns['iter_s'] + columns['first_batch_s']:.2f} s · set-up {columns['setup_s']:.1f} s"
        )
        if (ranks := rank_waits(columns)) is not None:
            print(f"  {ranks.sentence}")
        for note in _remarks(columns | {"num_workers": config.num_workers}, steady.sps):
            print(f"  {note}")
        print(
            f"  memory {(columns['tree_pss_bytes'] or 0) / 1e9:.2f} GB · {columns['device']} ({columns['device_name']}), {columns['num_cpus']} CPUs ({columns['num_cpus_source']})"
        )
        return None


def _settled(settled: bool, change_fraction: float | None) -> str:
    """Return a note for a rate that was still changing when the time was over; else an empty text."""
    from feedrate.analysis.verdict import changing

    if change_fraction:
        return f"  ({changing(change_fraction)}: raise --max-trial-s)"
    return "" if settled else "  (not settled: raise --max-trial-s)"


def _ceiling(ceilings: Ceilings, batch_size: int | None, unit: str) -> str:
    """Return the rate of the step alone in words, or why it is not known."""
    sps = ceilings.at(batch_size)
    return f"not known, because {ceilings.why_not(batch_size)}" if sps is None else f"{sps:,.1f} {unit}/s"


def _remarks(columns: dict[str, Any], steady_sps: float) -> list[str]:
    """Return notes that a reader of the rates should know."""
    from feedrate.analysis.verdict import SHARED_FRACTION

    said = []
    foreign = columns["foreign_cpu_fraction"]
    if foreign is not None and foreign >= SHARED_FRACTION:
        said.append(f"note: other processes used {foreign:.0%} of the CPU time during the measurement; the rates would differ on a quiet machine")
    if (columns["foreign_gpu_fraction"] or 0.0) >= SHARED_FRACTION:
        said.append(f"note: other processes used {columns['foreign_gpu_fraction']:.0%} of the GPU's time just before; the rates would differ on a free GPU")
    if (idle := IdleWorkers.of(columns)) is not None:
        said.append(f"note: {idle.remark()}")
    if columns.get("step_returned") is not None:
        said.append(f"note: {counted_anyway(columns['step_returned'])}")
    if columns["loss_is_finite"] is False:
        said.append("note: the last loss was NaN or infinite; the rates are valid all the same")
    if columns["boundary_from"] == "measured":
        said.append(f"an epoch boundary costs {columns['boundary_s']:.2f} s; {steady_sps:,.1f} {columns['unit']}/s between boundaries")
    if (between := between_epochs(columns)) is not None:
        said.append(between)
    return said


class Workloads:
    """List the bundled workloads."""

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.trainables.resolve import BUNDLED

        if args.json:
            answer("workloads", {"workloads": [{"name": name, "description": text} for name, text in BUNDLED.items()]})
            return None
        for name, text in BUNDLED.items():
            print(f"{name:10} {text}")
        print(
            "\nYour own: package.module:function or path/to/file.py:function that returns a feedrate.trainables.Workload"
        )
        return None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_workload(parser)
    _add_setting(parser)
    arguments.add_trial(parser)
    arguments.add_json(parser)


def _add_setting(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the setting (default: your loader's own, else torch's default)")
    group.add_argument("--num-workers", type=arguments.whole(0), metavar="N")
    group.add_argument(
        "--batch-size", type=arguments.whole(1), metavar="N", help="items in a batch of each rank (default 32 if the workload has no batch size of its own)"
    )
    group.add_argument("--prefetch-factor", type=arguments.whole(1), metavar="N")
    group.add_argument("--pin-memory", type=arguments.truth, metavar="true|false")
    group.add_argument("--persistent-workers", type=arguments.truth, metavar="true|false")
    group.add_argument("--multiprocessing-context", choices=START_METHODS)
    group.add_argument("--in-order", type=arguments.truth, metavar="true|false")
    group.add_argument("--sharing-strategy", choices=SHARING_STRATEGIES)
    group.add_argument(
        "--trainer-cpus", type=arguments.whole(1), metavar="N", help="CPUs on which only the training process runs, not the workers (default: all processes share all CPUs)"
    )
    parser.add_argument("--seed", type=arguments.whole(0), default=0, metavar="N")


def _setting(args: argparse.Namespace, template: Template) -> LoaderConfig:
    """Return the workload's own setting, changed by the given arguments."""
    from feedrate.search.setup.prepare import describe_workload
    from feedrate.search.setup.script_lines import loader_lines
    from feedrate.search.space.search_space import WITH_WORKERS

    described = describe_workload(template.ref, template)
    for line in [*loader_lines(described), *(f"note: {note}" for note in described.notes)]:
        print(line, file=sys.stderr)
    own = described.baseline or LoaderConfig(batch_size=None if described.has_own_batches else 32)
    asked = {name: getattr(args, name) for name in arguments.DIMENSIONS if getattr(args, name) is not None}
    if "batch_size" in asked and described.has_own_batches:
        raise UsageError(f"--batch-size {asked['batch_size']}: {OWN_BATCHES}")
    if not described.is_short and (args.amp or args.compile):
        raise UsageError(f"--{'amp' if args.amp else 'compile'} {OWN_STEP}")
    config = LoaderConfig(**{**own.to_dict(), **asked})
    for name in WITH_WORKERS if config.num_workers == 0 else ():
        if name in asked:
            print(f"note: --{name.replace('_', '-')} has no effect with 0 workers", file=sys.stderr)
    if "in_order" in asked and not config.in_order:
        print(f"note: {ANY_ORDER}", file=sys.stderr)
    if config.pin_memory and not described.num_gpus:
        print("note: --pin-memory has no effect: there is no accelerator here", file=sys.stderr)
        config = config.without_accelerator()
    return config


def explain(args: argparse.Namespace) -> None:
    """Print how feedrate sees a training command (--explain), and measure nothing."""
    from feedrate.search.setup.prepare import describe_workload
    from feedrate.search.setup.script_lines import explanation

    with contextlib.closing(_template(args)) as template:
        described = describe_workload(template.ref, template)
    if getattr(args, "json", False) and described.script is not None:
        answer("explain", described.script.to_json())
        return
    print("\n".join(explanation(described)))


def _ref(args: argparse.Namespace) -> Any:
    from feedrate.trainables.resolve import UnknownWorkload, make_command_ref, make_ref

    try:
        if args.script is not None:
            return make_command_ref(args.script, loader=args.loader)
        return make_ref(args.workload, arguments.workload_options(args))
    except UnknownWorkload as error:
        raise UsageError(str(error)) from None


def _template(args: argparse.Namespace) -> Template:
    """Return the template process of the workload, which shows the workload's output; that of a training command only with --debug."""
    from feedrate.trainables.sandbox.template import Template

    return Template(_ref(args), threads=getattr(args, "threads", None), show_output=args.script is None or args.debug)


def _trial(
    args: argparse.Namespace,
    config: LoaderConfig,
    more: dict[str, Any],
    template: Template,
) -> tuple[dict[str, Any], Failure | None]:
    """Measure one setting, and return its columns, and the failure or None.

    Args:
        args: the command's arguments.
        config: the setting.
        more: options of the measurement that no argument sets.
        template: the template process to measure in, which stays open.
    """
    from feedrate.trainables.measuring.measure_options import MeasureOptions
    from feedrate.trainables.protocol import Failed, Measured, MeasureRequest, News, Silent, Waiting, outcome

    names = ("max_trial_s", "seed", "objective", "epoch_samples", "amp", "compile")
    options = MeasureOptions(**{**{name: getattr(args, name) for name in names}, **more})
    request = MeasureRequest(config=config, options=options)
    why = ""

    def on_news(news: News) -> None:
        nonlocal why
        if isinstance(news, Waiting):
            why = news.why
            print(f"waiting: {why}", file=sys.stderr, flush=True)
        elif isinstance(news, Silent):
            print(_still(news, why), file=sys.stderr, flush=True)

    end = outcome(template.run(request, max_s=args.max_trial_s), Measured, on_news)
    if not isinstance(end, Failed):
        return end.columns, None
    if end.usage:
        raise refusal(end)
    return {}, end.failure


def _still(silent: Silent, why: str) -> str:
    """Return what a silent child process is doing, and for how long; `why` is the reason of its wait."""
    if silent.waits:
        return f"still waiting, for {silent.silent_s:.0f} s: {why}"
    return f"still in phase {silent.phase}, for {silent.silent_s:.0f} s"


def _print_failure(as_json: bool, config: LoaderConfig, failure: Failure) -> int:
    what = f"{config.short()} failed in phase {failure.phase} ({failure.kind})"
    return show_failure(as_json, failure, what, dataloader=config.to_kwargs())


def show_failure(as_json: bool, failure: Failure, what: str, **more: Any) -> int:
    """Print why a trial or a check failed, as one object or as a sentence with the user's traceback and the stacks; return the exit code.

    Args:
        as_json: print one object instead of text.
        failure: why.
        what: the beginning of the sentence.
        more: further fields of the object.
    """
    if as_json:
        body = {name.removeprefix("failure_"): value for name, value in failure.columns().items()}
        answer("failure", {"failure": body, "dataloader": None, **more})
        return FAILED
    print(f"{what}: {failure.message}", file=sys.stderr)
    for text in filter(None, (failure.traceback, failure.stacks)):
        print(text, file=sys.stderr)
    return FAILED
