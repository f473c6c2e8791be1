"""What the accepted runs of a task say together; kept with its history, and made again from its inputs at any time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from db import schema
from db.audit import key_lock
from db.schema import Run, Submission, Task, WorkUnit
from db.viewer import Viewer
from engine.errors import NotFound
from engine.evidence.finding import Evidence, Numbers, PooledEffect, Question, pool
from engine.evidence.validation import expected_sites
from engine.hooks.sites import Site
from engine.spec import TaskSpec, parse_spec
from engine.spec.sharing import as_task_spec

FINDING_TYPES = {"z": "head_effect", "attn_out": "attention_effect", "mlp_out": "mlp_effect"}
"""What is taken away -> the type of the finding."""

_NUMBERS = ("estimate", "se", "ci_low", "ci_high", "next_low", "next_high", "tau", "i2", "p", "q", "confidence")
_MORE_NUMBERS = ("sign_agreement", "loo_low", "loo_high")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding as everybody sees it. While its status is `unverified` it has no numbers.

    Attributes:
        site: layer, name and head.
        site_label: short name, for example `L3H2`.
        status_reason: why the status is not one step higher.
        confidence: probability that the next shard shows the same sign and at least the smallest effect of interest.
        supporting_runs: accepted runs behind it.
        data: effect per shard, the submissions, and further numbers.
        inputs_hash: hash of everything that the numbers were made from.
    """

    id: UUID
    task_id: UUID
    task_name: str
    finding_type: str
    description: str
    metric: str
    unit: str
    delta: float
    site_no: int
    site: dict[str, Any]
    site_label: str
    status: str
    status_reason: str
    estimate: float | None
    se: float | None
    ci_low: float | None
    ci_high: float | None
    next_low: float | None
    next_high: float | None
    tau: float | None
    i2: float | None
    p: float | None
    q: float | None
    confidence: float | None
    sign_agreement: float | None
    loo_low: float | None
    loo_high: float | None
    k_shards: int
    n_contributors: int
    n_classes: int
    supporting_runs: int
    data: dict[str, Any]
    method_version: int
    inputs_hash: str
    created_at: datetime
    updated_at: datetime


def recompute(session: Session, task_id: UUID) -> int:
    """Pools the accepted runs of a task again; says how many findings are new or changed. The same inputs change nothing.

    Raises:
        NotFound: there is no such task.
    """
    key_lock(session, "recompute", task_id)
    task = session.get(Task, task_id, populate_existing=True)
    if task is None:
        raise NotFound(f"there is no task {task_id}.")
    spec, evidence = as_task_spec(parse_spec(task.spec)), _evidence(session, task_id)
    sites = _sites(session, task_id, spec)
    if not sites:
        return _withdraw(session, task_id, below=0)
    effects = pool(evidence, _question(session, task, spec, sites))
    current = {row.site_no: row for row in session.scalars(_current(task_id))}
    changed = [effect for effect in effects if _changes(effect, current.get(effect.site_no))]
    for effect in changed:
        _replace(session, task, spec, effect, evidence=evidence, before=current.get(effect.site_no))
    session.flush()
    return len(changed) + _withdraw(session, task_id, below=len(effects))


def list_findings(
    session: Session,
    viewer: Viewer,
    task_id: UUID | None = None,
    finding_type: str | None = None,
    min_confidence: float | None = None,
    *,
    status: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Finding]:
    """Current findings, the surest first, then the largest; those without numbers last."""
    question = _visible(viewer).where(schema.Finding.valid_to.is_(None))
    columns = ((schema.Finding.task_id, task_id), (schema.Finding.finding_type, finding_type), (schema.Finding.status, status))
    for column, value in columns:
        if value is not None:
            question = question.where(column == value)
    if min_confidence is not None:
        question = question.where(schema.Finding.confidence >= min_confidence)
    surest = (schema.Finding.confidence.desc().nulls_last(), func.abs(schema.Finding.estimate).desc().nulls_last())
    rows = session.execute(question.order_by(*surest, schema.Finding.task_id, schema.Finding.site_no).limit(limit).offset(offset))
    return [_finding(row) for row in rows]


def get_finding(session: Session, viewer: Viewer, finding_id: UUID) -> Finding:
    """One finding, current or not.

    Raises:
        NotFound: there is none.
    """
    row = session.execute(_visible(viewer).where(schema.Finding.id == finding_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no finding {finding_id}.", next_step="See the list of findings.")
    return _finding(row)


def _evidence(session: Session, task_id: UUID) -> list[Evidence]:
    rows = session.execute(
        select(Submission, WorkUnit.shard_no)
        .join(WorkUnit, WorkUnit.id == Submission.work_unit_id)
        .where(Submission.task_id == task_id, Submission.verdict == "accepted")
        .order_by(Submission.id)
        .execution_options(populate_existing=True)
    )
    return [
        Evidence(
            submission_id=row.id,
            contributor_id=row.contributor_id,
            hardware_class=row.hardware_class,
            shard_no=shard_no,
            estimate=tuple(row.estimate),
            se=tuple(row.se),
        )
        for row, shard_no in rows
    ]


def _sites(session: Session, task_id: UUID, spec: TaskSpec) -> tuple[Site, ...]:
    """The sites of the task, known once a run told the shape of the model; accepted runs first."""
    coverage = session.scalar(
        select(Run.result["coverage"])
        .join(Submission, Submission.run_id == Run.id)
        .where(Submission.task_id == task_id, Submission.verdict != "refused")
        .order_by((Submission.verdict == "accepted").desc(), Submission.id)
        .limit(1)
    )
    if coverage is None:
        return ()
    return expected_sites(spec, n_layers=coverage["layers_available"], n_heads=coverage["heads_available"])


def _question(session: Session, task: Task, spec: TaskSpec, sites: tuple[Site, ...]) -> Question:
    waiting = session.scalar(select(func.count()).where(WorkUnit.task_id == task.id, WorkUnit.status == "open")) or 0
    return Question(metric=task.metric, unit=spec.unit, sites=sites, delta=task.delta, n_shards=task.n_shards, open_shards=waiting)


def _current(task_id: UUID) -> Select[schema.Finding]:
    return select(schema.Finding).where(schema.Finding.task_id == task_id, schema.Finding.valid_to.is_(None))


def _changes(effect: PooledEffect, before: schema.Finding | None) -> bool:
    return before is None or (before.inputs_hash, before.method_version) != (effect.inputs_hash, effect.method_version)


def _replace(
    session: Session,
    task: Task,
    spec: TaskSpec,
    effect: PooledEffect,
    *,
    evidence: Sequence[Evidence],
    before: schema.Finding | None,
) -> None:
    """Writes a pooled effect. What was once shown with numbers stays as history; a blank is overwritten."""
    values = _values(task, spec, effect, evidence)
    now = datetime.now(UTC)
    if before is not None and before.estimate is None:
        for name, value in values.items():
            setattr(before, name, value)
        before.updated_at = now
        return
    if before is not None:
        before.valid_to = now
        session.flush()  # the unique index allows one current row
    session.add(schema.Finding(**values, created_at=now, updated_at=now))


def _withdraw(session: Session, task_id: UUID, *, below: int) -> int:
    """Ends findings about sites that the task does not have (any more)."""
    rows = session.scalars(_current(task_id).where(schema.Finding.site_no >= below)).all()
    for row in rows:
        row.valid_to = datetime.now(UTC)
    session.flush()
    return len(rows)


def _values(task: Task, spec: TaskSpec, effect: PooledEffect, evidence: Sequence[Evidence]) -> dict[str, Any]:
    numbers = asdict(effect.numbers) if effect.numbers else {}
    counts = ("k_shards", "n_contributors", "n_classes", "supporting_runs", "site_no", "status", "status_reason")
    return {
        **{name: numbers.get(name) for name in (*_NUMBERS, *_MORE_NUMBERS)},
        **{name: getattr(effect, name) for name in counts},
        "task_id": task.id,
        "finding_type": FINDING_TYPES[spec.site],
        "metric": task.metric,
        "unit": spec.unit,
        "site": effect.site.model_dump(mode="json"),
        "description": _describe(spec, effect),
        "data": _data(effect.numbers, evidence),
        "method_version": effect.method_version,
        "inputs_hash": effect.inputs_hash,
    }


def _data(numbers: Numbers | None, evidence: Sequence[Evidence]) -> dict[str, Any]:
    data: dict[str, Any] = {"submissions": [str(vote.submission_id) for vote in evidence]}
    if numbers is not None:
        data["shards"] = [{"shard": number, "effect": effect, "far_off": far} for number, effect, far in numbers.shards]
        data.update(median=numbers.median, sign_low=numbers.sign_low, sign_high=numbers.sign_high)
    return data


def _describe(spec: TaskSpec, effect: PooledEffect) -> str:
    what = f"Replacing {effect.site.label} by {_REPLACEMENTS[spec.mode]} ({spec.model.id}, {spec.dataset.name})"
    if effect.numbers is None:
        return f"{what}: no number yet; {effect.status_reason}."
    numbers = effect.numbers
    return (
        f"{what} changes {spec.metric} by {numbers.estimate:+.4g} {spec.unit}, "
        f"95 % interval {numbers.ci_low:+.4g} to {numbers.ci_high:+.4g}, over {effect.k_shards} shards."
    )


_REPLACEMENTS = {"zero": "zeros", "mean": "its mean", "resample": "that of another prompt"}


def _visible(viewer: Viewer) -> Select[*tuple[Any, ...]]:
    """Findings of tasks that are public, or whose author or reviewer asks."""
    question = select(schema.Finding, Task.name, Task.delta).join(Task, Task.id == schema.Finding.task_id)
    if viewer.can("review"):
        return question
    public = Task.status != "draft"
    if viewer.contributor_id is None:
        return question.where(public)
    return question.where(or_(public, Task.created_by == viewer.contributor_id))


def _finding(row: Any) -> Finding:
    kept: schema.Finding = row.Finding
    derived: dict[str, Any] = {"task_name": row.name, "delta": row.delta, "site_label": Site.model_validate(kept.site).label}
    stored = {name: getattr(kept, name) for name in Finding.__dataclass_fields__ if name not in derived}
    return Finding(**stored, **derived)
