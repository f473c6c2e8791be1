"""What everybody may see of submissions: lists with filters, single ones with their full result, and totals."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from db import schema
from db.schema import Contributor, Run, RunPayload, Task, WorkUnit
from db.viewer import Viewer
from engine.errors import NotFound
from engine.evidence.submission import read_telemetry

Verdict = Literal["waiting", "accepted", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A submission as lists show it.

    Attributes:
        status: the verdict: waiting, accepted or refused.
        reason: why it was refused.
        is_valid: false once it is refused.
        spec_hash: hash of the task's spec.
        spec_sha256: hash of the shard's spec.
        duration_seconds: as told by the contributor.
        credited_seconds: what counts, bounded by the server's clock.
    """

    id: UUID
    task_id: UUID
    task_name: str
    run_id: UUID
    shard_no: int
    contributor_id: UUID
    username: str
    submitted_at: datetime
    validated_at: datetime | None
    status: Verdict
    reason: str | None
    is_valid: bool
    validation_notes: str
    preset_used: str | None
    hardware_info: dict[str, Any]
    hardware_class: str
    engine_version: str
    duration_seconds: float
    credited_seconds: float
    spec_hash: str
    spec_sha256: str
    metric: str
    n: int
    result_summary: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionDetail(Submission):
    """A submission with everything that was sent."""

    spec: dict[str, Any]
    result_full: dict[str, Any]
    provenance: dict[str, Any]
    telemetry_data: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionFilter:
    """Which submissions; None means all.

    Attributes:
        since: sent at or after.
        until: sent before.
        layer: the run tested this layer.
        head: the run tested this head, in the layer given or in any.
    """

    task_id: UUID | None = None
    contributor_id: UUID | None = None
    status: Verdict | None = None
    since: datetime | None = None
    until: datetime | None = None
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What the instance has done so far, from accepted submissions."""

    total_runs: int
    total_contributors: int
    total_compute_hours: float
    active_tasks: int


def list_submissions(
    session: Session, viewer: Viewer, wanted: SubmissionFilter | None = None, *, limit: int = 50, offset: int = 0
) -> list[Submission]:
    """Submissions, newest first. They are public; the viewer makes no difference yet."""
    del viewer
    newest_first = _listed(wanted or SubmissionFilter()).order_by(schema.Submission.submitted_at.desc(), schema.Submission.id.desc())
    return [Submission(**_card(row)) for row in session.execute(newest_first.limit(limit).offset(offset))]


def get_submission(session: Session, viewer: Viewer, submission_id: UUID) -> SubmissionDetail:
    """One submission with its result, spec, provenance and telemetry.

    Raises:
        NotFound: there is none.
    """
    del viewer
    row = session.execute(_columns(Run).where(schema.Submission.id == submission_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no submission {submission_id}.", next_step="See the list of results.")
    telemetry = session.get(RunPayload, (row.Run.id, "telemetry"))
    return SubmissionDetail(
        **_card(row),
        spec=row.Run.spec,
        result_full=row.Run.result,
        provenance=row.Run.provenance,
        telemetry_data=read_telemetry(telemetry.data) if telemetry is not None and telemetry.data else None,
    )


def stats(session: Session) -> Stats:
    """The totals."""
    accepted = schema.Submission.verdict == "accepted"
    row = session.execute(
        select(
            func.count().label("runs"),
            func.count(schema.Submission.contributor_id.distinct()).label("people"),
            func.coalesce(func.sum(schema.Submission.credited_s), 0.0).label("seconds"),
        ).where(accepted)
    ).one()
    active = session.scalar(select(func.count()).where(Task.status.in_(("open", "in_progress")))) or 0
    return Stats(total_runs=row.runs, total_contributors=row.people, total_compute_hours=row.seconds / 3600, active_tasks=active)


def _columns(*more: Any) -> Select[*tuple[Any, ...]]:
    summary = (RunPayload.run_id == schema.Submission.run_id) & (RunPayload.name == "summary")
    return (
        select(schema.Submission, Task.name, Task.spec_hash, WorkUnit.shard_no, Contributor.username, RunPayload.body, *more)
        .join(Task, Task.id == schema.Submission.task_id)
        .join(WorkUnit, WorkUnit.id == schema.Submission.work_unit_id)
        .join(Contributor, Contributor.id == schema.Submission.contributor_id)
        .join(Run, Run.id == schema.Submission.run_id)
        .outerjoin(RunPayload, summary)
    )


def _listed(wanted: SubmissionFilter) -> Select[*tuple[Any, ...]]:
    row = schema.Submission
    conditions: list[Any] = []
    for column, value in ((row.task_id, wanted.task_id), (row.contributor_id, wanted.contributor_id), (row.verdict, wanted.status)):
        if value is not None:
            conditions.append(column == value)
    if wanted.since is not None:
        conditions.append(row.submitted_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(row.submitted_at < wanted.until)
    site = {name: value for name, value in (("layer", wanted.layer), ("head", wanted.head)) if value is not None}
    if site:
        conditions.append(Run.result["effects"]["sites"].contains([site]))
    return _columns().where(*conditions)


def _card(row: Any) -> dict[str, Any]:
    kept: schema.Submission = row.Submission
    same = ("id", "task_id", "run_id", "contributor_id", "submitted_at", "validated_at", "reason", "validation_notes", "preset_used")
    more = ("hardware_class", "engine_version", "spec_sha256", "metric", "n")
    return {
        **{name: getattr(kept, name) for name in same + more},
        "task_name": row.name,
        "shard_no": row.shard_no,
        "username": row.username,
        "status": kept.verdict,
        "is_valid": kept.verdict != "refused",
        "hardware_info": kept.hardware,
        "duration_seconds": kept.duration_s,
        "credited_seconds": kept.credited_s,
        "spec_hash": row.spec_hash,
        "result_summary": row.body or {},
    }
