import csv
import io
import json

import pytest

from app.charts import EffectRow, forest_plot, heat_map, to_csv, to_png, to_svg
from app.charts.effects import number_format


def row(layer: int, head: int | None, estimate: float, spread: float = 0.1) -> EffectRow:
    label = f"L{layer}H{head}" if head is not None else f"L{layer} mlp_out"
    return EffectRow(label=label, layer=layer, head=head, estimate=estimate, low=estimate - spread, high=estimate + spread)


ROWS = [row(layer, head, 0.05 * (layer - head)) for layer in range(3) for head in range(4)] + [row(3, 0, 2.0)]


def inner(chart) -> list[dict]:
    return chart.to_dict()["layer"]


def test_heat_map_colours_diverge_symmetrically_around_zero():
    rect = inner(heat_map(ROWS, unit="nats", title="Effect"))[0]
    colour = rect["encoding"]["color"]
    assert colour["scale"]["domain"] == [-2.0, 2.0]
    assert colour["scale"]["domainMid"] == 0
    assert colour["legend"]["title"] == "Effect (nats)"


def test_heat_map_names_no_colours_of_its_own_so_that_both_themes_can():
    rect = inner(heat_map(ROWS, unit="nats", title="Effect"))[0]
    assert {"range", "scheme"}.isdisjoint(rect["encoding"]["color"]["scale"])


def test_heat_map_marks_only_intervals_that_exclude_zero():
    spec = heat_map(ROWS, unit="nats", title="Effect").to_dict()
    assert spec["layer"][1]["transform"] == [{"filter": "datum.excludes_zero"}]
    marked = [value["site"] for value in spec["layer"][0].get("data", spec.get("data"))["values"] if value["excludes_zero"]]
    assert marked == ["L0H3", "L3H0"] or set(marked) == {r.label for r in ROWS if r.excludes_zero}


def test_heat_map_has_discrete_axes_and_the_interval_in_the_tooltip():
    encoding = inner(heat_map(ROWS, unit="nats", title="Effect"))[0]["encoding"]
    assert encoding["x"]["type"] == encoding["y"]["type"] == "ordinal"
    assert [tip["title"] for tip in encoding["tooltip"]] == ["Site", "Effect (nats)", "95 % low", "95 % high"]


def test_heat_map_of_whole_layers_has_one_column():
    values = heat_map([row(layer, None, 0.1) for layer in range(5)], unit="nats", title="x").to_dict()
    assert "output" in json.dumps(values)


def test_heat_map_of_zeros_still_has_a_scale():
    colour = inner(heat_map([row(0, 0, 0.0), row(0, 1, 0.0)], unit="share", title="x"))[0]["encoding"]["color"]
    assert colour["scale"]["domain"] == [-1.0, 1.0]


def test_forest_shows_the_twenty_largest_by_size_whatever_their_sign():
    rows = [row(0, head, (-1) ** head * head / 10) for head in range(30)]
    chart = forest_plot(rows, unit="nats", title="x").to_dict()
    order = chart["layer"][1]["encoding"]["y"]["sort"]
    assert order == [f"L0H{head}" for head in range(29, 9, -1)]


def test_forest_has_a_zero_line_and_the_next_shard_only_where_there_is_one():
    plain = forest_plot(ROWS, unit="nats", title="x").to_dict()["layer"]
    assert plain[0]["encoding"]["x"]["field"] == "zero"
    later = EffectRow(label="L0H0", layer=0, head=0, estimate=1, low=0.5, high=1.5, next_low=0.2, next_high=1.8)
    assert len(forest_plot([later], unit="nats", title="x").to_dict()["layer"]) == len(plain) + 1


def test_charts_are_saved_offline_as_svg_and_png():
    chart = heat_map(ROWS, unit="nats", title="Effect per head")
    svg = to_svg(chart)
    assert svg.startswith("<svg")
    assert "Effect per head" in svg
    assert "http" not in svg.replace("http://www.w3.org", "")
    assert to_png(chart).startswith(b"\x89PNG")


def test_csv_reads_back_and_disarms_formulas():
    text = to_csv([{"site": "=1+1", "effect": -0.5}, {"site": "L0H1", "effect": 1.0, "note": "@x"}])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0] == {"site": "'=1+1", "effect": "-0.5", "note": ""}
    assert rows[1]["note"] == "'@x"


@pytest.mark.parametrize(("scale", "text"), [(1.2, "+.3f"), (25, "+.2f"), (0.05, "+.5f"), (1e-6, "+.2e"), (5e5, "+.2e")])
def test_number_format_keeps_three_places(scale, text):
    assert number_format(scale) == text
