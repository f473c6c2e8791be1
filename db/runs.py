"""Runs: start one, find it again, watch it, stop it. A viewer sees public runs and their own; admins see all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, delete, exists, false, func, or_, select, text, true, tuple_, update
from sqlalchemy.orm import Session

from db.schema import Artifact, Contributor, Run, RunItem, RunMetric, Submission, new_id
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound, SpecError
from engine.spec import AnySpec, parse_spec

MAX_PAGE = 200
DONE = ("ok", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs; what is None does not narrow."""

    status: str | None = None
    kind: str | None = None
    mine: bool = False
    task_id: UUID | None = None
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class RunPage(NamedTuple):
    """A page of runs, newest first; `next_cursor` continues after the last one, None at the end."""

    rows: Sequence[Run]
    total: int
    next_cursor: str | None


def visible(viewer: Viewer) -> ColumnElement[bool]:
    """What lists may show to a viewer."""
    if viewer.is_admin:
        return true()
    return or_(Run.visibility == "public", _own(viewer))


def _own(viewer: Viewer) -> ColumnElement[bool]:
    return Run.owner_id == viewer.contributor_id if viewer.contributor_id else false()


def create_run(
    session: Session,
    viewer: Viewer,
    spec: AnySpec,
    *,
    name: str = "",
    preset: str | None = None,
    task_id: UUID | None = None,
    lease_id: UUID | None = None,
    visibility: str = "private",
    tags: Iterable[str] = (),
) -> Run:
    """A queued run. `db.queue.enqueue` gives it to a worker.

    Raises:
        NotAllowed: the viewer may not start runs.
    """
    if not viewer.can("run"):
        raise NotAllowed("visitors cannot start runs.", next_step="Sign in with a key.")
    run = Run(
        id=new_id(),
        owner_id=viewer.contributor_id,
        visibility=visibility,
        kind=spec.kind,
        name=name[:200],
        spec=spec.model_dump(mode="json"),
        spec_sha256=spec.sha256,
        question_sha256=spec.question_sha256,
        preset=preset,
        task_id=task_id,
        lease_id=lease_id,
        tags=list(tags),
    )
    session.add(run)
    session.flush()
    session.refresh(run)
    return run


def list_runs(
    session: Session, viewer: Viewer, wanted: RunFilter | None = None, *, limit: int = 50, cursor: str | None = None, offset: int = 0
) -> RunPage:
    """A page of the runs that a viewer may see, newest first.

    Args:
        session: a session.
        viewer: who asks.
        wanted: which of them.
        limit: 1 to 200.
        cursor: `next_cursor` of the page before; pages stay whole while runs are added.
        offset: rows to skip instead, for numbered pages.

    Raises:
        SpecError: the cursor is not one of ours.
    """
    limit = max(1, min(limit, MAX_PAGE))
    narrowed = _narrowed(select(Run), viewer, wanted or RunFilter())
    total = session.scalar(select(func.count()).select_from(narrowed.subquery())) or 0
    if cursor:
        narrowed = narrowed.where(tuple_(Run.created_at, Run.id) < _read_cursor(cursor))
    rows = session.scalars(narrowed.order_by(Run.created_at.desc(), Run.id.desc()).limit(limit + 1).offset(offset)).all()
    more = len(rows) > limit
    rows = rows[:limit]
    return RunPage(rows, total, f"{rows[-1].created_at.isoformat()}~{rows[-1].id}" if more else None)


def _narrowed(query: Select[Run], viewer: Viewer, wanted: RunFilter) -> Select[Run]:
    query = query.where(visible(viewer))
    if wanted.mine:
        query = query.where(_own(viewer))
    if wanted.text:
        pattern = f"%{_escaped(wanted.text)}%"
        query = query.where(or_(Run.name.ilike(pattern), Run.note.ilike(pattern), Run.spec["model"]["id"].astext.ilike(pattern)))
    equal: dict[Any, Any] = {Run.status: wanted.status, Run.kind: wanted.kind, Run.task_id: wanted.task_id}
    for column, value in equal.items():
        if value is not None:
            query = query.where(column == value)
    if wanted.since is not None:
        query = query.where(Run.created_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(Run.created_at < wanted.until)
    return query


def _escaped(pattern: str) -> str:
    return pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _read_cursor(cursor: str) -> tuple[datetime, UUID]:
    try:
        at, _, run_id = cursor.partition("~")
        return datetime.fromisoformat(at), UUID(run_id)
    except ValueError:
        raise SpecError(f"cursor {cursor[:80]!r} is not one that this list gave.", next_step="Start without a cursor.") from None


def get_run(session: Session, viewer: Viewer, run_id: UUID) -> Run:
    """One run; unlisted ones too, for whoever knows their id.

    Raises:
        NotFound: there is none, or the viewer may not see it.
    """
    run = session.scalar(select(Run).where(Run.id == run_id, or_(visible(viewer), Run.visibility == "unlisted")))
    if run is None:
        raise NotFound(f"there is no run {run_id} that you may see.", next_step="Look it up under Runs.")
    return run


def get_own_run(session: Session, viewer: Viewer, run_id: UUID, *, lock: bool = False) -> Run:
    """One run that the viewer may change.

    Raises:
        NotFound: there is none, or the viewer may not see it.
        NotAllowed: it belongs to somebody else.
    """
    run = get_run(session, viewer, run_id)
    if not viewer.is_admin and (viewer.contributor_id is None or run.owner_id != viewer.contributor_id):
        raise NotAllowed(f"run {run_id} belongs to somebody else.")
    if lock:
        session.refresh(run, with_for_update=True)
    return run


def spec_of(run: Run) -> AnySpec:
    """The spec of a run."""
    return parse_spec(run.spec)


def owners(session: Session, runs: Iterable[Run]) -> dict[UUID, str]:
    """Names of the people whom runs belong to."""
    ids = {run.owner_id for run in runs if run.owner_id}
    if not ids:
        return {}
    return {row.id: row.username for row in session.execute(select(Contributor.id, Contributor.username).where(Contributor.id.in_(ids)))}


def run_items(session: Session, viewer: Viewer, run_id: UUID, *, limit: int = 500, offset: int = 0) -> Sequence[RunItem]:
    """Per-prompt rows of a run, in their order."""
    get_run(session, viewer, run_id)
    query = select(RunItem).where(RunItem.run_id == run_id).order_by(RunItem.position)
    return session.scalars(query.limit(max(1, min(limit, 5000))).offset(offset)).all()


def run_metrics(session: Session, viewer: Viewer, run_id: UUID) -> Sequence[RunMetric]:
    """Points of a run's curves."""
    get_run(session, viewer, run_id)
    return session.scalars(select(RunMetric).where(RunMetric.run_id == run_id).order_by(RunMetric.name, RunMetric.step)).all()


def run_artifacts(session: Session, viewer: Viewer, run_id: UUID) -> Sequence[Artifact]:
    """Files of a run."""
    get_run(session, viewer, run_id)
    return session.scalars(select(Artifact).where(Artifact.run_id == run_id).order_by(Artifact.name)).all()


def request_cancel(session: Session, viewer: Viewer, run_id: UUID) -> Run:
    """Asks a run to stop: a queued one is cancelled at once, a running one at its next step, an ended one stays as it is."""
    run = get_own_run(session, viewer, run_id, lock=True)
    if run.status == "queued":
        run.status = "cancelled"
        run.cancel_requested = True
        run.finished_at = session.scalar(select(func.now()))
    elif run.status == "running":
        run.cancel_requested = True
    session.flush()
    return run


def retry_run(session: Session, viewer: Viewer, run_id: UUID) -> Run:
    """Queues a failed or cancelled run once more, to go on where it was; `db.queue.enqueue` gives it to a worker.

    Raises:
        Conflict: it is not over, or it went well.
    """
    run = get_own_run(session, viewer, run_id, lock=True)
    if run.status not in ("failed", "cancelled"):
        raise Conflict(f"run {run_id} is {run.status}; only failed and cancelled runs can be retried.", next_step="Clone it instead.")
    run.status, run.progress, run.progress_message = "queued", 0.0, ""
    run.error = run.traceback = run.finished_at = run.started_at = None
    run.cancel_requested, run.job_id = False, None
    session.flush()
    return run


def set_note(session: Session, viewer: Viewer, run_id: UUID, note: str) -> Run:
    """Replaces the note of a run.

    Raises:
        SpecError: longer than 20,000 characters.
    """
    if len(note) > 20_000:
        raise SpecError(f"the note has {len(note)} characters; expected at most 20000.")
    run = get_own_run(session, viewer, run_id)
    run.note = note
    session.flush()
    return run


def delete_run(session: Session, viewer: Viewer, run_id: UUID) -> str | None:
    """Deletes a run with everything of it; returns the hash of its state, which `db.states.drop` removes from the store.

    Raises:
        Conflict: it still runs, or it was submitted and is evidence now.
    """
    run = get_own_run(session, viewer, run_id, lock=True)
    if run.status == "running":
        raise Conflict(f"run {run_id} is running.", next_step="Cancel it first.")
    if session.scalar(select(exists().where(Submission.run_id == run_id))):
        raise Conflict(f"run {run_id} was submitted and is part of the evidence.", next_step="Withdraw the submission instead.")
    session.execute(delete(Run).where(Run.id == run_id))
    return run.state_sha256


def claim_run(session: Session, run_id: UUID, *, job_id: int | None = None) -> int | None:
    """Marks a run as running and returns the number of this attempt, which fences all later writes; None if it is over.

    A run that is `running` already is taken over: its worker is gone, or will find itself fenced.

    Args:
        session: the transaction.
        run_id: the run.
        job_id: the job that wants it; None too if the run belongs to another job by now.
    """
    mine = true() if job_id is None else Run.job_id == job_id
    query = (
        update(Run)
        .where(Run.id == run_id, mine, Run.status.in_(("queued", "running")), Run.cancel_requested.is_(false()))
        .values(
            status="running",
            attempt=Run.attempt + 1,
            started_at=func.now(),
            heartbeat_at=func.now(),
            progress=0.0,
            progress_message="loading",
            error=None,
            traceback=None,
        )
        .returning(Run.attempt)
    )
    attempt = session.scalar(query)
    if attempt is None:
        _end_cancelled(session, run_id)
    return attempt


def _end_cancelled(session: Session, run_id: UUID) -> None:
    """A run whose worker died after somebody asked it to stop."""
    still = and_(Run.id == run_id, Run.status.in_(("queued", "running")), Run.cancel_requested)
    session.execute(update(Run).where(still).values(status="cancelled", finished_at=func.now()))


def queue_position(session: Session, run: Run) -> int:
    """How many queued runs come before this one."""
    query = text("select count(*) from runs where status = 'queued' and (created_at, id) < (:at, :id)")
    return session.scalar(query, {"at": run.created_at, "id": run.id}) or 0
