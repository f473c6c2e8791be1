"""Home: what this is, what is in it now, and where to start."""

import streamlit as st

from app import queries
from app.navigation import link
from app.session import viewer
from app.wording import plural

st.title("An open interpretability lab")
st.markdown(
    "Ask a language model a question about its insides: take a part away, measure what it loses, and let others repeat it. "
    "Every number here can be followed back to the run that made it."
)

counts = queries.counts(viewer())
with st.container(horizontal=True, gap="medium", key="counts"):
    st.metric("Runs you can see", f"{counts.runs:,}", width="content")
    st.metric("Open tasks", f"{counts.open_tasks:,}", width="content")
    st.metric("Accepted submissions", f"{counts.accepted:,}", width="content")
    st.metric("Contributors", f"{counts.contributors:,}", width="content")
    st.metric("Findings above 'unverified'", f"{counts.findings:,}", width="content")

st.header("Try it")
one, two, three = st.columns(3, gap="medium")
with one.container(border=True, height="stretch"):
    st.markdown("### Run an experiment")
    st.markdown(
        "Ablate every head of a model whose right answer is known exactly, and see two heads light up. It takes seconds on a laptop."
    )
    link("runs", "Open with the planted heads", spec="planted_heads")
with two.container(border=True, height="stretch"):
    st.markdown("### Take a share of a task")
    open_tasks = (
        plural(counts.open_tasks, "task waits", "tasks wait") if counts.open_tasks else "No task waits at the moment; you can write one"
    )
    st.markdown(f"A task is a question cut into shards that several people repeat. {open_tasks}.")
    link("tasks", "Browse the tasks")
with three.container(border=True, height="stretch"):
    st.markdown("### Read what holds")
    st.markdown("Findings pool the accepted shards: an estimate, its 95 % interval, and the reason why a status is not higher.")
    link("findings", "Read the findings")

st.header("The chain")
st.markdown(
    "**Spec** → **Run** → **Result** → **Submission** → **Verdict** → **Finding**. A spec says what to do and is known by its hash. "
    "A run carries it out and keeps where it came from. A submission offers the run to a task; the verdict accepts or refuses it; "
    "a finding is what the accepted shards say together."
)
st.markdown("The same from the command line: `philab run planted_heads --out results/first`. The HTTP API is described at `/api/docs`.")
