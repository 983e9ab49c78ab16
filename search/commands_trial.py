"""`feedrate measure`, `ceilings` and `workloads`: one setting or one workload, without Ray."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from feedrate.search import arguments
from feedrate.search.options import UsageError
from feedrate.trainables.config import START_METHODS, LoaderConfig

FAILED = 1


class Measure:
    """Measure one setting, without Ray: the way to debug a workload.

    feedrate measure images --num-workers 4 --batch-size 64
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        _add_arguments(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        config = _setting(args)
        columns, failure = _trial(args, config, {})
        if failure is not None:
            return _print_failure(args.json, config, failure)
        from feedrate.analysis.estimate import naive_sps, record_rate, record_steady, step_only_sps, wait_fraction

        rate, steady = record_rate(columns, args.objective), record_steady(columns)
        assert rate is not None and steady is not None
        wait = wait_fraction(columns)
        facts = {
            "throughput": rate.sps,
            "ci95": [rate.low_sps, rate.high_sps],
            "unit": columns["unit"],
            "objective": args.objective,
            "steady_sps": steady.sps,
            "naive_sps": naive_sps(columns["window_duration_s"], columns["window_num_items"]),
            "step_only_sps": step_only_sps(columns),
            "wait_fraction": wait,
            "dataloader": config.to_kwargs(),
            "measurement": columns,
        }
        if args.json:
            print(json.dumps(facts))
            return None
        unit = columns["unit"]
        print(
            f"{config.short()}  {rate.sps:,.1f} {unit}/s  [{rate.low_sps:,.1f}-{rate.high_sps:,.1f}]"
            + ("" if columns["settled"] else "  (not settled: raise --max-trial-s)")
        )
        print(
            f"  step alone {facts['step_only_sps']:,.1f} {unit}/s · waits for data {wait:.0%} · start-up {columns['iter_s'] + columns['first_batch_s']:.2f} s · set-up {columns['setup_s']:.1f} s"
        )
        print(
            f"  memory {(columns['tree_pss_bytes'] or 0) / 1e9:.2f} GB · {columns['device']} ({columns['device_name']}), {columns['num_cpus']} CPUs ({columns['num_cpus_source']})"
        )
        return None


class Ceilings:
    """How fast the training step and the loader are each alone, and which of them is the limit. Without Ray.

    feedrate ceilings train.py:workload
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        _add_arguments(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.analysis.estimate import record_steady, step_only_sps, wait_fraction
        from feedrate.search.result import busy_fraction, verdict

        config = _setting(args)
        together, failure = _trial(args, config, {})
        if failure is not None:
            return _print_failure(args.json, config, failure)
        steady, step = record_steady(together), step_only_sps(together)
        assert steady is not None and step is not None
        unit = together["unit"]
        if not args.json:
            print(f"step alone    {step:12,.1f} {unit}/s")
            print(f"both together {steady.sps:12,.1f} {unit}/s  with {config.short()}", flush=True)
        alone, failure = _trial(args, config, {"loader_only": True})
        if failure is not None:
            return _print_failure(args.json, config, failure)
        loader = record_steady(alone)
        assert loader is not None
        wait = wait_fraction(together)
        answer = verdict(
            steady.sps / step,
            wait,
            busy_fraction(together["own_cpu_fraction"], together["num_cpus"], config.num_workers),
        )
        stall = max(1 - steady.sps / step, 0.0)
        if args.json:
            print(
                json.dumps(
                    {
                        "step_only_sps": step,
                        "loader_only_sps": loader.sps,
                        "together_sps": steady.sps,
                        "data_stall_fraction": stall,
                        "verdict": answer,
                        "unit": unit,
                        "dataloader": config.to_kwargs(),
                    }
                )
            )
            return None
        print(f"loader alone  {loader.sps:12,.1f} {unit}/s  with {config.short()}, warm cache")
        turns = "" if config.num_workers else " (with 0 workers loading and training take turns)"
        print(f"{answer}{turns}: {stall:.0%} of the time is lost to data, at most {max(step / steady.sps, 1):.2f}x to gain")
        return None


class Workloads:
    """List the bundled workloads."""

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        """No arguments."""

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        from feedrate.trainables.resolve import BUNDLED

        for name, text in BUNDLED.items():
            print(f"{name:10} {text}")
        print(
            "\nYour own: package.module:function or path/to/file.py:function, returning a feedrate.trainables.Workload"
        )
        return None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_workload(parser)
    _add_setting(parser)
    arguments.add_trial(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_setting(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the setting (default: your loader's own, else torch's default)")
    group.add_argument("--num-workers", type=arguments.whole(0), metavar="N")
    group.add_argument(
        "--batch-size", type=arguments.whole(1), metavar="N", help="default 32 where the workload has none of its own"
    )
    group.add_argument("--prefetch-factor", type=arguments.whole(1), metavar="N")
    group.add_argument("--pin-memory", type=arguments.truth, metavar="true|false")
    group.add_argument("--persistent-workers", type=arguments.truth, metavar="true|false")
    group.add_argument("--multiprocessing-context", choices=START_METHODS)
    parser.add_argument("--seed", type=arguments.whole(0), default=0, metavar="N")


def _setting(args: argparse.Namespace) -> LoaderConfig:
    """What was asked over the workload's own setting."""
    from feedrate.search.prepare import describe_workload

    described = describe_workload(_ref(args))
    for note in described["notes"]:
        print(f"note: {note}", file=sys.stderr)
    own = described["baseline"] or {"batch_size": None if "batch_size" in described["fixed"] else 32}
    asked = {name: getattr(args, name) for name in arguments.DIMENSIONS if getattr(args, name) is not None}
    without = [name for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context") if asked.get(name)]
    config = LoaderConfig(**{**own, **asked})
    if without and config.num_workers == 0:
        print(f"note: --{without[0].replace('_', '-')} has no effect with 0 workers", file=sys.stderr)
    if config.pin_memory and not described["facts"]["num_gpus"]:
        print("note: --pin-memory has no effect: there is no accelerator here", file=sys.stderr)
        config = config.without_accelerator()
    return config


def _ref(args: argparse.Namespace) -> Any:
    from feedrate.trainables.resolve import UnknownWorkload, make_ref

    try:
        return make_ref(args.workload, arguments.workload_options(args))
    except UnknownWorkload as error:
        raise UsageError(str(error)) from None


def _trial(
    args: argparse.Namespace, config: LoaderConfig, more: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Columns of one measurement, or of its failure."""
    from feedrate.trainables.supervise import Template

    template = Template(_ref(args), threads=args.threads, show_output=True)
    options = {"max_trial_s": args.max_trial_s, "seed": args.seed, "epoch_samples": args.epoch_samples, **more}
    try:
        for event in template.run(
            {"op": "measure", "config": config.to_dict(), "options": options}, max_s=args.max_trial_s
        ):
            if event["event"] == "waiting":
                print("waiting: another feedrate trial is measuring on this host", file=sys.stderr)
            elif event["event"] == "result":
                return event["columns"], None
            elif event["event"] == "failure":
                if event["usage"]:
                    raise UsageError(event["failure_message"])
                return {}, event
    finally:
        template.close()
    raise AssertionError("a trial's last event is its end")


def _print_failure(as_json: bool, config: LoaderConfig, failure: dict[str, Any]) -> int:
    if as_json:
        body = {
            name.removeprefix("failure_"): failure[name]
            for name in ("failure_kind", "failure_phase", "failure_message", "failure_cause", "failure_traceback")
        }
        print(json.dumps({"failure": body, "dataloader": config.to_kwargs()}))
    else:
        print(
            f"{config.short()} failed in phase {failure['failure_phase']} ({failure['failure_kind']}): {failure['failure_message']}",
            file=sys.stderr,
        )
        if failure["failure_traceback"]:
            print(failure["failure_traceback"], file=sys.stderr)
    return FAILED
