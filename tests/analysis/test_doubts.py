"""analysis/doubts.py: what the answer firmly rests on, what is open, and that the command which settles it works."""

import io
import shlex

import pytest
from rich.console import Console
from synthetic import record, write_run

from feedrate.analysis import load_run, sections
from feedrate.analysis.export import export_tables
from feedrate.analysis.page import render_page
from feedrate.analysis.run_folder import RunFolder
from feedrate.search.answers.wording import explain, print_result
from feedrate.search.cli.main import _parser
from feedrate.search.result import conclude
from feedrate.search.space.dimension import Choice
from feedrate.search.space.search_space import SearchSpace

FIRM = ("keep it.", "training step is the limit here")


def in_rounds(rates, **columns):
    """Three rounds: number of workers -> rate; the baseline has 0."""
    return [
        record(
            number, num_workers=workers, rate_sps=sps * (1 + 0.004 * (-1) ** number), kind="confirm", round=number,
            position=position, origin="finalist" if workers else "baseline", **columns,
        )
        for number in range(1, 4)
        for position, (workers, sps) in enumerate(rates.items())
    ]  # fmt: skip


def yours(rate_sps=1000.0, **columns):
    return record(0, num_workers=0, rate_sps=rate_sps, origin="baseline", **columns)


def rising(made):
    """The same trial, whose windows became twice as fast."""
    durations = made["window_duration_s"]
    return made | {"window_duration_s": [each * (2 - index / len(durations)) for index, each in enumerate(durations)]}


@pytest.fixture
def concluded(tmp_path):
    def conclude_records(records, **search):
        folder = write_run(tmp_path / "run", records, **search)
        return conclude(RunFolder(folder), "12 settings were tried (--max-trials)")

    return conclude_records


def said(result):
    return "\n".join(explain(result))


CONFIRMED = [yours(), record(1, num_workers=4, rate_sps=900.0), *in_rounds({0: 1000.0, 4: 900.0})]


def test_narrow_quiet_confirmed_rates_are_said_firmly(concluded):
    result = concluded(CONFIRMED)
    assert "Nothing faster than yours was found: keep it." in said(result)
    assert "Open:" not in said(result)
    assert result.best["search"]["open"] == []
    assert result.best["search"]["settle"] is None


@pytest.mark.parametrize(
    ("records", "words", "command"),
    [
        ([yours(), record(1, num_workers=4, rate_sps=900.0)], "no setting was measured again in rounds", "resume"),
        (
            [yours(num_windows=1), record(1, num_workers=4, rate_sps=900.0, num_windows=1)],
            "rates are uncertain (b64 w0 by ±39%)",
            "resume",
        ),
        (
            [yours(foreign_cpu_fraction=0.6), record(1, num_workers=4, rate_sps=900.0)],
            "other processes used up to 60% of the machine while the settings were measured",
            "resume",
        ),
        (
            [yours(), record(1, num_workers=4, rate_sps=900.0, steal_fraction=0.2), *in_rounds({0: 1000.0, 4: 900.0}, steal_fraction=0.2)],
            "other processes used up to 20% of the machine",
            "resume",
        ),
        ([yours(), rising(record(1, num_workers=4, rate_sps=1200.0))], "b64 w4 p2 was still rising (1.", "search"),
        ([rising(yours()), record(1, num_workers=4, rate_sps=700.0)], "b64 w0 was still rising (1.", "search"),
    ],
    ids=["unconfirmed", "wide", "busy", "stolen", "rival rises", "yours rises"],
)
def test_what_is_open_is_said_instead_of_firm_words(concluded, records, words, command):
    """In the last lines, on the page, in Markdown and in the headline, with one command that the command line takes."""
    result = concluded(records)
    text = said(result)
    assert not any(firm in text for firm in FIRM)
    assert words in text.partition("Open: ")[2].partition("\n")[0]
    line = next(line for line in text.splitlines() if line.startswith("To settle it"))
    argv = shlex.split(line.partition(": ")[2])
    assert argv[:2] == ["feedrate", command]
    args = _parser().parse_args(argv[1:])
    assert (args.run if command == "resume" else args.workload) == (str(result.folder) if command == "resume" else "toy.py:workload")
    run = load_run(result.folder)
    assert "the baseline is the best" not in sections.headline(run, result.ranking)
    for told in (render_page(run), markdown(run)):
        assert words.replace("(", "").split()[0] in told
        assert "To settle it" in told


def markdown(run):
    (path,) = export_tables(run, run.path, ["markdown"])
    return path.read_text()


def test_longer_trials_are_asked_for_where_rates_still_changed(concluded):
    """The same search with three times the time of a trial; not in the same folder, and with rounds."""
    argv = ["search", "toy.py:workload", "--max-trial-s", "5", "--no-confirm", "--time-budget=60s", "--out", "there", "--num-workers", "0..8"]
    options = {"max_trial_s": 5.0, "time_budget_s": 60.0, "confirm": False}
    text = said(concluded([rising(yours()), record(1, num_workers=4, rate_sps=700.0)], argv=argv, options=options))
    assert "To settle it: feedrate search toy.py:workload --num-workers 0..8 --max-trial-s 15 --time-budget 240s" in text


def test_a_run_without_rounds_is_resumed_with_them(concluded):
    text = said(concluded([yours(), record(1, num_workers=4, rate_sps=900.0)], options={"confirm": False}))
    line = next(line for line in text.splitlines() if line.startswith("To settle it"))
    assert line.endswith(" --confirm")
    assert _parser().parse_args(shlex.split(line.partition(": ")[2])[1:]).confirm


def test_at_the_known_ceiling_nothing_needs_to_be_confirmed(concluded):
    """No rounds could show a gain; where the rate still changed, it is not said firmly all the same."""
    records = [yours(1960.0, step_only_sps=2000.0), record(1, num_workers=4, rate_sps=1970.0)]
    assert "The training step is the limit here: no loader setting makes a real difference." in said(concluded(records))
    wide = [yours(1960.0, step_only_sps=2000.0, num_windows=1), record(1, num_workers=4, rate_sps=1970.0)]
    assert "The training step is the limit here" not in said(concluded(wide))


def test_another_batch_size_that_is_faster_is_explained(concluded):
    """The answer's step is at its ceiling; twice the batch size read twice the rate, less surely: neither line denies the other."""
    records = [
        yours(980.0, step_only_sps=1000.0),
        record(1, num_workers=4, rate_sps=1960.0, batch_size=128, num_windows=1, noise_fraction=0.0),
        record(2, num_workers=2, rate_sps=600.0),
    ]
    result = concluded([*records, *in_rounds({0: 980.0, 2: 600.0})])
    assert result.dataloader["batch_size"] == 64
    text = said(result)
    assert "no loader setting makes a real difference at batch size 64" in text or "is not certain" in text
    assert "b128 w4 p2 was measured faster at another batch size, at 1,960/s" in text
    stream = io.StringIO()
    print_result(result, Console(file=stream, width=160))
    assert "Best by batch size: b64" in stream.getvalue()


def test_what_read_more_than_yours_is_not_called_tied(concluded):
    """The setting's interval reaches below the baseline, so the baseline stays the answer; the table calls the setting "not sure"."""
    result = concluded([yours(400.0), record(1, num_workers=4, rate_sps=600.0, num_windows=1)])
    stream = io.StringIO()
    print_result(result, Console(file=stream, width=160))
    rows = [line.split() for line in stream.getvalue().splitlines() if "b64 w4 p2" in line]
    assert rows[0][:2] == ["not", "sure"]


def test_only_yours_is_followed_by_a_command_that_tries_others(concluded):
    """Also where as many settings were tried as --max-trials allowed."""
    text = said(concluded([yours()], options={"max_trials": 1}))
    line = next(line for line in text.splitlines() if line.startswith("Only your own setting was measured"))
    assert line.endswith("--max-trials 11")


ONE = {"num_workers": Choice((0,)), "batch_size": Choice((64,))}


def only_yours(result):
    return next(line for line in said(result).splitlines() if line.startswith("Only your own setting was measured"))


def test_a_space_of_one_setting_is_not_extended_by_trying_more(concluded):
    """Nothing is left to try, so no command is advised that would try it; where another setting failed, that is the reason."""
    space = SearchSpace.default(num_cpus=8, has_accelerator=False, given=ONE)
    alone = only_yours(concluded([yours()], space=space.to_json(), options={"max_trials": 1}))
    assert "feedrate resume" not in alone
    assert alone.endswith("To compare it with others, search more values, for example --num-workers 0..16.")
    more = ONE | {"num_workers": Choice((0, 4)), "prefetch_factor": Choice((2,)), "persistent_workers": Choice((False,))}
    space = SearchSpace.default(num_cpus=8, has_accelerator=False, given=more).to_json()
    failed = record(1, num_workers=4, status="failed")
    assert only_yours(concluded([yours(), failed], space=space)).endswith("every other setting of the search space failed.")
    assert "feedrate resume" in only_yours(concluded([yours()], space=space))


def test_where_settings_repeat_data_the_others_are_tried(concluded):
    """No line says that something is open and leaves out how to settle it."""
    disqualified = {"max_num_workers": 1, "reason": "every worker delivers the same samples", "persistent_workers": None, "epochs_reason": None}
    with_one = ONE | {"num_workers": Choice((0, 1))}
    space = SearchSpace.default(num_cpus=8, has_accelerator=False, given=with_one).to_json()
    result = concluded([yours()], space=space, disqualified=disqualified)
    assert "feedrate resume" in only_yours(result)
    assert "until it is settled" not in said(result)
    space = SearchSpace.default(num_cpus=8, has_accelerator=False, given=ONE).to_json()
    assert only_yours(concluded([yours()], space=space, disqualified=disqualified)).endswith("no other one that does not repeat data.")
