"""Submissions: send one, find them again."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from app.api.access import Asked
from app.api.limits import MAX_LIST
from db.submission_views import Stats, Submission, SubmissionDetail, SubmissionFilter, Verdict, get_submission, list_submissions, stats
from db.submissions import record_refusal, replay, submit
from engine.errors import SubmissionRefused
from engine.evidence.submission import SubmissionPayload

router = APIRouter(tags=["results"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the sender of a run gets back.

    Attributes:
        status: waiting (for other replicas), accepted, or refused.
        reason: why it was refused.
        view_url: where the run can be looked at.
    """

    id: UUID
    run_id: UUID
    view_url: str
    status: Verdict
    reason: str | None
    validation_notes: str


async def raw_body(request: Request) -> bytes:
    """The body as it was received."""
    return await request.body()


@router.post("/results", status_code=201, responses={200: {"model": Receipt, "description": "The same request was answered before."}})
def send(
    asked: Asked,
    response: Response,
    payload: SubmissionPayload,
    raw: Annotated[bytes, Depends(raw_body)],
    idempotency_key: Annotated[str | None, Header(max_length=200, description="A UUID made when the result was complete.")] = None,
) -> Receipt:
    """Submits the run of a leased shard, and makes it public. What cannot count is answered with 422 and the reason, and is not kept."""
    key = idempotency_key or f"body:{hashlib.sha256(raw).hexdigest()}"
    with asked.own_turn() as turn:
        viewer = turn.viewer
        before = replay(turn.session, viewer, idempotency_key=key, raw=raw)
    if before is not None:
        response.status_code = 200
        return _receipt(asked, before)
    try:
        with asked.services.database.session() as session:
            return _receipt(asked, submit(session, viewer, payload, idempotency_key=key, raw=raw))
    except SubmissionRefused as refused:
        with asked.services.database.session() as session:
            record_refusal(session, viewer, payload, refused)
        raise


@router.get("/results")
def results(
    asked: Asked,
    task_id: UUID | None = None,
    contributor_id: UUID | Literal["me"] | None = None,
    status: Verdict | None = None,
    since: Annotated[datetime | None, Query(alias="from", description="Sent at or after.")] = None,
    until: Annotated[datetime | None, Query(alias="to", description="Sent before.")] = None,
    layer: Annotated[int | None, Query(ge=0, le=10_000, description="Runs that tested this layer.")] = None,
    head: Annotated[int | None, Query(ge=0, le=10_000, description="Runs that tested this head.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> list[Submission]:
    """Submissions, newest first."""
    if contributor_id == "me":
        asked.need_key()
    with asked.turn() as turn:
        person = turn.viewer.contributor_id if contributor_id == "me" else contributor_id
        wanted = SubmissionFilter(task_id=task_id, contributor_id=person, status=status, since=since, until=until, layer=layer, head=head)
        return list_submissions(turn.session, turn.viewer, wanted, limit=limit, offset=offset)


@router.get("/results/{submission_id}")
def result(asked: Asked, submission_id: UUID) -> SubmissionDetail:
    """One submission with its full result and telemetry."""
    with asked.turn() as turn:
        return get_submission(turn.session, turn.viewer, submission_id)


@router.get("/stats", tags=["system"])
def totals(asked: Asked) -> Stats:
    """What this instance has done so far."""
    with asked.turn() as turn:
        return stats(turn.session)


def _receipt(asked: Asked, kept: Submission) -> Receipt:
    base = (asked.services.settings.public_url or "").rstrip("/")
    return Receipt(
        id=kept.id,
        run_id=kept.run_id,
        view_url=f"{base}/run?id={kept.run_id}",
        status=kept.status,
        reason=kept.reason,
        validation_notes=kept.validation_notes,
    )
