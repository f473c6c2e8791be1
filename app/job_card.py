"""Watching runs: a card that looks again every second while a run is alive, and stops when none is."""

from uuid import UUID

import streamlit as st

from app import queries
from app.navigation import link
from app.session import viewer
from app.wording import badge, escape, eta, sentence
from db.schema import Run
from engine.errors import LabError

ALIVE = ("queued", "running")


def watch_run(run_id: UUID) -> None:
    """Progress of a run with a cancel button; the whole page is drawn again when the run ends."""

    @st.fragment(run_every="1s")
    def look() -> None:
        run = queries.run(viewer(), run_id)
        if run.status not in ALIVE:
            st.rerun()
        draw_progress(run)

    look()


def watch_runs(key: str, task_id: UUID) -> None:
    """Progress of this person's runs of a task until they have arrived there; the whole page is drawn again when one of them ends."""
    before = [run.id for run in queries.under_way(viewer(), task_id)]
    if not before:
        return

    @st.fragment(run_every="1s", key=key)
    def look() -> None:
        now = queries.under_way(viewer(), task_id)
        if [run.id for run in now] != before:
            st.rerun()
        for run in now:
            draw_progress(run)

    look()


def draw_progress(run: Run) -> None:
    """One live run: where it is, what it does now, how long it may take, and how to stop it."""
    with st.container(border=True, key=f"live-{run.id}"):
        left, right = st.columns([5, 1], vertical_alignment="center")
        with left:
            link("run", f"{escape(run.name or run.kind)}", id=str(run.id))
            now = "being sent to the task" if run.status == "ok" else run.progress_message or run.status
            words = [word for word in (now, eta(run.progress, run.started_at)) if word]
            st.progress(min(1.0, run.progress), text=f"{badge(run.status)} {100 * run.progress:.0f} % · {escape(' · '.join(words))}")
        with right:
            stopping = run.cancel_requested
            st.button(
                "Cancelling…" if stopping else "Cancel",
                key=f"cancel-{run.id}",
                disabled=stopping or run.status == "ok",
                on_click=_cancel,
                args=(run.id,),
                width="stretch",
            )


def _cancel(run_id: UUID) -> None:
    try:
        queries.cancel(viewer(), run_id)
    except LabError as wrong:
        st.toast(sentence(wrong))
