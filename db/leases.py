"""Who works on which shard, until when. Nobody chooses a shard, nobody gets one twice, and what is not returned is given out again."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import random
from typing import Any
from uuid import UUID

from sqlalchemy import Select, exists, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db import schema
from db.audit import key_lock
from db.schema import Run, Submission, Task, WorkUnit
from db.tasks import task_spec
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound
from engine.spec import TaskSpec
from engine.spec.base import Rows

MAX_OPEN = 20
"""Shards that one person may hold at the same time."""

_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A shard that somebody holds, with all they need to answer it.

    Attributes:
        spec: the task's spec with the shard's rows: exactly what is to be run.
        spec_sha256: its hash, which the run's provenance must name.
        task_spec_hash: the task's `spec_hash`, which the submission must name.
        fence: larger for every later lease.
    """

    id: UUID
    task_id: UUID
    task_name: str
    task_spec_hash: str
    work_unit_id: UUID
    shard_no: int
    n_shards: int
    spec: TaskSpec
    spec_sha256: str
    dataset_name: str
    dataset_hash: str
    fence: int
    state: str
    leased_at: datetime
    expires_at: datetime
    lease_ttl_s: int


def lease_next(session: Session, viewer: Viewer, task_id: UUID | None = None, *, another: bool = False) -> Lease | None:
    """The shard to work on now: the one that the viewer holds already, else a new one; None when there is nothing left for them.

    Asking again gives the same shard, so a client that lost the answer loses nothing.

    Args:
        session: the caller's transaction.
        viewer: who will do the work.
        task_id: only shards of this task.
        another: take a further shard even though one is held.

    Raises:
        NotAllowed: visitors do no work.
        NotFound: there is no such task.
        Conflict: the viewer holds as many shards as one person may.
    """
    person = _person(viewer)
    key_lock(session, "lease", person)
    _refuse_unknown(session, task_id)
    expire_due(session)
    live = session.execute(_live(person, task_id)).first()
    if live is not None and not another:
        return _lease(live)
    held = session.scalar(select(func.count()).where(schema.Lease.contributor_id == person, schema.Lease.state == "leased")) or 0
    if held >= MAX_OPEN:
        raise Conflict(f"you hold {held} shards, the most that one person may.", next_step="Finish or release some of them.")
    return _take(session, person, task_id)


def get_lease(session: Session, viewer: Viewer, lease_id: UUID) -> Lease:
    """The viewer's own lease, live or not.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    row = session.execute(_joined().where(schema.Lease.id == lease_id, schema.Lease.contributor_id == viewer.contributor_id)).first()
    if row is None:
        raise NotFound(f"you have no lease {lease_id}.", next_step="Ask for the next shard.")
    return _lease(row)


def my_leases(session: Session, viewer: Viewer) -> list[Lease]:
    """The shards that the viewer holds now, oldest first."""
    return [_lease(row) for row in session.execute(_live(_person(viewer), None))]


def lease_idle(session: Session, viewer: Viewer, task_id: UUID) -> Lease | None:
    """A shard of the task that no run of this lab works on: one that the viewer holds already, else a new one.

    Raises:
        NotAllowed: visitors do no work.
        NotFound: there is no such task.
        Conflict: the viewer holds as many shards as one person may.
    """
    lease = lease_next(session, viewer, task_id)
    if lease is None or not session.scalar(select(_busy(lease.id))):
        return lease
    return lease_next(session, viewer, task_id, another=True)


def left_for(session: Session, viewer: Viewer, task_id: UUID) -> int:
    """How many shards of the task `lease_idle` would give to the viewer, one after the other."""
    person = _person(viewer)
    idle = _live(person, task_id).where(~_busy(schema.Lease.id)).subquery()
    free = _free(person).join(Task, Task.id == WorkUnit.task_id).where(_workable(task_id)).subquery()
    return sum(session.scalar(select(func.count()).select_from(part)) or 0 for part in (idle, free))


def renew(session: Session, viewer: Viewer, lease_id: UUID) -> Lease:
    """Extends a live lease by the task's time to live.

    Raises:
        NotFound: there is none, or it is somebody else's.
        Conflict: it has expired, or was submitted or released.
    """
    lease = get_lease(session, viewer, lease_id)
    now = datetime.now(UTC)
    still = (schema.Lease.id == lease_id, schema.Lease.state == "leased", schema.Lease.expires_at > now)
    later = now + timedelta(seconds=lease.lease_ttl_s)
    renewed = session.execute(update(schema.Lease).where(*still).values(heartbeat_at=now, expires_at=later).returning(schema.Lease.id))
    if renewed.first() is None:
        state = "expired" if lease.state == "leased" else lease.state
        raise Conflict(
            f"lease {lease_id} is {state}.", next_step="A finished run may still be sent; it counts if nobody else took the shard."
        )
    session.expire_all()
    return get_lease(session, viewer, lease_id)


def release(session: Session, viewer: Viewer, lease_id: UUID) -> None:
    """Gives a shard back, so that somebody else gets it at once. Giving back what is not held any more changes nothing.

    Raises:
        NotFound: there is no such lease, or it is somebody else's.
    """
    lease = get_lease(session, viewer, lease_id)
    unit = locked_unit(session, lease.work_unit_id)
    released = session.execute(
        update(schema.Lease)
        .where(schema.Lease.id == lease_id, schema.Lease.state == "leased")
        .values(state="released")
        .returning(schema.Lease.id)
    )
    if released.first() is not None and unit.status == "open":
        unit.n_open += 1
    session.flush()


def expire_due(session: Session) -> int:
    """Takes back all shards whose time is over; says how many. Units in use by another transaction are left for the next call."""
    due = (schema.Lease.state == "leased", schema.Lease.expires_at < func.now())
    mine = exists().where(schema.Lease.work_unit_id == WorkUnit.id, *due)
    # Units are always locked before their leases, here as in release and submit; so nobody waits in a circle.
    units = select(WorkUnit).where(mine).order_by(WorkUnit.id).with_for_update(skip_locked=True).execution_options(populate_existing=True)
    count = 0
    for unit in session.scalars(units).all():
        expired = session.execute(
            update(schema.Lease).where(schema.Lease.work_unit_id == unit.id, *due).values(state="expired").returning(schema.Lease.id)
        ).all()
        unit.n_open += len(expired) if unit.status == "open" else 0
        count += len(expired)
    session.flush()
    return count


def locked_unit(session: Session, unit_id: UUID) -> WorkUnit:
    """The shard, fresh, and locked until the end of the transaction."""
    return session.get_one(WorkUnit, unit_id, with_for_update=True, populate_existing=True)


def _person(viewer: Viewer) -> UUID:
    if viewer.contributor_id is None:
        raise NotAllowed("only contributors work on tasks.", next_step="Register, and send your key.")
    return viewer.contributor_id


def _refuse_unknown(session: Session, task_id: UUID | None) -> None:
    if task_id is None:
        return
    status = session.scalar(select(Task.status).where(Task.id == task_id))
    if status is None:
        raise NotFound(f"there is no task {task_id}.", next_step="See the list of tasks.")


def _joined() -> Select[*tuple[Any, ...]]:
    return (
        select(schema.Lease, WorkUnit, Task)
        .join(WorkUnit, WorkUnit.id == schema.Lease.work_unit_id)
        .join(Task, Task.id == WorkUnit.task_id)
        .execution_options(populate_existing=True)
    )


def _live(person: UUID, task_id: UUID | None) -> Select[*tuple[Any, ...]]:
    """Live leases of a person that no run of this lab works on yet come first."""
    question = _joined().where(
        schema.Lease.contributor_id == person, schema.Lease.state == "leased", schema.Lease.expires_at > func.clock_timestamp()
    )
    if task_id is not None:
        question = question.where(Task.id == task_id)
    return question.order_by(_busy(schema.Lease.id), schema.Lease.fence)


def _busy(lease_id: Any) -> Any:
    """Whether a run of this lab works on the lease's shard."""
    return exists().where(Run.lease_id == lease_id, Run.status.in_(("queued", "running")))


def _take(session: Session, person: UUID, task_id: UUID | None) -> Lease | None:
    for _ in range(_TRIES):
        unit = _pick(session, person, task_id)
        if unit is None:
            return None
        try:
            with session.begin_nested():
                return _given(session, unit, person)
        except IntegrityError:  # another machine of the same person was faster
            session.expire_all()
    return None


def _pick(session: Session, person: UUID, task_id: UUID | None) -> WorkUnit | None:
    """A shard that this person has not answered and does not hold, locked; at random within the most urgent task."""
    start = random()
    for half in (WorkUnit.shuffle >= start, WorkUnit.shuffle < start):
        task = session.scalar(_tasks_with_work(person, task_id).limit(1))
        if task is None:
            return None
        question = _free(person).where(WorkUnit.task_id == task, half).order_by(WorkUnit.shuffle).limit(1)
        unit = session.scalar(question.with_for_update(skip_locked=True))
        if unit is not None:
            return unit
    others = _free(person).join(Task, Task.id == WorkUnit.task_id).where(_workable(task_id))
    urgent_first = others.order_by(Task.priority.desc(), Task.created_at, WorkUnit.shuffle).limit(1)
    return session.scalar(urgent_first.with_for_update(of=WorkUnit, skip_locked=True))


def _tasks_with_work(person: UUID, task_id: UUID | None) -> Select[UUID]:
    has_work = _free(person).where(WorkUnit.task_id == Task.id).correlate(Task).exists()
    return select(Task.id).where(_workable(task_id), has_work).order_by(Task.priority.desc(), Task.created_at)


def _workable(task_id: UUID | None) -> Any:
    workable = Task.status.in_(("open", "in_progress"))
    return workable if task_id is None else workable & (Task.id == task_id)


def _free(person: UUID) -> Select[WorkUnit]:
    held = exists().where(schema.Lease.work_unit_id == WorkUnit.id, schema.Lease.contributor_id == person, schema.Lease.state == "leased")
    not_late = or_(Submission.reason.is_(None), Submission.reason != "late")
    answered = exists().where(Submission.work_unit_id == WorkUnit.id, Submission.contributor_id == person, not_late)
    free = select(WorkUnit).where(WorkUnit.status == "open", WorkUnit.n_open > 0, ~held, ~answered)
    return free.execution_options(populate_existing=True)


def _given(session: Session, unit: WorkUnit, person: UUID) -> Lease:
    now = datetime.now(UTC)
    task = session.get_one(Task, unit.task_id)
    lease = schema.Lease(work_unit_id=unit.id, contributor_id=person, leased_at=now, heartbeat_at=now)
    lease.expires_at = now + timedelta(seconds=task.lease_ttl_s)
    unit.n_open -= 1
    session.add(lease)
    session.execute(update(Task).where(Task.id == unit.task_id, Task.status == "open").values(status="in_progress"))
    session.flush()
    return _lease(session.execute(_joined().where(schema.Lease.id == lease.id)).one())


def _lease(row: Any) -> Lease:
    lease, unit, task = row
    spec = task_spec(task).with_rows(Rows(start=unit.row_start, stop=unit.row_stop))
    return Lease(
        id=lease.id,
        task_id=task.id,
        task_name=task.name,
        task_spec_hash=task.spec_hash,
        work_unit_id=unit.id,
        shard_no=unit.shard_no,
        n_shards=task.n_shards,
        spec=spec,
        spec_sha256=unit.spec_sha256,
        dataset_name=task.dataset_name,
        dataset_hash=task.dataset_hash,
        fence=lease.fence,
        state=lease.state,
        leased_at=lease.leased_at,
        expires_at=lease.expires_at,
        lease_ttl_s=task.lease_ttl_s,
    )
