"""display.py: what a search shows while it runs."""

import io
import re

import pytest
from rich.console import Console
from synthetic import record

from feedrate.analysis.estimate import record_rate
from feedrate.search.session.display import Display
from feedrate.trainables.config import LoaderConfig


class Clock:
    """A clock that the test moves forward."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def display(clock, *, terminal=False, **more):
    """A display and the text it writes."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, color_system=None)
    return Display(console, time_budget_s=300.0, clock=clock, **more), text


def finish(shown, number, **columns):
    """A trial ends, as a session says it."""
    ended = record(number, **columns)
    shown.finished(ended, record_rate(ended, "epoch"))


def empty(text):
    text.seek(0)
    text.truncate()


def test_a_line_for_every_event_where_there_is_no_terminal(clock):
    """Baseline, ceiling, trials that end, stop early or fail: each a line with the time, and no control characters."""
    shown, text = display(clock)
    shown.begin()
    shown.say("host-1 · CPU only")
    shown.started(0, LoaderConfig(num_workers=0, batch_size=64), "baseline")
    clock.now = 9.0
    finish(shown, 0, num_workers=0, rate_sps=400.0, origin="baseline")
    shown.ceiling(64, 2000.0, record_rate(record(0, num_workers=0, rate_sps=400.0), "epoch"))
    clock.now = 75.0
    finish(shown, 1, num_workers=4, rate_sps=1200.0)
    finish(shown, 2, num_workers=1, rate_sps=300.0, status="pruned", num_windows=5)
    finish(shown, 3, num_workers=8, status="failed", failure_message="/dev/shm is too small")
    shown.tick()
    shown.end()
    lines = text.getvalue().splitlines()
    assert lines[0] == "[0:00] host-1 · CPU only"
    assert lines[1].startswith("[0:09] yours: b64 w0  400 samples/s ±")
    assert lines[1].endswith("waits for data 25% of the time")
    assert lines[2] == "[0:09] ceiling at b64 (no loading): 2,000 samples/s  at most 5.00x to gain"
    assert lines[3].startswith("[1:15] trial 1: b64 w4 p2  1,200 samples/s ±")
    assert "(best b64 w4 p2 1,200)" in lines[3]
    assert "stopped early  (best b64 w4 p2" in lines[4]
    assert lines[5] == "[1:15] trial 3: b64 w8 p2  failed: /dev/shm is too small"
    assert len(lines) == 6
    assert "\x1b" not in text.getvalue()


def test_a_rate_that_still_changes_is_named_with_how_long_it_was_watched(clock):
    """Start-up and windows together; in rounds too."""
    shown, text = display(clock)
    ended = record(1, num_workers=4, rate_sps=1200.0, num_windows=6) | {"window_duration_s": [3.0] * 6, "iter_s": 1.0, "first_batch_s": 1.0, "settle_s": 0.2}
    shown.finished(ended, record_rate(ended, "epoch"), 1.8)
    shown.in_round(ended | {"round": 1}, record_rate(ended, "epoch"), -0.25)
    shown.finished(ended, record_rate(ended, "epoch"), 0.0)
    first, second, third = text.getvalue().splitlines()
    assert first.endswith("still rising (2.8 times the rate of its first windows) after 20 s")
    assert second.endswith("still falling (0.75 times the rate of its first windows) after 20 s")
    assert "still" not in third


def test_a_terminal_gets_a_panel_that_is_taken_away(clock):
    """It shows what was tried, the best setting with its rate, what runs, and the time left; lines stay above it."""
    shown, text = display(clock, terminal=True, max_trials=20)
    shown.begin()
    assert "none yet" in text.getvalue()
    assert "5:00" in text.getvalue()
    finish(shown, 0, num_workers=2, rate_sps=700.0)
    finish(shown, 1, num_workers=1, rate_sps=100.0, status="pruned", num_windows=5)
    finish(shown, 2, num_workers=8, status="failed")
    clock.now = 62.0
    empty(text)
    shown.started(3, LoaderConfig(num_workers=5, batch_size=64), "seed")
    panel = text.getvalue()
    assert "3 of 20 tried, 1 stopped early, 1 failed" in panel
    assert re.search(r"b64 w2 p2  \d\d\d samples/s", panel)
    assert "measuring b64 w5 p2 (seed)" in panel
    assert "time left" in panel
    assert "3:58" in panel
    assert "to gain" not in panel
    shown.ahead(70.0, 0.034)
    clock.now += 5.0
    empty(text)
    shown.tick()
    assert "another setting is expected to gain 3.4% (the search ends below 1%)" in text.getvalue()
    assert "about 1:05 if nothing better is found, 3:53 at most" in text.getvalue()
    shown.end()
    empty(text)
    shown.tick()
    assert text.getvalue() == ""
    shown.end()


def test_a_panel_never_counts_below_zero(clock):
    """When the budget is over while a trial ends, it says so; without a limit of trials none is shown."""
    shown, text = display(clock, terminal=True)
    shown.begin()
    clock.now = 400.0
    empty(text)
    shown.tick()
    panel = text.getvalue()
    shown.end()
    assert "over, the last trial is ending" in panel
    assert "0 tried" in panel
    assert "-" not in re.sub("\x1b.*?[A-Za-z]", "", panel)


@pytest.mark.parametrize("terminal", [False, True])
def test_square_brackets_stay_text(clock, terminal):
    """Units, messages and settings come from users: none of them is read as markup or made to fail."""
    shown, text = display(clock, terminal=terminal, unit="[red]tokens[/]")
    shown.begin()
    shown.say("note: [bold]not bold[/bold] [/]")
    finish(shown, 0, num_workers=2, rate_sps=700.0)
    finish(shown, 1, num_workers=8, status="failed", failure_message="KeyError: [/red]")
    shown.tick()
    shown.end()
    written = text.getvalue()
    assert "note: [bold]not bold[/bold] [/]" in written
    assert "failed: KeyError: [/red]" in written
    assert "[red]tokens[/]/s" in written


def test_waiting_for_the_host_is_said_once(clock):
    """However often it is reported; and again after another trial."""
    shown, text = display(clock)
    shown.begin()
    for _ in range(3):
        shown.waiting("another feedrate trial is measuring on this host")
    assert text.getvalue().count("waiting: another feedrate trial is measuring on this host") == 1
    shown.started(1, LoaderConfig(num_workers=2), "sampler")
    shown.waiting("another feedrate trial is measuring on this host")
    assert text.getvalue().count("waiting") == 2
    clock.now += 80
    for _ in range(2):
        shown.proceeds("slot obtained")
    assert text.getvalue().endswith("[1:20] slot obtained after 1:20\n")


def test_a_wait_on_a_cluster_names_its_host(clock):
    """On one machine, 'this host' is clear; on a cluster it is not."""
    shown, text = display(clock)
    shown.waiting("another feedrate trial is measuring on this host", "a")
    shown.names_hosts = True
    shown.waiting("another feedrate trial is measuring on this host", "b")
    first, second = text.getvalue().splitlines()
    assert first.endswith("] waiting: another feedrate trial is measuring on this host")
    assert second.endswith("] waiting on b: another feedrate trial is measuring on this host")
    shown.proceeds("the wait ended")
    assert "the wait ended after 0:00" in text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_is_quiet(clock, terminal):
    """Nothing at all, terminal or not."""
    shown, text = display(clock, terminal=terminal, quiet=True)
    shown.begin()
    shown.say("hello")
    shown.started(0, LoaderConfig(num_workers=2), "sampler")
    finish(shown, 0, rate_sps=700.0)
    shown.waiting("another feedrate trial is measuring on this host")
    shown.tick()
    shown.end()
    assert text.getvalue() == ""


def test_the_best_is_the_fastest_that_ran_to_its_end(clock):
    """A setting that was stopped early is not called the best, whatever it showed."""
    shown, _ = display(clock, quiet=True)
    finish(shown, 0, num_workers=2, rate_sps=700.0)
    finish(shown, 1, num_workers=3, rate_sps=9000.0, status="pruned", num_windows=5)
    finish(shown, 2, num_workers=4, rate_sps=600.0)
    assert shown.best is not None
    assert shown.best[0].num_workers == 2
    assert shown.counts == {"complete": 2, "pruned": 1, "failed": 0}


def test_a_ceiling_that_is_not_known_is_said_once(clock):
    """Others used the CPUs while the step was timed; the next trial of that batch size times it again."""
    shown, text = display(clock)
    why_not = "other processes used the machine while the step was timed"
    shown.ceiling(64, None, None, why_not)
    shown.ceiling(64, None, None, why_not)
    shown.ceiling(32, None, None, why_not)
    shown.ceiling(64, 2000.0, None)
    lines = text.getvalue().splitlines()
    assert [line.split(" (no loading): ")[1][:9] for line in lines] == ["not known", "not known", "2,000 sam"]
    assert "other processes" in lines[0]
