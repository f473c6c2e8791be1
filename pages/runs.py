"""Runs: start one, and find one again."""

import streamlit as st

from app import queries
from app.forms import faults_shown, preset_field, read_field, spec_field
from app.navigation import go
from app.run_parts import draw_run_row
from app.selftest_form import draw_selftest_form
from app.session import viewer

STATUSES = ["all", "queued", "running", "ok", "failed", "cancelled"]

who = viewer()


def draw_new_run() -> None:
    """Spec in, run out: the text is checked, a run is queued, and its page opens."""
    with st.expander("New run", icon=":material/add:", expanded="spec" in st.query_params, key="new_run"):
        text = spec_field("spec")
        left, right = st.columns(2)
        with left:
            preset = preset_field("preset")
        name = right.text_input("Name", key="run_name", max_chars=200, placeholder="taken from the spec when left empty")
        if st.button("Run", type="primary", icon=":material/play_arrow:", key="start_run"):
            with faults_shown():
                run_id = queries.start_run(who, read_field(text), name=name, preset=preset)
                go("run", id=str(run_id))


def draw_selftest() -> None:
    """Asks whether the engine can be trusted with a model."""
    with st.expander("Self-test of a model", icon=":material/fact_check:", key="new_selftest"):
        draw_selftest_form()


def draw_list() -> None:
    """Filters and a page of runs, newest first."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        status = st.radio("Status", STATUSES, horizontal=True, key="status", bind="query-params")
        mine = st.toggle("Only mine", key="mine", bind="query-params") if who.contributor_id else False
    wanted = None if status == "all" else status
    found = queries.list_runs(who, status=wanted, mine=mine, page=st.session_state.get("page", 1))
    if not found.rows:
        draw_empty(filtered=bool(wanted) or mine)
    for run in found.rows:
        draw_run_row(run, owner=found.owners.get(run.owner_id, "–") if run.owner_id else "–")
    if found.pages > 1:
        st.pagination(found.pages, key="page", bind="query-params")


def draw_empty(*, filtered: bool) -> None:
    """No run to show, and what to do about it."""
    if filtered:
        st.info("No run matches these filters.", icon=":material/filter_alt_off:")
    elif queries.may_run(who):
        st.info("No runs yet. Open 'New run' above: 'planted_heads' takes seconds and has a known right answer.", icon=":material/science:")
    else:
        st.info("No public runs yet. Sign in to start one.", icon=":material/science:")


st.title("Runs")
if queries.may_run(who):
    draw_new_run()
    draw_selftest()
draw_list()
