"""What the pages ask and do: one short transaction each, always as somebody. The only place where answers are cached."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import streamlit as st
from sqlalchemy.orm import Session

from app.services import services
from db import board, contributors, findings, leases, runs, submission_views, tasks, work
from db.allowed import check_allowed
from db.queue import enqueue
from db.schema import Artifact, Run, RunItem
from db.viewer import Viewer
from engine.custom import Answer, Asked, parse_answer, parse_asked
from engine.errors import Conflict
from engine.presets import apply_preset
from engine.spec import DatasetRef, NamedSpec
from engine.spec.any import CUSTOM
from engine.text.datasets import load_dataset

PER_PAGE = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class RunList:
    """A page of runs with the names of the people they belong to, and how many pages there are."""

    rows: Sequence[Run]
    owners: dict[UUID, str]
    pages: int


@contextmanager
def _asked() -> Iterator[Session]:
    with services().database.session() as session:
        yield session


def may_run(viewer: Viewer) -> bool:
    """Whether buttons that start work are drawn; what they call checks again."""
    return viewer.can("run")


def may_create_task(viewer: Viewer) -> bool:
    """Whether the form for a new task is drawn."""
    return viewer.contributor_id is not None


def may_change(viewer: Viewer, run: Run) -> bool:
    """Whether the run is the viewer's to cancel or to try again."""
    return viewer.is_admin or (viewer.contributor_id is not None and run.owner_id == viewer.contributor_id)


def counts(viewer: Viewer) -> board.Counts:
    """The numbers of the first page."""
    with _asked() as session:
        return board.counts(session, viewer)


def list_runs(viewer: Viewer, *, status: str | None, mine: bool, page: int) -> RunList:
    """A numbered page of runs, newest first; pages are counted from 1."""
    wanted = runs.RunFilter(status=status, mine=mine)
    with _asked() as session:
        found = runs.list_runs(session, viewer, wanted, limit=PER_PAGE, offset=(page - 1) * PER_PAGE)
        return RunList(rows=found.rows, owners=runs.owners(session, found.rows), pages=max(1, -(-found.total // PER_PAGE)))


def run(viewer: Viewer, run_id: UUID) -> Run:
    """One run.

    Raises:
        NotFound: there is none, or the viewer may not see it.
    """
    with _asked() as session:
        return runs.get_run(session, viewer, run_id)


def asked_of(run: Run) -> Asked:
    """The spec of a run, or the call of somebody's own code."""
    return parse_asked(run.spec)


def result_of(run: Run) -> Answer | None:
    """The result of a run that went well."""
    return None if run.result is None else parse_answer(run.result)


def has_items(run: Run) -> bool:
    """Whether a run of this kind goes through prompts one by one."""
    return run.kind != CUSTOM


def items(viewer: Viewer, run_id: UUID) -> Sequence[RunItem]:
    """The first 500 per-prompt rows of a run."""
    with _asked() as session:
        return runs.run_items(session, viewer, run_id)


def artifacts(viewer: Viewer, run_id: UUID) -> Sequence[Artifact]:
    """The files of a run."""
    with _asked() as session:
        return runs.run_artifacts(session, viewer, run_id)


def artifact_bytes(sha256: str) -> bytes:
    """The bytes of a file whose hash the viewer was shown."""
    return services().store.get(sha256)


def under_way(viewer: Viewer, task_id: UUID) -> Sequence[Run]:
    """The viewer's runs of a task that have not arrived there yet, oldest first."""
    with _asked() as session:
        return board.under_way(session, viewer, task_id)


def start_run(viewer: Viewer, named: NamedSpec, *, name: str, preset: str | None) -> UUID:
    """Queues a run and returns its id.

    Raises:
        NotAllowed: the viewer may not start runs, or not with this model.
    """
    spec = apply_preset(named.spec, preset) if preset else named.spec
    check_allowed(spec, viewer, services().settings)
    with _asked() as session:
        return work.start_run(session, viewer, spec, name=name.strip() or named.name, preset=preset).id


def cancel(viewer: Viewer, run_id: UUID) -> None:
    """Asks a run to stop."""
    with _asked() as session:
        runs.request_cancel(session, viewer, run_id)


def retry(viewer: Viewer, run_id: UUID) -> UUID:
    """Queues a failed run once more.

    Raises:
        NotAllowed: it is somebody else's, or its model is no longer allowed here.
    """
    with _asked() as session:
        check_allowed(runs.spec_of(runs.get_own_run(session, viewer, run_id)), viewer, services().settings)
        again = runs.retry_run(session, viewer, run_id)
        enqueue(session, again)
        return again.id


def list_tasks(viewer: Viewer, *, status: str | None) -> list[tasks.TaskCard]:
    """Tasks by priority."""
    with _asked() as session:
        return tasks.list_tasks(session, viewer, status, limit=100)


def task(viewer: Viewer, task_id: UUID) -> tasks.TaskDetail:
    """One task.

    Raises:
        NotFound: there is none, or it is somebody else's draft.
    """
    with _asked() as session:
        return tasks.get_task(session, viewer, task_id)


def shards(viewer: Viewer, task_id: UUID) -> list[board.Shard]:
    """The shards of a task."""
    with _asked() as session:
        return board.shards(session, viewer, task_id)


def create_task(viewer: Viewer, draft: tasks.TaskDraft) -> UUID:
    """Makes a task and returns its id.

    Raises:
        LabError: the spec, the dataset, the model or the person does not allow it.
    """
    with _asked() as session:
        return tasks.create_task(session, viewer, draft, settings=services().settings).id


@st.cache_data(max_entries=64, show_spinner=False)
def rows_of(dataset_json: str) -> int:
    """How many rows a dataset reference asks for. Datasets are told by their hash or ship with philab, so the answer does not age."""
    return len(load_dataset(DatasetRef.model_validate_json(dataset_json)).rows)


def shards_left(viewer: Viewer, task_id: UUID) -> int:
    """How many shards of a task the viewer could still run."""
    with _asked() as session:
        return leases.left_for(session, viewer, task_id)


def run_here(viewer: Viewer, task_id: UUID, count: int) -> int:
    """Leases up to `count` shards and queues a run for each; returns how many.

    Raises:
        NotAllowed: the viewer may not start runs, or not with the task's model.
        Conflict: the viewer holds as many shards as one person may, and none of them could be started.
    """
    started = 0
    with _asked() as session:
        while started < count and _run_next_shard(session, viewer, task_id, first=not started):
            started += 1
    return started


def _run_next_shard(session: Session, viewer: Viewer, task_id: UUID, *, first: bool) -> bool:
    try:
        lease = leases.lease_idle(session, viewer, task_id)
    except Conflict:
        if first:
            raise
        return False  # as many as one person may hold
    if lease is None:
        return False
    check_allowed(lease.spec, viewer, services().settings)
    name = f"{lease.task_name[:160]} · shard {lease.shard_no + 1} of {lease.n_shards}"
    work.start_run(session, viewer, lease.spec, name=name, task_id=task_id, lease_id=lease.id)
    return True


def list_findings(viewer: Viewer, task_id: UUID) -> list[findings.Finding]:
    """The current findings of a task, one per site."""
    with _asked() as session:
        return findings.list_findings(session, viewer, task_id)


def answered_tasks(viewer: Viewer) -> list[tuple[UUID, str]]:
    """Id and name of the tasks that somebody has sent a run to."""
    with _asked() as session:
        return board.answered_tasks(session, viewer)


def submissions(viewer: Viewer, task_id: UUID) -> list[submission_views.Submission]:
    """What was sent to a task, newest first."""
    with _asked() as session:
        return submission_views.list_submissions(session, viewer, submission_views.SubmissionFilter(task_id=task_id), limit=500)


def leaderboard(*, by_time: bool) -> list[contributors.Standing]:
    """Contributors with accepted runs, best first."""
    with _asked() as session:
        return contributors.leaderboard(session, "compute_time" if by_time else "runs", limit=200)


def username(viewer: Viewer) -> str:
    """The name of somebody who signed in."""
    if viewer.contributor_id is None:
        return "visitor"
    with _asked() as session:
        return contributors.profile(session, viewer.contributor_id).username
