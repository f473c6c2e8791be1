"""A chart on a page, with its title, its text alternative, and ways to save it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import streamlit as st

from app.charts import to_csv, to_png, to_svg


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartFiles:
    """What a chart is saved as.

    Attributes:
        name: file name without its ending.
        rows: the data behind the chart, for the CSV.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]


def chart_card(chart: alt.LayerChart, *, key: str, alternative: str, files: ChartFiles, stretch: bool = False) -> None:
    """Draws a chart and its save buttons.

    Args:
        chart: as `app.charts` makes them.
        key: unique on the page.
        alternative: what a person who cannot see the chart is told.
        files: names and data of the files.
        stretch: as wide as its column, instead of as wide as it is.
    """
    with st.container(key=f"chart-{key}"):
        st.altair_chart(chart, width="stretch" if stretch else "content", alt=alternative, key=f"{key}-chart")
        with st.container(horizontal=True, gap="small"):
            _save("SVG", lambda: to_svg(chart), f"{files.name}.svg", "image/svg+xml", key=key)
            _save("PNG", lambda: to_png(chart), f"{files.name}.png", "image/png", key=key)
            _save("CSV", lambda: to_csv(files.rows), f"{files.name}.csv", "text/csv", key=key)


def _save(label: str, data: Callable[[], str | bytes], file_name: str, mime: str, *, key: str) -> None:
    st.download_button(
        label,
        data=data,
        file_name=file_name,
        mime=mime,
        key=f"{key}-{label.lower()}",
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
        help=f"Save as {label}",
    )
