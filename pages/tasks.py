"""Tasks: the board, one task in detail, and a form for a new one."""

from uuid import UUID

import streamlit as st

from app import queries
from app.navigation import link
from app.session import viewer
from app.task_form import draw_task_form
from app.task_parts import draw_card, draw_run_here, draw_shards, draw_task_text
from app.wording import escape

STATUSES = ["all", "open", "in_progress", "completed", "draft", "archived"]

who = viewer()


def draw_board() -> None:
    """All tasks by priority, with a filter."""
    st.title("Tasks")
    st.caption("A task is one question, cut into equal shards, each repeated by several people. Nobody chooses a shard.")
    if queries.may_create_task(who):
        with st.expander("New task", icon=":material/add:", key="new_task"):
            draw_task_form()
    status = st.radio(
        "Status", STATUSES, format_func=lambda name: name.replace("_", " "), horizontal=True, key="status", bind="query-params"
    )
    cards = queries.list_tasks(who, status=None if status == "all" else status)
    if not cards:
        how = " Write one with 'New task', or run `make demo` to see a whole turn." if queries.may_create_task(who) else ""
        st.info("No task has this status." if status != "all" else f"No task yet.{how}", icon=":material/assignment:")
    for card in cards:
        draw_card(card)


def draw_detail(task_id: UUID) -> None:
    """One task: what is asked, how far it is, and a way to take part."""
    link("tasks", "All tasks", icon="arrow_back")
    card = queries.task(who, task_id)
    st.title(escape(card.name))
    draw_task_text(card)
    draw_run_here(card, who)
    draw_shards(card, queries.shards(who, task_id))
    link("findings", "What the accepted shards say so far", task=str(task_id))


wanted = st.query_params.get("id")
if wanted is None:
    draw_board()
else:
    try:
        chosen = UUID(wanted)
    except ValueError:
        link("tasks", "All tasks", icon="arrow_back")
        st.error("The address names no task: the part behind 'id=' is not an id. Pick one from the board.", icon=":material/error:")
        st.stop()
    draw_detail(chosen)
