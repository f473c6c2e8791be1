"""The largest effects with their intervals, one line each."""

from collections.abc import Sequence

import altair as alt

from app.charts.effects import EffectRow, chart_values, largest, number_format

AT_MOST = 20
CLEAR, UNCLEAR = "#3b82f6", "#8593a8"
"""Colours of intervals that exclude 0 and of those that do not; both stand out from white and from slate."""


def forest_plot(rows: Sequence[EffectRow], *, unit: str, title: str) -> alt.LayerChart:
    """Sites by falling |effect|, at most 20: a point, its 95 % interval, a thin line for the next shard, and a line at 0.

    Args:
        rows: one per site.
        unit: of the effect, for the axis.
        title: what the chart shows, a few words.
    """
    shown = sorted(rows, key=lambda row: -abs(row.estimate))[:AT_MOST]
    order = [row.label for row in shown]
    base = alt.Chart(alt.Data(values=chart_values(shown))).encode(
        y=alt.Y("site:N", title=None, sort=order, scale=alt.Scale(paddingOuter=0.5), axis=alt.Axis(grid=False, labelLimit=140)),
        color=alt.condition("datum.excludes_zero", alt.value(CLEAR), alt.value(UNCLEAR)),
        tooltip=_tooltip(shown, unit),
    )
    effect = alt.X("low:Q", title=f"Effect ({unit}), 95 % interval", axis=alt.Axis(tickCount=6))
    layers = [_zero_line(), base.mark_rule(strokeWidth=2.5).encode(x=effect, x2="high:Q")]
    if any(row.next_low is not None for row in shown):
        layers.insert(1, base.mark_rule(strokeWidth=1, strokeDash=[3, 2]).encode(x=alt.X("next_low:Q"), x2="next_high:Q"))
    layers.append(base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("estimate:Q")))
    return alt.LayerChart(layer=layers, title=title, height=alt.Step(24))


def _zero_line() -> alt.Chart:
    return alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeWidth=1, color="#8593a8").encode(x="zero:Q")


def _tooltip(rows: Sequence[EffectRow], unit: str) -> list[alt.Tooltip]:
    digits = number_format(largest(rows))
    columns = [("estimate", f"Effect ({unit})"), ("low", "95 % low"), ("high", "95 % high")]
    if any(row.next_low is not None for row in rows):
        columns += [("next_low", "Next shard low"), ("next_high", "Next shard high")]
    return [alt.Tooltip("site:N", title="Site"), *(alt.Tooltip(f"{name}:Q", title=title, format=digits) for name, title in columns)]
