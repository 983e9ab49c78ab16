"""How long each rank waited in each window of the answer's trial, as a plotly figure."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from feedrate.analysis.figures import axes_figure
from feedrate.analysis.run import Run
from feedrate.analysis.setting import setting_text
from feedrate.analysis.tables import WINDOW_KEY


def ranks_figure(run: Run, ranked: pd.DataFrame) -> go.Figure | None:
    """Plot the share of each window in which each rank waited, in the last trial of the answer that ran to its end.

    `ranked` is `summary.ranking(run)`. Returns None for a training in one process.
    """
    if ranked.empty or run.rank_windows.empty:
        return None
    named = ranked.iloc[0]["config"] if run.best is None else setting_text(run.best)
    complete = run.latest[(run.latest["status"] == "complete") & (run.latest["config"] == named)]
    windows = run.rank_windows.merge(complete[[*WINDOW_KEY]].tail(1), how="inner")
    if windows.empty:
        return None
    cells = windows.assign(share=windows["wait_s"] / windows["duration_s"]).pivot(index="rank", columns="window", values="share")
    values = [[float(value) for value in row] for row in cells.to_numpy(dtype=float)]
    figure = axes_figure("window", "", key="rank")
    figure.add_heatmap(
        z=values, x=[int(each) + 1 for each in cells.columns], y=[f"rank {each}" for each in cells.index], zmin=0, zmax=1, colorscale="Cividis",
        text=[[f"{value:.0%}" for value in row] for row in values], texttemplate="%{text}",
        hovertemplate="%{y}, window %{x}: waits %{text} of the time<extra></extra>", colorbar={"title": {"text": "waits"}, "tickformat": ".0%"},
    )  # fmt: skip
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(autorange="reversed")
    return figure
