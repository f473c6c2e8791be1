"""Findings: what the accepted shards of a task say together."""

from uuid import UUID

import streamlit as st

from app import queries
from app.finding_parts import draw_charts, draw_headline, draw_table, draw_unverified, has_numbers
from app.navigation import go, link
from app.session import viewer
from app.tables import headings
from app.wording import FINDING_STATUS_MEANING, ago, badge, duration

who = viewer()


def draw_runs_behind(task_id: UUID) -> None:
    """Every submission that the viewer may see, with its verdict and a way to its run."""
    st.header("The runs behind it")
    sent = queries.submissions(who, task_id)
    if not sent:
        st.caption("Nobody has sent a run to this task yet.")
        return
    st.caption("Accepted and refused ones. Select a row to open the run.")
    rows = [
        {
            "contributor": one.username,
            "verdict": one.status,
            "reason": one.reason or "",
            "shard": one.shard_no,
            "hardware": one.hardware_class,
            "took": duration(one.duration_seconds),
            "sent": ago(one.submitted_at),
        }
        for one in sent
    ]
    event = st.dataframe(
        rows,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="submissions",
        column_config=headings(rows),
        alt=f"Table of {len(rows)} submissions",
    )
    if event.selection.rows:
        go("run", id=str(sent[event.selection.rows[0]].run_id))


st.title("Findings")
choices = {str(task_id): name for task_id, name in queries.answered_tasks(who)}
if not choices:
    st.info(
        "No finding yet: nothing has been sent to a task. Take a share of one, or run `make demo` to see a whole turn.",
        icon=":material/insights:",
    )
    link("tasks", "Browse the tasks")
    st.stop()

chosen = st.selectbox("Task", list(choices), format_func=choices.__getitem__, key="task", bind="query-params")
task_id = UUID(chosen)
link("tasks", "What was asked", id=chosen)
findings = queries.list_findings(who, task_id)
if not findings:
    st.info("No submission to this task has been accepted yet.", icon=":material/hourglass_empty:")
else:
    draw_headline(findings)
    if has_numbers(findings):
        draw_charts(findings)
        draw_table(findings)
    else:
        draw_unverified()

draw_runs_behind(task_id)
with st.expander("What the statuses mean", icon=":material/help:", key="legend"):
    for status, meaning in FINDING_STATUS_MEANING.items():
        st.markdown(f"{badge(status)} {meaning}")
