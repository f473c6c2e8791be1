"""Verdicts: whether a shard still wants an answer, and what its replicas say about each other."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db import schema
from db.schema import Lease, Run, Task, WorkUnit
from engine.evidence.validation import Answer, ModelShape, agree, majority

_NOTES = {
    "late": "the lease was over and the shard no longer open",
    "disagrees": "most replicas of this shard agree on something else",
    "nondeterministic": "the replicas of this shard do not agree with each other; it was given up",
}


def take_slot(session: Session, lease: Lease, unit: WorkUnit) -> bool:
    """Whether the shard still wants this answer: the lease is live, or is over but nobody took its place."""
    live = select(Lease).where(Lease.work_unit_id == unit.id, Lease.contributor_id == lease.contributor_id, Lease.state == "leased")
    holding = session.scalar(live)
    if unit.status != "open" or (holding is None and unit.n_open == 0):
        wanted = False
    elif holding is None:
        unit.n_open -= 1
        wanted = True
    else:
        wanted = True
    for done in (lease, holding):
        if done is not None:
            done.state = "submitted"
    session.flush()
    return wanted


def judge(session: Session, task: Task, unit: WorkUnit) -> bool:
    """Decides on the shard when enough people answered; says whether it is now closed."""
    votes = _votes(session, unit.id)
    if len(votes) < task.replicas:
        return False
    rows = [row for row, _ in votes]
    winners = majority([[agree(one, other, task.tolerance) for _, other in votes] for _, one in votes])
    if len(winners) >= task.replicas:
        _settle(rows, winners)
        unit.status, unit.n_open = "satisfied", 0
    elif len(votes) >= task.max_attempts:
        _settle(rows, [])
        unit.status, unit.n_open = "nondeterministic", 0
    elif unit.n_open == 0 and not _held(session, unit.id):
        unit.n_open = 1  # they disagree: one more person is asked
    session.flush()
    return unit.status != "open"


def _votes(session: Session, unit_id: UUID) -> list[tuple[schema.Submission, Answer]]:
    rows = session.execute(
        select(schema.Submission, Run.provenance, Run.result["coverage"].label("coverage"))
        .join(Run, Run.id == schema.Submission.run_id)
        .where(schema.Submission.work_unit_id == unit_id, schema.Submission.verdict == "waiting")
        .order_by(schema.Submission.id)
    )
    return [
        (row, Answer(model=shape_of(provenance, coverage), n=row.n, estimate=row.estimate, se=row.se)) for row, provenance, coverage in rows
    ]


def _settle(rows: Sequence[schema.Submission], winners: Sequence[int]) -> None:
    for index, row in enumerate(rows):
        if index in winners:
            row.verdict, row.validated_at = "accepted", datetime.now(UTC)
        else:
            refuse(row, "disagrees" if winners else "nondeterministic")


def refuse(row: schema.Submission, reason: str) -> None:
    """Marks a submission as refused, with the sentence that belongs to the reason."""
    row.verdict, row.reason, row.validation_notes, row.validated_at = "refused", reason, _NOTES[reason], datetime.now(UTC)


def _held(session: Session, unit_id: UUID) -> bool:
    return bool(session.scalar(select(func.count()).where(Lease.work_unit_id == unit_id, Lease.state == "leased")))


def complete(session: Session, task: Task) -> None:
    """A task is completed when no shard is open any more."""
    still_open = select(WorkUnit.id).where(WorkUnit.task_id == task.id, WorkUnit.status == "open").exists()
    session.execute(
        update(Task).where(Task.id == task.id, Task.status.in_(("open", "in_progress")), ~still_open).values(status="completed")
    )


def shape_of(provenance: dict[str, Any] | None, coverage: dict[str, Any]) -> ModelShape:
    """What a stored run says about the model it used."""
    assert provenance is not None, "a submitted run has one"
    return ModelShape(
        fingerprint=provenance["model_fingerprint"],
        n_layers=coverage["layers_available"],
        n_heads=coverage["heads_available"],
        reference_sha256=provenance.get("reference_sha256"),
    )
