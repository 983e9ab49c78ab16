"""The plots of what the model of loading expects hold the measured settings, the band and every change."""

import numpy as np
import pytest
from test_outlook import STEP_S, run_in

from feedrate.analysis import ranking
from feedrate.analysis.outlook import outlook_of
from feedrate.analysis.outlook_figures import curve_figure, what_if_figure
from feedrate.analysis.page import render_page


def test_the_curve_goes_through_the_measured_settings(tmp_path):
    run = run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.006)
    ranked, found = ranking(run), outlook_of(run)
    traces = {trace.name: trace for trace in curve_figure(run, ranked, found).data}
    expected = traces["expected"]
    assert list(expected.x) == list(range(17))
    measured = {int(x): y for name in ("measured", "the answer") for x, y in zip(traces[name].x, traces[name].y, strict=True)}
    assert set(measured) == {0, 2, 4, 8, 16}
    assert [expected.y[workers] for workers in measured] == pytest.approx(list(measured.values()), rel=0.05)
    assert list(traces["the answer"].x) == [16]
    assert set(traces["training step alone"].y) == {1 / STEP_S}


def test_the_band_is_as_wide_as_the_error_of_the_model(tmp_path):
    run = run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.038, noise=0.12)
    found = outlook_of(run)
    low, high, expected = (np.array(trace.y) for trace in curve_figure(run, ranking(run), found).data[:3])
    assert np.log(high / expected) == pytest.approx(1.96 * found.sd_fraction)
    assert np.log(expected / low) == pytest.approx(1.96 * found.sd_fraction)


def test_each_change_is_a_bar(tmp_path):
    run = run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.038)
    found = outlook_of(run)
    bars, now = what_if_figure(run, found).data
    assert dict(zip(bars.y, bars.x, strict=True)) == {each.change: each.rate.sps for each in found.what_ifs}
    assert list(bars.x) == sorted(bars.x)
    assert set(now.x) == {ranking(run)["throughput_sps"].max()}


def test_the_page_has_both_and_leaves_them_out_where_nothing_is_predicted(tmp_path):
    page = render_page(run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.038))
    assert "plot-expected" in page and "plot-changes" in page and "so that loading never waits" in page
    nothing = run_in(tmp_path / "few", (0, 2), cpu_s=0.002, wait_s=0.038)
    assert curve_figure(nothing, ranking(nothing), outlook_of(nothing)) is what_if_figure(nothing, outlook_of(nothing)) is None
    page = render_page(nothing)
    assert "plot-expected" not in page and "plot-changes" not in page
