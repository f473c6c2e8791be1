"""The result of somebody's own code: its numbers, and the code itself as text. Nothing of it is executed here."""

from typing import Any

import streamlit as st

from app.tables import headings, table_height
from app.wording import escape, plural
from engine.custom import CustomCall, CustomResult, Source

ROLES = {"experiment": "The experiment", "edit": "A function used as an edit"}
ORIGINS = {"file": "from a file", "notebook": "from a notebook", "unknown": "typed where Python keeps no text, so it is not known"}


def draw_custom(call: CustomCall, result: CustomResult) -> None:
    """Draws the sentence, what was called with what, and the numbers."""
    st.markdown(f"**{what_it_shows(call, result)}**")
    st.caption(
        "What these numbers mean is for whoever wrote the code to say; nobody else has repeated or checked them. "
        "The run is local: it answers no task and cannot be sent."
    )
    _draw_table("Arguments", parameter_rows(call), key="parameters-table")
    _draw_table("Numbers", [{"name": name, "value": value} for name, value in result.metrics.items()], key="metrics-table")


def draw_sources(call: CustomCall, result: CustomResult | None) -> None:
    """Draws the functions as text, to be read: the experiment, and what was in place as an edit."""
    for source in (call.source, *(result.functions if result else ())):
        st.caption(escape(about_source(source)))
        if source.text:
            st.code(source.text, language="python")


def what_it_shows(call: CustomCall, result: CustomResult) -> str:
    """The result in one sentence."""
    count = len(call.edits) + len(result.functions)
    edits = f", with {plural(count, 'edit')} in place" if count else ""
    return f"Somebody's own code, {escape(call.name)}, gave {plural(len(result.metrics), 'number')} on {escape(call.model.id)}{edits}."


def about_source(source: Source) -> str:
    """What a source text is."""
    at = f" at {source.at}" if source.at else ""
    return f"{ROLES[source.role]}: {source.name}{at}, {ORIGINS[source.origin]}."


def parameter_rows(call: CustomCall) -> list[dict[str, Any]]:
    """Arguments as a table; whatever they are, as text."""
    return [{"argument": name, "value": str(value)} for name, value in call.parameters.items()]


def _draw_table(heading: str, rows: list[dict[str, Any]], *, key: str) -> None:
    if not rows:
        return
    st.header(heading)
    st.dataframe(
        rows,
        hide_index=True,
        column_config=headings(rows),
        height=table_height(len(rows), 640),
        key=key,
        alt=f"{heading}: a table of {len(rows)} rows",
    )
