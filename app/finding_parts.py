"""The parts of the findings page: headline, charts, table, and what is missing while nothing can be claimed."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import streamlit as st

from app.chart_card import ChartFiles, chart_card
from app.charts import EffectRow, forest_plot, heat_map, to_csv
from app.tables import headings, table_height
from app.wording import badge, escape, interval, number, plural, share
from db.findings import Finding


def by_size(findings: Sequence[Finding]) -> list[Finding]:
    """Largest |effect| first; those without a number last."""
    return sorted(findings, key=lambda one: -abs(one.estimate) if one.estimate is not None else 1.0)


def has_numbers(findings: Sequence[Finding]) -> bool:
    """Whether anything may be claimed yet."""
    return any(one.estimate is not None for one in findings)


def draw_headline(findings: Sequence[Finding]) -> None:
    """What holds, in one sentence; how many shards and people stand behind it; and why the status is not higher."""
    top = by_size(findings)[0]
    if top.estimate is not None:
        st.markdown(
            f"**Taking away {top.site_label} changes {escape(top.metric)} most: {number(top.estimate, sign=True)} {escape(top.unit)} "
            f"{_plain(interval(top.ci_low, top.ci_high))}** {badge(top.status)}"
        )
    else:
        st.markdown(f"**No effect is claimed yet.** {badge(top.status)}")
    if top.status_reason:
        st.caption(f"Why it is not one step higher: {escape(top.status_reason)}")
    counts = Counter(one.status for one in findings)
    with st.container(horizontal=True, gap="medium", key="finding_numbers"):
        st.metric("Shards agreed on", top.k_shards, width="content")
        st.metric("Contributors", top.n_contributors, width="content")
        st.metric("Kinds of hardware", top.n_classes, width="content")
        st.metric("Accepted runs", top.supporting_runs, width="content")
    st.markdown(" ".join(f"{badge(status)} {plural(count, 'site')}" for status, count in counts.most_common()))


def draw_unverified() -> None:
    """Why there is no number."""
    st.info(
        "An effect is shown once three shards are settled and three people took part. Until then any number would be an anecdote: "
        "the runs themselves are below.",
        icon=":material/hourglass_empty:",
    )


def effect_rows(findings: Sequence[Finding]) -> list[EffectRow]:
    """Findings with a number as rows for the charts."""
    return [
        EffectRow(
            label=one.site_label,
            layer=one.site["layer"],
            head=one.site.get("head"),
            estimate=one.estimate,
            low=_or(one.ci_low, one.estimate),
            high=_or(one.ci_high, one.estimate),
            next_low=one.next_low,
            next_high=one.next_high,
            detail=(("Status", one.status), ("Confidence", share(one.confidence)), ("q", number(one.q))),
        )
        for one in findings
        if one.estimate is not None
    ]


def draw_charts(findings: Sequence[Finding]) -> None:
    """Heat map of the pooled effects, and the largest ones with both intervals."""
    rows, unit, table = effect_rows(findings), findings[0].unit, table_rows(findings)
    left, right = st.columns([11, 9], gap="large")
    with left:
        alternative = f"Heat map of the pooled effects of {len(rows)} sites. All values are in the table below."
        chart = heat_map(rows, unit=unit, title="Pooled effect")
        chart_card(chart, key="pooled", alternative=alternative, files=ChartFiles(name="finding-heat-map", rows=table))
        st.caption("Marked: effects whose 95 % interval excludes 0.")
    with right:
        alternative = (
            "Forest plot of the largest pooled effects with 95 % intervals and next-shard intervals. All values are in the table below."
        )
        chart = forest_plot(rows, unit=unit, title="Largest pooled effects")
        chart_card(chart, key="pooled-forest", alternative=alternative, files=ChartFiles(name="finding-forest", rows=table), stretch=True)
        st.caption("Thick line: where the mean lies (95 %). Thin dashed line: where the next equal shard would land.")


def table_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Everything a finding says, largest |effect| first: what people read, and what the CSV holds."""
    return [
        {
            "site": one.site_label,
            "status": one.status,
            "effect": one.estimate,
            "low": one.ci_low,
            "high": one.ci_high,
            "next low": one.next_low,
            "next high": one.next_high,
            "q": one.q,
            "confidence": one.confidence,
            "shards": one.k_shards,
            "contributors": one.n_contributors,
            "sign agreement": one.sign_agreement,
            "tau": one.tau,
            "why not higher": one.status_reason,
            "metric": one.metric,
            "unit": one.unit,
        }
        for one in by_size(findings)
    ]


def draw_table(findings: Sequence[Finding]) -> None:
    """The table and its CSV."""
    rows, unit = table_rows(findings), findings[0].unit
    signed, plain = "%+.4f", "%.4f"
    number_column = st.column_config.NumberColumn
    st.header("All sites")
    st.dataframe(
        rows,
        hide_index=True,
        key="findings_table",
        column_order=[name for name in rows[0] if name not in ("metric", "unit")],
        column_config={
            **headings(rows),
            "effect": number_column(f"Effect ({unit})", format=signed),
            "low": number_column("95 % low", format=signed),
            "high": number_column("95 % high", format=signed),
            "next low": number_column("Next shard low", format=signed),
            "next high": number_column("Next shard high", format=signed),
            "q": number_column(
                "q", format=plain, help="False discovery rate at which this site would still be called (Benjamini-Hochberg)."
            ),
            "confidence": number_column(
                "Confidence",
                format="percent",
                help="Probability that the next equal shard shows this sign and at least the smallest effect of interest.",
            ),
            "sign agreement": number_column("Sign agreement", format="percent"),
            "tau": number_column("τ", format=plain, help="Spread of the true effect between shards, in the metric's unit."),
        },
        height=table_height(len(rows), 460),
        alt=f"Table of {len(rows)} findings, largest effect first",
    )
    st.download_button(
        "Save as CSV",
        data=lambda: to_csv(rows),
        file_name="findings.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
        key="findings_csv",
    )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _plain(text: str) -> str:
    return text.replace("[", "\\[").replace("]", "\\]")
