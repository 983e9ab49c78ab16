"""result.py: the answer of a search, made from the records of its run folder."""

import io
import json

import jsonschema
import pytest
from rich.console import Console
from synthetic import record, small_run, write_run
from torch.utils.data import DataLoader

from feedrate.analysis import load_run, sections
from feedrate.analysis.best import best_schema, check_best, load_best
from feedrate.analysis.run_folder import RunFolder
from feedrate.search.answers.wording import explain, print_result
from feedrate.search.cli.search import _reasons
from feedrate.search.result import conclude

OVER = "12 settings were tried (--max-trials)"


@pytest.fixture
def concluded(tmp_path):
    """Concludes a search with these records."""

    def conclude_records(records, stop_reason=OVER, **search):
        return conclude(RunFolder(write_run(tmp_path / "run", records, **search)), stop_reason)

    return conclude_records


def baseline(rate_sps=400.0, **columns):
    return record(0, num_workers=0, rate_sps=rate_sps, origin="baseline", **{"step_only_sps": 2000.0} | columns)


def printed(result, unit="samples"):
    text = io.StringIO()
    print_result(result, Console(file=text, width=160), unit)
    return text.getvalue()


def test_a_baseline_that_failed_everywhere_is_found_at_any_batch_size(concluded):
    """The answer has another batch size, at which the baseline was not tried; such a search exits with 1. One that was measured is no failure."""
    failed = record(0, num_workers=0, batch_size=32, origin="baseline", status="failed")
    answer = record(1, num_workers=4, batch_size=128, rate_sps=1000.0)
    assert list(concluded([failed, answer]).baseline_failures["number"]) == [0]
    measured = record(2, num_workers=0, batch_size=64, rate_sps=100.0, origin="baseline")
    assert concluded([failed, answer, measured]).baseline_failures.empty


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_best_json_says_what_was_found(concluded):
    """It fits the shipped schema, feeds a real DataLoader, and is not called confirmed."""
    result = concluded(small_run())
    written = json.loads(result.best_path.read_text())
    check_best(written)
    jsonschema.validate(written, best_schema(), jsonschema.Draft202012Validator)
    assert written == result.best
    assert result.dataloader["num_workers"] == 5
    assert result.dataloader == dict(load_best(result.folder))
    assert DataLoader(list(range(100)), **result.dataloader).num_workers == 5
    assert written["confirmed"] is False
    assert written["throughput"]["samples_per_second"] == pytest.approx(1410, rel=0.01)
    assert written["baseline"]["dataloader"] == {"batch_size": 64, "num_workers": 0, "pin_memory": False}
    assert written["ceiling"]["step_only_samples_per_second"] == pytest.approx(2000.0)
    assert written["best_by_batch_size"].keys() == {"32", "64"}
    assert written["best_by_batch_size"]["32"]["dataloader"]["num_workers"] == 2
    assert written["search"]["num_failed"] == 2
    assert result.stop_reason == OVER
    assert len(result.failures) == 2


def test_what_the_process_needs_is_in_the_answer(concluded):
    """`process`, in tied and best-by-batch-size entries too; the summary says that `dataloader` alone is not enough."""
    records = [
        baseline(),
        record(1, num_workers=4, rate_sps=1000.0, trainer_cpus=2),
        record(2, num_workers=5, rate_sps=1001.0, sharing_strategy="file_system", multiprocessing_context="spawn"),
        record(3, num_workers=2, rate_sps=500.0, batch_size=32, trainer_cpus=1),
    ]
    best = concluded(records, options={"threads": 3}).best
    check_best(best)
    jsonschema.validate(best, best_schema(), jsonschema.Draft202012Validator)
    assert best["process"] == {"trainer_cpus": 2, "torch_num_threads": 2}
    assert best["baseline"]["process"] == {"torch_num_threads": 3}
    (tied,) = best["tied_with"]
    assert (tied["num_workers"], tied["multiprocessing_context"]) == (5, "spawn")
    assert tied["process"] == {"sharing_strategy": "file_system", "torch_num_threads": 3}
    assert best["best_by_batch_size"]["32"]["process"] == {"trainer_cpus": 1, "torch_num_threads": 1}
    result = concluded(records)
    assert result.best["process"] == {"trainer_cpus": 2}
    assert "process" not in result.best["baseline"]
    text = printed(result)
    assert "b64 w4 p2 trainer_cpus=2" in text
    assert "b64 w5 p2 spawn file_system" in text
    assert "`dataloader` alone does not reproduce this rate: the process also needs trainer_cpus, as shown below." in text
    assert "os.sched_setaffinity" in text.partition("Paste:\n")[2]
    headline, rows = sections.headline(load_run(result.folder), result.ranking), sections.answer(load_run(result.folder), result.ranking)
    assert headline.startswith("b64 w4 p2 trainer_cpus=2 trains")
    assert ("Tied with", "b64 w5 p2 spawn file_system") in rows.rows


def test_the_same_dataloader_in_another_process_is_another_setting(concluded):
    """It is compared with the baseline, of which it has every argument, and is not taken for it."""
    own = {"num_workers": 4, "origin": "baseline", "step_only_sps": 2000.0}
    result = concluded([record(0, rate_sps=500.0, **own), record(1, num_workers=4, rate_sps=1000.0, trainer_cpus=1)])
    assert result.best["dataloader"] == result.best["baseline"]["dataloader"]
    assert result.best["baseline"]["speedup"] == pytest.approx(2.0, rel=0.001)
    assert "2.00x the baseline" in sections.headline(load_run(result.folder), result.ranking)
    assert "`dataloader` alone" not in printed(concluded(small_run()))


def test_how_the_step_ran_is_in_the_answer(concluded):
    """Mixed precision and a compiled model make another ceiling: best.json and the summary say so."""
    result = concluded(small_run(), options={"amp": "bf16", "compile": True})
    assert (result.best["search"]["amp"], result.best["search"]["compile"]) == ("bf16", True)
    assert "The training step ran with bfloat16 autocast and torch.compile" in printed(result)
    plain = concluded(small_run())
    assert (plain.best["search"]["amp"], plain.best["search"]["compile"]) == (None, False)
    assert "The training step ran with" not in printed(plain)


def test_the_cheapest_of_equals_is_the_answer(concluded):
    """Within 2 % of the fastest: fewest workers, then fewest batches in flight; the others are named as tied."""
    records = [
        baseline(),
        record(1, num_workers=12, rate_sps=1010.0),
        record(2, num_workers=6, rate_sps=1005.0, prefetch_factor=8),
        record(3, num_workers=6, rate_sps=1000.0, prefetch_factor=2),
        record(4, num_workers=5, rate_sps=900.0),
    ]
    result = concluded(records)
    assert (result.dataloader["num_workers"], result.dataloader["prefetch_factor"]) == (6, 2)
    tied = [(kwargs["num_workers"], kwargs["prefetch_factor"]) for kwargs in result.best["tied_with"]]
    assert sorted(tied) == [(6, 8), (12, 2)]


def test_the_answer_keeps_the_batch_size_of_the_fastest(concluded):
    """A cheaper setting at another batch size is not the same training."""
    result = concluded(
        [baseline(), record(1, num_workers=8, rate_sps=1000.0), record(2, num_workers=1, rate_sps=999.0, batch_size=32)]
    )
    assert (result.dataloader["batch_size"], result.dataloader["num_workers"]) == (64, 8)


def test_the_highest_rate_wins_although_its_interval_is_wide(concluded):
    """Settings with many workers have few windows: of those surely faster than yours, the one that measured fastest is the best guess."""
    wide = record(1, num_workers=12, rate_sps=1200.0, num_windows=2, noise_fraction=0.3)
    result = concluded([baseline(700.0), wide, record(2, num_workers=4, rate_sps=1100.0)])
    assert result.dataloader["num_workers"] == 12


def test_a_rate_that_still_falls_counts_by_its_lower_bound(concluded):
    """Where it ends is not known."""
    falling = record(1, num_workers=12, rate_sps=1200.0, num_windows=8)
    falling["window_duration_s"] = [each * 1.1**index for index, each in enumerate(falling["window_duration_s"])]
    assert concluded([baseline(), falling, record(2, num_workers=16, rate_sps=660.0)]).dataloader["num_workers"] == 16


def test_an_unsure_tie_does_not_lose_a_sure_gain(concluded):
    """The cheaper setting may be no faster than yours, the fastest one surely is."""
    unsure = record(2, num_workers=4, rate_sps=1190.0, num_windows=1)
    assert concluded([baseline(1000.0), record(1, num_workers=12, rate_sps=1200.0), unsure]).dataloader["num_workers"] == 12


def test_yours_stays_where_it_is_the_fastest(concluded):
    """A setting with a narrower interval is slower."""
    yours = record(0, num_workers=8, rate_sps=1000.0, noise_fraction=0.15, origin="baseline", step_only_sps=2000.0)
    assert concluded([yours, record(1, num_workers=4, rate_sps=950.0)]).dataloader["num_workers"] == 8


def test_without_a_baseline_the_highest_lower_bound_counts(concluded):
    """Nothing says that a single window is no luck."""
    lucky = record(1, num_workers=12, rate_sps=1200.0, num_windows=1)
    assert concluded([lucky, record(2, num_workers=4, rate_sps=1100.0)]).dataloader["num_workers"] == 4


def test_a_lucky_value_with_a_wide_interval_is_not_the_fastest(concluded):
    """What is surely faster than yours wins over what may be faster still, or no faster than yours."""
    lucky = record(1, num_workers=12, rate_sps=1200.0, num_windows=1)
    result = concluded([baseline(1000.0), lucky, record(2, num_workers=4, rate_sps=1100.0)])
    assert result.dataloader["num_workers"] == 4
    said = [line for line in explain(result) if "was measured faster" in line]
    assert len(said) == 1
    assert said[0].startswith("b64 w12 p2 was measured faster, at 1,")
    assert not any("was measured faster" in line for line in explain(concluded(small_run())))


def test_a_cheaper_setting_that_ties_with_the_surest_is_said_to_be_cheaper(concluded):
    """Another one, whose rate still rose, was measured faster at the same batch size: no other --batch-size is advised."""
    surest = record(1, num_workers=8, rate_sps=1010.0, noise_fraction=0.001)
    cheaper = record(2, num_workers=4, rate_sps=1005.0, noise_fraction=0.1)
    faster = record(3, num_workers=8, prefetch_factor=8, rate_sps=1280.0, num_windows=8)
    faster["window_duration_s"] = [each / 1.1 ** (index - 7) for index, each in enumerate(faster["window_duration_s"])]
    result = concluded([baseline(), surest, cheaper, faster])
    assert (result.dataloader["num_workers"], result.best["tied_with"][0]["num_workers"]) == (4, 8)
    said = [line for line in explain(result) if "was measured faster" in line]
    assert len(said) == 1
    assert said[0].startswith("b64 w8 p8 was measured faster, at 1,1")
    assert said[0].endswith("the answer is the cheapest: those that take much more CPU time than another are left out; then fewest workers, prefetch and memory decide.")


def test_a_setting_that_was_stopped_early_is_never_the_answer(concluded):
    """Its windows say that it cannot win, not how fast it is."""
    pruned = record(1, num_workers=2, rate_sps=5000.0, status="pruned", num_windows=5)
    assert concluded([baseline(), pruned]).dataloader["num_workers"] == 0


def test_the_speed_up_has_an_interval(concluded):
    """The ratio of two rates, each of which has one."""
    result = concluded([baseline(500.0), record(1, num_workers=4, rate_sps=1000.0)])
    best = result.best["baseline"]
    low, high = best["speedup_ci95"]
    assert best["speedup"] == pytest.approx(2.0, rel=0.001)
    assert 1.8 < low < 1.97
    assert 2.03 < high < 2.2
    rate = result.best["throughput"]
    assert rate["ci95"][0] < rate["samples_per_second"] < rate["ci95"][1]


def test_without_a_baseline_at_the_batch_size_there_is_no_speed_up(concluded):
    """Rates at different batch sizes are not compared; the baseline may also have failed."""
    other = baseline(batch_size=32)
    failed = record(1, num_workers=0, origin="baseline", status="failed")
    result = concluded([other, failed, record(2, num_workers=4, rate_sps=1000.0)])
    check_best(result.best)
    assert result.best["baseline"] is None
    assert result.best["ceiling"] is None
    assert not any(line.startswith("yours") for line in printed(result).splitlines())


def test_the_batch_size_may_be_the_users_own(concluded):
    """With a batch sampler it is neither in the answer nor in the table of batch sizes."""
    own = {"batch_size": None}
    result = concluded([baseline(**own), record(1, num_workers=4, rate_sps=1000.0, **own)])
    check_best(result.best)
    assert "batch_size" not in result.dataloader
    assert result.best["best_by_batch_size"] == {}
    assert result.best["baseline"]["speedup"] == pytest.approx(2.5, rel=0.001)
    assert "best" in printed(result)


def test_a_trial_that_failed_once_and_then_worked_counts(concluded):
    """A setting whose supervisor was lost is measured again; its facts are those of the trial that worked."""
    records = [
        baseline(),
        record(1, num_workers=4, rate_sps=1000.0, hostname="node-7"),
        record(2, num_workers=4, status="failed"),
    ]
    result = concluded(records)
    check_best(result.best)
    assert result.dataloader["num_workers"] == 4
    assert result.best["measured_on"]["hostname"] == "node-7"


@pytest.mark.parametrize("records", [[], [record(0, num_workers=0, status="failed"), record(1, status="failed")]])
def test_nothing_that_works_is_no_answer(concluded, records):
    """No best.json is written, and asking for the setting says where to look."""
    result = concluded(records)
    assert result.best is None
    assert result.verdict is None
    assert not result.best_path.exists()
    assert len(result.failures) == len(records)
    with pytest.raises(ValueError, match=r"no setting of this search worked; see \.failures"):
        _ = result.dataloader
    assert printed(result) == ""


def test_an_interrupted_search_has_an_answer_but_writes_none(concluded):
    """best.json belongs to a search that is over."""
    result = concluded(small_run(), stop_reason=None)
    assert result.dataloader["num_workers"] == 5
    assert not result.best_path.exists()


def test_the_table_compares_with_yours(concluded):
    """Yours, the best with its gain and interval, up to three that are tied, and what to paste."""
    records = [baseline()] + [record(n, num_workers=n, rate_sps=1000.0 + n) for n in range(4, 9)]
    text = printed(concluded([*records, record(20, num_workers=16, status="failed", failure_message="[/shm] full")]))
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert [line[0] for line in lines[1:6]] == ["yours", "best", "tied", "tied", "tied"]
    assert lines[1][1:4] == ["b64", "w0", "400"]
    assert lines[2][1:4] == ["b64", "w4", "p2"]
    assert "2.51x" in lines[2]
    assert "0.5 GB" in text
    assert "Failed: b64 w16 p2: [/shm] full" in text
    assert f"Ended because {OVER}." in text
    assert "Not confirmed" in text
    paste = next(line for line in text.splitlines() if line.startswith("Paste: "))
    assert "DataLoader(dataset, batch_size=64, num_workers=4, " in paste


def test_failures_that_differ_in_numbers_are_listed_once(concluded):
    """Which samples were in the batch, or how many were tried, is no other reason."""
    messages = ("bad file '3.npy' (raised for samples 1, 2)", "bad file '7.npy' (raised for samples 5, 6, 7)", "no items in any of 11,116 batches")
    failed = [record(number, status="failed", failure_message=each) for number, each in enumerate((*messages, "no items in any of 13,763 batches"), 1)]
    lines = [line for line in printed(concluded([baseline(), *failed])).splitlines() if line.startswith("Failed: ")]
    assert [line.partition(": ")[2].partition(": ")[2] for line in lines] == [messages[0], messages[2]]
    assert _reasons(concluded(failed).failures) == f"{messages[0]}; {messages[2]}"


def test_what_fails_without_workers_too_is_no_fault_of_the_settings(concluded):
    """Where only the user's own setting was measured, because the others met the sample, no further trials are advised."""
    message = "ValueError: broken (raised for sample 777; with 0 workers too)"
    failed = [record(number, num_workers=2**number, status="failed", failure_message=message) for number in (1, 2, 3)]
    text = printed(concluded([baseline(), *failed]))
    assert f"Failed: b64 w2 p2 and 2 more settings: {message}" in text
    assert "What fails with 0 workers too does not depend on the number of workers" in text
    assert "the others that were tried failed" in text
    assert "feedrate resume" not in text


def test_the_table_names_the_users_unit(concluded):
    """Tokens are not samples."""
    assert "tokens/s" in printed(concluded(small_run()), "tokens")


def test_yours_may_be_the_best(concluded):
    """The table has one row, the answer claims no gain, and reports what the rounds confirmed without reservation."""
    records = [baseline(1000.0), record(1, num_workers=4, rate_sps=500.0)]
    text = printed(concluded([*records, *in_rounds({0: 1000.0, 4: 500.0})]))
    assert "best (yours)" in text
    assert "1.00x" in text
    assert "Nothing faster than yours was found: keep it." in text
    assert "Open:" not in text


def test_a_compute_bound_training_is_told_so(concluded):
    """No loader setting makes a difference: that is an answer."""
    result = concluded([baseline(1960.0), record(1, num_workers=4, rate_sps=1970.0)])
    assert result.verdict == "compute-bound"
    lines = explain(result)
    assert lines[0].startswith("Why: compute-bound: 98% of the ceiling (2,000/s without loading)")
    assert "The training step is the limit here: no loader setting makes a real difference." in lines


def test_a_busy_machine_is_named(concluded):
    """The rates would differ on a quiet one, and best.json says that the host was shared."""
    result = concluded([baseline(foreign_cpu_fraction=0.4)])
    assert result.best["scope"]["exclusive_host"] is False
    assert any(line.startswith("Shared host: during 1 of ") and "(up to 40%)" in line for line in explain(result))
    quiet = concluded([baseline(foreign_cpu_fraction=0.01)])
    assert quiet.best["scope"]["exclusive_host"] is True


def test_a_copy_measured_once_counts_for_its_batch_size(concluded):
    """The copy alone is timed with the baseline; it explains the rate of the best setting that copies in the same way."""
    copied = {"copy_only_num_items": [1000], "copy_only_duration_s": [1.0]}
    records = [
        baseline(200.0, step_only_sps=2000.0, **copied),
        record(1, num_workers=4, rate_sps=640.0, window_wait_s=[0.0] * 8, own_cpu_fraction=0.1, num_cpus=8),
    ]
    result = concluded(records)
    assert result.verdict == "transfer-bound"
    assert "copying to the accelerator takes 64% of the time (1,000/s at most)" in result.best["verdict_evidence"]
    records[1]["pin_memory"] = True
    assert concluded(records).verdict == "loader-bound (waiting)"


def test_memory_that_grows_is_named(concluded):
    """What it comes to at the end of an epoch, extrapolated; memory that stays is not worth a line."""
    known = {"tree_pss_bytes": 2_000_000_000, "tree_uss_bytes": 1_000_000_000, "epoch_samples": 1_000_000}
    result = concluded([baseline(tree_uss_growth_bytes_per_batch=1_000_000.0, **known)])
    assert result.best["memory"]["end_of_epoch_bytes"] == pytest.approx(1e9 + 1e6 * (1_000_000 / 64 - 80))
    assert any(line.startswith("Memory grows: 16.5 GB at the end of an epoch") for line in explain(result))
    assert result.best["memory"]["pss_bytes"] == 2e9
    stays = concluded([baseline(tree_uss_growth_bytes_per_batch=0.0, **known)])
    assert not any(line.startswith("Memory grows") for line in explain(stays))


def test_the_state_of_the_page_cache_is_in_the_scope(concluded):
    """A rate from storage is no rate from memory; the verdict names it."""
    result = concluded([baseline(cache_state="mixed", throttled_fraction=0.5)])
    assert result.best["scope"]["cache"] == "mixed"
    assert "samples came from storage" in result.best["verdict_evidence"]
    assert any("CPU quota ran out in 50% of its periods" in line for line in explain(result))


def in_rounds(rates, num_rounds=6):
    """Records of confirmation rounds: number of workers -> rate; the baseline has 0."""
    return [
        record(
            number, num_workers=workers, rate_sps=sps * (1 + 0.004 * (-1) ** number), kind="confirm", round=number,
            position=position, origin="finalist" if workers else "baseline",
        )
        for number in range(1, num_rounds + 1)
        for position, (workers, sps) in enumerate(rates.items())
    ]  # fmt: skip


def test_rounds_decide_over_what_was_read_before(concluded):
    """w8 read 1,200 once; in the rounds w4 is as fast, and cheaper. The speed-up is that of the rounds."""
    searched = [baseline(), record(1, num_workers=8, rate_sps=1200.0), record(2, num_workers=4, rate_sps=990.0)]
    result = concluded([*searched, *in_rounds({0: 500.0, 4: 1000.0, 8: 1002.0})])
    best = result.best
    assert (best["dataloader"]["num_workers"], best["confirmed"]) == (4, True)
    assert best["throughput"]["samples_per_second"] == pytest.approx(1000.0, rel=0.01)
    assert best["baseline"]["speedup"] == pytest.approx(2.0, rel=0.001)
    low, high = best["baseline"]["speedup_ci95"]
    assert high - low < 0.1
    assert [entry["num_workers"] for entry in best["tied_with"]] == [8]
    assert (best["search"]["num_trials"], best["search"]["num_rounds"]) == (3, 6)
    text = printed(result)
    assert "Confirmed in 6 interleaved rounds." in text
    assert "Not confirmed" not in text
    assert "was measured faster" not in text


def test_a_gain_that_rounds_do_not_show_is_said(concluded):
    """Yours, 8 workers, and 2 workers are as fast: the answer is cheaper, and no gain is claimed."""
    yours = record(0, num_workers=8, rate_sps=1000.0, origin="baseline")
    rounds = [
        each | {"origin": "baseline" if each["num_workers"] == 8 else "finalist"} for each in in_rounds({8: 1000.0, 2: 1001.0})
    ]
    text = printed(concluded([yours, record(1, num_workers=2, rate_sps=1050.0), *rounds]))
    assert "No significant gain over yours, but it needs fewer workers." in text
    again = [each | {"origin": "finalist" if each["num_workers"] == 8 else "baseline"} for each in in_rounds({8: 800.0, 2: 1001.0})]
    first = record(0, num_workers=2, rate_sps=1000.0, origin="baseline")
    text = printed(concluded([first, record(1, num_workers=8, rate_sps=1050.0), *again]))
    assert "Nothing faster than yours was found: keep it." in text


def test_what_could_not_be_told_apart_is_named(concluded):
    """Three rounds, 1.2 % behind: time ran out."""
    searched = [baseline(), record(1, num_workers=8, rate_sps=1000.0), record(2, num_workers=4, rate_sps=990.0)]
    text = printed(concluded([*searched, *in_rounds({0: 500.0, 4: 988.0, 8: 1000.0}, 3)]))
    assert "Confirmed in 3 interleaved rounds; in that time, b64 w4 p2 could not be distinguished from the best one." in text


def test_a_baseline_that_repeats_its_first_epoch_is_compared_with_and_not_the_answer(concluded):
    """Its rate is true, so that the speed-up counts; that it is the fastest does not make it the answer."""
    left_out = {"max_num_workers": None, "reason": None, "persistent_workers": False, "epochs_reason": "every epoch is the first one"}
    own = {"num_workers": 2, "persistent_workers": True, "origin": "baseline", "step_only_sps": 2000.0}
    records = [record(0, rate_sps=1000.0, **own), record(1, num_workers=4, rate_sps=800.0), record(2, num_workers=1, rate_sps=500.0)]
    result = concluded(records, disqualified=left_out)
    check_best(result.best)
    jsonschema.validate(result.best, best_schema(), jsonschema.Draft202012Validator)
    assert result.dataloader["num_workers"] == 4
    assert result.best["baseline"]["speedup"] == pytest.approx(0.8, rel=0.01)
    lines = explain(result)
    assert "Left out: settings with workers and persistent_workers=True, because every epoch is the first one; see feedrate check." in lines
    assert "Your own setting is one of them: it is measured for comparison, but cannot be the answer." in lines
    assert not any("was measured faster" in line or "No significant gain" in line for line in lines)
    assert concluded(records).dataloader["persistent_workers"] is True
