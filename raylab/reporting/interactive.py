"""Charts for the page: Plotly's figures, as JSON types."""

from __future__ import annotations

from html import escape
from typing import Any

from raylab.reporting.chart import Chart, Series, known

WHOLE = 15  # epochs up to which each has a tick
Figure = dict[str, Any]


def figure(chart: Chart) -> Figure:
    """`{"data": traces, "layout": …}`; colours of text and lines are the page's own, which follows light and dark."""
    share = {axis: {"tickformat": ".3~p"} for axis in chart.share}
    layout: Figure = {
        "height": chart.height,
        "showlegend": chart.legend and chart.heat is None,
        "xaxis": {"title": {"text": escape(chart.x)}, **share.get("x", {})},
        "yaxis": {"title": {"text": escape(chart.y)}, **share.get("y", {})},
    }
    if chart.log_x:
        layout["xaxis"]["type"] = "log"
    if chart.x == "epoch":
        longest = max((x for series in chart.series for x in series.x if x is not None), default=0)
        layout["xaxis"] |= {"dtick": 1} if longest <= WHOLE else {"tickformat": "d"}
    if chart.heat:
        layout["yaxis"]["autorange"] = "reversed"
        layout["xaxis"]["tickangle"] = -45
        for axis in ("xaxis", "yaxis"):
            layout[axis] |= {"type": "category", "showgrid": False}
        return {"data": [_heat(chart)], "layout": layout}
    if any(series.kind == "bars" for series in chart.series):
        layout["yaxis"] |= {"type": "category", "autorange": "reversed"}
    traces = [trace for series in chart.series for trace in _traces(series, chart)]
    return {"data": traces, "layout": layout}


def _traces(series: Series, chart: Chart) -> list[Figure]:
    name, hover = escape(series.name), [escape(text) for text in series.hover]
    common: Figure = {"name": name, "hovertext": hover or None}
    if series.kind == "bars":
        bar = {"type": "bar", "orientation": "h", "x": _plain(series.x), "y": [escape(str(y)) for y in series.y]}
        return [{**common, **bar, "marker": {"color": series.colour}}]
    if series.kind == "box":
        points = {"boxpoints": "all", "jitter": 0.3, "pointpos": 0, "marker": {"color": series.colour, "size": 5}}
        return [{**common, "type": "box", "y": _plain(series.y), **points, "line": {"color": series.colour}}]
    mode = "markers" if series.kind == "points" else "lines" + ("+markers" if series.symbol else "")
    marker: Figure = {"color": series.colour, "symbol": series.symbol or "circle", "size": list(series.size) or 8}
    trace: Figure = {
        **common,
        "type": "scatter",
        "mode": mode,
        "x": _plain(series.x),
        "y": _plain(series.y),
        "line": {"color": series.colour, "width": 2, "dash": "dot" if series.dash else "solid"},
        "marker": marker,
        "hovertemplate": "%{hovertext}<br>" * bool(hover) + f"%{{x}}, %{{y:{'.1%' if 'y' in chart.share else '.4g'}}}",
    }
    if series.error:
        trace["error_y"] = {"array": _plain(series.error), "color": series.colour, "thickness": 1}
    if series.band is None:
        return [trace]
    edge: Figure = {
        "type": "scatter",
        "mode": "lines",
        "x": _plain(series.x),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    edge |= {"showlegend": False, "legendgroup": name}
    lower, upper = series.band
    shade = {"fill": "tonexty", "fillcolor": f"{series.colour}20"}
    return [{**edge, "y": _plain(lower)}, {**edge, "y": _plain(upper), **shade}, {**trace, "legendgroup": name}]


def _heat(chart: Chart) -> Figure:
    assert chart.heat is not None  # noqa: S101 - for the type checker; `figure` has looked
    heat = chart.heat
    return {
        "type": "heatmap",
        "x": [escape(name) for name in heat.columns],
        "y": [escape(name) for name in heat.rows],
        "z": [_plain(row) for row in heat.values],
        "text": [[str(count) if count else "" for count in row] for row in heat.counts],
        "texttemplate": "%{text}",
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "rgba(0,114,178,0.04)"], [0.5, "#4f9fd0"], [1, "#004c80"]],
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
        "hovertemplate": "%{y} taken for %{x}<br>%{text} clips, %{z:.0%}<extra></extra>",
    }


def _plain(values: Any) -> list[Any]:
    """Values as JSON has them: what is not known is null."""
    return [(value.item() if hasattr(value, "item") else value) if known(value) else None for value in values]
