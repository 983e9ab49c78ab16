"""What the model of loading expects of a run, as plotly figures; each is None if nothing is predicted."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from feedrate.analysis.estimate import Z95
from feedrate.analysis.figures import COLOURS, axes_figure, intervals, plain
from feedrate.analysis.outlook import Outlook
from feedrate.analysis.run import Run
from feedrate.analysis.sections import number
from feedrate.analysis.summary import same


def curve_figure(run: Run, ranked: pd.DataFrame, found: Outlook) -> go.Figure | None:
    """Plot the expected rate at each number of workers with its band, the measured settings, the answer and the step alone.

    All are at the answer's batch size. `ranked` is `summary.ranking(run)`, and `found` is `outlook_of(run)`.
    """
    curve = found.curve
    if curve is None or found.sd_fraction is None or found.answer is None:
        return None
    figure = axes_figure("num_workers", f"{run.unit}/s", key="setting")
    expected, factor = np.array(curve.sps), np.exp(Z95 * found.sd_fraction)
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_scatter(x=curve.num_workers, y=(expected / factor).tolist(), showlegend=False, **band)
    figure.add_scatter(
        x=curve.num_workers, y=(expected * factor).tolist(), fill="tonexty", fillcolor="rgba(128,128,128,0.25)",
        name="95 % of settings, as expected", **band,
    )  # fmt: skip
    figure.add_scatter(x=curve.num_workers, y=expected.tolist(), mode="lines", line={"color": "#888888"}, name="expected")
    here = ranked[(ranked["status"] == "complete") & same(ranked["batch_size"], found.answer["batch_size"])]
    is_answer = here["config"] == found.answer["config"]
    for shown, name, symbol, colour in ((here[~is_answer], "measured", "circle", COLOURS[0]), (here[is_answer], "the answer", "star", COLOURS[1])):
        if shown.empty:
            continue
        figure.add_scatter(
            x=plain(shown["num_workers"]), y=plain(shown["throughput_sps"]), error_y=intervals(shown), mode="markers", name=name,
            marker={"size": 12 if symbol == "star" else 8, "symbol": symbol, "color": colour},
            text=[html.escape(f"{row['config']}: {number(row['throughput_sps'])} {run.unit}/s") for row in shown.to_dict("records")],
            hoverinfo="text",
        )  # fmt: skip
    ends = [curve.num_workers[0], curve.num_workers[-1]]
    top = 1.1 * max(float((expected * factor).max()), float(here["throughput_sps"].max()))
    if curve.ceiling_sps <= 2 * top:  # a ceiling far above everything would press the rest into a line
        figure.add_scatter(x=ends, y=[curve.ceiling_sps] * 2, mode="lines", name="training step alone", line={"color": COLOURS[3], "dash": "dot"})
        top = max(top, 1.05 * curve.ceiling_sps)
    figure.update_yaxes(range=[0, top], autorange=False)
    return figure


def what_if_figure(run: Run, found: Outlook) -> go.Figure | None:
    """Plot the predicted rate for each change as a bar with its interval, and the measured rate of the answer as a line; `found` is `outlook_of(run)`."""
    if not found.what_ifs or found.answer is None:
        return None
    changes = sorted(found.what_ifs, key=lambda each: each.rate.sps)
    figure = axes_figure(f"{run.unit}/s", "", key="change")
    sps = [each.rate.sps for each in changes]
    error = {
        "type": "data", "symmetric": False, "width": 3,
        "array": [each.rate.high_sps - each.rate.sps for each in changes],
        "arrayminus": [each.rate.sps - max(each.rate.low_sps, 0.0) for each in changes],
    }  # fmt: skip
    names = [html.escape(each.change) for each in changes]
    figure.add_bar(
        x=sps, y=names, orientation="h", error_x=error, name="predicted", marker={"color": COLOURS[5]},
        text=[f"{each.ratio:.2f}x" for each in changes], textposition="inside", insidetextanchor="start",
        hovertemplate=f"%{{y}}: %{{x:,.0f}} {html.escape(run.unit)}/s<extra></extra>",
    )  # fmt: skip
    now = float(found.answer["throughput_sps"])
    figure.add_scatter(x=[now, now], y=[names[0], names[-1]], mode="lines", name="the answer, measured", line={"color": COLOURS[1], "dash": "dot"})
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(legend_title_text="each bar is a change")
    figure.update_yaxes(automargin=True)
    return figure
