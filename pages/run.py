"""One run: progress while it lives, then its result, where it came from, and its files."""

from uuid import UUID

import streamlit as st

from app import queries
from app.job_card import ALIVE, watch_run
from app.navigation import link
from app.results import draw_result
from app.run_parts import draw_asked, draw_facts, draw_failure, draw_files, draw_items, draw_provenance
from app.session import viewer
from app.wording import escape

who = viewer()
link("runs", "All runs", icon="arrow_back")

try:
    run_id = UUID(st.query_params.get("id", ""))
except ValueError:
    st.title("Run")
    st.info("No run is named in the address. Pick one from the list.", icon=":material/science:")
    st.stop()

run = queries.run(who, run_id)
st.title(escape(run.name or run.kind))
draw_facts(run)

if run.status in ALIVE:
    watch_run(run.id)
elif run.status == "failed":
    draw_failure(run, may_retry=queries.may_change(who, run))
elif run.status == "cancelled":
    st.warning("This run was cancelled. Nothing it had found so far counts.", icon=":material/block:")

asked = queries.asked_of(run)
result = queries.result_of(run)
if result is not None:
    draw_result(asked, result)
    by_prompt = queries.has_items(run)
    if by_prompt and st.expander("Per-prompt values", icon=":material/table_rows:", key="items", on_change="rerun").open:
        draw_items(queries.items(who, run.id))
    draw_files(queries.artifacts(who, run.id))

draw_asked(run, asked, result)
draw_provenance(run)
