"""The timeline of a training as a plotly figure: rate, waiting and workers over time, with the decisions."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from feedrate.analysis.figures import COLOURS, empty_figure
from feedrate.analysis.training import Training

_GRID = "rgba(128,128,128,0.3)"
_HEIGHTS = [0.45, 0.25, 0.3]
_MARKED = {"adopt": "triangle-up", "reject": "triangle-down", "back": "triangle-down", "failure": "x", "limit": "x", "settled": "square", "enough": "square"}
"""Symbols of decisions; all others are open circles."""


def training_figure(training: Training) -> go.Figure | None:
    """Plot the rate, the share of waiting and the number of workers over time, with a mark for each decision; None without any batches."""
    course = training.course.dropna(subset=["batches_per_s"])
    if course.empty:
        return None
    longest_s = float(course["time_s"].max())
    unit_s, unit = (1.0, "s") if longest_s < 300 else (60.0, "min") if longest_s < 5 * 3600 else (3600.0, "h")
    times, rates, shares, numbers, end_s = list[float](), list[float](), list[float](), list[int](), 0.0
    for row in course.to_dict("records"):
        begin_s = max(row["time_s"] - row["wait_s"] - row["step_s"] - row["aside_s"], end_s)
        times += [round(begin_s / unit_s, 4), round(row["time_s"] / unit_s, 4)]
        rates += [round(float(row["batches_per_s"]), 4)] * 2
        shares += [round(100 * float(row["wait_fraction"]), 2)] * 2
        numbers += [int(row["num_workers"])] * 2
        end_s = row["time_s"]
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=_HEIGHTS, figure=empty_figure())
    panels: tuple[tuple[Sequence[float], str], ...] = ((rates, "batches/s"), (shares, "waiting, %"), (numbers, "workers"))
    for panel, (values, name) in enumerate(panels, start=1):
        hover = f"%{{x:.4g}} {unit}: %{{y:.4g}} {name}<extra></extra>"
        figure.add_scatter(x=times, y=values, mode="lines", line={"color": COLOURS[panel - 1]}, name=name, hovertemplate=hover, row=panel, col=1)
        figure.update_yaxes(title={"text": name}, rangemode="tozero", gridcolor=_GRID, zerolinecolor=_GRID, row=panel, col=1)
        figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID, row=panel, col=1)
    _mark(figure, training.decisions, unit_s)
    figure.update_xaxes(title={"text": f"{unit} since the first batch"}, row=3, col=1)
    figure.update_layout(showlegend=False)
    return figure


def _mark(figure: go.Figure, decisions: pd.DataFrame, unit_s: float) -> None:
    """Draw each decision at the number of workers from then on, with its reason under the pointer."""
    if decisions.empty:
        return
    rows = decisions.to_dict("records")
    words = ["<br>".join(html.escape(line) for line in [str(row["kind"]), *textwrap.wrap(str(row["reason"]), 70)]) for row in rows]
    figure.add_scatter(
        x=[round(row["time_s"] / unit_s, 4) for row in rows],
        y=[int(row["num_workers"]) for row in rows],
        mode="markers",
        marker={"color": COLOURS[3], "size": 9, "symbol": [_MARKED.get(str(row["kind"]), "circle-open") for row in rows]},
        name="decisions",
        text=words,
        hoverinfo="text",
        row=3,
        col=1,
    )
