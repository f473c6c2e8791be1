"""The parts of a task on its pages: card, text, shards, and taking part from here."""

from collections.abc import Sequence
from uuid import UUID

import streamlit as st

from app import queries
from app.job_card import watch_runs
from app.navigation import address, link
from app.tables import headings, table_height
from app.wording import badge, escape, plural, sentence
from db.board import Shard
from db.leases import MAX_OPEN
from db.tasks import TaskCard, TaskDetail
from db.viewer import Viewer
from engine.errors import LabError

RUNNABLE = ("open", "in_progress")
FAULT = "run_here_fault"


def draw_card(card: TaskCard) -> None:
    """One task on the board."""
    with st.container(border=True, key=f"task-{card.id}"):
        left, right = st.columns([3, 1], gap="medium", vertical_alignment="center")
        with left:
            link("tasks", f"**{escape(card.name)}**", id=str(card.id))
            if card.hypothesis or card.description:
                st.caption(escape(card.hypothesis or card.description, at_most=240))
            _draw_facts(card, tags=5)
        with right:
            draw_task_progress(card)


def _draw_facts(card: TaskCard, *, tags: int) -> None:
    words = [
        badge(card.status),
        escape(card.model_id),
        escape(card.dataset_name),
        escape(card.metric),
        f"priority {card.priority}",
        f"by {escape(card.created_by_name)}" if card.created_by_name else "",
    ]
    st.markdown(" · ".join([*filter(None, words), *(f":gray-badge[{escape(tag)}]" for tag in card.tags[:tags])]))


def draw_task_progress(card: TaskCard) -> None:
    """Accepted runs out of those wanted."""
    st.progress(min(1.0, card.runs_completed / card.runs_needed), text=f"{card.runs_completed} of {card.runs_needed} runs accepted")
    waiting = f" · {card.runs_waiting} waiting for a second opinion" if card.runs_waiting else ""
    st.caption(f"{plural(card.n_shards, 'shard')} × {plural(card.replicas, 'replica')}{waiting}")


def draw_task_text(card: TaskDetail) -> None:
    """Status, hypothesis, description and the spec, all as their author wrote them and none of it as markup."""
    _draw_facts(card, tags=8)
    if card.hypothesis:
        st.markdown("**Hypothesis**")
        st.text(card.hypothesis)
    if card.description:
        st.text(card.description)
    with st.expander("Spec", icon=":material/description:", key="task_spec_box"):
        st.code(card.spec_yaml, language=None)
        st.caption(f"sha256 {card.spec_hash} · smallest effect of interest ±{card.delta:g} {escape(card.unit)}")


def draw_shards(card: TaskDetail, shards: Sequence[Shard]) -> None:
    """How far every shard is."""
    st.header("Progress")
    draw_task_progress(card)
    rows = [
        {
            "shard": shard.shard_no,
            "rows": f"{shard.row_start}–{shard.row_stop - 1}",
            "accepted": shard.accepted,
            "waiting": shard.waiting,
            "under way": shard.leased,
            "status": shard.status,
        }
        for shard in shards
    ]
    accepted = st.column_config.ProgressColumn(f"Accepted of {card.replicas}", min_value=0, max_value=card.replicas, format="%d")
    st.dataframe(
        rows,
        hide_index=True,
        key="shards_table",
        column_config={**headings(rows), "accepted": accepted},
        height=table_height(len(rows), 330),
        alt=f"State of {len(rows)} shards",
    )


def draw_run_here(card: TaskDetail, who: Viewer) -> None:
    """Buttons that lease shards and run them on this instance, the live progress, and the command that does it elsewhere."""
    st.header("Take part")
    if not queries.may_run(who):
        st.info("Sign in with an API key to run a shard here, or run it on your own machine:", icon=":material/login:")
    elif card.status not in RUNNABLE:
        st.caption(f"This task is {card.status.replace('_', ' ')}: it takes no more runs.")
    else:
        _draw_buttons(who, card.id)
    watch_runs("task_runs", card.id)
    st.code(f"philab contribute run --url {address()} --task-id {card.id}", language=None)


def _draw_buttons(who: Viewer, task_id: UUID) -> None:
    left = queries.shards_left(who, task_id)
    if not left:
        st.caption("You have run every shard that is open to you. One run per person and shard counts; the other replicas are for others.")
    else:
        st.caption("A run of a task is sent to it when it is done, and sending makes it public.")
        with st.container(horizontal=True):
            _start_button("Run the next shard here", who, task_id, 1, primary=True)
            if left > MAX_OPEN:
                _start_button(f"Run {MAX_OPEN} of the {left} shards I have not done", who, task_id, MAX_OPEN, primary=False)
            elif left > 1:
                _start_button(f"Run all {left} shards I have not done", who, task_id, left, primary=False)
    if fault := st.session_state.pop(FAULT, None):
        st.error(fault, icon=":material/error:")


def _start_button(label: str, who: Viewer, task_id: UUID, count: int, *, primary: bool) -> None:
    st.button(
        label,
        type="primary" if primary else "secondary",
        icon=":material/play_arrow:" if primary else ":material/playlist_play:",
        key="run_next" if primary else "run_all",
        on_click=_start,
        args=(who, task_id, count),
    )


def _start(who: Viewer, task_id: UUID, count: int) -> None:
    """A callback, so that the buttons are gone when the page is drawn again; its fault is kept for that drawing."""
    try:
        queries.run_here(who, task_id, count)
    except LabError as wrong:
        st.session_state[FAULT] = sentence(wrong)
