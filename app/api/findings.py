"""What many runs say together."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query

from app.api.access import Asked
from app.api.limits import MAX_FINDINGS
from db.findings import Finding, get_finding, list_findings

router = APIRouter(tags=["findings"])

FindingType = Literal["head_effect", "attention_effect", "mlp_effect"]
FindingStatus = Literal["unverified", "candidate", "supported", "replicated", "contested", "null", "withdrawn"]


@router.get("/findings")
def findings(
    asked: Asked,
    task_id: UUID | None = None,
    finding_type: FindingType | None = None,
    min_confidence: Annotated[float | None, Query(ge=0, le=1, description="Leaves out findings without a number too.")] = None,
    status: FindingStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_FINDINGS)] = 500,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> list[Finding]:
    """Current findings, the surest first; those without a number last."""
    with asked.turn() as turn:
        return list_findings(turn.session, turn.viewer, task_id, finding_type, min_confidence, status=status, limit=limit, offset=offset)


@router.get("/findings/{finding_id}")
def finding(asked: Asked, finding_id: UUID) -> Finding:
    """One finding, current or not."""
    with asked.turn() as turn:
        return get_finding(turn.session, turn.viewer, finding_id)
