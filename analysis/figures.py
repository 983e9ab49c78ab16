"""The plots of a report as plotly figures; each is None if there is nothing to draw.

Plotly reads labels as HTML, so every text that comes from users is escaped here. The page sets the colours of axes and
text, because it knows whether it is dark.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from feedrate.analysis.run import Run
from feedrate.analysis.sections import number
from feedrate.analysis.summary import same

# colours by Okabe and Ito, which colour-blind readers can tell apart, on white and on black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
_FAILED = "#D62728"


def throughput_figure(run: Run, ranked: pd.DataFrame) -> go.Figure | None:
    """Plot throughput against num_workers, with one colour per batch size; `ranked` is `summary.ranking(run)`."""
    if ranked.empty:
        return None
    figure = axes_figure("num_workers", f"{run.unit}/s", key="setting")
    for index, (batch_size, settings) in enumerate(ranked.groupby("batch_size", dropna=False, sort=True)):
        colour = COLOURS[index % len(COLOURS)]
        name = "own batches" if pd.isna(batch_size) else f"batch {int(str(batch_size))}"
        complete = settings[settings["status"] == "complete"]
        best = complete.drop_duplicates("num_workers").sort_values("num_workers")  # the ranking lists the fastest first
        figure.add_scatter(
            x=plain(best["num_workers"]), y=plain(best["throughput_sps"]), mode="lines", line={"color": colour},
            opacity=0.6, hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
        for status, symbol, width in (("complete", "circle", 1.5), ("pruned", "diamond-open", 0.6)):
            shown = settings[settings["status"] == status]
            if shown.empty:
                continue
            figure.add_scatter(
                x=plain(shown["num_workers"]),
                y=plain(shown["throughput_sps"]),
                error_y={**intervals(shown), "thickness": width},
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 8},
                name=name if status == "complete" else f"{name}, stopped early",
                legendgroup=name,
                text=[_setting_text(row, run.unit) for row in shown.to_dict("records")],
                hoverinfo="text",
            )  # fmt: skip
    # a stopped trial may have only one window, whose wide interval must not set the scale
    told = ranked[ranked["status"] == "complete"] if (ranked["status"] == "complete").any() else ranked
    top = max(told["throughput_high_sps"].max(), ranked["throughput_sps"].max())
    figure.update_yaxes(range=[0, 1.08 * top], autorange=False)
    if ranked["num_workers"].max() <= 12:
        figure.update_xaxes(dtick=1)  # no ticks at half a worker
    return figure


def batch_size_figure(run: Run, by_batch_size: pd.DataFrame) -> go.Figure | None:
    """Plot the best rate at each batch size (`summary.best_by_batch_size`), and that of the step alone; None for fewer than two sizes."""
    known = by_batch_size.dropna(subset=["batch_size"])
    if len(known) < 2:
        return None
    figure = axes_figure("batch_size", f"{run.unit}/s", key="batch size")
    sizes = sorted(size for size in run.ceilings if size is not None)
    if len(sizes) > 1:
        figure.add_scatter(
            x=sizes, y=[run.ceilings[size] for size in sizes], mode="lines+markers", name="training step alone",
            line={"color": COLOURS[3], "dash": "dot"}, marker={"size": 6},
        )  # fmt: skip
    figure.add_scatter(
        x=plain(known["batch_size"]),
        y=plain(known["throughput_sps"]),
        error_y=intervals(known),
        mode="lines+markers",
        line={"color": COLOURS[0]},
        marker={"size": 8},
        name="best setting",
        text=[_setting_text(row, run.unit) for row in known.to_dict("records")],
        hoverinfo="text",
    )  # fmt: skip
    figure.update_xaxes(type="log", tickvals=plain(known["batch_size"]), ticktext=[str(size) for size in known["batch_size"]])
    figure.update_yaxes(rangemode="tozero")
    return figure


def heat_figure(run: Run, ranked: pd.DataFrame) -> go.Figure | None:
    """Plot the best rate for each number of workers and prefetch factor, at the fastest setting's batch size.

    Returns None for fewer than two of either. Cells without a complete trial stay empty.
    """
    complete = ranked[(ranked["status"] == "complete")]
    if complete.empty:
        return None
    here = complete[same(complete["batch_size"], complete.iloc[0]["batch_size"])]
    cells = here[here["num_workers"] > 0].pivot_table(
        index="prefetch_factor", columns="num_workers", values="throughput_sps", aggfunc="max", dropna=False
    )
    cells = cells.sort_index().sort_index(axis=1)
    if min(cells.shape) < 2:
        return None
    values = [[None if pd.isna(value) else float(value) for value in row] for row in cells.to_numpy(dtype=float)]
    figure = axes_figure("num_workers", "prefetch_factor", key="setting")
    figure.add_heatmap(
        z=values,
        x=[str(value) for value in cells.columns],
        y=[str(value) for value in cells.index],
        text=[["" if value is None else number(value) for value in row] for row in values],
        texttemplate="%{text}",
        hovertemplate=f"%{{x}} workers, prefetch_factor %{{y}}: %{{text}} {html.escape(run.unit)}/s<extra></extra>",
        colorscale="Cividis",  # colours that colour-blind readers see evenly, also in print
        hoverongaps=False,
        colorbar={"title": {"text": html.escape(f"{run.unit}/s")}},
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def pareto_figure(run: Run, ranked: pd.DataFrame, front: pd.DataFrame) -> go.Figure | None:
    """Plot throughput against memory; `front` is `questions.pareto(run)`. None for fewer than two settings."""
    known = ranked[ranked["status"] == "complete"].dropna(subset=["tree_pss_bytes"])
    if len(known) < 2:
        return None
    figure = axes_figure("memory of trainer and workers, GB", f"{run.unit}/s", key="setting")
    inside = known[~known["config"].isin(front["config"])]
    for shown, name, symbol, mode in ((inside, "another setting is better in both", "circle-open", "markers"), (front, "no setting is better in both", "circle", "lines+markers")):
        if shown.empty:
            continue
        figure.add_scatter(
            x=plain(shown["tree_pss_bytes"] / 1e9), y=plain(shown["throughput_sps"]), mode=mode, name=name,
            line={"shape": "hv", "color": COLOURS[0]}, marker={"size": 8, "symbol": symbol, "color": COLOURS[0]},
            text=[_setting_text(row, run.unit) for row in shown.to_dict("records")], hoverinfo="text",
        )  # fmt: skip
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return figure


def timeline_figure(run: Run) -> go.Figure | None:
    """Plot every trial in the order of time, with the best rate so far; failed trials are on the axis."""
    trials = run.latest
    trials = trials[trials["throughput_sps"].notna() | (trials["status"] == "failed")]
    if trials.empty:
        return None
    timed = bool(trials["finished_unix_s"].notna().all())
    order = trials["finished_unix_s"] if timed else pd.Series(range(len(trials)), index=trials.index)
    start = trials["started_unix_s"].min() if timed and trials["started_unix_s"].notna().any() else order.min()
    trials = trials.assign(x=(order - start) / 60 if timed else order).sort_values("x", kind="stable")
    axis = "minutes since the first trial" if timed else "trials in the order of recording"
    figure = axes_figure(axis, f"{run.unit}/s", key="trial")
    complete = trials[trials["status"] == "complete"]
    figure.add_scatter(
        x=plain(complete["x"]), y=plain(complete["throughput_sps"].cummax()), mode="lines", name="best so far",
        line={"shape": "hv", "color": "#888888"}, hoverinfo="skip",
    )  # fmt: skip
    for status, symbol, colour in (
        ("complete", "circle", COLOURS[0]), ("pruned", "diamond-open", COLOURS[4]), ("failed", "x", _FAILED),
    ):  # fmt: skip
        shown = trials[trials["status"] == status]
        if shown.empty:
            continue
        figure.add_scatter(
            x=plain(shown["x"]),
            y=[0.0] * len(shown) if status == "failed" else plain(shown["throughput_sps"]),
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 8},
            cliponaxis=False,
            name="stopped early" if status == "pruned" else status,
            text=[_trial_text(row, run.unit) for row in shown.to_dict("records")],
            hoverinfo="text",
        )
    figure.update_yaxes(rangemode="tozero")
    return figure


def empty_figure(**layout: Any) -> go.Figure:
    """Return a figure without axes that fits into a page, light or dark."""
    usual = {
        "template": go.layout.Template(),
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": "#808080"},
        "margin": {"l": 70, "r": 20, "t": 20, "b": 60}, "hovermode": "closest",
    }  # fmt: skip
    return go.Figure(layout=usual | layout)


def axes_figure(x: str, y: str, *, key: str) -> go.Figure:
    """Return a figure with these titles of its axes, whose legend says that each point is a `key`."""
    layout = {
        "legend": {"title": {"text": f"each point is a {key}"}},
        "xaxis": {"title": {"text": html.escape(x)}, "gridcolor": "rgba(128,128,128,0.3)"},
        "yaxis": {"title": {"text": html.escape(y)}, "gridcolor": "rgba(128,128,128,0.3)"},
    }
    return empty_figure(**layout)


def intervals(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the 95 % intervals of a ranking's rows as error bars."""
    sps = rows["throughput_sps"]
    above, below = rows["throughput_high_sps"] - sps, sps - rows["throughput_low_sps"]
    return {"type": "data", "symmetric": False, "width": 3, "array": plain(above), "arrayminus": plain(below)}


def _setting_text(row: Mapping[Any, Any], unit: str) -> str:
    low, high = number(row["throughput_low_sps"]), number(row["throughput_high_sps"])
    lines = [row["config"], f"{number(row['throughput_sps'])} {unit}/s ({low}-{high})"]
    lines += [] if pd.isna(row["speedup"]) else [f"{row['speedup']:.2f}x the baseline"]
    return _lines([*lines, f"{row['num_trials']} measured, {row['status']}"])


def _trial_text(row: Mapping[Any, Any], unit: str) -> str:
    lines = [f"trial {row['number']} ({row['kind']}, {row['origin']})", row["config"]]
    if row["status"] == "failed":
        message = "" if pd.isna(row["failure_message"]) else row["failure_message"][:200]
        return _lines([*lines, f"failed: {row['failure_kind']}", message])
    return _lines([*lines, f"{number(row['throughput_sps'])} {unit}/s, {row['status']}"])


def _lines(lines: Sequence[str]) -> str:
    return "<br>".join(html.escape(line) for line in lines if line)


def plain(values: pd.Series[Any]) -> list[Any]:
    """Return plain Python numbers: plotly would write numbers of an Arrow dtype into the page as encoded data."""
    return [None if pd.isna(value) else round(float(value), 6) for value in values]
