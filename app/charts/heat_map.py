"""Effect per layer and head as a heat map."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from app.charts.effects import EffectRow, chart_values, detail_titles, largest, number_format

SMALLEST_CELL, LARGEST_CELL = 7, 58
LABELLED_CELL = 44
PAPER, INK = "#ffffff", "#0f172a"
PLOT_WIDTH, PLOT_HEIGHT = 480, 480
SPACED = alt.Scale(paddingInner=0.06, paddingOuter=0.03)


def heat_map(rows: Sequence[EffectRow], *, unit: str, title: str) -> alt.LayerChart:
    """Layers down, heads across, colour = effect. A number or, in small cells, a ring marks a 95 % interval that excludes 0.

    Args:
        rows: one per site; a site without heads gives one column.
        unit: of the effect, for the legend and the tooltip.
        title: what the chart shows, a few words.
    """
    cell = _cell_size(rows)
    base = alt.Chart(alt.Data(values=chart_values(rows))).encode(
        x=alt.X("head:O", title="Head" if rows[0].head is not None else None, scale=SPACED, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("layer:O", title="Layer", scale=SPACED, axis=alt.Axis(labelOverlap=True)),
        tooltip=_tooltip(rows, unit),
    )
    coloured = base.mark_rect(cornerRadius=2).encode(color=_colour(rows, unit))
    clear = base.transform_filter("datum.excludes_zero")
    return alt.LayerChart(layer=[coloured, *_marks(clear, cell)], title=title, width=alt.Step(cell), height=alt.Step(cell))


def _marks(clear: alt.Chart, cell: int) -> list[alt.Chart]:
    """White labels with the number where there is room, else white rings: readable on every colour of either theme."""
    if cell < LABELLED_CELL:
        ring = {"shape": "circle", "filled": True, "fill": PAPER, "stroke": INK, "strokeWidth": 1.5, "opacity": 1}
        return [clear.mark_point(**ring, size=(cell / 4) ** 2)]
    label = clear.mark_rect(width={"band": 0.84}, height={"band": 0.36}, cornerRadius=4, fill=PAPER, stroke=INK, opacity=1)
    text = clear.mark_text(fontSize=11, fontWeight=600, color=INK).encode(text=alt.Text("estimate:Q", format="+.2~g"))
    return [label, text]


def _cell_size(rows: Sequence[EffectRow]) -> int:
    across, down = len({row.head for row in rows}), len({row.layer for row in rows})
    return max(SMALLEST_CELL, min(LARGEST_CELL, PLOT_WIDTH // across, PLOT_HEIGHT // down))


def _colour(rows: Sequence[EffectRow], unit: str) -> alt.Color:
    """Diverging around 0; the colours themselves come from the theme (blue, background, orange)."""
    top = largest(rows)
    legend = alt.Legend(
        title=f"Effect ({unit})",
        orient="bottom",
        direction="horizontal",
        gradientLength=220,
        format=number_format(top),
        values=[-top, 0, top],
    )
    return alt.Color("estimate:Q", scale=alt.Scale(domain=[-top, top], domainMid=0, interpolate="rgb"), legend=legend)


def _tooltip(rows: Sequence[EffectRow], unit: str) -> list[Any]:
    digits = number_format(largest(rows))
    columns: list[tuple[str, str]] = [("estimate", f"Effect ({unit})"), ("low", "95 % low"), ("high", "95 % high")]
    if any(row.next_low is not None for row in rows):
        columns += [("next_low", "Next shard low"), ("next_high", "Next shard high")]
    numbers = [alt.Tooltip(f"{name}:Q", title=title, format=digits) for name, title in columns]
    return [alt.Tooltip("site:N", title="Site"), *numbers, *(alt.Tooltip(f"{name}:N", title=name) for name in detail_titles(rows))]
