"""analysis/page.py: one file that works offline, with the answer first; no text of the user becomes HTML."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic import example_best, record, small_run, write_run

from feedrate.analysis import load_run
from feedrate.analysis.figures import batch_size_figure, heat_figure, pareto_figure, throughput_figure, timeline_figure
from feedrate.analysis.page import render_page, write_page
from feedrate.analysis.questions import pareto
from feedrate.analysis.run_folder import RunError
from feedrate.analysis.summary import best_by_batch_size, ranking

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)> " ' & $title ${body} --> <!-- %{x} </td>"""
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: tags in order, text by tag, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rendered(folder: Path, records: list[dict[str, Any]], **search: Any) -> tuple[str, Page]:
    text = render_page(load_run(write_run(folder, records, **search)))
    return text, Page(text)


def scripts_with_the_library(page: Page) -> int:
    return sum("plotly.js v" in text for text in page.text.get("script", []))


def test_the_answer_comes_first_and_every_section_is_there(tmp_path: Path) -> None:
    """Answer, plots, ranking, failures, machine, how to repeat it: in this order, each under its heading."""
    text, page = rendered(tmp_path, small_run(), best=example_best())
    assert [each.get("id") for each in page.all("h2")] == [
        "answer", "throughput", "sizes", "timeline", "memory", "ranking", "batch-sizes", "effects", "time", "noise",
        "failures", "machine", "repeat",
    ]  # fmt: skip
    assert len(page.all("h1")) == 1
    assert "b64 w6 p4 pin pers trains 1,843 samples/s, 4.46x the baseline" in page.text["p"]
    assert "4.46x [4.31-4.62] the baseline b64 w0 at 413 samples/s" in page.text["td"]
    assert "1,843 samples/s (95 % interval 1,821-1,866) per rank" in page.text["td"]
    assert "compute-bound" in page.text["td"]
    assert any(code.startswith("DataLoader(dataset, batch_size=64, num_workers=6") for code in page.text["code"])
    assert "feedrate search toy.py:workload --num-workers 0..8" in page.text["code"]
    assert "the worker was killed" in page.text["td"]
    assert text.index('id="answer"') < text.index("plotly.js v")


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    """Plotly is in it exactly once; nothing is loaded from elsewhere, and the browser is told to refuse it."""
    _, page = rendered(tmp_path, small_run(), best=example_best())
    assert scripts_with_the_library(page) == 1
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "base", "object", "embed", "form")
        assert not {"src", "href", "action", "srcset"} & attributes.keys()
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert not re.search(r"@import|url\(", "".join(page.text["style"]))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """A workload, unit, host, message, traceback or argument that is HTML or a script is shown, never run."""
    plain = rendered(tmp_path / "plain", [record(0), record(1, status="failed")])[1]
    records = [
        record(0, origin=HOSTILE, hostname=HOSTILE, device_name=HOSTILE, kind=HOSTILE, multiprocessing_context="spawn"),
        record(1, status="failed", failure_message=HOSTILE, failure_traceback=HOSTILE, failure_kind=HOSTILE),
    ]
    records[0]["multiprocessing_context"] = HOSTILE
    workload = {"name": HOSTILE, "unit": HOSTILE, "target": HOSTILE}
    text, page = rendered(
        tmp_path / HOSTILE[:8].replace("/", "_"), records, workload=workload, argv=["feedrate", HOSTILE],
        hardware={HOSTILE: HOSTILE, "gpus": [HOSTILE]}, versions={HOSTILE: HOSTILE},
    )  # fmt: skip
    assert len(page.all("script")) == len(plain.all("script"))
    assert page.all("img") == []
    assert "alert(1)</script>" not in text
    assert "<img" not in re.sub(r"plotly\.js v.*?</script>", "", text, flags=re.DOTALL)
    assert HOSTILE in page.text["td"]
    assert HOSTILE in "".join(page.text["pre"])
    assert any(HOSTILE in title for title in page.text["title"])
    ours = [script for script in page.text["script"] if "plotly.js v" not in script]
    assert not any(re.search(r"<(?!=)\s*[a-z/!]", script) for script in ours)


def test_plot_labels_are_escaped_for_plotly(tmp_path: Path) -> None:
    """Plotly reads labels as HTML, so the figures hold entities, not tags."""
    records = [record(0, origin="<b>x</b>"), record(1, status="failed", failure_message="<a href='http://e'>x</a>")]
    run = load_run(write_run(tmp_path, records, workload={"unit": "<i>u</i>"}))
    for figure in (throughput_figure(run, ranking(run)), timeline_figure(run)):
        assert figure is not None
        text = figure.to_json()
        assert not re.search(r"<(?!br>)[a-z/]", text.replace("\\u003c", "<").replace("\\u003e", ">"))
        assert "&lt;i&gt;u" in text or "\\u0026lt;i" in text


def test_stopped_and_failed_trials_are_told_apart(tmp_path: Path) -> None:
    """By symbol and name, not by colour alone; intervals are drawn, failed trials lie on the axis."""
    run = load_run(write_run(tmp_path, small_run()))
    throughput, timeline = throughput_figure(run, ranking(run)), timeline_figure(run)
    points = {trace.name: trace for trace in throughput.data if trace.mode == "markers"}
    assert set(points) == {"batch 32", "batch 32, stopped early", "batch 64", "batch 64, stopped early"}
    assert points["batch 64"].marker.symbol != points["batch 64, stopped early"].marker.symbol
    assert points["batch 64"].marker.color == points["batch 64, stopped early"].marker.color
    assert min(points["batch 64"].error_y.array) > 0
    assert throughput.layout.yaxis.range[1] < 2 * 1420
    trials = {trace.name: trace for trace in timeline.data}
    assert set(trials) == {"best so far", "complete", "stopped early", "failed"}
    assert list(trials["failed"].y) == [0.0, 0.0]
    assert list(trials["best so far"].y) == sorted(trials["best so far"].y)
    assert trials["complete"].x[0] == pytest.approx(0.25)


def test_a_running_search_reloads_itself(tmp_path: Path) -> None:
    """The page reloads every 10 s and mentions it, until there is a best.json or search.json says that the search is finished."""
    _, running = rendered(tmp_path / "running", small_run())
    refresh = [each["content"] for each in running.all("meta") if each.get("http-equiv") == "refresh"]
    assert refresh == ["10"]
    assert any("reloads itself every 10 s" in text for text in running.text["p"])
    for name, search in (("done", {"best": example_best()}), ("nothing", {"finished": True})):
        _, done = rendered(tmp_path / name, small_run(), **search)
        assert not [each for each in done.all("meta") if each.get("http-equiv") == "refresh"]
        assert "not finished" not in "".join(done.text["p"])


def test_an_empty_run_gives_a_page(tmp_path: Path) -> None:
    """It says that there is nothing yet, and is small: no plot, no plotly."""
    text, page = rendered(tmp_path, [])
    assert "No trial was measured yet" in page.text["p"]
    assert scripts_with_the_library(page) == 0
    assert len(text) < 20_000
    (tmp_path / "search.json").write_text('{"schema": "feedrate/search/1", "study": "s"}')
    page = Page(render_page(load_run(tmp_path)))
    assert "The command was not recorded." in page.text["p"]


def test_only_failures_give_a_page(tmp_path: Path) -> None:
    """They are the answer, in the table and on the timeline."""
    _, page = rendered(tmp_path, [record(number, status="failed") for number in range(3)], finished=True)
    assert "Nothing that works was found: 3 trials failed, none was measured" in page.text["p"]
    assert scripts_with_the_library(page) == 1
    headings = [each.get("id") for each in page.all("h2")]
    assert headings == ["answer", "timeline", "ranking", "failures", "machine", "repeat"]
    assert "Traceback, 3 trials" in page.text["summary"]


def test_people_who_do_not_see_the_plots_get_the_same(tmp_path: Path) -> None:
    """Language, captions, scopes, a label for every plot, a word without JavaScript, colours for light and dark."""
    text, page = rendered(tmp_path, small_run(), best=example_best())
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("caption")) == len(page.all("table")) > 3
    assert all(each.get("scope") in ("col", "row") for each in page.all("th"))
    plots = [each for each in page.all("div") if each.get("role") == "img"]
    assert [bool(each["aria-label"]) for each in plots] == [True] * 4
    assert len(page.all("figcaption")) == 4
    assert len(page.all("noscript")) == 1
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_1000_trials_make_no_large_page(tmp_path: Path) -> None:
    """Beyond plotly's 4.8 MB the page stays under 1.5 MB, long tables folded; how long it takes is in benchmarks/analysis_scale.py."""
    statuses = ("complete", "complete", "pruned", "failed")
    records = [
        record(n, num_workers=n % 33, batch_size=(32, 64, 128)[n % 3], rate_sps=500.0 + n, status=statuses[n % 4],
               prefetch_factor=1 + n // 99, step_only_sps=3000.0)
        for n in range(1000)
    ]  # fmt: skip
    folder = write_run(tmp_path, records)
    write_page(load_run(folder), folder / "report.html")
    text = (folder / "report.html").read_text()
    assert len(text) < 4_900_000 + 1_500_000
    assert re.search(r"\d more rows", text)
    Page(text)


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """One sentence with the way out."""
    run = load_run(write_run(tmp_path, []))
    with pytest.raises(RunError, match=r"cannot be written: No such file or directory. Name another file"):
        write_page(run, tmp_path / "none" / "report.html")


def test_throughput_by_batch_size_has_its_knee_and_the_steps_own_rate(tmp_path: Path) -> None:
    """The best setting at 32 and at 64 beside the training step alone; no such plot for one batch size."""
    run = load_run(write_run(tmp_path / "two", small_run()))
    figure = batch_size_figure(run, best_by_batch_size(run))
    assert figure is not None
    assert [list(trace.x) for trace in figure.data] == [[32, 64], [32, 64]]
    assert list(figure.data[0].y) == pytest.approx([1500.0, 2000.0])
    text, page = rendered(tmp_path / "page", small_run())
    assert "Throughput by batch size" in "".join(page.text["h2"])
    assert "larger batches gain less than" not in text, "64 is the largest that was tried"
    flat, _ = rendered(tmp_path / "flat", [record(n, num_workers=2, rate_sps=700.0, batch_size=32 * n) for n in (1, 2)])
    assert "From batch size 32 on, larger batches gain less than 5 %" in flat
    one, _ = rendered(tmp_path / "one", [record(1)])
    assert "Throughput by batch size" not in one


def test_the_heat_map_is_of_workers_and_prefetching_at_the_best_batch_size(tmp_path: Path) -> None:
    """The best rate a cell; other batch sizes, stopped trials and 0 workers are not in it; a single row is no map."""
    records = [
        record(0, num_workers=0, rate_sps=400.0),
        record(1, num_workers=2, rate_sps=700.0),
        record(2, num_workers=2, rate_sps=800.0, persistent_workers=True),
        record(3, num_workers=4, rate_sps=1000.0, prefetch_factor=4),
        record(4, num_workers=4, rate_sps=300.0, status="pruned"),
        record(5, num_workers=4, rate_sps=999.0, batch_size=32),
    ]
    run = load_run(write_run(tmp_path / "run", records))
    (heat,) = heat_figure(run, ranking(run)).data
    assert (list(heat.x), list(heat.y)) == (["2", "4"], ["2", "4"])
    assert [[value and round(value) for value in row] for row in heat.z] == [[800, None], [None, 1000]]
    few = load_run(write_run(tmp_path / "few", records[:3]))
    assert heat_figure(few, ranking(few)) is None
    page = render_page(run)
    assert "Workers and prefetching" in page


def test_the_front_of_throughput_and_memory_is_joined(tmp_path: Path) -> None:
    """The others are open circles; one setting alone is no plot."""
    records = [record(n, num_workers=n, rate_sps=rate) for n, rate in ((0, 400.0), (2, 700.0), (4, 600.0))]
    run = load_run(write_run(tmp_path / "run", records))
    inside, front = pareto_figure(run, ranking(run), pareto(run)).data
    assert (list(inside.x), inside.mode) == ([1.3], "markers")
    assert (list(front.x), front.mode) == ([0.5, 0.9], "lines+markers")
    alone = load_run(write_run(tmp_path / "alone", records[:1]))
    assert pareto_figure(alone, ranking(alone), pareto(alone)) is None
