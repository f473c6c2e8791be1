"""Questions that only overviews ask: how far the shards of a task are, and how much there is of everything."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from db import schema
from db.runs import visible
from db.schema import Finding, Run, Submission, Task, WorkUnit
from db.tasks import get_task
from db.viewer import Viewer

SENDING = timedelta(seconds=20)
"""A run that was not taken by its task within this time was refused, and says so itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard of a task.

    Attributes:
        row_stop: row after the last one.
        waiting: runs that wait for other replicas.
        leased: runs under way somewhere.
    """

    shard_no: int
    row_start: int
    row_stop: int
    status: str
    accepted: int
    waiting: int
    leased: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much there is.

    Attributes:
        runs: those that the viewer may see.
        findings: sites of which more than 'unverified' is claimed.
    """

    runs: int
    open_tasks: int
    accepted: int
    contributors: int
    findings: int


def shards(session: Session, viewer: Viewer, task_id: UUID) -> list[Shard]:
    """The shards of a task in their order.

    Raises:
        NotFound: the viewer may not see such a task.
    """
    get_task(session, viewer, task_id)
    sent = Submission.work_unit_id == WorkUnit.id
    accepted = select(func.count()).where(sent, Submission.verdict == "accepted")
    waiting = select(func.count()).where(sent, Submission.verdict == "waiting")
    leased = select(func.count()).where(
        schema.Lease.work_unit_id == WorkUnit.id, schema.Lease.state == "leased", schema.Lease.expires_at > func.now()
    )
    question = select(
        WorkUnit,
        accepted.scalar_subquery().label("accepted"),
        waiting.scalar_subquery().label("waiting"),
        leased.scalar_subquery().label("leased"),
    ).where(WorkUnit.task_id == task_id)
    return [
        Shard(
            shard_no=row.WorkUnit.shard_no,
            row_start=row.WorkUnit.row_start,
            row_stop=row.WorkUnit.row_stop,
            status=row.WorkUnit.status,
            accepted=row.accepted,
            waiting=row.waiting,
            leased=row.leased,
        )
        for row in session.execute(question.order_by(WorkUnit.shard_no))
    ]


def counts(session: Session, viewer: Viewer) -> Counts:
    """The numbers of the first page."""
    contributors = select(func.count(Submission.contributor_id.distinct())).where(Submission.verdict == "accepted")
    claimed = select(func.count()).where(Finding.valid_to.is_(None), Finding.status != "unverified")
    return Counts(
        runs=session.scalar(select(func.count()).select_from(Run).where(visible(viewer))) or 0,
        open_tasks=session.scalar(select(func.count()).select_from(Task).where(Task.status.in_(("open", "in_progress")))) or 0,
        accepted=session.scalar(select(func.count()).select_from(Submission).where(Submission.verdict == "accepted")) or 0,
        contributors=session.scalar(contributors) or 0,
        findings=session.scalar(claimed.select_from(Finding)) or 0,
    )


def under_way(session: Session, viewer: Viewer, task_id: UUID) -> Sequence[Run]:
    """The viewer's runs of a task that have not arrived there yet, oldest first: queued, running, or just done and being sent."""
    if viewer.contributor_id is None:
        return []
    held = select(schema.Lease.id).where(schema.Lease.id == Run.lease_id, schema.Lease.state == "leased").exists()
    being_sent = and_(Run.status == "ok", held, Run.finished_at > func.now() - SENDING)
    alive = or_(Run.status.in_(("queued", "running")), being_sent)
    mine = (Run.task_id == task_id, Run.owner_id == viewer.contributor_id)
    return session.scalars(select(Run).where(*mine, alive).order_by(Run.id)).all()


def answered_tasks(session: Session, viewer: Viewer) -> list[tuple[UUID, str]]:
    """Id and name of the tasks that somebody has sent a run to, the latest task first. They were open once, so everybody may see them."""
    del viewer
    sent = select(Submission.id).where(Submission.task_id == Task.id).exists()
    rows = session.execute(select(Task.id, Task.name).where(sent).order_by(Task.created_at.desc()))
    return [(row.id, row.name) for row in rows]
