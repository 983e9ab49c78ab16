"""options.py: how a search is run, refused when it cannot work, and kept in search.json without secrets."""

import json

import pytest

from feedrate.search.options import SearchOptions, between_epochs, parse_config, parse_duration_s, without_password
from feedrate.trainables.config import LoaderConfig


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("1.5h", 5400), ("40ms", 0.04), (" .5 s ", 0.5), ("0", 0)],
)
def test_a_duration_is_a_number_with_a_unit(text, seconds):
    """Seconds, where no unit is named."""
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5 minutes", "five", "1e3", "inf", "nan", "5m30s", "s"])
def test_what_is_no_duration_is_refused(text):
    """With examples of what to write."""
    with pytest.raises(ValueError, match="is not a duration: write 90s, 5m, 1h or 40ms"):
        parse_duration_s(text)


def test_a_negative_duration_is_refused():
    with pytest.raises(ValueError, match="must be 0 or more, not -5s"):
        parse_duration_s("-5s")


def test_a_setting_is_names_with_values():
    """Numbers, true, false and none are read as such, a start method as text; spaces do not matter."""
    text = "num_workers=4, prefetch_factor=2 ,pin_memory=true,persistent_workers=False,multiprocessing_context=spawn"
    assert parse_config(text) == LoaderConfig(
        num_workers=4,
        prefetch_factor=2,
        pin_memory=True,
        batch_size=None,
        multiprocessing_context="spawn",
    )
    assert parse_config("batch_size=none,num_workers=1") == LoaderConfig(num_workers=1, batch_size=None)
    assert parse_config("batch_size=64") == LoaderConfig(batch_size=64)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("workers=4", "'workers=4' is not a setting: write name=value with one of num_workers, batch_size"),
        ("num_workers", "'num_workers' is not a setting"),
        ("num_workers=-1", "num_workers must be 0 or more, not -1"),
        ("num_workers=many", "num_workers must be a whole number, not 'many'"),
        ("num_workers=2.5", "num_workers must be a whole number"),
        ("num_workers=true", "num_workers must be a whole number"),
        ("num_workers=2,prefetch_factor=0", "prefetch_factor must be 1 or more, not 0"),
        ("pin_memory=yes", "pin_memory is true or false, not 'yes'"),
        ("persistent_workers=1", "persistent_workers is true or false, not '1'"),
        ("num_workers=1,multiprocessing_context=thread", "must be one of fork, forkserver, spawn, not 'thread'"),
    ],
)
def test_an_impossible_setting_is_refused(text, sentence):
    """By its name, with the reason."""
    with pytest.raises(ValueError, match=sentence):
        parse_config(text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"time_budget_s": 0}, "--time-budget must be positive"),
        ({"time_budget_s": float("nan")}, "--time-budget must be positive"),
        ({"max_trial_s": -1}, "--max-trial-s must be positive, not -1"),
        ({"max_trials": 0}, "--max-trials must be 1 or more, not 0"),
        ({"epoch_samples": 0}, "--epoch-samples must be 1 or more, not 0"),
        ({"cpus_per_trial": 0}, "--cpus-per-trial must be 1 or more, not 0"),
        ({"gpus_per_trial": -1}, "--gpus-per-trial must be 0 or more, not -1"),
        ({"threads": 0}, "--threads must be 1 or more, not 0"),
        ({"objective": "fastest"}, "--objective must be one of epoch, steady, not 'fastest'"),
        ({"sampler": "grid"}, "--sampler must be one of gp, tpe, random, not 'grid'"),
        ({"amp": "fp16"}, "--amp must be one of bf16, not 'fp16'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, sentence):
    """By the name of the flag."""
    with pytest.raises(ValueError, match=sentence):
        SearchOptions(**options)


def test_options_survive_search_json():
    """What was asked is read back equal; fields of a newer version are ignored, those of an older one have defaults."""
    baseline = LoaderConfig(num_workers=4, batch_size=None, pin_memory=True)
    options = SearchOptions(
        time_budget_s=90.0, max_trials=7, objective="steady", baseline=baseline, seed=3, storage="sqlite:///a.db",
        amp="bf16", compile=True,
    )  # fmt: skip
    written = json.loads(json.dumps(options.to_json()))
    assert SearchOptions.from_json(written) == options
    assert SearchOptions.from_json(written | {"invented_later": 1}) == options
    assert SearchOptions.from_json({"seed": 3}) == SearchOptions(seed=3)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:secret@host:5432/db",
        "postgresql+psycopg://ann:secret@host/db?sslmode=require",
        "postgresql://ann:se@secret@host/db",
        "postgresql://ann@host/db?password=secret&sslmode=require",
        "postgresql://ann:secret@[::1/db",
        "--storage=postgresql://ann:secret@host/db",
    ],
)
def test_a_password_is_never_written(url):
    """Wherever the URL holds it, and also inside an argument of the command line; the rest stays readable."""
    kept = json.dumps(SearchOptions(storage=url).to_json())
    assert "secret" not in kept
    assert "***" in kept
    assert "ann" in kept
    assert "/db" in kept
    assert "secret" not in without_password(url)


@pytest.mark.parametrize("text", ["sqlite:///studies.db", "postgresql://ann@host/db", "http://host:8000/data", "a=b:c@d"])
def test_what_has_no_password_stays(text):
    """Word for word."""
    assert without_password(text) == text


def test_the_time_between_epochs_in_words():
    columns = {"between_epochs_s": 12.34, "between_epochs_parts_s": {"torch.save": 0.91, "train.py:28": 11.2}}
    assert between_epochs(columns) == "between epochs: 12.3 s, of which 11.2 s in the loop over the loader at train.py:28 and 0.91 s in torch.save"
    assert between_epochs({"between_epochs_s": 0.04, "between_epochs_parts_s": {}}) == "between epochs: 0.04 s"
    assert between_epochs({"between_epochs_s": 21332.6}) == "between epochs: 5.93 h"
    assert between_epochs({"between_epochs_failure": "it takes more than 30 s"}) == "the time between epochs is not known, because it takes more than 30 s"
    assert between_epochs({"between_epochs_s": 0.0003, "between_epochs_parts_s": {}}) is None
    assert between_epochs({}) is None
