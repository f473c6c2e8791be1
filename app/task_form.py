"""The form for a new task, with a preview of what it would ask of people."""

from collections.abc import Callable
from uuid import UUID

import streamlit as st

from app import queries
from app.forms import faults_shown, read_field, spec_field
from app.navigation import go
from app.session import viewer
from app.wording import escape, plural, sentence
from db.tasks import TaskDraft, draft_from
from engine.errors import LabError
from engine.spec import NamedSpec, TaskSpec
from engine.spec.sharing import as_task_spec


def draw_task_form() -> None:
    """Spec, words and numbers of a new task; a fault stands where it was made, and the preview follows what is typed."""
    text = spec_field("start_from")
    named = _readable(text)
    spec = _possible(named)
    name = st.text_input("Name", key="task_name", max_chars=200, placeholder=named.name if named else "")
    hypothesis = st.text_area(
        "Hypothesis", key="task_hypothesis", max_chars=4000, height=80, help="What you expect, said before anybody looks."
    )
    description = st.text_area("Description", key="task_description", max_chars=20_000, height=80)
    numbers = _number_fields(spec.unit if spec else "the metric's unit")
    if spec is not None:
        _draw_preview(spec, shards=int(numbers["n_shards"]), replicas=int(numbers["replicas"]))
    if st.button("Create the task", type="primary", key="create_task", disabled=spec is None):
        with faults_shown():
            words = {"name": name.strip() or (named.name if named else ""), "hypothesis": hypothesis, "description": description}
            go("tasks", id=str(_created(lambda: draft_from({"spec_yaml": text, **words, **numbers}))))


def _created(draft: Callable[[], TaskDraft]) -> UUID:
    return queries.create_task(viewer(), draft())


def _readable(text: str) -> NamedSpec | None:
    """The spec as it stands, or None with its fault shown."""
    if not text.strip():
        return None
    try:
        return read_field(text)
    except LabError as wrong:
        st.error(sentence(wrong), icon=":material/error:")
        return None


def _possible(named: NamedSpec | None) -> TaskSpec | None:
    """The spec if a task can ask it, or None with the reason shown."""
    if named is None:
        return None
    try:
        return as_task_spec(named.spec)
    except LabError as wrong:
        st.error(sentence(wrong), icon=":material/error:")
        return None


def _number_fields(unit: str) -> dict[str, float]:
    delta_help = "Fixed before the first run. An effect inside ± this counts as none."
    shards_help = "Equal, disjoint parts of the rows. 5 or more are needed for a supported finding."
    one, two, three, four = st.columns(4)
    return {
        "delta": one.number_input(f"Smallest effect of interest ({unit})", 0.0, value=0.05, step=0.01, key="task_delta", help=delta_help),
        "n_shards": two.number_input("Shards", 1, 10_000, value=6, key="task_shards", help=shards_help),
        "replicas": three.number_input(
            "Replicas", 1, 20, value=2, key="task_replicas", help="Different people who must agree on each shard."
        ),
        "priority": four.number_input("Priority", -1000, 1000, value=0, key="task_priority"),
    }


def _draw_preview(spec: TaskSpec, *, shards: int, replicas: int) -> None:
    with faults_shown():
        rows = queries.rows_of(spec.dataset.model_dump_json())
        size, unused = divmod(rows, shards)
        rest = f" {plural(unused, 'row')} stay unused, so that all shards are equal." if unused else ""
        st.caption(
            f"Asks {escape(spec.model.id)} about {plural(rows, 'row')} of {escape(spec.dataset.name or 'a local file')}: "
            f"{plural(shards * replicas, 'run')} in all ({plural(shards, 'shard')} of {plural(size, 'row')} × "
            f"{plural(replicas, 'replica')}).{rest}"
        )
