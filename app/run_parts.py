"""The parts of a run's page that do not depend on its kind."""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from app import queries
from app.forms import faults_shown
from app.navigation import go, link
from app.results.custom import draw_sources
from app.session import viewer
from app.tables import headings
from app.wording import ago, badge, duration, escape, short, size
from db.schema import Artifact, Run, RunItem
from engine.as_python import as_python
from engine.custom import Answer, Asked, CustomCall, CustomResult
from engine.spec import AnySpec, spec_to_yaml
from engine.spec.any import CUSTOM


def draw_run_row(run: Run, *, owner: str) -> None:
    """One line of a list of runs: a link, what it is and how far, whose it is and since when."""
    with st.container(key=f"row-{run.id}"):
        name, what, whose = st.columns([5, 5, 3], vertical_alignment="center", gap="small")
        with name:
            link("run", escape(run.name or run.kind, at_most=80), id=str(run.id))
        progress = f" {100 * run.progress:.0f} %" if run.status == "running" else ""
        what.markdown(f":small[{badge(run.status)}{progress} · {escape(run.kind)} · {escape(run.spec['model']['id'])}]")
        whose.caption(f"{escape(owner)} · {escape(run.visibility)} · {ago(run.created_at)}")


def draw_facts(run: Run) -> None:
    """Status, kind, model, age and whose it is, in one line; and the task it answers."""
    took = (run.provenance or {}).get("duration_s")
    words = [
        badge(run.status),
        escape(run.kind),
        escape(run.spec["model"]["id"]),
        escape(run.visibility),
        f"started {ago(run.created_at)}",
        f"took {duration(took)}" if took is not None else "",
        f"id {short(run.id)}",
    ]
    st.markdown(" · ".join(word for word in words if word))
    if run.task_id:
        link("tasks", "The task it answers", id=str(run.task_id))


def draw_failure(run: Run, *, may_retry: bool) -> None:
    """What went wrong in one sentence, the traceback for those who want it, and a way to try again, if philab can."""
    st.error(escape(run.error or "The run failed without a word; its worker may have been stopped."), icon=":material/error:")
    if may_retry and run.kind != CUSTOM and st.button("Try again", icon=":material/refresh:", key="retry"):
        with faults_shown():
            go("run", id=str(queries.retry(viewer(), run.id)))
    if run.traceback and may_retry:
        with st.expander("Traceback", icon=":material/bug_report:"):
            st.code(run.traceback, language=None)


def draw_items(rows: Sequence[RunItem]) -> None:
    """The per-prompt table, in the order of the prompts."""
    if not rows:
        st.caption("This run was made on another machine; its per-prompt values stayed there.")
        return
    st.dataframe(
        [{"prompt": row.key, **row.values} for row in rows], hide_index=True, key="items_table", alt=f"Values of {len(rows)} prompts"
    )


def draw_files(rows: Sequence[Artifact]) -> None:
    """The artefacts of a run, each with a download."""
    if not rows:
        return
    st.header("Artefacts")
    for row in rows:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.download_button(
                row.name,
                data=_bytes_of(row.sha256),
                file_name=row.name,
                mime=row.media_type,
                key=f"artifact-{row.name}",
                icon=":material/download:",
                on_click="ignore",
            )
            st.caption(f"{size(row.size_bytes)} · sha256 {row.sha256[:12]}")


def _bytes_of(sha256: str) -> Callable[[], bytes]:
    return lambda: queries.artifact_bytes(sha256)


def draw_asked(run: Run, asked: Asked, result: Answer | None) -> None:
    """What was asked, to be copied: as YAML with the command that runs it, or as the text of somebody's own code; and as Python."""
    if isinstance(asked, CustomCall):
        with st.expander("Source, to read", icon=":material/description:", key="source_box"):
            draw_sources(asked, result if isinstance(result, CustomResult) else None)
    else:
        _draw_spec(run, asked)
    with st.expander("Copy as Python", icon=":material/code:", key="python_box"):
        st.code(as_python(asked, name=run.name), language="python")


def _draw_spec(run: Run, spec: AnySpec) -> None:
    with st.expander("Spec, to copy and run again", icon=":material/description:", key="spec_box"):
        st.code(spec_to_yaml(spec, name=run.name), language=None)
        st.caption(f"sha256 {run.spec_sha256}")
        st.code("philab run spec.yaml --out results/again", language=None)


def draw_provenance(run: Run) -> None:
    """Where the numbers came from: code, machine, model and data."""
    if not run.provenance:
        return
    with st.expander("Provenance", icon=":material/fingerprint:", key="provenance_box"):
        st.dataframe(
            provenance_rows(run.provenance),
            hide_index=True,
            key="provenance_table",
            column_config=headings(provenance_rows(run.provenance)),
            alt="Provenance of this run",
        )


def provenance_rows(provenance: dict[str, Any]) -> list[dict[str, str]]:
    """Provenance as names and values, nested values with dots in their names; what is not known is left out."""
    rows: list[dict[str, str]] = []
    for name, value in provenance.items():
        if isinstance(value, dict):
            rows += [{"what": f"{name}.{row['what']}", "value": row["value"]} for row in provenance_rows(value)]
        elif value not in (None, [], ()):
            rows.append({"what": name, "value": ", ".join(map(str, value)) if isinstance(value, list) else str(value)})
    return rows
