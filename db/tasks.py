"""Prompt cards: a spec that the community repeats over equal, disjoint shards × replicas."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Select, Text, cast, delete, func, or_, select, true, update
from sqlalchemy.orm import Session

from db import audit
from db.allowed import check_listed
from db.schema import TASK_STATUSES, Contributor, Finding, Run, Submission, Task, WorkUnit
from db.task_drafts import TaskDraft, draft_from, draft_spec, task_row, work_units
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound, SpecError
from engine.settings import Settings
from engine.spec import TaskSpec, parse_spec
from engine.spec.sharing import as_task_spec

__all__ = [
    "DEMO_TAG",
    "TaskCard",
    "TaskDetail",
    "TaskDraft",
    "create_task",
    "delete_demo",
    "draft_from",
    "get_task",
    "list_tasks",
    "set_status",
    "task_spec",
]

DEMO_TAG = "demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCard:
    """A task as lists show it.

    Attributes:
        runs_needed: shards × replicas.
        runs_completed: accepted runs, counted up to the replicas of each shard.
        runs_waiting: runs that wait for other replicas of their shard.
        shards_done: shards that have their quorum.
        shards_failed: shards that were given up.
    """

    id: UUID
    name: str
    description: str
    hypothesis: str
    status: str
    priority: int
    spec_hash: str
    kind: str
    model_id: str
    metric: str
    unit: str
    dataset_name: str
    dataset_hash: str
    runs_needed: int
    runs_completed: int
    runs_waiting: int
    n_shards: int
    shards_done: int
    shards_failed: int
    shard_size: int
    replicas: int
    delta: float
    tags: list[str]
    created_by: UUID | None
    created_by_name: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDetail(TaskCard):
    """A task with its spec."""

    spec_yaml: str
    spec: dict[str, Any]
    question_sha256: str
    tolerance: float
    max_attempts: int
    lease_ttl_s: int


def create_task(session: Session, viewer: Viewer, draft: TaskDraft, *, settings: Settings | None = None) -> TaskDetail:
    """A new task with its shards. It opens at once; on a hosted instance only a reviewer's does, others are drafts for review.

    Args:
        session: the caller's transaction.
        viewer: its author.
        draft: what to do.
        settings: of this instance; a hosted one has an allow-list of models. Left out, the lab is a local one.

    Raises:
        NotAllowed: visitors make no tasks; or the model is not allowed here.
        SpecError: the spec is wrong, names local files, or cannot be cut into such shards.
        DatasetError: the dataset is unknown or differs from the hash given.
    """
    if viewer.contributor_id is None:
        raise NotAllowed("only contributors create tasks.", next_step="Register, and send your key.")
    spec = draft_spec(draft)
    hosted = settings is not None and settings.mode == "hosted"
    if settings is not None and hosted:
        check_listed(spec, settings.allowed_models)
    task = task_row(draft, spec)
    task.created_by = viewer.contributor_id
    task.status = "draft" if hosted and not viewer.can("create_task") else "open"
    session.add(task)
    session.flush()
    session.add_all(work_units(task, spec))
    audit.record(session, viewer.contributor_id, "task_created", f"task:{task.id}", {"spec_hash": task.spec_hash, "status": task.status})
    return get_task(session, viewer, task.id)


def list_tasks(
    session: Session, viewer: Viewer, status: str | None = None, limit: int = 50, *, min_priority: int | None = None
) -> list[TaskCard]:
    """Tasks that the viewer may see, the most urgent first, archived ones only when asked for.

    Raises:
        SpecError: there is no such status.
    """
    if status is not None and status not in TASK_STATUSES:
        raise SpecError(f"unknown task status '{status}'; expected one of: {', '.join(TASK_STATUSES)}.")
    wanted = Task.status == status if status else Task.status != "archived"
    question = _cards(viewer).where(wanted).order_by(Task.priority.desc(), Task.created_at.desc(), Task.id).limit(limit)
    if min_priority is not None:
        question = question.where(Task.priority >= min_priority)
    return [TaskCard(**_card(row)) for row in session.execute(question)]


def get_task(session: Session, viewer: Viewer, task_id: UUID) -> TaskDetail:
    """One task with its spec.

    Raises:
        NotFound: there is none, or it is somebody else's draft.
    """
    row = session.execute(_cards(viewer).where(Task.id == task_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no task {task_id}.", next_step="See the list of tasks.")
    task: Task = row.Task
    return TaskDetail(
        **_card(row),
        spec_yaml=task.spec_yaml,
        spec=task.spec,
        question_sha256=task.question_sha256,
        tolerance=task.tolerance,
        max_attempts=task.max_attempts,
        lease_ttl_s=task.lease_ttl_s,
    )


def set_status(session: Session, viewer: Viewer, task_id: UUID, status: str) -> TaskDetail:
    """Opens a draft, or archives a task; what runs decide (in_progress, completed) cannot be set.

    Raises:
        NotFound: there is no such task.
        NotAllowed: it takes a reviewer to open, its author or a reviewer to archive.
        Conflict: the task is not in a state from which that goes.
    """
    # Shards before their task, as leases and submissions do, so that nobody waits in a circle.
    session.execute(select(WorkUnit.id).where(WorkUnit.task_id == task_id).order_by(WorkUnit.id).with_for_update())
    task = session.scalar(select(Task).where(Task.id == task_id, _visible(viewer)).with_for_update())
    if task is None:
        raise NotFound(f"there is no task {task_id}.", next_step="See the list of tasks.")
    own = viewer.contributor_id is not None and task.created_by == viewer.contributor_id
    if not (_reviews(viewer) or (own and status == "archived")):
        raise NotAllowed(f"only a reviewer may set a task to '{status}'.", next_step="Ask a reviewer of this instance.")
    if (task.status, status) not in {("draft", "open"), *((before, "archived") for before in TASK_STATUSES if before != "archived")}:
        raise Conflict(f"task '{task.name}' is {task.status}; it cannot become '{status}'.")
    before, task.status = task.status, status
    if status == "archived":
        closing = update(WorkUnit).where(WorkUnit.task_id == task.id, WorkUnit.status == "open")
        session.execute(closing.values(status="cancelled", n_open=0))
    audit.record(session, viewer.contributor_id, "task_status", f"task:{task.id}", {"from": before, "to": status})
    return get_task(session, viewer, task_id)


def task_spec(task: Task) -> TaskSpec:
    """The spec of a stored task."""
    return as_task_spec(parse_spec(task.spec))


def delete_demo(session: Session, *, people: bool = True) -> dict[str, int]:
    """Removes everything tagged `demo`, and says how much it was. The audit keeps its rows, and `people=False` the contributors."""
    demo_tasks = select(Task.id).where(_tagged(Task.tags))
    demo_people = select(Contributor.id).where(_tagged(Contributor.tags))
    demo_submissions = or_(Submission.task_id.in_(demo_tasks), Submission.contributor_id.in_(demo_people))
    demo_runs = select(Submission.run_id).where(demo_submissions)
    runs = list(session.scalars(select(Run.id).where(or_(_tagged(Run.tags), Run.id.in_(demo_runs), Run.task_id.in_(demo_tasks)))))
    counts = {"submissions": _deleted(session, delete(Submission).where(or_(demo_submissions, Submission.run_id.in_(runs))))}
    counts["runs"] = _deleted(session, delete(Run).where(Run.id.in_(runs)))
    counts["findings"] = _deleted(session, delete(Finding).where(Finding.task_id.in_(demo_tasks)))
    counts["tasks"] = _deleted(session, delete(Task).where(_tagged(Task.tags)))
    if people:
        counts["contributors"] = _deleted(session, delete(Contributor).where(_tagged(Contributor.tags)))
    audit.record(session, None, "demo_removed", "demo", counts)
    return counts


def _reviews(viewer: Viewer) -> bool:
    return viewer.can("review")


def _visible(viewer: Viewer) -> Any:
    if _reviews(viewer):
        return true()
    if viewer.contributor_id is None:
        return Task.status != "draft"
    return or_(Task.status != "draft", Task.created_by == viewer.contributor_id)


def _cards(viewer: Viewer) -> Select[*tuple[Any, ...]]:
    answers = select(func.count()).where(Submission.task_id == Task.id)
    units = select(func.count()).where(WorkUnit.task_id == Task.id)
    counts = {
        "accepted": answers.where(Submission.verdict == "accepted"),
        "waiting": answers.where(Submission.verdict == "waiting"),
        "done": units.where(WorkUnit.status == "satisfied"),
        "failed": units.where(WorkUnit.status.in_(("nondeterministic", "exhausted"))),
    }
    columns = [question.correlate(Task).scalar_subquery().label(name) for name, question in counts.items()]
    people = Contributor.id == Task.created_by
    return select(Task, Contributor.username, *columns).outerjoin(Contributor, people).where(_visible(viewer))


def _card(row: Any) -> dict[str, Any]:
    task: Task = row.Task
    same = ("id", "name", "description", "hypothesis", "status", "priority", "spec_hash", "model_id", "metric", "dataset_name")
    more = ("dataset_hash", "n_shards", "shard_size", "replicas", "delta", "tags", "created_by", "created_at")
    return {
        **{name: getattr(task, name) for name in same + more},
        "kind": task.spec["kind"],
        "unit": task_spec(task).unit,
        "runs_needed": task.n_shards * task.replicas,
        "runs_completed": min(row.accepted, task.n_shards * task.replicas),
        "runs_waiting": row.waiting,
        "shards_done": row.done,
        "shards_failed": row.failed,
        "created_by_name": row.username,
    }


def _tagged(tags: Any) -> Any:
    return tags.contains(cast([DEMO_TAG], ARRAY(Text)))


def _deleted(session: Session, statement: Any) -> int:
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]
