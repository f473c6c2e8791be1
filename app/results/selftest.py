"""The result of a self-test: which checks of the engine agree on this model, and by how much."""

from typing import Any

import streamlit as st

from app.tables import headings, table_height
from app.wording import escape, number, plural
from engine.result import Check, SelfTestResult
from engine.spec import SelfTestSpec

OUTCOMES: dict[bool | None, str] = {True: "passed", False: "FAILED", None: "not applicable"}


def draw_selftest(spec: SelfTestSpec, result: SelfTestResult) -> None:
    """Draws the sentence, the key numbers, what failed, and the table of all checks."""
    st.markdown(f"**{what_it_shows(spec, result)}**")
    st.caption(what_it_does_not_show(result))
    _draw_numbers(result)
    for check in result.failed:
        st.error(f"**{escape(check.name)}**: {escape(check.about)}. {escape(_measured(check))}", icon=":material/error:")
    _draw_table(result)


def table_rows(result: SelfTestResult) -> list[dict[str, Any]]:
    """The checks as a table, failures first: what people read."""
    rows = [
        {
            "check": check.name,
            "outcome": OUTCOMES[check.passed],
            "compares": check.about,
            "difference": check.difference,
            "tolerance": check.tolerance,
            "unit": check.unit,
            "detail": check.detail,
        }
        for check in result.checks
    ]
    return sorted(rows, key=lambda row: row["outcome"] != OUTCOMES[False])


def what_it_shows(spec: SelfTestSpec, result: SelfTestResult) -> str:
    """The result in one sentence."""
    made = [check for check in result.checks if check.passed is not None]
    model, precision = escape(spec.model.id), escape(spec.model.quantization or spec.model.dtype)
    if not result.failed:
        return f"The engine can be trusted with {model} in {precision} here: {plural(len(made), 'check')} made, none failed."
    names = ", ".join(escape(check.name) for check in result.failed)
    failed = f"{len(result.failed)} of {plural(len(made), 'check')} failed on {model} in {precision}"
    return f"{failed}: {names}. Do not rely on what they are about."


def what_it_does_not_show(result: SelfTestResult) -> str:
    """The limits of the result in two sentences."""
    coverage = result.coverage
    return (
        f"It compares two ways to the same numbers on {plural(coverage.rows, 'short prompt')}, with {coverage.layers} of "
        f"{plural(coverage.layers_available, 'layer')}; it says nothing of other precisions or machines. A model that passes "
        f"is one that the engine addresses rightly, not one that is right."
    )


def _draw_numbers(result: SelfTestResult) -> None:
    outcomes = [check.passed for check in result.checks]
    with st.container(horizontal=True, gap="medium"):
        st.metric("Passed", outcomes.count(True), width="content")
        st.metric("Failed", outcomes.count(False), width="content")
        st.metric("Not applicable", outcomes.count(None), width="content")
        st.metric("Layers", f"{result.coverage.layers} of {result.coverage.layers_available}", width="content")
        st.metric("Prompts", f"{result.coverage.rows} of {result.coverage.rows_available}", width="content")
    for note in result.notes:
        st.caption(f":material/info: {escape(note)}")


def _measured(check: Check) -> str:
    if check.difference is None or check.tolerance is None:
        return check.detail
    return f"They differ by {number(check.difference)} {check.unit}, allowed is {number(check.tolerance)}; {check.detail}"


def _draw_table(result: SelfTestResult) -> None:
    st.header("All checks")
    rows = table_rows(result)
    shape = st.column_config.NumberColumn
    st.dataframe(
        rows,
        hide_index=True,
        column_config={
            **headings(rows),
            "compares": st.column_config.TextColumn("Compares", width=330),
            "difference": shape("Largest difference", format="%.1e", width=125),
            "tolerance": shape("Allowed", format="%.1e", width=80),
        },
        height=table_height(len(rows), 640),
        key="checks-table",
        alt=f"Table of {len(rows)} checks with their outcome, largest difference and tolerance",
    )
