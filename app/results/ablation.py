"""The result of an ablation: what was lost when each component was taken away."""

from typing import Any

import streamlit as st

from app.chart_card import ChartFiles, chart_card
from app.charts import EffectRow, forest_plot, heat_map
from app.tables import headings, table_height
from app.wording import interval, number, plural
from engine.result import AblationResult
from engine.spec import AblationSpec
from engine.spec.ablation import HIGHER_IS_BETTER

PARTS = {"z": ("head", "heads"), "attn_out": ("attention output", "attention outputs"), "mlp_out": ("MLP output", "MLP outputs")}
STAND_INS = {"zero": "zeros", "mean": "its mean over the reference prompts", "resample": "its activation on another prompt"}


def draw_ablation(spec: AblationSpec, result: AblationResult) -> None:
    """Draws the sentence, the key numbers, both charts and the table."""
    rows = effect_rows(result)
    st.markdown(f"**{what_it_shows(spec, result)}**")
    st.caption(what_it_does_not_show(result))
    _draw_numbers(spec, result, rows)
    _draw_charts(spec, result, rows)
    _draw_table(result, rows)


def effect_rows(result: AblationResult) -> list[EffectRow]:
    """The effects of a result as rows for the charts."""
    effects = result.effects
    columns = zip(effects.sites, effects.estimate, effects.low, effects.high, strict=True)
    return [
        EffectRow(label=site.label, layer=site.depth, head=site.head, estimate=estimate, low=low, high=high)
        for site, estimate, low, high in columns
    ]


def table_rows(result: AblationResult) -> list[dict[str, Any]]:
    """The effects as a table, largest |effect| first: what people read, and what the CSV holds."""
    effects = result.effects
    columns = zip(effects.sites, effects.estimate, effects.se, effects.low, effects.high, strict=True)
    rows = [
        {
            "site": site.label,
            "layer": site.layer,
            "head": site.head,
            "effect": estimate,
            "se": se,
            "low": low,
            "high": high,
            "excludes 0": low > 0 or high < 0,
            "prompts": effects.n,
            "metric": effects.metric,
            "unit": effects.unit,
        }
        for site, estimate, se, low, high in columns
    ]
    return sorted(rows, key=lambda row: -abs(row["effect"]))


def what_it_shows(spec: AblationSpec, result: AblationResult) -> str:
    """The result in one sentence."""
    rows = effect_rows(result)
    one, many = PARTS[spec.site]
    top = max(rows, key=lambda row: abs(row.estimate))
    clear = sum(row.excludes_zero for row in rows)
    if not clear:
        return f"None of {plural(len(rows), one, many)} has an effect on {metric_name(spec)} whose 95 % interval excludes 0."
    harm = "hurts" if (top.estimate < 0) == HIGHER_IS_BETTER[spec.metric] else "helps"
    return (
        f"Putting {STAND_INS[spec.mode]} in place of {top.label} {harm} most: {metric_name(spec)} changes by "
        f"{number(top.estimate, sign=True)} {result.effects.unit} {_plain(interval(top.low, top.high))} on average over "
        f"{plural(result.effects.n, 'prompt')}. {clear} of {plural(len(rows), one, many)} "
        f"{'has' if clear == 1 else 'have'} a 95 % interval that excludes 0."
    )


def what_it_does_not_show(result: AblationResult) -> str:
    """The limits of the result in one or two sentences."""
    several = (
        f", and they are not corrected for looking at {len(result.effects.sites)} places at once" if len(result.effects.sites) > 1 else ""
    )
    return (
        f"The intervals speak of other prompts like these, for this model only{several}. Parts that stand in for each other, or that only "
        f"matter together, look harmless when they are taken away one at a time."
    )


def metric_name(spec: AblationSpec) -> str:
    """The metric in words."""
    names = {"loss": "the loss", "target_loss": "the loss on the target", "logit_diff": "the logit difference", "accuracy": "the accuracy"}
    return names[spec.metric]


def _draw_numbers(spec: AblationSpec, result: AblationResult, rows: list[EffectRow]) -> None:
    unit, coverage = result.effects.unit, result.coverage
    clean = result.clean
    with st.container(horizontal=True, gap="medium"):
        st.metric(
            f"Clean {spec.metric} ({unit})",
            number(clean.mean),
            help=f"Of the unedited model; 95 % {interval(clean.low, clean.high)}",
            width="content",
        )
        st.metric("Prompts", f"{coverage.rows} of {coverage.rows_available}", width="content")
        st.metric("Layers", f"{coverage.layers} of {coverage.layers_available}", width="content")
        if coverage.heads:
            st.metric("Heads per layer", f"{coverage.heads} of {coverage.heads_available}", width="content")
        st.metric("Intervals without 0", f"{sum(row.excludes_zero for row in rows)} of {len(rows)}", width="content")
    for note in result.notes:
        st.caption(f":material/info: {_plain(note)}")


def _draw_charts(spec: AblationSpec, result: AblationResult, rows: list[EffectRow]) -> None:
    unit, table = result.effects.unit, table_rows(result)
    left, right = st.columns([11, 9], gap="large")
    with left:
        chart = heat_map(rows, unit=unit, title=f"Effect on {spec.metric}, per {'layer and head' if spec.site == 'z' else 'layer'}")
        alternative = f"Heat map of effects. {what_it_shows(spec, result)} All values are in the table below."
        chart_card(chart, key="heat-map", alternative=alternative, files=ChartFiles(name="ablation-heat-map", rows=table))
        st.caption("Marked: effects whose interval excludes 0.")
    with right:
        chart = forest_plot(rows, unit=unit, title="Largest effects")
        alternative = "Forest plot of the largest effects with their 95 % intervals. All values are in the table below."
        chart_card(chart, key="forest", alternative=alternative, files=ChartFiles(name="ablation-forest", rows=table), stretch=True)


def _draw_table(result: AblationResult, rows: list[EffectRow]) -> None:
    st.header("All effects")
    unit = result.effects.unit
    shape = st.column_config.NumberColumn
    st.dataframe(
        table_rows(result),
        hide_index=True,
        column_order=["site", "layer", "head", "effect", "low", "high", "se", "excludes 0"],
        column_config={
            **headings(table_rows(result)),
            "effect": shape(f"Effect ({unit})", format="%+.4f"),
            "low": shape("95 % low", format="%+.4f"),
            "high": shape("95 % high", format="%+.4f"),
            "se": shape("Std. error", format="%.4f"),
            "excludes 0": st.column_config.CheckboxColumn("Interval excludes 0"),
        },
        height=table_height(len(rows), 420),
        key="effects-table",
        alt=f"Table of {len(rows)} effects, largest first",
    )


def _plain(text: str) -> str:
    return text.replace("[", "\\[").replace("]", "\\]")
