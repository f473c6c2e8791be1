"""Leaderboard: who has contributed, counted from accepted submissions."""

import streamlit as st

from app import queries
from app.navigation import link
from app.session import viewer
from app.tables import headings
from app.wording import ago, duration

ORDERS = {"runs": "Accepted runs", "compute_time": "Compute time"}

who = viewer()
st.title("Leaderboard")
st.caption("Counted from accepted submissions, by this instance's own clock. Nothing here is self-reported.")

order = st.radio("Order by", list(ORDERS), format_func=ORDERS.__getitem__, horizontal=True, key="sort_by", bind="query-params")
ranking = queries.leaderboard(by_time=order == "compute_time")
if not ranking:
    st.info("Nobody has contributed yet. Take a share of a task: the first accepted run opens the board.", icon=":material/trophy:")
    link("tasks", "Browse the tasks")
    st.stop()

rows = [
    {
        "rank": standing.rank,
        "contributor": standing.username + (" (you)" if standing.id == who.contributor_id else ""),
        "accepted runs": standing.runs_completed,
        "tasks": standing.tasks,
        "compute": duration(standing.compute_donated_seconds),
        "last run": ago(standing.last_run_at),
    }
    for standing in ranking
]
mine = next((row for row in rows if str(row["contributor"]).endswith(" (you)")), None)
if mine:
    with st.container(horizontal=True, border=True, key="own_row"):
        st.metric("Your rank", f"{mine['rank']} of {len(rows)}", width="content")
        st.metric("Accepted runs", mine["accepted runs"], width="content")
        st.metric("Compute time", mine["compute"], width="content")
st.dataframe(
    rows,
    hide_index=True,
    key="ranking",
    column_config={**headings(rows), "rank": st.column_config.NumberColumn("Rank", width="small")},
    alt=f"Ranking of {len(rows)} contributors",
)
