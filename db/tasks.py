"""Prompt cards: a spec that the community repeats over equal, disjoint shards × replicas."""

from dataclasses import dataclass
from datetime import datetime
from math import ceil
from random import random
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import Field, ValidationError, model_validator
from sqlalchemy import ARRAY, Select, Text, cast, delete, func, or_, select, true, update
from sqlalchemy.orm import Session

from db import audit
from db.allowed import check_listed, check_shareable
from db.schema import TASK_STATUSES, Contributor, Finding, Run, Submission, Task, WorkUnit
from db.viewer import Viewer
from engine.errors import Conflict, NotAllowed, NotFound, SpecError
from engine.evidence.validation import TOLERANCES
from engine.settings import Settings
from engine.spec import AnySpec, parse_spec, parse_text, spec_to_yaml
from engine.spec.any import explain
from engine.spec.base import Frozen, Rows
from engine.text.datasets import Dataset, load_dataset

DEMO_TAG = "demo"
DEFAULT_RUNS = 50
DEFAULT_REPLICAS = 2
MIN_SHARD_SIZE = 2  # one prompt has no standard error


class TaskDraft(Frozen):
    """What somebody fills in to make a task. Hashes, rows and the number of runs follow from it."""

    name: Annotated[str, Field(min_length=1, max_length=200, description="Title of the card.")]
    description: Annotated[str, Field(max_length=20_000)] = ""
    hypothesis: Annotated[str, Field(max_length=20_000, description="What the author expects to be found.")] = ""
    spec_yaml: Annotated[str | None, Field(max_length=65_536, description="The spec as YAML or JSON text.")] = None
    spec: Annotated[dict[str, Any] | None, Field(description="The spec as JSON, instead of spec_yaml.")] = None
    dataset_name: Annotated[str | None, Field(max_length=64, description="Must be the spec's own dataset when given.")] = None
    runs_needed: Annotated[int | None, Field(ge=1, le=200_000, description="Shards × replicas; rounded up to whole shards.")] = None
    n_shards: Annotated[int | None, Field(ge=1, le=10_000, description="Parts that the rows are cut into.")] = None
    shard_size: Annotated[
        int | None, Field(ge=MIN_SHARD_SIZE, le=1_000_000, description="Rows per shard; as many as fit when left out.")
    ] = None
    replicas: Annotated[int | None, Field(ge=1, le=20, description="People who answer each shard.")] = None
    max_attempts: Annotated[int | None, Field(ge=1, le=100, description="Answers per shard before it is given up.")] = None
    tolerance: Annotated[float | None, Field(gt=0, le=10, description="Replicas agree within so many standard errors.")] = None
    delta: Annotated[float, Field(ge=0, le=1e6, description="Smallest effect of interest, in the metric's unit.")] = 0.0
    lease_ttl_s: Annotated[int, Field(ge=10, le=7 * 24 * 3600, description="How long one person may hold a shard.")] = 3600
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    tags: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=40)], ...], Field(max_length=20)] = ()

    @model_validator(mode="after")
    def _one_spec(self) -> Self:
        if (self.spec is None) == (self.spec_yaml is None):
            raise ValueError("a task needs exactly one of 'spec_yaml' and 'spec'")
        return self


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
    spec = _spec(draft)
    check_shareable(spec)
    if spec.limits.records is not None:
        raise SpecError("'limits.records' has no meaning in a task.", next_step="Set the dataset's 'rows' instead.")
    hosted = settings is not None and settings.mode == "hosted"
    if settings is not None and hosted:
        check_listed(spec, settings.allowed_models)
    task = _task(draft, spec)
    task.created_by = viewer.contributor_id
    task.status = "draft" if hosted and not viewer.can("create_task") else "open"
    session.add(task)
    session.flush()
    session.add_all(_units(task, spec))
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


def task_spec(task: Task) -> AnySpec:
    """The spec of a stored task."""
    return parse_spec(task.spec)


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


def _spec(draft: TaskDraft) -> AnySpec:
    spec = parse_text(draft.spec_yaml).spec if draft.spec_yaml is not None else parse_spec(draft.spec or {})
    if draft.dataset_name is not None and draft.dataset_name != spec.dataset.name:
        raise SpecError(
            f"'dataset_name' is '{draft.dataset_name}', but the spec asks for '{spec.dataset.name}'.", next_step="Leave it out."
        )
    return spec


def _task(draft: TaskDraft, spec: AnySpec) -> Task:
    dataset = load_dataset(spec.dataset)
    if spec.reference is not None:
        load_dataset(spec.reference)  # must exist before people start to work
    _check_rows(spec, dataset)
    n_shards, shard_size, replicas = _cut(draft, len(dataset.rows))
    assert spec.dataset.name is not None, "checked by check_shareable"
    return Task(
        name=draft.name.strip(),
        description=draft.description,
        hypothesis=draft.hypothesis,
        spec=spec.model_dump(mode="json"),
        spec_yaml=spec_to_yaml(spec, name=draft.name.strip()),
        spec_hash=spec.sha256,
        question_sha256=spec.question_sha256,
        dataset_name=spec.dataset.name,
        dataset_hash=dataset.sha256,
        model_id=spec.model.id,
        metric=spec.metric,
        delta=draft.delta,
        n_shards=n_shards,
        shard_size=shard_size,
        replicas=replicas,
        max_attempts=max(draft.max_attempts or 3 * replicas, replicas),
        tolerance=draft.tolerance or TOLERANCES[spec.model.dtype],
        lease_ttl_s=draft.lease_ttl_s,
        priority=draft.priority,
        tags=list(draft.tags),
    )


def _check_rows(spec: AnySpec, dataset: Dataset) -> None:
    """The metric must be defined on every row, or somebody's shard could not be answered."""
    needed = {"loss": (), "target_loss": ("target",), "logit_diff": ("target", "distractor"), "accuracy": ("target", "distractor")}
    for row in dataset.rows:
        missing = [field for field in needed[spec.metric] if getattr(row, field) is None]
        if missing:
            raise SpecError(f"metric '{spec.metric}' needs a '{missing[0]}'; row '{row.id}' of dataset '{dataset.name}' has none.")


def _cut(draft: TaskDraft, rows: int) -> tuple[int, int, int]:
    """Number of shards, rows in each, and replicas."""
    replicas = draft.replicas or (1 if draft.runs_needed == 1 else DEFAULT_REPLICAS)
    n_shards = draft.n_shards
    if n_shards is None:
        fitting = max(1, rows // (draft.shard_size or MIN_SHARD_SIZE))
        n_shards = ceil(draft.runs_needed / replicas) if draft.runs_needed else min(DEFAULT_RUNS // replicas, fitting)
    elif draft.runs_needed not in (None, n_shards * replicas):
        raise SpecError(f"'runs_needed' is {draft.runs_needed}, but {n_shards} shards × {replicas} replicas are {n_shards * replicas}.")
    shard_size = draft.shard_size or rows // n_shards
    if shard_size < MIN_SHARD_SIZE or n_shards * shard_size > rows:
        raise SpecError(
            f"{rows} rows cannot be cut into {n_shards} shards of {max(shard_size, MIN_SHARD_SIZE)} rows.",
            next_step="Ask for fewer runs, or for more rows.",
        )
    return n_shards, shard_size, replicas


def _units(task: Task, spec: AnySpec) -> list[WorkUnit]:
    start = spec.dataset.rows.start if spec.dataset.rows else 0
    units: list[WorkUnit] = []
    for number in range(task.n_shards):
        rows = Rows(start=start + number * task.shard_size, stop=start + (number + 1) * task.shard_size)
        units.append(
            WorkUnit(
                task_id=task.id,
                shard_no=number,
                row_start=rows.start,
                row_stop=rows.stop,
                spec_sha256=spec.with_rows(rows).sha256,
                n_open=task.replicas,
                shuffle=random(),
            )
        )
    return units


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


def draft_from(values: dict[str, Any]) -> TaskDraft:
    """The draft in a mapping.

    Raises:
        SpecError: a field is missing, unknown or wrong; the text names it.
    """
    try:
        return TaskDraft.model_validate(values)
    except ValidationError as wrong:
        raise SpecError(explain(wrong)) from wrong
