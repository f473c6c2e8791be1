"""Charts and their data as files: SVG, PNG and CSV. Everything is made offline."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert

DIVERGING = ["#1d4ed8", "#5b8def", "#a9c4f5", "#d5e1f7", "#e9edf2", "#f1ede6", "#f8ddb9", "#f2a04c", "#d97706", "#a14a04"]
"""Blue to orange through near white: told apart with any common kind of colour blindness."""

PRINT_CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "sans-serif",
    "range": {"diverging": DIVERGING},
    "view": {"stroke": None},
    "title": {"anchor": "start", "fontSize": 14, "color": "#0f172a"},
    "axis": {"labelColor": "#334155", "titleColor": "#334155", "gridColor": "#e2e8f0", "labelFontSize": 11, "titleFontSize": 12},
    "legend": {"labelColor": "#334155", "titleColor": "#334155"},
    "padding": 12,
}
"""How a saved chart looks: on white, as a paper wants it, whatever theme the page has."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def to_svg(chart: alt.TopLevelMixin) -> str:
    """The chart as SVG text."""
    return vl_convert.vegalite_to_svg(_printable(chart), vl_version=_vega_lite_version(), config=PRINT_CONFIG)


def to_png(chart: alt.TopLevelMixin, scale: float = 2.0) -> bytes:
    """The chart as a PNG file, at twice the screen's resolution by default."""
    return vl_convert.vegalite_to_png(_printable(chart), vl_version=_vega_lite_version(), config=PRINT_CONFIG, scale=scale)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV with a header. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(row.get(name)) for name in names})
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(FORMULA_STARTS):
        return f"'{value}"
    return value


def _printable(chart: alt.TopLevelMixin) -> dict[str, Any]:
    spec = chart.to_dict()
    spec.pop("config", None)  # Altair's own look; ours is PRINT_CONFIG
    return spec


def _vega_lite_version() -> str:
    """The version that charts are written in, as the converter names it: '6.4' of 'v6.4.1'."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
